"Floods and summits against their definitions, walkers against dense equations, millimeters against grids."
import os

import numpy as np
import pytest
import torch
from grids import affine, often, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import flooded, summits_by_definition, walks_by_dense_equations
from scipy import ndimage, sparse
from skimage import segmentation

from medseg_nb.classic import watershed as room
from medseg_nb.classic.region import pieces
from medseg_nb.classic.threshold import labeled, otsu
from medseg_nb.classic.watershed import (
    arrivals, blobs, coarse, laplacian, random_walker, random_walker_probs, slope, smooth, solver, split,
    summits, watershed)
from medseg_nb.data.sets import cases
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.panoptic import panoptic

dims = st.sampled_from((2, 3))


def scene(seed, n, nan=0., kinds=(1, 2, 7)):
    "A small random image on a random grid and some seeds"
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 9 if n == 2 else 6, n))
    x = ndimage.gaussian_filter(rng.normal(size=shape), .6)
    s = np.zeros(shape, int)
    for k in kinds: s[tuple(rng.integers(0, shape))] = k
    x[(rng.random(shape) < nan) & (s == 0)] = np.nan
    grid = affine(rng, n)
    return Volume(x[None], grid), Volume(s[None], grid), rng


def disk(shape, spacing, *circles):
    "Union of disks (center..., radius) in mm"
    at = [i*mm for i, mm in zip(np.indices(shape), spacing)]
    return np.any([sum((a - c)**2 for a, c in zip(at, circle)) < circle[-1]**2 for circle in circles], 0)


def grid(*spacing): return np.diag([*spacing, 1.])


# ---- steepness

@often
@given(seeds, dims)
def test_a_ramp_is_as_steep_as_it_is_per_millimeter(seed, n):
    rng = np.random.default_rng(seed)
    mm, rise = rng.uniform(.4, 4, n), rng.normal(size=n)
    x = sum(i*a*b for i, a, b in zip(np.indices((7, 6, 5)[:n]), mm, rise))
    np.testing.assert_allclose(slope(x, mm, 0), np.sqrt((rise**2).sum()))


