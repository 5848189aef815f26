"Brushes, polygons, fills, growing and the walker against slow and plainly right programs."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from matplotlib.path import Path as Outline
from oracles import distance_to_stroke, grown_by_queue, line_voxels
from scipy import ndimage

from medseg_nb.data.volume import Volume
from medseg_nb.view.brush import between, brush, flood, grow, holes, polygon, trimmed, union, walker

seeds = st.integers(0, 2**32 - 1)
some = settings(max_examples=40, deadline=None)


def grid_of(rng, n=3):
    "A grid with its own spacing, turned and sheared"
    affine = np.eye(n + 1)
    affine[:n, :n] = np.linalg.qr(rng.normal(size=(n, n)))[0]@np.diag(rng.uniform(.3, 4, n))
    affine[:n, :n] += rng.uniform(-.05, .05, (n, n))
    affine[:n, n] = rng.uniform(-50, 50, n)
    return Volume(torch.zeros(1, *rng.integers(1, 10, n)), affine)


def whole(x): return Volume(torch.from_numpy(np.ascontiguousarray(x))[None])
def everything(x): return trimmed(tuple(slice(0, n) for n in x.shape), x)


@some
@given(seeds, st.integers(1, 5))
def test_ball_is_distance_to_the_line(seed, k):
    rng = np.random.default_rng(seed)
    grid = grid_of(rng, rng.integers(2, 4))
    size, radius = np.array(grid.shape), rng.uniform(0, 8)*(rng.random() < .8)
    points = rng.uniform(-.9*size, 1.9*size, (k, grid.ndim))
    if rng.random() < .3: points = np.maximum(np.floor(points*2)/2, .5 - size)
    apart = distance_to_stroke(grid, points)
    want = (apart <= radius)*(radius > 0) | line_voxels(points, grid.shape)
    got, sure = brush(grid, points, radius).full(grid.shape), abs(apart - radius) > 1e-5
    np.testing.assert_array_equal(got[sure], want[sure])


@some
@given(seeds, st.integers(0, 2))
def test_disk_lies_in_its_slice(seed, axis):
    rng = np.random.default_rng(seed)
    grid, radius = grid_of(rng), rng.uniform(0, 8)
    points = rng.uniform(0, np.array(grid.shape) - .5, (3, 3))
    points[:, axis] = at = int(rng.integers(grid.shape[axis]))
    apart, here = distance_to_stroke(grid, points), np.zeros(grid.shape, bool)
    here[tuple(at if a == axis else slice(None) for a in range(3))] = True
    want = ((apart <= radius) | line_voxels(points, grid.shape)) & here
    got, sure = brush(grid, points, radius, axis).full(grid.shape), abs(apart - radius) > 1e-5
    np.testing.assert_array_equal(got[sure], want[sure])


def test_radius_on_a_voxel_is_inside():
    grid = Volume(torch.zeros(1, 21, 21, 21), np.diag([.1, .3, .7, 1]))
    got = brush(grid, (10, 10, 10), 2.1).full(grid.shape)
    assert got[10, 10, 7] and got[10, 10, 13] and got[10, 3, 10] and got[10, 17, 10] and not got[10, 10, 6]


@some
@given(seeds)
def test_stroke_has_no_gaps(seed):
    rng = np.random.default_rng(seed)
    grid = Volume(torch.zeros(1, 30, 20, 25))
    points = np.floor(rng.uniform(0, (29, 19, 24), (4, 3))*2)/2
    assert ndimage.label(brush(grid, points, 0).full(grid.shape), np.ones((3, 3, 3)))[1] == 1


def test_box_is_as_small_as_can_be():
    grid = Volume(torch.zeros(1, 64, 64, 32), np.diag([1, 1, 3., 1]))
    r = brush(grid, [(10, 20, 5), (20, 20, 5)], 6)
    assert r.box == (slice(4, 27), slice(14, 27), slice(3, 8))
    assert r.inside.shape == (23, 13, 5)
    outside = [brush(grid, [(-9, -9, -9)], 2), brush(grid, [(5, 5, -3)], 9, axis=2),
               polygon(grid, [(-9, -9, 1)]*3, 2)]
    assert [r.inside.size for r in outside] == [0, 0, 0]
    assert not between(grid, outside[0], 0, 1).full(grid.shape).any()


