"Panoptic quality: MONAI's tables and function, sets of voxels, and what must not change it."
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import detection_by_sets, voxel_set
from scipy.optimize import linear_sum_assignment

from medseg_nb.data.volume import Volume
from medseg_nb.metrics.detection import components, match, pairs
from medseg_nb.metrics.panoptic import Recognized, panoptic, quality, recognized

ids = st.sampled_from([(1, 8), (6, 7), (3, 4, 5)]).flatmap(
    lambda s: hnp.arrays(np.int64, (2, *s), elements=st.integers(0, 4)))


def one_image(a): return a[None] if a.ndim == 3 else a
def numbered(p, t, **kw):
    q = panoptic(one_image(p), one_image(t), instances=True, **kw)
    return {k: x.item() for k, x in q.items()}


# Tables of MONAI (dev, tests/metrics/test_compute_panoptic_quality.py)
sample_2 = np.array([[0, 1, 1, 1], [0, 0, 0, 0], [2, 0, 3, 3], [4, 2, 2, 0]])
renamed = np.array([[0, 7, 7, 7], [0, 0, 0, 0], [1, 0, 8, 8], [9, 1, 1, 0]])
sample_2_gt = np.array([[1, 1, 2, 1], [0, 0, 0, 0], [1, 3, 0, 0], [4, 3, 3, 3]])
sample_3_pred = np.array([
    [[[2, 0, 1], [2, 1, 1], [0, 1, 1]], [[0, 1, 3], [0, 0, 0], [1, 2, 1]]],
    [[[1, 1, 1], [3, 2, 0], [3, 2, 1]], [[1, 1, 3], [3, 1, 1], [0, 3, 0]]]])
sample_3_gt = np.array([
    [[[2, 0, 0], [2, 0, 0], [2, 2, 3]], [[3, 3, 3], [3, 2, 1], [2, 2, 3]]],
    [[[1, 1, 1], [0, 0, 3], [0, 0, 3]], [[0, 1, 3], [2, 1, 0], [3, 0, 3]]]])


@pytest.mark.parametrize('pred, gt, iou, key, want', [
    (sample_2, sample_2, .99, 'pq', 1.),
    (sample_2, sample_2_gt, .5, 'pq', .25),
    (sample_2, sample_2_gt, .3, 'sq', .6),
    (renamed, sample_2_gt, .3, 'rq', .75),
])
def test_monai_images(pred, gt, iou, key, want):
    np.testing.assert_allclose(numbered(pred, gt, iou=iou)[key], want, atol=1e-4)


def of_class(pair, k): return np.where(pair[1] == k, pair[0], 0)


@pytest.mark.parametrize('classes, iou, key, want', [
    (3, .5, 'pq', (0, 0, .25)),
    (3, .3, 'pq', (.25, .5, .25)),
    (4, .3, 'sq', (.5, .5, 1, 0)),
])
def test_monai_classes_counts_added_up(classes, iou, key, want):
    for k, value in zip(range(1, classes + 1), want):
        every = [recognized(of_class(p, k), of_class(t, k), iou=iou, instances=True)
                 for p, t in zip(sample_3_pred, sample_3_gt)]
        added = Recognized(*(sum(kind) for kind in zip(*every)))
        np.testing.assert_allclose(quality(added, 'zero')[key], value, atol=1e-4)


def test_monai_classes_image_by_image():
    want = {'rq': [[0, 1, 0], [.6667, 0, .4]], 'pq': [[0, .5, 0], [.3333, 0, .4]]}
    for key, rows in want.items():
        for p, t, row in zip(sample_3_pred, sample_3_gt, rows):
            got = [numbered(of_class(p, k), of_class(t, k), iou=.4, empty='zero')[key] for k in (1, 2, 3)]
            np.testing.assert_allclose(got, row, atol=1e-4)


def blocks(rng, shape, n):
    "Boxes painted over one another: instances that overlap their neighbors' places a lot"
    a = np.zeros(shape, int)
    for k in rng.permutation(n) + 1:
        low = [rng.integers(0, s - 1) for s in shape]
        a[tuple(slice(x, x + rng.integers(3, 9)) for x in low)] = k
    return a