def test_blur_is_as_wide_in_millimeters_along_every_axis():
    x = np.zeros((81, 41))
    x[40, 20] = 1
    y = smooth(x, (1., 2.), 4.)
    axes = enumerate(zip(x.shape, (1, 2)))
    wide = [(y.sum(1 - a)*(mm*(np.arange(n) - n//2))**2).sum() for a, (n, mm) in axes]
    np.testing.assert_allclose(wide, 16, rtol=.03)


def test_a_lost_voxel_counts_as_the_nearest_in_millimeters():
    x = np.array([[np.nan, 5.], [7., 6.]])
    assert smooth(x, (1., 3.), 0.)[0, 0] == 7 and smooth(x, (3., 1.), 0.)[0, 0] == 5
    assert np.isnan(x[0, 0])


def test_no_edge_where_a_flat_image_has_a_hole():
    x = np.full((9, 9), 3.)
    x[4:6, 4:6] = np.nan
    np.testing.assert_allclose(slope(x, (1., 1.), 1.), 0, atol=1e-12)


# ---- flood

@often
@given(seeds, dims, st.sampled_from((0., .25)), st.sampled_from((0., 1.)))
def test_watershed_is_the_flood(seed, n, nan, sigma):
    image, s, _ = scene(seed, n, nan)
    x = image.numpy()[0]
    height = slope(x, image.spacing, sigma)
    if len(np.unique(height)) < height.size: return
    want = flooded(height, s.numpy()[0], ~np.isnan(x))
    assert (watershed(image, s, sigma).numpy()[0] == want).all()


def test_watershed_ends_at_the_edge_wherever_the_mark_is():
    x = np.zeros((20, 30))
    x[:, 12:] = 1
    for row in (1, 10, 18):
        s = np.zeros((20, 30), int)
        s[row, 1], s[10, 28] = 3, 4
        out = watershed(Volume(x[None]), Volume(s[None])).numpy()[0]
        assert (out[:, :11] == 3).all() and (out[:, 13:] == 4).all()


def test_watershed_is_the_same_picture_on_a_finer_grid():
    x = ndimage.gaussian_filter(disk((40, 40), (1, 1), (20, 20, 9)).astype(float), 2)
    s = np.zeros((40, 40), int)
    s[20, 20], s[0, 0] = 1, 2
    fine = watershed(Volume(x[None]), Volume(s[None]), 2.).numpy()
    thick = (Volume(y[None, :, ::2].copy(), grid(1., 2.)) for y in (x, s))
    assert (watershed(*thick, 2.).numpy() != fine[:, :, ::2]).mean() < .02


def test_what_no_flood_reaches_is_background():
    x = np.ones((3, 9))
    x[:, 4] = np.nan
    s = np.zeros((3, 9), int)
    s[1, 1] = 2
    for f in (watershed, random_walker):
        out = f(Volume(x[None]), Volume(s[None])).numpy()[0]
        assert (out[:, :4] == 2).all() and (out[:, 4:] == 0).all()


# ---- summits

@often
@given(seeds, dims, st.sampled_from((0., .5, 1., 2., 5.)))
def test_summits_are_the_maxima_of_the_cut_hills(seed, n, depth):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 10 if n == 2 else 6, n))
    height, within = rng.integers(0, 8, shape)/2, rng.random(shape) < .7
    if not within.any(): return
    got, want = summits(height, within, depth), summits_by_definition(height, within, depth)
    assert ((got > 0) == want).all() and not got[~within].any()
    parts, count = ndimage.label(within)
    assert set(parts[got > 0]) == set(range(1, count + 1))


# ---- splitting

def two(spacing=(1., 1.), r=10., apart=15., scale=1.):
    "Two disks of radius r mm that overlap; half the width of their neck"
    mm = np.array(spacing)
    shape = tuple((np.array([34, 50])*scale/mm).round().astype(int))
    a, b = (17*scale, 17*scale, r*scale), (17*scale, (17 + apart)*scale, r*scale)
    return Volume(disk(shape, mm, a, b)[None], grid(*spacing)), np.sqrt(r**2 - apart**2/4)*scale


@pytest.mark.parametrize('spacing', [(1., 1.), (.5, 1.), (1., .5), (.25, .5)])
def test_a_neck_is_cut_where_it_is_narrower_by_the_depth_in_millimeters(spacing):
    mask, neck = two(spacing)
    slack = .3 + 1.6*max(spacing)
    assert split(mask, 10 - neck - slack).data.max() == 2
    assert split(mask, 10 - neck + slack).data.max() == 1


def test_the_cut_is_in_the_middle_of_the_neck():
    out = split(two()[0], 1.).numpy()[0]
    middle = 17 + 7.5
    columns = np.indices(out.shape)[1]
    assert abs(columns[out == 1].max() - middle) < 1.6 and abs(columns[out == 2].min() - middle) < 1.6
    assert out[17, 17] == 1 and out[17, 32] == 2


def test_depth_and_spacing_scale_together():
    small, large = two()[0], two((3., 3.), scale=3.)[0]
    assert small.shape == large.shape
    assert torch.equal(split(small, 1.).data, split(large, 3.).data)


@often
@given(seeds, dims, st.sampled_from((0., 1., 100.)))
def test_splitting_loses_nothing_and_joins_nothing(seed, n, depth):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12 if n == 2 else 7, n))
    mask = Volume((rng.random(shape) < .6)[None], affine(rng, n))
    out, x = split(mask, depth).numpy()[0], mask.numpy()[0]
    parts, count = ndimage.label(x)
    assert ((out > 0) == x).all()
    assert all(ndimage.label(out == k)[1] == 1 for k in range(1, out.max() + 1))
    assert all(len(set(parts[out == k])) == 1 for k in range(1, out.max() + 1))
    if depth == 100.: assert out.max() == count


def test_split_of_everything_nothing_and_a_great_many():
    assert (split(Volume(np.ones((1, 5, 6), int))).numpy() == 1).all()
    assert (split(Volume(np.zeros((1, 5, 6), int))).numpy() == 0).all()
    many = np.zeros((1, 40, 40), int)
    many[:, ::2, ::2] = 1
    assert split(Volume(many)).data.max() == 400
    assert (split(Volume(np.array([[[4, 0, 2]]]))).numpy() == [[[1, 0, 2]]]).all()


@pytest.mark.parametrize('spacing', [(1., 1.), (.5, 1.)])
def test_blobs_are_told_apart_bright_or_dark(spacing):
    mask = two(spacing)[0]
    x = np.where(mask.numpy(), 80., 20.) + np.random.default_rng(0).normal(0, 8, mask.data.shape)
    bright, dark = blobs(mask.new(torch.from_numpy(x))), blobs(mask.new(torch.from_numpy(100 - x)), dark=True)
    assert torch.equal(bright.data, dark.data) and bright.data.max() == 2
    assert ((bright.numpy() > 0) != mask.numpy()).mean() < .02
    assert blobs(mask.new(torch.from_numpy(x)), depth=9.).data.max() == 1
    rough = blobs(mask.new(torch.from_numpy(np.where(mask.numpy(), 80., 20.) + 4*(x % 8))), sigma=0.)
    assert rough.data.max() >= 2


def test_blobs_in_space_and_beside_a_lost_slice():
    x = disk((16, 16, 30), (1, 1, 1), (8, 8, 8, 6), (8, 8, 19, 6)).astype(float)
    x[:, :, 25:] = np.nan
    out = blobs(Volume(x[None])).numpy()[0]
    assert out.max() == 2 and not out[:, :, 25:].any() and out[8, 8, 8] != out[8, 8, 19] != 0