@some
@given(seeds, st.integers(0, 2), st.integers(3, 9))
def test_polygon_is_matplotlibs(seed, axis, k):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 14, 3)
    points = rng.uniform(-.5*shape, 1.5*shape, (k, 3))
    points[:, axis] = at = int(rng.integers(shape[axis]))
    flat = [a for a in range(3) if a != axis]
    ij = np.indices(shape[flat]).reshape(2, -1).T
    want = np.zeros(shape, bool)
    inside = Outline(points[:, flat]).contains_points(ij).reshape(shape[flat])
    want[tuple(at if a == axis else slice(None) for a in range(3))] = inside
    got = polygon(Volume(torch.zeros(1, *shape)), points, axis).full(shape)
    np.testing.assert_array_equal(got, want)


def test_polygon_holds_its_border():
    grid = Volume(torch.zeros(1, 9, 9))
    assert polygon(grid, [(2, 2), (2, 6), (5, 6), (5, 2)]).inside.shape == (4, 5)


@some
@given(seeds, st.sampled_from([None, 0, 1, 2]))
def test_flood_is_scipys_label(seed, axis):
    rng = np.random.default_rng(seed)
    x = rng.choice(np.array([0, 1, 2], np.uint8), (60, 50, 3), p=(.72, .14, .14))
    at = tuple(rng.integers(x.shape).tolist())
    same = x == x[at]
    if axis is not None: same &= np.indices(x.shape)[axis] == at[axis]
    parts, _ = ndimage.label(same)
    np.testing.assert_array_equal(flood(whole(x), at, axis).full(x.shape), parts == parts[at])


def test_flood_follows_a_long_thin_way():
    x = np.zeros((300, 9), np.uint8)
    x[:, 1], x[-1, 1:8], x[100:, 7] = 1, 1, 1
    np.testing.assert_array_equal(flood(x, (100, 7)).full(x.shape), x == 1)


@some
@given(seeds, st.sampled_from([None, 0, 1, 2]))
def test_holes_cannot_reach_the_edge(seed, axis):
    rng = np.random.default_rng(seed)
    x = rng.choice(np.array([0, 1, 2], np.uint8), (9, 8, 7), p=(.25, .65, .1))
    want = np.zeros(x.shape, bool)
    for at in range(1 if axis is None else x.shape[axis]):
        cut = tuple(at if a == axis else slice(None) for a in range(3))
        parts, _ = ndimage.label(np.pad(x[cut] != 1, 1, constant_values=True))
        shut = parts != parts.flat[0]
        want[cut] = shut[tuple(slice(1, -1) for _ in shut.shape)] & (x[cut] == 0)
    np.testing.assert_array_equal(holes(x, 1, axis).full(x.shape), want)


@some
@given(seeds, st.sampled_from([None, 0, 1, 2]))
def test_grow_is_a_queue(seed, axis):
    rng = np.random.default_rng(seed)
    grid = grid_of(rng)
    image = Volume(torch.from_numpy(rng.normal(size=(rng.integers(1, 3), *grid.shape))), grid.affine)
    at = tuple(rng.integers(grid.shape).tolist())
    tolerance, radius = rng.uniform(.2, 2), rng.choice([None, rng.uniform(0, 12)])
    want = grown_by_queue(image, at, tolerance, radius, axis)
    np.testing.assert_array_equal(grow(image, at, tolerance, radius, axis).full(grid.shape), want)


def test_between_takes_both_ends_and_no_nan():
    x = torch.tensor([[[0., 1, 2, 3, float('nan')]]])
    r = between(Volume(x), everything(np.ones((1, 5), bool)), 1, 2)
    assert r.full((1, 5)).tolist() == [[False, True, True, False, False]]