def jittered(rng, a):
    "The same instances, moved by a voxel or not, with one lost, and specks of new ones"
    p = np.roll(a, rng.integers(-1, 2), rng.integers(a.ndim))
    p[p == rng.integers(1, 9)] = 0
    return np.where(rng.random(a.shape) < .02, rng.integers(0, 8, a.shape), p)


def test_monai_on_random_maps():
    from monai.metrics import compute_panoptic_quality
    rng, scored = np.random.default_rng(0), 0
    for k in range(210):
        t = blocks(rng, (20, 21) if k % 3 else (7, 8, 9), 6)
        p = jittered(rng, t) if k % 5 else blocks(rng, t.shape, 6)
        iou, maps = (.5, .6, .75)[k % 3], (torch.tensor(p), torch.tensor(t))
        theirs = compute_panoptic_quality(*maps, match_iou_threshold=iou, output_confusion_matrix=True)
        ours = recognized(p, t, iou=iou, instances=True)
        np.testing.assert_allclose([x.item() for x in ours], theirs, atol=1e-5)
        if k % 21 == 0:
            for name, value in numbered(p, t, iou=iou, empty='zero').items():
                other = compute_panoptic_quality(*maps, name, match_iou_threshold=iou)
                np.testing.assert_allclose(value, other, atol=1e-5)
        scored += ours.tp.item() > 1
    assert scored > 80


def test_below_a_half_best_choice_among_pairs_above_the_threshold():
    rng, differs = np.random.default_rng(1), 0
    for k in range(200):
        t = blocks(rng, (14, 15), 9)
        p, iou = jittered(rng, t), (.1, .2, .3, .4)[k % 4]
        m = pairs(p, t)
        table = np.zeros((len(m.pred), len(m.truth)))
        table[m.i, m.j] = m.iou
        drop_first, all_then_drop = np.where(table > iou, table, 0), table
        best = drop_first[linear_sum_assignment(drop_first, maximize=True)].sum()
        rows = linear_sum_assignment(all_then_drop, maximize=True)
        monai = all_then_drop[rows][all_then_drop[rows] > iou].sum()
        got = recognized(p, t, iou=iou, instances=True).iou.item()
        np.testing.assert_allclose(got, best, atol=1e-7)
        assert got > monai - 1e-7
        differs += got > monai + 1e-7
    assert differs < 20


@given(ids, st.sampled_from([0, .2, .5, .7]))
def test_by_sets(pair, iou):
    P, T = ([v for k in range(1, 5) if (v := voxel_set(a, lambda x, k=k: x == k))] for a in pair)
    outcomes = detection_by_sets(P, T, iou=iou, one_to_one=True)
    r = recognized(*map(one_image, pair), iou=iou, instances=True)
    assert any((r.tp, r.fn, r.fp) == (found, missed, alarms) for found, missed, _, alarms, _ in outcomes)
    if iou >= .5:
        total = sum(x for p, t in product(P, T) if (x := len(p & t)/len(p | t)) > iou)
        np.testing.assert_allclose(r.iou, total, atol=1e-12)


@given(ids)
def test_nothing_matches_twice_above_a_half(pair):
    m = match(*pair, iou=.5)
    assert len(set(m.i[m.ok])) == len(set(m.j[m.ok])) == m.ok.sum()


@given(ids, st.sampled_from([.3, .5, .8]))
def test_product_bounds_and_exchange(pair, iou):
    q = numbered(*pair, iou=iou)
    np.testing.assert_allclose(q['pq'], q['sq']*q['rq'], atol=1e-12)
    assert np.isnan(q['pq']) == (not pair.any())
    assert all(np.isnan(x) or 0 <= x <= 1 + 1e-12 for x in q.values())
    assert q['sq'] == 0 or not q['sq'] <= iou
    np.testing.assert_allclose(list(numbered(*pair[::-1], iou=iou).values()), list(q.values()), atol=1e-9)
    assert set(numbered(pair[0], pair[0], iou=iou, empty='one').values()) == {1.}