# ---- walkers

@often
@given(seeds, dims, st.sampled_from((0., .2)), st.sampled_from((0., .5, 5.)))
def test_laplacian_and_chances_are_the_dense_ones(seed, n, nan, beta):
    image, s, _ = scene(seed, n, nan)
    x, k = image.numpy()[0], s.numpy()[0]
    L, kinds, want = walks_by_dense_equations(x, k, image.spacing, beta, room.DOOR)
    np.testing.assert_allclose(laplacian(x, image.spacing, beta).toarray(), L, atol=1e-12)
    got_kinds, got = arrivals(x, k, image.spacing, beta)
    assert got_kinds.tolist() == kinds
    np.testing.assert_allclose(got, want, atol=1e-7)
    walked = want.sum(0) > .5
    np.testing.assert_allclose(got.sum(0), walked, atol=1e-9)
    assert got.min() >= 0 and got.max() <= 1
    probs, labels = random_walker_probs(image, s, beta), random_walker(image, s, beta).numpy()[0]
    assert probs.data.dtype == torch.float32 and np.allclose(probs.numpy(), want, atol=1e-6)
    sure = np.sort(np.concatenate([want, 0*want[:1]]), 0)
    sure = walked & (sure[-1] - sure[-2] > 1e-6)
    assert (labels[sure] == np.array(kinds)[want.argmax(0)][sure]).all() and not labels[~walked].any()


@often
@given(seeds, dims)
def test_no_chance_exceeds_all_of_its_neighbors(seed, n):
    image, s, _ = scene(seed, n)
    p = arrivals(image.numpy()[0], s.numpy()[0], image.spacing, 1.)[1][0]
    cross = ndimage.generate_binary_structure(n, 1)
    cross[(1,)*n] = False
    filters = ndimage.maximum_filter, ndimage.minimum_filter
    high, low = (f(p, footprint=cross, mode='nearest') for f in filters)
    free = s.numpy()[0] == 0
    assert (p <= high + 1e-9)[free].all() and (p >= low - 1e-9)[free].all()


@often
@given(seeds, dims, st.sampled_from((.5, 2.)))
def test_on_cubes_it_is_scikit_images_walker(seed, n, beta):
    image, s, rng = scene(seed, n)
    x, k = image.numpy()[0], np.unique(s.numpy()[0], return_inverse=True)[1].reshape(image.shape)
    if len(np.unique(k)) < 3 or not (k == 0).any() or max(image.shape) < 3: return
    gaps = np.concatenate([np.diff(x, axis=a).ravel() for a in range(n)])
    with pytest.MonkeyPatch.context() as m:
        m.setattr(room, 'DOOR', 1e-10)
        got = arrivals(x, k, (1.,)*n, beta)[1]
    same = beta*10*x.std()/np.mean(gaps**2)
    want = segmentation.random_walker(x, k, beta=same, mode='bf', return_full_prob=True)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_walls_scale_with_the_noise_and_not_with_the_unit():
    image, s, _ = scene(3, 2)
    p = random_walker_probs(image, s).data
    for a, b in ((1000., 5.), (1e-3, -2.), (-1., 0.)):
        np.testing.assert_allclose(random_walker_probs(image.new(image.data*a + b), s).data, p, atol=1e-5)


@pytest.mark.parametrize('long', [1., 2., 3.])
def test_a_flat_square_is_halved_on_its_diagonal_whatever_the_voxels(long):
    shape = (30, int(30/long))
    s = np.zeros(shape, int)
    s[0], s[:, 0], s[0, 0] = 1, 2, 0
    p = random_walker_probs(Volume(np.full((1, *shape), 7.), grid(1., long)),
                            Volume(s[None], grid(1., long))).numpy()[0]
    i, j = np.indices(shape)
    on = abs((i + .0) - long*j) < .01
    np.testing.assert_allclose(p[on & (i > 5)], .5, atol=.04)
    assert p[3, -2] > .8 and p[-2, 1] < .35


