"clDice: against the published program, known center lines, and what thinning may and may not do."
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import cldice_published
from scipy import ndimage
from skimage.measure import euler_number
from skimage.morphology import skeletonize

from medseg_nb.data.phantom import phantom
from medseg_nb.data.rater import rate
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.cldice import cldice, line_counts, skeleton, topology_precision, topology_sensitivity
from medseg_nb.metrics.overlap import dice

scores = (topology_precision, topology_sensitivity, cldice)


def pieces(mask): return ndimage.label(mask, np.ones((3,)*mask.ndim))


def vanish(mask):
    "Whether scikit-image's thinning loses a piece"
    at, n = pieces(mask)
    return len(np.unique(at[skeletonize(mask)])) < n


def one_image(a): return a[None] if a.ndim == 3 else a


def pairs():
    "Random and adversarial pairs: blobs, speckle, lines, one voxel, full, the border, trees by shaking hands"
    rng = np.random.default_rng(0)
    for shape in ((24, 30), (1, 17), (9, 10, 11), (12, 1, 12), (6, 14, 3)):
        one, full, side = np.zeros(shape, bool), np.ones(shape, bool), np.zeros(shape, bool)
        one[tuple(n//2 for n in shape)], side[:, :(shape[1] + 1)//2] = True, True
        blobs = [ndimage.gaussian_filter(rng.random(shape), 1.5) > .5 for _ in range(4)]
        speckle = [rng.random(shape) < d for d in (.02, .3, .3, .7)]
        yield from product([one, full, side, *blobs, *speckle], repeat=2)
    for seed, dims in product(range(4), (2, 3)):
        tree = phantom('vessels', seed, dims, 96 if dims == 2 else 40)
        masks = [rate(tree, k, bias=b, sd=.7, length=5.).numpy()[0] > 0 for k, b in enumerate((-.5, .5))]
        masks.append(tree.mask.numpy()[0] > 0)
        yield from product(masks, repeat=2)


def test_published():
    n = lost = 0
    for p, t in pairs():
        if vanish(p) or vanish(t):
            lost += 1
            continue
        got = [f(one_image(p), one_image(t)).item() for f in scores]
        want = cldice_published(p, t)
        np.testing.assert_allclose(got[:2], want[:2], rtol=1e-12)
        missed = np.isnan(want[2]) and (p.any() or t.any())   # 0 / 0, and yet something was there to find
        np.testing.assert_allclose(got[2], 0 if missed else want[2], rtol=1e-12)
        n += 1
    assert n > 400 and lost > 50, (n, lost)


def test_in_the_plane_thinning_keeps_topology():
    "Every mask of 3 x 4 pixels: as many pieces and loops, nothing lost, one voxel of each piece at least"
    for bits in range(2**12):
        m = (bits >> np.arange(12) & 1).astype(bool).reshape(3, 4)
        s = skeleton(m)
        assert pieces(s)[1] == pieces(m)[1] and euler_number(s, 2) == euler_number(m, 2)
        np.testing.assert_array_equal(s, skeletonize(m))


@pytest.mark.parametrize('axis', range(3))
@pytest.mark.parametrize('a, b', [(1, 1), (2, 2), (4, 4), (3, 4), (2, 6), (6, 6), (2, 1)])
def test_no_straight_tube_is_lost(axis, a, b):
    m = np.zeros((12, 12, 40), bool)
    m[2:2 + a, 3:3 + b, 5:35] = True
    m = np.moveaxis(m, 2, axis)
    s = skeleton(m)
    assert 26 - max(a, b) <= s.sum() <= 40 and not (s & ~m).any() and pieces(s)[1] == 1
    assert len(np.unique(np.argwhere(s)[:, axis])) >= 26 - max(a, b)


def test_lost_pieces_come_back_and_others_stay():
    assert skeleton(np.ones((2, 1, 2), bool)).all() and skeleton(np.ones((8, 4, 8), bool)).any()
    m = np.zeros((30, 30, 40), bool)
    m[2:6, 2:6, 3:37], m[15:18, 15:18, 3:37], m[24:26, 24:26, 20:22] = True, True, True
    assert vanish(m)
    s = skeleton(m)
    np.testing.assert_array_equal(s[10:22], skeletonize(m)[10:22])
    assert s[2:6, 2:6].sum() > 25 and s[24:26, 24:26, 20:22].any() and not (s & ~m).any()
    assert cldice(m, m) == 1 and topology_sensitivity(m & (np.arange(30) > 10)[:, None, None], m) < .6


some = st.sampled_from([(6, 7), (1, 5), (4, 5, 6), (2, 3, 2)]).flatmap(
    lambda s: st.tuples(*[hnp.arrays(np.uint8, s, elements=st.integers(0, 2))]*2))


@settings(max_examples=100, deadline=None)
@given(some)
def test_skeletons(pair):
    for m in (pair[0] > 0, pair[0] == 1):
        s, (at, n) = skeleton(m), pieces(m)
        assert not (s & ~m).any() and s.dtype == bool and s.shape == m.shape
        assert len(np.unique(at[s])) == n
        if not vanish(m): np.testing.assert_array_equal(s, skeletonize(m))


@settings(max_examples=60, deadline=None)
@given(some, st.integers(1, 3))
def test_symmetry_bounds_identity_padding(pair, more):
    p, t = map(one_image, pair)
    precision, sensitivity, score = (f(p, t, (1, 2)) for f in scores)
    np.testing.assert_array_equal(score, cldice(t, p, (1, 2)))
    np.testing.assert_array_equal(precision, topology_sensitivity(t, p, (1, 2)))
    for x in (precision, sensitivity, score):
        assert (np.isnan(x) | (x >= 0) & (x <= 1)).all() and x.dtype == np.float64 and x.shape == (2,)
    known = ~np.isnan(precision + sensitivity)
    assert (score <= np.maximum(precision, sensitivity) + 1e-12)[known].all()
    assert (score >= np.minimum(precision, sensitivity) - 1e-12)[known].all()
    padded = [one_image(np.pad(m, [(more, 1)]*m.ndim)) for m in pair]
    for f in scores:
        np.testing.assert_array_equal(f(*padded, (1, 2)), f(p, t, (1, 2)))
        assert (f(p, p, (1, 2), 'one') == 1).all()


def test_a_mirror_image_scores_a_little_differently():
    "The notebook says so: thinning has a handedness"
    spread = []
    for seed in range(4):
        tree = phantom('vessels', seed, 2, 128)
        p, t = (v.numpy()[0] > 0 for v in (rate(tree, seed, sd=.8, length=6.), tree.mask))
        spread.append(np.ptp([cldice(np.flip(p, w), np.flip(t, w)) for w in ((), 0, 1, (0, 1))]))
    assert 0 < max(spread) < .02


@pytest.mark.parametrize('dims, size', [(2, 160), (3, 48)])
def test_radius_and_length(dims, size):
    "A thicker tree scores 1, and a lost branch costs the share of the known length that it had"
    for seed in range(3):
        tree = phantom('vessels', seed, dims, size)
        t = tree.mask.numpy()[0] > 0
        assert cldice(ndimage.binary_dilation(t), t) == 1 > .92 > dice(ndimage.binary_dilation(t), t)
        spots, ways = np.stack(np.indices(t.shape), -1) + .5, []
        for s in tree.meta['shapes']:
            a, b = np.array(s['start']), np.array(s['end'])
            on = np.clip((spots - a)@(b - a)/((b - a)@(b - a)), 0, 1)[..., None]
            ways.append(np.linalg.norm(spots - a - on*(b - a), axis=-1))
        lost = np.argmin(ways, 0) >= 7
        length = [np.linalg.norm(np.subtract(s['end'], s['start'])) for s in tree.meta['shapes']]
        got = topology_sensitivity(t & ~lost, t).item()
        assert abs(got - sum(length[:7])/sum(length)) < .12 and topology_precision(t & ~lost, t) == 1


def test_center_lines_are_where_they_were_drawn():
    for seed in range(4):
        tree = phantom('vessels', seed, 2, 160)
        steps = np.linspace(0, 1, 100)[:, None]
        known = np.concatenate([np.array(s['start']) + steps*np.subtract(s['end'], s['start'])
                                for s in tree.meta['shapes']]) - .5
        line = np.argwhere(skeleton(tree.mask.numpy()[0] > 0))
        apart = np.linalg.norm(known[:, None] - line, axis=-1)
        assert np.percentile(apart.min(1), 95) < 2 and np.percentile(apart.min(0), 95) < 2


def test_parts_by_hand():
    bar = np.zeros((7, 25), int)
    bar[2:5, 2:23] = 1
    short, line = bar*(np.arange(25) < 13), skeleton(bar > 0)
    c = line[:, :13].sum()/line.sum()
    assert len(set(np.argwhere(line)[:, 1])) == line.sum() == 20
    np.testing.assert_allclose([f(short, bar).item() for f in scores], [1, c, 2*c/(1 + c)], rtol=1e-12)
    np.testing.assert_allclose([f(bar, short).item() for f in scores], [c, 1, 2*c/(1 + c)], rtol=1e-12)


def test_empty_and_disjoint():
    full, none = np.ones((5, 5), int), np.zeros((5, 5), int)
    left, right = full*(np.arange(5) < 2), full*(np.arange(5) > 2)
    assert [f(left, right).item() for f in scores] == [0, 0, 0]
    for f in scores: assert np.isnan(f(none, none)) and f(none, none, empty='one') == 1 and f(full, full) == 1
    assert cldice(none, full) == cldice(full, none) == cldice(full, none, empty='one') == 0
    assert np.isnan(topology_precision(none, full)) and topology_precision(full, none) == 0
    assert np.isnan(topology_sensitivity(full, none)) and topology_sensitivity(none, full) == 0
    rule = dict(both=.5, truth='one', pred='nan')
    for f in scores:
        assert f(none, none, empty=rule) == .5 and f(full, none, empty=rule) == 1
        assert np.isnan(f(none, full, empty=rule))
    cube = np.ones((2, 2, 2), int)
    assert cldice(cube[None], cube[None]) == 1 and cldice(cube[None], 0*cube[None]) == 0


def test_labels_and_containers():
    rng = np.random.default_rng(6)
    p, t = rng.integers(0, 4, (2, 6, 7, 8)).astype('uint8')
    affine = np.diag([1., 1., 8., 1.])
    for f in scores:
        want = [f(one_image(p == k), one_image(t == k)).item() for k in (3, 1)] + [np.nan]
        for make in (lambda m: m[None], lambda m: torch.tensor(m)[None], lambda m: Volume(m[None], affine)):
            np.testing.assert_array_equal(f(make(p), make(t), (3, 1, 9)), want)


def test_large():
    "More voxels than a 32-bit float counts one by one; only the box around a label is thinned"
    m = np.zeros((260, 260, 260), np.uint8)
    m[20:23, 30:33, 10:250], m[100:230, 100:103, 100:103] = 1, 2
    inside, said, covered, real = line_counts(m, m, (1, 2))
    assert inside.tolist() == said.tolist() == covered.tolist() == real.tolist() == [238, 130]
    assert m.size > 2**24


a = np.ones((4, 4), int)


@pytest.mark.parametrize('args, error, words', [
    ((a, a - 2), ValueError, 'nobody looked'),
    ((a - 2, a), ValueError, 'Swapped'),
    ((a*.5, a), TypeError, 'pred is float64'),
    ((a, a[:3]), ValueError, 'same voxels'),
    ((a[0], a[0]), ValueError, 'center lines need 2 or 3 axes'),
    ((Volume(a[None]).flip(0), Volume(a[None])), ValueError, 'different grids: flip'),
    ((a, a, (.5,)), ValueError, r'labels is \(0.5,\)'),
    ((a, a, (-1,)), ValueError, r'labels is \(-1,\)'),
    ((a, a, (1,), 'eps'), ValueError, "empty is 'eps'"),
])
def test_refusals(args, error, words):
    for f in scores:
        with pytest.raises(error, match=words): f(*args)