@given(ids, st.integers(1, 3), st.randoms(), st.data())
@settings(max_examples=60)
def test_flips_padding_and_names(pair, width, random, data):
    axis = data.draw(st.integers(0, pair[0].ndim - 1))
    names = np.r_[0, random.sample(range(1, 900), 4)]
    want = list(numbered(*pair).values())
    moves = partial(np.flip, axis=axis), partial(np.pad, pad_width=width), lambda a: names[a], np.transpose
    for move in moves:
        np.testing.assert_allclose(list(numbered(*map(move, pair)).values()), want, atol=1e-12)


def test_pieces_of_labels():
    rng = np.random.default_rng(2)
    for shape in ((20, 21), (8, 9, 7)):
        t = (rng.random(shape) < .2)*rng.integers(1, 3, shape)
        p = np.where(rng.random(shape) < .02, 0, t)
        q = panoptic(p, t, (1, 2))
        for n, k in enumerate((1, 2)):
            alone = numbered(components(p == k), components(t == k))
            assert {m: x[n] for m, x in q.items()} == alone
        assert (q['pq'] > .3).all()


def test_touching_instances_need_numbers():
    t = np.array([[1, 1, 2, 2]]*2)
    assert panoptic(t > 0, t > 0)['pq'] == 1
    assert panoptic(t > 0, t, instances=True)['pq'] == 0
    assert panoptic(t, t, instances=True)['pq'] == 1


def test_a_half_is_not_enough():
    t = np.array([[1, 1, 0, 0]])
    assert numbered(np.array([[1, 1, 1, 1]]), t) == dict(pq=0, sq=0, rq=0)
    assert numbered(np.array([[1, 1, 1, 0]]), t)['sq'] == pytest.approx(2/3)


def test_empty_cases():
    none, some = np.zeros((4, 4), int), np.eye(4, dtype=int)
    def said(p, t, **kw): return [x.item() for x in panoptic(p, t, **kw).values()]
    np.testing.assert_equal(said(none, none), [np.nan]*3)
    assert said(none, none, empty='one') == [1]*3
    for empty in ('nan', 'one', 'zero'):
        assert said(some, none, empty=empty) == said(none, some, empty=empty) == [0]*3
        assert said(some, np.fliplr(some), empty=empty) == [0]*3
    rule = dict(both=1, truth='nan', pred=.5)
    np.testing.assert_equal([said(none, none, empty=rule)[0], said(some, none, empty=rule)[0],
                             said(none, some, empty=rule)[0]], [1, np.nan, .5])


def test_nobody_looked():
    "Void pixels of the paper: taken from the prediction; an instance that is mostly void is no false alarm"
    t = np.array([[1, 1, 1, 0, 0, -1, -1, -1, -1]])
    assert numbered(np.array([[1, 1, 1, 0, 0, 0, 2, 2, 2]]), t)['pq'] == 1
    assert numbered(np.array([[1, 1, 1, 0, 2, 2, 2, 0, 0]]), t)['pq'] == 1
    assert numbered(np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0]]), t)['rq'] == pytest.approx(2/3)
    t = np.array([[1, 1, 1, -1, -1, -1, -1]])
    assert numbered(np.ones((1, 7), int), t)['pq'] == 1
    assert panoptic(np.ones((1, 7), int), t)['pq'] == 1


def test_volume_and_tensor():
    a = np.array([[1, 1, 0, 2], [1, 0, 0, 2]])
    for make in (torch.tensor, lambda x: Volume(x[None]), np.uint16):
        assert panoptic(make(a), make(a), instances=True)['pq'] == 1


def test_refusals():
    a = np.ones((3, 3), int)
    with pytest.raises(ValueError, match='iou is 1'): panoptic(a, a, iou=1)
    with pytest.raises(ValueError, match='one class'): panoptic(a, a, (1, 2), instances=True)
    with pytest.raises(TypeError, match='integer labels'): panoptic(a*1., a)
