"Surfaces: every pair of voxels, MONAI, medpy, surface-distance, SimpleITK, and the tables they publish."
import warnings
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import surface_ways
from scipy import ndimage

from medseg_nb.data.phantom import pair as known_pair
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.distance import (
    areas, cut, distances, elements, extent, nearest, shells, surface, tally, ways)
from medseg_nb.metrics.overlap import dice
from medseg_nb.metrics.surface import assd, hd, hd95, masd, nsd, panel

scores = (hd, hd95, assd, masd, nsd)
close = np.testing.assert_allclose


def adversarial(shape, rng):
    "One voxel, a corner, touching the border, full, speckle, several components, thin, hollow, a ball"
    at, zero = np.indices(shape), np.zeros(shape, bool)
    def voxel(i):
        m = zero.copy()
        m[i] = True
        return m
    ball = sum((x - n/2)**2 for x, n in zip(at, shape)) <= (min(shape)/2.6)**2
    parts = ndimage.binary_dilation(rng.random(shape) < .03)
    parts.flat[rng.integers(zero.size)] = True
    return [voxel(tuple(n//2 for n in shape)), voxel((0,)*len(shape)), at[0] < shape[0]//2, ~zero,
            rng.random(shape) < .3, rng.random(shape) < .3, parts, at[-1] == shape[-1]//3,
            ball & ~ndimage.binary_erosion(ball), ball, np.roll(ball, 2, 1)]


spacings = {2: [(1., 1.), (.7, 2.4), (8., 1.)], 3: [(1., 1., 1.), (1., 1., 8.), (.9, .45, 3.1)]}


def pairs():
    "More than 200 pairs of masks, each with a spacing"
    out, rng = [], np.random.default_rng(0)
    for shape in ((11, 9), (7, 8, 6)):
        masks = adversarial(shape, rng)
        out += [(p, t, s) for s in spacings[len(shape)] for p in masks for t in masks if p.any() and t.any()]
    return out[::3]


some = pairs()
assert len(some) > 200


@cache
def brute(n): return tuple(map(np.array, surface_ways(*some[n])))


def drawn(dims=(2, 3)):
    shapes = [s for s in [(5, 6), (1, 7), (4, 3, 5), (2, 5, 2)] if len(s) in dims]
    masks = st.sampled_from(shapes).flatmap(
        lambda s: st.tuples(*[hnp.arrays(bool, s, elements=st.booleans()).filter(np.any)]*2))
    return masks.flatmap(lambda two: st.tuples(st.just(two[0]), st.just(two[1]), st.tuples(
        *[st.sampled_from([.5, 1., 1.3, 4.])]*two[0].ndim)))


def one(a): return a[None].astype(np.uint8)   # (1,*S): axis 0 cannot be taken for classes


def by_pairs(n, tolerance, q):
    "All scores from the distances of all pairs"
    a, b = brute(n)
    both = np.concatenate([a, b])
    return dict(hd=both.max(), max=max(np.percentile(a, q), np.percentile(b, q)),
                pooled=np.percentile(both, q), assd=both.mean(),
                masd=(a.mean() + b.mean())/2, nsd=(both <= tolerance).mean())


def test_every_pair_of_voxels():
    for n, (p, t, s) in enumerate(some):
        tolerance, q = [.5, 1.1, 2.9][n % 3], [95, 50, 0, 99.5][n % 4]
        want = by_pairs(n, tolerance, q)
        p, t = one(p), one(t)
        got = dict(hd=hd(p, t, s), max=hd95(p, t, s, percentile=q), masd=masd(p, t, s),
                   pooled=hd95(p, t, s, percentile=q, definition='pooled'), assd=assd(p, t, s),
                   nsd=nsd(p, t, s, tolerance=tolerance))
        for name in want: close(got[name], [want[name]], rtol=1e-9, atol=1e-12, err_msg=f'{name} of case {n}')


def test_distances_of_each_voxel():
    for n, (p, t, s) in enumerate(some):
        for got, want in zip(distances(p, t, s), brute(n)): close(got, want, rtol=1e-12)
        close(distances(np.asfortranarray(p), t, s)[0], brute(n)[0], rtol=1e-12)


def test_counted_near_and_far():
    "Surfaces side by side, two apart, and farther than any list of steps; sparse and dense"
    rng = np.random.default_rng(1)
    for n in range(120):
        shape, far = rng.integers(1, (30, 12, 10)), rng.integers(0, 20)
        p, t = (rng.random(shape) < d for d in rng.choice([.01, .3, .6, 1.], 2))
        p, t = (np.pad(m, [w, (0, 0), (0, 0)]) for m, w in ((p, (far, 0)), (t, (0, far))))
        if not (p.any() and t.any()): continue
        s = tuple(rng.choice([.5, 1., 1.7, 8.], 3).tolist())
        gap = np.maximum(shells(s)[0].max(0), 1)
        a, b = (surface(np.pad(m, [(1, g) for g in gap])) for m in (p, t))
        d, count = tally(a, b, s)
        want = np.sort(ndimage.distance_transform_edt(~b, s)[a])
        assert (np.diff(d) >= 0).all() and (count > 0).all() and count.sum() == a.sum()
        close(np.repeat(d, count), want, rtol=1e-12)


def test_nearest_by_tree_and_by_transform():
    rng = np.random.default_rng(2)
    for share in (.001, .4):
        there, s = rng.random((20, 21, 22)) < share, (1., .5, 3.)
        x = rng.integers(0, 20, (50, 3))
        want = np.linalg.norm((x[:, None] - np.argwhere(there))*s, axis=2).min(1)
        close(nearest(x, there, s), want, rtol=1e-12)
        close(nearest(np.repeat(x, 100, 0), there, s), np.repeat(want, 100), rtol=1e-12)


def test_steps_leave_no_gap():
    for s in ((1., 1., 1.), (1., 1., 8.), (.7, .7, 5.), (.5, 3.), (2., 1.3)):
        steps, d = shells(s)
        wide = np.stack(np.meshgrid(*[np.arange(-9, 10)]*len(s), indexing='ij'), -1).reshape(-1, len(s))
        far = np.linalg.norm(wide*s, axis=1)
        assert {tuple(x) for x in steps} == {tuple(x) for x in wide[far < 5*min(s)]}
        assert (np.diff(d) >= 0).all() and d[0] == 0


def test_box_and_cut():
    a = np.zeros((9, 8, 7), np.uint8)
    a[2:5, 0:3, 6], a[0, 0, 0] = 3, 1
    assert extent(a, 3).tolist() == [[2, 5], [0, 3], [6, 7]]
    assert extent(a, 2) is None and extent(a, 300) is None
    m = cut(a, 3, extent(a, 3), np.array([1, 2, 3]))
    assert m.shape == (5, 6, 5) and m.sum() == 9 and m[1:4, 1:4, 1].all()


def hot(*masks): return [torch.tensor(m)[None, None].float() for m in masks]


def test_monai(monkeypatch):
    from monai.metrics import (compute_average_surface_distance, compute_hausdorff_distance,
                               compute_surface_dice, hausdorff_distance, surface_dice, surface_distance,
                               utils)
    kept = []
    def once(*args, **opts):   # MONAI's own distances, computed once for the scores of a case
        if not kept: kept.append(utils.get_edge_surface_distance(*args, **opts))
        return kept[0]
    for module in (hausdorff_distance, surface_dice, surface_distance):
        monkeypatch.setattr(module, 'get_edge_surface_distance', once)
    for n, (p, t, s) in enumerate(some):
        kept.clear()
        tolerance, (P, T), (a, b) = [.55, 1.15, 2.95][n % 3], hot(p, t), (one(p), one(t))
        def of(f, **opts): return f(P, T, include_background=True, spacing=list(s), **opts).numpy()[0]
        close(hd(a, b, s), of(compute_hausdorff_distance), rtol=1e-6)
        close(hd95(a, b, s), of(compute_hausdorff_distance, percentile=95), rtol=1e-6, atol=1e-6)
        close(assd(a, b, s), of(compute_average_surface_distance, symmetric=True), rtol=1e-6, atol=1e-7)
        want = of(compute_surface_dice, class_thresholds=[tolerance])
        close(nsd(a, b, s, tolerance=tolerance), want, rtol=1e-6)


def test_medpy():
    from medpy.metric import binary
    for p, t, s in some:
        a, b = one(p), one(t)
        close(hd(a, b, s), binary.hd(p, t, s), rtol=1e-9)
        close(hd95(a, b, s, definition='pooled'), binary.hd95(p, t, s), rtol=1e-9, atol=1e-12)
        close(assd(a, b, s), binary.assd(p, t, s), rtol=1e-9, atol=1e-12)
        close(masd(a, b, s), (binary.asd(p, t, s) + binary.asd(t, p, s))/2, rtol=1e-9, atol=1e-12)


def deepmind():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return pytest.importorskip('surface_distance')


def test_surface_distance():
    sd, ties = deepmind(), 0
    for n, (p, t, s) in enumerate(some):
        tolerance, q, a, b = [.55, 1.15, 2.95][n % 3], [95, 50, 99.5, 100][n % 4], one(p), one(t)
        theirs = sd.compute_surface_distances(t, p, s)
        near = [sd.compute_robust_hausdorff(theirs, x) for x in (q - 1e-7, q, q + 1e-7)]
        got = hd95(a, b, s, percentile=q, definition='area').item()
        ties += near[0] != near[2]
        assert any(np.isclose(got, x, rtol=1e-6) for x in near), (n, got, near)
        close(nsd(a, b, s, tolerance=tolerance, definition='area'),
              sd.compute_surface_dice_at_tolerance(theirs, tolerance), rtol=1e-6, atol=1e-12)
        close(masd(a, b, s, definition='area'), np.mean(sd.compute_average_surface_distance(theirs)),
              rtol=1e-6, atol=1e-12)
        for m in (p, t):
            area = elements(np.ascontiguousarray(np.pad(m, 1)), s)[1].sum()
            close(area, theirs['surfel_areas_pred' if m is p else 'surfel_areas_gt'].sum(), rtol=1e-6)
    assert ties < 20


boxes = [(1., 1., 1.), (3., 2., 1.), (.7, .7, 5.), (.3, 1.1, 2.9), (1., 1.), (2., .4)]


@pytest.mark.parametrize('s', boxes, ids=str)
def test_area_tables(s):
    deepmind()
    from surface_distance import lookup_tables as tables
    make = (tables.create_table_neighbour_code_to_surface_area if len(s) == 3
            else tables.create_table_neighbour_code_to_contour_length)
    close(areas(s), make(s), rtol=1e-6, atol=1e-12)


def test_area_of_known_shapes():
    box = np.zeros((40, 40, 40), bool)
    box[5:35, 5:35, 5:35] = True
    assert abs(elements(box, (2., 1., 1.))[1].sum()/(2*30*30*(1 + 2 + 2)) - 1) < .03
    pred, _, truth = known_pair('grown', radius=14., by=3., dims=3, size=48)
    area = elements(np.ascontiguousarray(np.pad(pred.numpy()[0] > 0, 1)), (1., 1., 1.))[1].sum()
    assert abs(area/(4*np.pi*17**2) - 1) < .11    # marching cubes of a 0/1 mask overrate a ball by a tenth


def test_simpleitk_where_every_voxel_is_surface():
    "SimpleITK measures from every voxel of a mask, not from its surface: the same where there is no inside"
    import SimpleITK as sitk
    def itk(p, t, s):
        filt, images = sitk.HausdorffDistanceImageFilter(), []
        for m in (p, t):
            images.append(sitk.GetImageFromArray(m.astype(np.uint8)))
            images[-1].SetSpacing(s[::-1])
        filt.Execute(*images)
        return filt.GetHausdorffDistance(), filt.GetAverageHausdorffDistance()
    def thin(m): return surface(np.pad(m, 1))
    assert (thin(thin(some[-1][0])[1:-1, 1:-1, 1:-1]) == thin(some[-1][0])).all()
    for p, t, s in some:
        p, t = thin(p), thin(t)
        close(hd(one(p), one(t), s), itk(p, t, s)[0], rtol=1e-5)
        close(masd(one(p), one(t), s), itk(p, t, s)[1], rtol=1e-5, atol=1e-6)
    p = np.zeros((21, 21), bool)
    p[3:18, 3:18] = True
    t = p.copy()
    t[9:12, 9:12] = False                       # the prediction overlooks a cavity
    close(itk(p, t, (1., 1.))[0], 2)            # from the middle of the cavity out of it
    close(hd(one(p), one(t), (1., 1.)), 5)      # from the wall of the cavity to the only other surface


def sphere(radius=20., center=(49, 49, 49), shape=(99, 99, 99), spacing=(1., 1., 1.)):
    "MONAI's test image: the center is in mm"
    at = np.ogrid[tuple(map(slice, shape))]
    return one(sum((x*s - c)**2 for x, s, c in zip(at, spacing, center)) <= radius**2)


odd, empty = (.85, 1.2, .9), np.zeros((1, 99, 99, 99), np.uint8)


@pytest.mark.parametrize('p, t, s, q, want', [
    (sphere(), sphere(), None, 1, 0),
    (sphere(20, (20, 20, 20)), sphere(20, (19, 19, 19)), None, 100, 1.7320508075688772),
    (sphere(33, (19, 33, 22)), sphere(33, (20, 33, 22)), None, 100, 1),
    (sphere(20, (20, 33, 22)), sphere(40, (20, 33, 22)), None, 100, 20.223748416156685),
    (empty, sphere(40, (20, 33, 22)), None, 100, np.inf),
    (sphere(), empty, None, 100, np.inf),
    (sphere(20, (20, 33, 22)), sphere(40, (20, 33, 22)), None, 95, 20.09975124224178),
    (sphere(20, (20, 20, 20), spacing=odd), sphere(20, (19, 19, 19), spacing=odd), odd, 100, 2.2671568),
    (sphere(15, (20, 33, 22), spacing=odd), sphere(30, (20, 33, 22), spacing=odd), odd, 100, 15.62594),
])
def test_monai_hausdorff_table(p, t, s, q, want):
    "MONAI dev, tests/metrics/test_hausdorff_distance.py, but rows of one direction, chessboard and taxicab"
    got = hd95(p, t, s or (1, 1, 1), percentile=q, empty=dict(pred=np.inf, truth=np.inf))
    close(got, want, rtol=1e-6)
    if q == 100: close(hd(p, t, s or (1, 1, 1), empty=dict(pred=np.inf, truth=np.inf)), want, rtol=1e-6)


@pytest.mark.parametrize('p, t, s, want', [
    (sphere(), sphere(), None, 0),
    (sphere(33, (19, 33, 22)), sphere(33, (20, 33, 22)), None, .350217),
    (sphere(20, (20, 33, 22)), sphere(40, (20, 33, 22)), None, 15.117741),
    (empty, sphere(40, (20, 33, 22)), None, np.inf),
    (sphere(33, (42, 45, 52), spacing=odd), sphere(33, (43, 45, 52), spacing=odd), odd, .4951),
])
def test_monai_average_distance_table(p, t, s, want):
    "MONAI dev, tests/metrics/test_surface_distance.py, symmetric, but chessboard and taxicab"
    close(assd(p, t, s or (1, 1, 1), empty=dict(pred=np.inf, truth=np.inf)), want, rtol=1e-5)


def test_both_empty():
    "MONAI leaves such a pair out; so does nan in a mean"
    for f in scores:
        assert np.isnan(f(empty, empty, odd)) and f(empty, empty, odd, empty=0.) == 0
    assert np.isnan(panel(empty, empty, odd)['dice'])


def halves(shape, axis_starts):
    return [one(np.arange(shape[-1]) + np.zeros(shape) >= start) for start in axis_starts]


flat = 478 + 480 + 9*2, 480*4 + 588*2 + 578*2, 480*4 + 48*2 + 58*2
deep = 200*110 + 198*108 + 9*200*2 + 9*108*2
all_deep = [200*110*4 + n*200*2 + n*108*2 for n in (58 + 48, 28 + 18)]


@pytest.mark.parametrize('shape, starts, s, steps, want', [
    ((480, 640), (50, 60), (1, 1), (0, 1, 9, 10), [1 - flat[0]/flat[2], 1 - flat[0]/flat[1]]),
    ((480, 640), (50, 60), (.85, 1.2), (0, 1, 9, 10, 11, 12), [1 - flat[0]/flat[2], 1 - flat[0]/flat[1]]),
    ((200, 110, 80), (20, 30), (1, 1, 1), (0, 10), [1 - deep/all_deep[1], 1 - deep/all_deep[0]]),
])
def test_monai_surface_dice_planes(shape, starts, s, steps, want):
    "MONAI dev, tests/metrics/test_surface_dice.py: half spaces ten voxels apart, background and label"
    p, t = halves(shape, starts)
    got = [nsd(p, t, s, (0, 1), tolerance=x) for x in steps]
    close(got[0], want, rtol=1e-6)
    assert (np.diff(got, axis=0) > 0).all()
    if len(shape) == 2: close(nsd(p, t, s, (0, 1), tolerance=steps[-1] + 1), got[-1])
    close(nsd(0*p, 0*t, s, (0, 1), tolerance=0), [1, np.nan])


@pytest.mark.parametrize('tolerance, want', [
    ((0, 0), [1 - (8 + 4)/(36*2 + 8 + 4), 0]),
    ((2.8, 5.5), [1 - 3/(36*2 + 8 + 4), 1 - (2 + 2)/(3 + 3)]),
    ((3, 6), [1 - 1/(36*2 + 8 + 4), 1 - 2/(3 + 3)]),
])
def test_monai_surface_dice_lines(tolerance, want):
    "A tolerance for each class; without the rows of chessboard and taxicab"
    p, t = np.zeros((2, 1, 10, 10), int)
    p[0, 1:4, 1], t[0, 5:8, 6] = 1, 1
    close(nsd(p, t, (1, 1), (0, 1), tolerance=tolerance), want, rtol=1e-6)


def test_monai_surface_dice_absent_classes():
    "MONAI scores 0 where one mask lacks the class, by a rule that is stated here"
    p, t = np.zeros((2, 1, 80, 80), int)
    p[0, 10:20, 10:20], t[0, 10:20, 10:20] = 1, 2
    got = nsd(p, t, (1, 1), (0, 1, 2, 3), empty=dict(pred='zero', truth='zero'))
    close(got, [1, 0, 0, np.nan])


def voxel(*at, shape=(128, 128, 128)):
    m = np.zeros((1, *shape), np.uint8)
    m[(0, *at)] = 1
    return m


def slab(n):
    m = np.zeros((1, 100, 100, 100), np.uint8)
    m[0, :n] = 1
    return m


@pytest.mark.parametrize('t, p, s, mean, far, share', [
    (voxel(50, 70, shape=(128, 128)), voxel(50, 72, shape=(128, 128)), (2, 1), 1.5, (2, 2), .5),
    (voxel(50, 60, 70), voxel(50, 60, 72), (3, 2, 1), 1.5, (2, 2), .5),
    (slab(50), slab(51), (2, 1, 1), (.322 + .339)/2, (2, 2), .836),
])
def test_deepmind_table(t, p, s, mean, far, share):
    "surface_distance_test.py of surface-distance, three digits as there; MONAI's subvoxel rows are the same"
    close(masd(p, t, s, definition='area'), mean, atol=1e-3)
    for q, want in zip((100, 95), far): close(hd95(p, t, s, percentile=q, definition='area'), want)
    close(nsd(p, t, s, tolerance=1, definition='area'), share, atol=1e-3)


@pytest.mark.parametrize('lack', ['pred', 'truth'])
def test_deepmind_empty_rows(lack):
    "There an empty mask is infinitely far and shares nothing: a rule, stated"
    m, none = voxel(50, 60, shape=(128, 128)), np.zeros((1, 128, 128), int)
    p, t = (none, m) if lack == 'pred' else (m, none)
    assert hd95(p, t, (3, 2), definition='area', empty={lack: np.inf}) == np.inf
    assert nsd(p, t, (3, 2), definition='area', empty={lack: 0}) == 0
    assert np.isnan(hd95(p, t, (3, 2))) and dice(p, t) == 0


def test_deepmind_squares():
    "Two squares one pixel apart, 2 mm high and 1 mm wide: the contours by hand"
    t = np.zeros((6, 6), bool)
    t[1:3, 1:3] = True
    p = t.copy()
    p[3, 1:3] = True
    diag = .5*5**.5
    (_, v), (_, w) = elements(t, (2., 1.)), elements(p, (2., 1.))
    close(np.sort(v), np.sort([diag, 1, diag, 2, diag, 1, diag, 2]))
    close(np.sort(w), np.sort([diag, 1, diag, 2, 2, diag, 1, diag, 2, 2]))
    there = ways(p.astype(np.uint8), t.astype(np.uint8), 1, (2., 1.), area=True)
    close(there.truth[0], [0]*7 + [1])
    close(there.pred[0], [0]*7 + [2]*3)


def test_tolerance_on_the_edge():
    "3*0.1 is above 0.3 in binary, and a header says 3.0000008 for 3 mm: neither is an error of the mask"
    p, t = voxel(2, 2, shape=(6, 9)), voxel(2, 5, shape=(6, 9))
    assert nsd(p, t, (1, .1), tolerance=.3) == 1
    assert nsd(voxel(2, 3, shape=(6, 9)), voxel(2, 2, shape=(6, 9)), (1, 3.0000007629), tolerance=3) == 1
    assert nsd(p, t, (1, .1), tolerance=.2999) == 0


def test_more_voxels_than_float32_counts():
    "A strip two voxels high is all surface: 2**24 voxels and two more"
    t, p = np.ones((2, 1, 2, 2**23 + 1), np.uint8)
    p[..., 0] = 0
    found = ways(p[0], t[0], 1, (1., 1.))
    assert (found.pred[1].sum(), found.truth[1].sum()) == (2**24, 2**24 + 2)
    assert nsd(p, t, (1, 1), tolerance=.5) == (2**25)/(2**25 + 2) != 1


@given(drawn())
@settings(max_examples=60, deadline=None)
def test_symmetry_and_bounds(x):
    p, t, s = one(x[0]), one(x[1]), x[2]
    for f in scores: close(f(p, t, s), f(t, p, s), rtol=1e-12)
    for d in ('max', 'pooled', 'area'):
        close(hd95(p, t, s, definition=d), hd95(t, p, s, definition=d), rtol=1e-12)
        assert 0 <= hd95(p, t, s, definition=d)
        assert hd95(p, p, s, definition=d) == 0
    assert hd95(p, t, s, definition='pooled') <= hd95(p, t, s, percentile=100) == hd(p, t, s)
    assert hd(p, t, s) >= hd95(p, t, s) and hd(p, t, s) >= assd(p, t, s) and hd(p, t, s) >= masd(p, t, s)
    assert hd(p, p, s) == assd(p, p, s) == masd(p, p, s) == 0 and nsd(p, p, s, tolerance=0) == 1


@given(drawn(), st.data())
@settings(max_examples=60, deadline=None)
def test_flips_padding_axes_and_scale(x, data):
    p, t, s = x
    axis = data.draw(st.integers(0, p.ndim - 1))
    order = data.draw(st.sampled_from(list(permutations(range(p.ndim)))))
    pad = data.draw(st.lists(st.tuples(*[st.integers(0, 6)]*2), min_size=p.ndim, max_size=p.ndim))
    for definition in ('max', 'pooled', 'area'):
        def all_of(p, t, s, scale=1.):
            return panel(one(p), one(t), s, tolerance=1.1*scale, definition=definition)
        want, large = all_of(p, t, s), all_of(p, t, tuple(2*x for x in s), 2.)
        others = [all_of(np.flip(p, axis), np.flip(t, axis), s), all_of(np.pad(p, pad), np.pad(t, pad), s),
                  all_of(p.transpose(order), t.transpose(order), tuple(s[i] for i in order)),
                  large | dict(hd95=large['hd95']/2, assd=large['assd']/2)]
        for got in others:
            for name in want: close(got[name], want[name], rtol=1e-9, atol=1e-12, err_msg=name)


@given(drawn((3,)), st.data())
@settings(max_examples=60, deadline=None)
def test_triangle(x, data):
    p, t, s = x
    m = data.draw(hnp.arrays(bool, p.shape, elements=st.booleans()).filter(np.any))
    p, t, m = one(p), one(t), one(m)
    assert hd(p, t, s) <= hd(p, m, s) + hd(m, t, s) + 1e-9


@given(drawn(), st.tuples(*[st.floats(0, 9)]*2))
@settings(max_examples=60, deadline=None)
def test_more_tolerance_more_agreement(x, limits):
    p, t, s = x
    low, high = sorted(limits)
    for d in ('count', 'area'):
        a, b = (nsd(one(p), one(t), s, tolerance=v, definition=d) for v in (low, high))
        assert 0 <= a <= b + 1e-12 <= 1 + 1e-9
    assert nsd(one(p), one(t), s, tolerance=hd(one(p), one(t), s)) == 1


@given(drawn())
@settings(max_examples=60, deadline=None)
def test_panel_is_the_four(x):
    p, t, s = x
    p, t = one(p), one(t)
    for d in ('max', 'pooled', 'area'):
        c, got = 'area' if d == 'area' else 'count', panel(p, t, s, (1, 2), tolerance=(.6, 1), definition=d)
        want = dict(dice=dice(p, t, (1, 2)), hd95=hd95(p, t, s, (1, 2), definition=d),
                    assd=assd(p, t, s, (1, 2), definition=c),
                    nsd=nsd(p, t, s, (1, 2), tolerance=(.6, 1), definition=c))
        assert list(got) == list(want)
        for name in want: np.testing.assert_array_equal(got[name], want[name])


def test_known_shapes():
    "A ball and a larger or a shifted one: what analysis says, to the size of a voxel"
    for kind in ('grown', 'shifted'):
        for dims, size in ((2, 160), (3, 80)):
            p, t, want = known_pair(kind, radius=12., by=4., dims=dims, size=size, spacing=40/size)
            got = panel(p, t)
            assert abs(hd(p, t) - want['hd']) < 60/size, (kind, dims)
            for name in ('hd95', 'assd'): assert abs(got[name] - want[name]) < 60/size, (kind, dims, name)
            assert abs(got['dice'] - want['dice']) < .01


def test_labels_and_containers():
    rng = np.random.default_rng(3)
    p, t, s = rng.integers(0, 4, (9, 8, 7)), rng.integers(0, 4, (9, 8, 7)), (1., .5, 3.)
    want = {f: f(p, t, s, range(6)) for f in scores}
    p = np.where(p == 3, 300, p)
    for f in scores:
        one_by_one = [f((p == k).astype(int), (t == k).astype(int), s).item() for k in (0, 1, 2)]
        close(want[f][:3], one_by_one, rtol=1e-12)
        assert np.isnan(want[f][4:]).all() and want[f].dtype == np.float64
    p, affine = np.where(p == 300, 3, p), np.diag([*s, 1.])
    for kind in (np.uint8, np.int16, np.int64):
        for make in (np.asfortranarray, torch.tensor, lambda m: torch.tensor(m[None])):
            close(assd(make(p.astype(kind)), make(t.astype(kind)), s, range(6)), want[assd], rtol=1e-12)
    v, w = (Volume(torch.tensor(m[None]), affine) for m in (p, t))
    for f in scores:
        for x, y, mm in ((v, w, None), (v, w, s), (v, t, None), (p, w, None), (p, w, s)):
            close(f(x, y, mm, range(6)), want[f], rtol=1e-12)
    close(hd(p > 1, t > 1, s), hd((p > 1)*1, (t > 1)*1, s))
    close(hd(v.reorient('SPL'), w.reorient('SPL'), labels=(1, 2)), want[hd][1:3], rtol=1e-12)


def test_inputs_are_left_alone():
    p, t = (np.random.default_rng(i).integers(0, 3, (6, 7, 8)) for i in (0, 1))
    for a in (p, t): a.flags.writeable = False
    before = p.copy(), t.copy()
    panel(p, t, (1, 1, 1), (1, 2), definition='area')
    panel(p > 0, t > 0, (1, 1, 1))
    assert (p == before[0]).all() and (t == before[1]).all()


def test_policies():
    m, none = voxel(2, 2, shape=(6, 6)), np.zeros((1, 6, 6), int)
    for f in scores:
        assert np.isnan(f(none, m, (1, 1))) and np.isnan(f(m, none, (1, 1)))
        assert f(none, m, (1, 1), empty=dict(pred=7.)) == 7
        assert np.isnan(f(m, none, (1, 1), empty=dict(pred=7.)))
        assert f(none, none, (1, 1), empty=dict(both='zero')) == 0
        assert f(m, m, (1, 1), empty=0.) == f(m, m, (1, 1))
    got = panel(none, m, (1, 1), empty=dict(hd95=99., nsd='zero'))
    close([x.item() for x in got.values()], [0, 99, np.nan, 0])
    got = panel(none, none, (1, 1), empty=dict(dice='one', hd95=0., nsd=dict(both='one')))
    close([x.item() for x in got.values()], [1, 0, np.nan, 1])
    close([x.item() for x in panel(none, none, (1, 1), empty=dict(both=5.)).values()], [5]*4)


eye = np.eye(6, dtype=int)
vol = Volume(torch.tensor(eye[None]), np.diag([2., 2., 1.]))


@pytest.mark.parametrize('args, opts, words', [
    ((eye, eye), {}, 'spacing is missing.*one per axis'),
    ((eye, eye, 1.), {}, r'spacing is 1.0; wanted 2 numbers above 0'),
    ((eye, eye, (1, 1, 1)), {}, 'wanted 2 numbers above 0'),
    ((eye, eye, (1, 0)), {}, 'wanted 2 numbers above 0'),
    ((eye, eye, (1, np.nan)), {}, 'wanted 2 numbers above 0'),
    ((vol, vol, (1, 1)), {}, r'spacing is \(1.0, 1.0\), but the Volume says \(2.0, 2.0\)'),
    ((eye, vol, (1, 1)), {}, 'but the Volume says'),
    ((eye, eye - (eye == 0), (1, 1)), {}, r'truth is -1 \(nobody looked\) at 30 voxels'),
    ((-eye, eye, (1, 1)), {}, 'Swapped'),
    ((eye[0], eye[0], (1,)), {}, 'wanted a 2-D or 3-D image'),
    ((eye, eye[:5], (1, 1)), {}, 'wanted the same voxels'),
    ((eye, eye, (1, 1)), dict(labels=(.5,)), 'whole numbers'),
    ((eye, eye, (1, 1)), dict(labels=()), 'whole numbers'),
    ((eye, eye, (1, 1)), dict(empty='eps'), "empty is 'eps'"),
    ((np.stack([eye, 1 - eye]),)*2 + ((1, 1, 1),), {}, 'look one-hot'),
])
def test_refusals(args, opts, words):
    for f in (*scores, panel):
        with pytest.raises(ValueError, match=words): f(*args, **opts)


@pytest.mark.parametrize('f, opts, words', [
    (hd95, dict(definition='mean'), "definition is 'mean'; wanted 'max', 'pooled' or 'area'"),
    (panel, dict(definition='count'), "wanted 'max', 'pooled' or 'area'"),
    (assd, dict(definition='max'), "definition is 'max'; wanted 'count' or 'area'"),
    (masd, dict(definition='max'), "wanted 'count' or 'area'"),
    (nsd, dict(definition='max'), "'count' or 'area'"),
    (hd95, dict(percentile=101), 'percentile is 101; wanted 0 to 100'),
    (panel, dict(percentile=-1), '0 to 100'),
    (nsd, dict(tolerance=-1), 'tolerance is -1; wanted millimeters'),
    (nsd, dict(tolerance=np.inf), 'millimeters'),
    (nsd, dict(tolerance=(1, 2, 3)), 'one for each of 1 labels'),
    (panel, dict(tolerance=(1, 2)), 'each of 1'),
])
def test_refused_options(f, opts, words):
    with pytest.raises(ValueError, match=words): f(eye, eye, (1, 1), **opts)
    with pytest.raises(TypeError, match='integer labels'): f(eye*.5, eye, (1, 1))