def ball(n=24):
    x = disk((n,)*3, (1, 1, 1), (n/2, n/2, n/2, n/3)).astype(float)
    x += np.random.default_rng(0).normal(0, .1, x.shape)
    s = np.zeros(x.shape, int)
    s[n//2, n//2, n//2], s[0, 0, 0], s[-1, -1, -1] = 5, 2, 2
    return x, s


def test_a_large_volume_is_solved_as_exactly_as_need_be():
    x, s = ball()
    kinds, p = arrivals(x, s, (1., 1., 1.), 2.)
    rows = laplacian(x, (1., 1., 1.), 2.)[(s == 0).ravel()]
    want = sparse.linalg.spsolve(rows[:, (s == 0).ravel()].tocsc(), -(rows@(s == 2).ravel().astype(float)))
    assert kinds.tolist() == [2, 5] and abs(p[0][s == 0] - want).max() < .01
    assert ((p[0][s == 0] > .5) != (want > .5)).mean() < .002
    truth = disk(x.shape, (1, 1, 1), (12, 12, 12, 8))
    assert ((random_walker(Volume(x[None]), Volume(s[None])).numpy()[0] == 5) != truth).mean() < .03


def test_coarse_grids_are_a_fair_first_guess():
    x, s = ball()
    free = np.flatnonzero(s == 0)
    inner = laplacian(x, (1., 1., 1.), 2.)[free][:, free]
    rough = coarse(inner, np.array(np.unravel_index(free, x.shape)))
    a, b = np.random.default_rng(0).normal(size=(2, len(free)))
    np.testing.assert_allclose(a@rough(b), b@rough(a), rtol=1e-8)
    assert a@rough(a) > 0
    y = np.ones(len(free))
    far = rough(inner@y) - y
    assert far@(inner@far) < .55*y@(inner@y)


def test_the_solver_gives_up_aloud():
    x, s = ball()
    free = np.flatnonzero(s == 0)
    with pytest.raises(ValueError, match='smaller beta'), pytest.MonkeyPatch.context() as m:
        m.setattr(room, 'cg', lambda *_, **k: (0, k['maxiter']))
        solver(laplacian(x, (1., 1., 1.), 2.)[free][:, free], np.array(np.unravel_index(free, x.shape)))(free)


def test_an_overshooting_solver_does_not_leave_zero_to_one():
    x, s = ball(6)
    for over in (-.2, 1.2):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(room, 'solver', lambda *_: lambda r: np.full(len(r), over))
            p = arrivals(x, s, (1., 1., 1.), 2.)[1]
        assert p.min() == 0 and p.max() == 1 and (p.sum(0) == 1).all()


def test_one_voxel_has_no_steps():
    assert laplacian(np.zeros((1, 1)), (1., 1.), 1.).toarray().tolist() == [[0]]


def test_labels_may_be_any_numbers_and_one_alone_takes_all():
    x = np.random.default_rng(0).normal(size=(1, 6, 7))
    s = np.zeros((1, 6, 7), int)
    s[0, 1, 1], s[0, 4, 5] = 300, 9
    for f in (watershed, random_walker):
        out = f(Volume(x), Volume(s))
        assert set(out.data.unique().tolist()) == {9, 300} and out.data.dtype == torch.int32
        assert f(Volume(x), Volume(s*(s == 9))).data.unique().tolist() == [9]
    assert random_walker_probs(Volume(x), Volume(s)).data[0, 4, 5] == 1
    full = Volume(np.full((1, 6, 7), 4))
    assert (random_walker(Volume(x), full).numpy() == 4).all()


# ---- what is wrong is said

def test_bad_numbers():
    image, s, _ = scene(0, 2)
    for bad in (-1., np.nan, np.inf):
        with pytest.raises(ValueError, match=f'sigma={bad}.*mm'): watershed(image, s, bad)
        with pytest.raises(ValueError, match=f'sigma={bad}.*mm'): blobs(image, sigma=bad)
        with pytest.raises(ValueError, match=f'depth={bad}.*mm'): blobs(image, bad)
        with pytest.raises(ValueError, match=f'depth={bad}.*mm'): split(image, bad)
        with pytest.raises(ValueError, match=f'beta={bad}'): random_walker(image, s, bad)
        with pytest.raises(ValueError, match=f'beta={bad}'): random_walker_probs(image, s, bad)


@pytest.mark.parametrize('f', [watershed, random_walker, random_walker_probs])
def test_bad_seeds(f):
    image, s, _ = scene(0, 2)
    with pytest.raises(ValueError, match='no seed'): f(image, s.new(s.data*0))
    with pytest.raises(ValueError, match='another grid'): f(image, Volume(s.data, grid(9., 9.)))
    with pytest.raises(TypeError, match='wanted a Volume'): f(image, s.numpy())
    lost = image.data.clone()
    lost[s.data > 0] = np.nan
    with pytest.raises(ValueError, match='no seed'): f(image.new(lost), s)


@pytest.mark.skipif('MEDSEG_DATA' not in os.environ, reason='wants dsb2018 in MEDSEG_DATA')
def test_blobs_beat_pieces_on_real_nuclei():
    def mean(f): return np.mean([panoptic(f(c.image), c.mask, instances=True)['pq'][0] for c in some])
    glowing = [c for c in cases('dsb2018', 60) if c.meta['kind'] == 'fluorescence']
    some = [c for c in glowing if c.image.channels == 1][:30]
    assert mean(blobs) > mean(lambda v: labeled(v, pieces(otsu(v))[0])) + .02
