"Boundary bands: against every voxel's distance to every other, and the published erosion in OpenCV."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import band_by_distances, boundary_by_distances
from scipy import ndimage

from medseg_nb.data.phantom import pair, phantom
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.boundary import band, band_counts, boundary_dice, boundary_iou
from medseg_nb.metrics.overlap import dice, iou

scores = {'dice': boundary_dice, 'iou': boundary_iou}
grids = [((7, 6), (1., 1.)), ((8, 5), (.7, 2.)), ((5, 6, 4), (1., 1., 8.)), ((4, 1, 6), (.5, 3., .5))]


def masks(shape, rng):
    "Adversarial masks: empty, full, one voxel, two, at the border, all but one, speckle"
    one = np.zeros(shape, bool)
    one[tuple(n//2 for n in shape)] = True
    corners, side = np.zeros(shape, bool), np.zeros(shape, bool)
    corners.flat[[0, -1]] = True
    side[:shape[0]//2] = True
    speckle = [rng.random(shape) < d for d in (.1, .3, .6, .9)]
    return [one & False, one | True, one, corners, side, ~one, *speckle]


def some(shape, spacing):
    "Pairs of masks of one shape, more than fifty"
    rng = np.random.default_rng(len(shape))
    found = masks(shape, rng)
    n = len(found)
    return [(found[i], found[j]) for i in range(n) for j in range(n) if (i + j) % 2 or i == j]


@pytest.mark.parametrize('shape, h', grids, ids=str)
def test_bands_by_distances(shape, h):
    rng = np.random.default_rng(0)
    for m in masks(shape, rng) + masks(shape, rng)[6:]:
        for width in (min(h), 2*max(h), min(h)*rng.uniform(1, 6), np.inf):
            np.testing.assert_array_equal(band(m, h, width), band_by_distances(m, h, width))


@pytest.mark.parametrize('shape, h', grids, ids=str)
@pytest.mark.parametrize('name', scores)
def test_scores_by_distances(shape, h, name):
    rng = np.random.default_rng(1)
    for p, t in some(shape, h):
        width = min(h)*rng.uniform(1, 4)
        want = boundary_by_distances(name, p, t, h, width)
        np.testing.assert_allclose(scores[name](p[None], t[None], h, width=width), [want], rtol=1e-12)


def published(mask, n):
    "The band of boundary_iou_api: a ring of zeros, n erosions by a square of 3 x 3, the difference"
    import cv2
    around = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    left = cv2.erode(around, np.ones((3, 3), np.uint8), iterations=n)
    return mask & (left[1:-1, 1:-1] == 0)


def test_published_erosion_is_ours_at_the_diagonal():
    rng = np.random.default_rng(2)
    for i in range(200):
        shape = rng.integers(1, 40, 2)
        m = rng.random(shape) < rng.uniform(.3, 1)
        if i % 3 == 0: m = ndimage.binary_dilation(rng.random(shape) < .03, iterations=4)
        for n in (1, 2): np.testing.assert_array_equal(band(m, (1, 1), n*2**.5), published(m, n))


def test_published_erosion_of_rectangles():
    rng = np.random.default_rng(3)
    for n in rng.integers(1, 9, 60):
        m = np.zeros((40, 50), bool)
        (a, b), (c, d) = np.sort(rng.integers(0, (40, 50), (2, 2)), axis=0).T
        m[a:b+1, c:d+1] = True
        np.testing.assert_array_equal(band(m, (1, 1), n), published(m, n))


def test_published_erosion_lies_between():
    rng = np.random.default_rng(4)
    differ = 0
    for n in rng.integers(3, 8, 40):
        m = ndimage.binary_dilation(rng.random((60, 60)) < .01, iterations=8)
        inner, theirs, outer = band(m, (1, 1), n), published(m, n), band(m, (1, 1), n*2**.5)
        assert not (inner & ~theirs).any() and not (theirs & ~outer).any()
        differ += (inner != theirs).any()
    assert differ > 20


def test_published_scores():
    rng = np.random.default_rng(5)
    for _ in range(60):
        p, t = (ndimage.binary_dilation(rng.random((50, 60)) < .004, iterations=7) for _ in range(2))
        a, b = published(p, 2), published(t, 2)
        want = (a & b).sum()/(a | b).sum() if (a | b).any() else np.nan
        np.testing.assert_allclose(boundary_iou(p, t, (1, 1), width=8**.5), [want], rtol=1e-12)


two = st.sampled_from([(6, 7), (1, 5), (3, 4, 5)]).flatmap(lambda s: st.tuples(
    *[hnp.arrays(np.uint8, s, elements=st.integers(0, 2))]*2,
    st.tuples(*[st.sampled_from([.5, 1., 1.5, 8.])]*len(s))))


def one_image(a): return a[None] if a.ndim == 3 else a


@settings(max_examples=60, deadline=None)
@given(two, st.floats(1, 5))
def test_symmetry_bounds_identity(found, times):
    p, t, h = found
    p, t, width = one_image(p), one_image(t), times*min(h)
    for f in scores.values():
        x = f(p, t, h, (1, 2), width)
        np.testing.assert_array_equal(x, f(t, p, h, (1, 2), width))
        assert (np.isnan(x) | (x >= 0) & (x <= 1)).all() and x.dtype == np.float64 and x.shape == (2,)
        assert (f(p, p, h, (1, 2), width, 'one') == 1).all()
    d, j = (f(p, t, h, (1, 2), width) for f in scores.values())
    np.testing.assert_allclose(j, d/(2 - d), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(two, st.floats(1, 5), st.integers(1, 3), st.data())
def test_flips_padding_and_axes(found, times, more, data):
    p, t, h = found
    axis, order = data.draw(st.integers(0, p.ndim - 1)), data.draw(st.permutations(range(p.ndim)))
    turned, width = [h[i] for i in order], times*min(h)
    moves = ((lambda m: np.flip(m, axis), h), (lambda m: np.pad(m, more), h),
             (lambda m: m.transpose(order), turned))
    for f in scores.values():
        want = f(one_image(p), one_image(t), h, (1, 2), width)
        for move, mm in moves:
            got = f(one_image(move(p)), one_image(move(t)), mm, (1, 2), width)
            np.testing.assert_array_equal(got, want)


@settings(max_examples=60, deadline=None)
@given(two, st.floats(1, 4), st.sampled_from([.1, .3, 3., 7.]))
def test_unit_and_width(found, times, unit):
    "Millimeters or inches do not matter, a wider band holds the narrower, and all of it is Dice"
    p, t, h = found
    p, t = one_image(p), one_image(t)
    for (name, f), plain in zip(scores.items(), (dice, iou)):
        scaled = f(p, t, np.multiply(h, unit), (1, 2), times*min(h)*unit)
        np.testing.assert_array_equal(scaled, f(p, t, h, (1, 2), times*min(h)))
        np.testing.assert_array_equal(f(p, t, h, (1, 2), np.inf), plain(p, t, (1, 2)))
    m = found[0] > 0
    narrow, wide = band(m, h, min(h)*times), band(m, h, min(h)*times + .7)
    assert not (narrow & ~wide).any() and not (wide & ~m).any() and narrow.any() == m.any()


def test_a_score_of_a_half():
    "A straight edge one voxel short, by hand: (w-1)/(w+1) and (w-1)/w, whatever lies behind it"
    for n, w in ((20, 2), (20, 5), (60, 3), (61, 7)):
        m = np.zeros((n + 2, n + 2, 3), bool)
        m[1:-1, 1:-1] = True
        p = ndimage.binary_erosion(m, np.ones((3, 3, 1)))
        h = (1., 1., 50.)
        np.testing.assert_allclose(boundary_dice(p, m, h, width=w), [(w - 1)/w], rtol=1e-12)
        np.testing.assert_allclose(boundary_iou(p, m, h, width=w), [(w - 1)/(w + 1)], rtol=1e-12)


def test_balls_of_known_width():
    "The band of a ball is a shell; by its volume it is d wide, or thinner by less than half a voxel"
    _, truth, _ = pair('grown', radius=20., by=3., dims=3, size=96, spacing=.5)
    for d in (2., 4., 8.):
        shell = band(truth.numpy()[0] > 0, (.5,)*3, d).sum()*.125
        assert d - .25 < 20 - (20**3 - shell*3/4/np.pi)**(1/3) <= d


def test_rounded_spacing():
    "A spacing stored as float32 does not decide about a layer"
    m = np.ones((40, 40), bool)
    for h in (.1, .3, .7, .9765625, 1.2):
        for k in range(1, 10):
            want = 1600 - (40 - 2*k)**2
            assert band(m, np.float32([h, h]).astype(float), k*h).sum() == want
            assert band(m, (h, h), k*h).sum() == want


def test_labels_widths_volumes():
    rng = np.random.default_rng(6)
    p, t = rng.integers(0, 4, (2, 9, 8, 6)).astype('uint8')
    affine = np.diag([.5, 2., 1., 1.])
    a, b = (Volume(m[None], affine) for m in (p, t))
    for f in scores.values():
        want = [f(p == k, t == k, (.5, 2, 1), width=w).item() for k, w in ((3, 1.), (1, 2.5))]
        mm = (.5, 2, 1)
        for x, y, h in ((p, t, mm), (a, b, None), (a, t, None), (p, b, mm), (torch.tensor(p), b, None)):
            np.testing.assert_array_equal(f(x, y, h, labels=(3, 1), width=(1., 2.5)), want)
        assert np.isnan(f(a, b, labels=(3, 9))[1])


def test_empty():
    full, none = np.ones((5, 5), int), np.zeros((5, 5), int)
    for f in scores.values():
        assert np.isnan(f(none, none, (1, 1))) and f(none, none, (1, 1), empty='one') == 1
        assert f(none, full, (1, 1)) == f(full, none, (1, 1), empty='one') == 0 and f(full, full, (1, 1)) == 1
        rule = dict(both=.5, truth='one', pred='nan')
        assert f(none, none, (1, 1), empty=rule) == .5 and f(full, none, (1, 1), empty=rule) == 1
        assert np.isnan(f(none, full, (1, 1), empty=rule))


def test_the_image_ends_the_mask():
    "Beyond the image is outside, in every direction; a mask moved into a corner keeps its band"
    full = np.ones((9, 11), bool)
    assert band(full, (1, 1), 2).sum() == 99 - 5*7
    m = phantom('organs', 1, dims=2, noise=0).mask.numpy()[0] > 0
    box, = ndimage.find_objects(m.astype(int))
    np.testing.assert_array_equal(band(m, (1, 1), 3)[box], band(m[box], (1, 1), 3))


def test_large():
    "More voxels than a 32-bit float counts one by one; only the boxes around the masks cost anything"
    m = np.zeros((260, 260, 260), np.uint8)
    m[20:60, 30:50, 200:230] = 1
    m[:, :, -1] = 2
    both, said, real = band_counts(m, m, (1, 1, 1), (1, 2), 2.)
    assert both.tolist() == said.tolist() == real.tolist() == [24000 - 36*16*26, 260**2] and m.size > 2**24


a = np.ones((4, 4), int)


@pytest.mark.parametrize('args, error, words', [
    ((a, a), ValueError, 'spacing is missing'),
    ((a, a, (1, 1, 1)), ValueError, '2 numbers'),
    ((a, a, (1, 0)), ValueError, '2 numbers above 0'),
    ((a, a, (1, np.nan)), ValueError, '2 numbers above 0'),
    ((a, Volume(torch.tensor(a)[None], np.diag([2., 2, 1])), (1, 1)), ValueError, r'Leave spacing out'),
    ((a, a - 2, (1, 1)), ValueError, 'nobody looked'),
    ((a - 2, a, (1, 1)), ValueError, 'Swapped'),
    ((a*.5, a, (1, 1)), TypeError, 'pred is float64'),
    ((a, a[:3], (1, 1)), ValueError, 'same voxels'),
    ((a, a, (1, 1), (1,), .5), ValueError, 'width is 0.5 mm, less than the 1 mm of a voxel'),
    ((a, a, (1, 1), (1, 2), (2., .5)), ValueError, 'width is 0.5 mm'),
    ((a, a, (1, 1), (1,), np.nan), ValueError, 'width is nan'),
    ((a, a, (1, 1), (1,), -1), ValueError, 'width is -1'),
    ((a, a, (1, 1), (1, 2), (1, 2, 3)), ValueError, 'one for each of'),
    ((a, a, (1, 1), (1,), ((1.,),)), ValueError, 'one for each of'),
    ((a, a, (1, 1), (1.5,)), ValueError, r'labels is \(1.5,\)'),
    ((a, a, (1, 1), (-1,)), ValueError, r'labels is \(-1,\)'),
    ((a, a, (1, 1), (1,), 2., 'eps'), ValueError, "empty is 'eps'"),
])
def test_refusals(args, error, words):
    for f in scores.values():
        with pytest.raises(error, match=words): f(*args)