@some
@given(seeds, st.integers(1, 4))
def test_union_is_or(seed, k):
    rng = np.random.default_rng(seed)
    masks = rng.random((k, 6, 5, 4)) < rng.choice([0, .05, .5], (k, 1, 1, 1))
    got = union(*map(everything, masks))
    np.testing.assert_array_equal(got.full((6, 5, 4)), masks.any(0))
    assert got.inside.shape == everything(masks.any(0)).inside.shape


def test_walker_stops_at_an_edge_in_any_units():
    x = np.zeros((20, 16, 5))
    x[11:] = 1
    x += np.random.default_rng(0).normal(size=x.shape)*.02
    for scale, move in ((1, 0), (2000, -1000), (1e-3, 7)):
        image = whole(scale*x + move)
        r = walker(image, brush(image, (5, 8, 2), 1), brush(image, (17, 8, 2), 1), margin=30)
        assert (r.full(x.shape) == (np.arange(20) < 11)[:, None, None]).all()


def test_walker_stays_in_its_margin():
    image = Volume(torch.rand(1, 40, 40, 9), np.diag([1, 2, 3., 1]))
    marks = brush(image, [(20, 18, 4)], 0), brush(image, [(20, 24, 4)], 0)
    r = walker(image, *marks, margin=(4, 4, 0))
    assert r.full(image.shape)[20, 18, 4] and not r.full(image.shape)[20, 24, 4]
    low, high = zip(*((b.start, b.stop) for b in r.box))
    assert low >= (16, 16, 4) and high[0] <= 25 and high[1] <= 27 and high[2] == 5


def test_walker_knows_millimeters():
    image = Volume(torch.zeros(1, 21, 21), np.diag([1., 5, 1]))
    marks = brush(image, [(2, 10)], 0), brush(image, [(18, 10)], 0)
    far = walker(image, *marks, margin=50).full(image.shape)
    assert far[:10].all() and not far[11:].any()


bad = {'points are (1, 2)': lambda g: brush(g, [(1, 1)], 1),
       'far outside': lambda g: brush(g, [(99, 1, 1)], 1),
       'points reach': lambda g: brush(g, [(np.nan, 1, 1)], 1),
       'radius is -1': lambda g: brush(g, [(1, 1, 1)], -1),
       'radius is nan': lambda g: brush(g, [(1, 1, 1)], np.nan),
       'axis=3': lambda g: brush(g, [(1, 1, 1)], 1, 3),
       'slices [1, 2]': lambda g: brush(g, [(1, 1, 1), (1, 1, 2)], 1, 2),
       'in a slice': lambda g: polygon(g, [(1, 1, 1)]*3),
       'Voxel (9, 0, 0) is outside': lambda g: grow(g, (9, 0, 0), 1),
       'marks outside': lambda g: walker(g, brush(g, (1, 1, 1), 1), brush(g, (-2, 1, 1), 0))}


@pytest.mark.parametrize('word', bad)
def test_refused(word):
    with pytest.raises(ValueError) as e: bad[word](Volume(torch.zeros(1, 5, 5, 5)))
    assert word in str(e.value)


def test_walker_refuses_what_would_take_minutes():
    image = Volume(torch.zeros(1, 90, 90, 90))
    with pytest.raises(ValueError, match='729,000 voxels; wanted 300,000 at most'):
        walker(image, brush(image, (40, 40, 40), 1), brush(image, (50, 40, 40), 1), margin=90)


def test_walker_survives_odd_images():
    x = torch.rand(2, 9, 9, 9)
    x[0, 4, 4, 4], x[1, 0, 0, 0] = float('nan'), float('inf')
    image = Volume(x)
    r = walker(image, brush(image, (1, 1, 1), 0), brush(image, (7, 7, 7), 0))
    assert r.full(image.shape)[1, 1, 1] and not r.full(image.shape)[7, 7, 7]


def test_nothing_is_changed():
    image = Volume(torch.rand(1, 9, 9, 9))
    x, labels = image.data.clone(), np.zeros((9, 9, 9), np.uint8)
    grow(image, (4, 4, 4), .3), walker(image, brush(image, (2, 2, 2), 1), brush(image, (6, 6, 6), 1))
    flood(labels, (1, 1, 1)), holes(labels, 0)
    assert torch.equal(x, image.data) and not labels.any()
