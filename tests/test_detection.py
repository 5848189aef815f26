"Detection: against sets of voxels, ISLES, BraTS, scipy, and what must not change a count."
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import brats_dice, detection_by_sets, isles_f1, pieces, voxel_set
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from medseg_nb.data.case import Case
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.detection import (
    components, false_alarms, lesion_dice, lesion_f1, lesion_precision, lesion_sensitivity, lesions, match,
    pairs, tally)
from medseg_nb.metrics.evaluate import evaluate

scores = (lesion_sensitivity, lesion_precision, lesion_f1, lesion_dice, false_alarms)
rules = [dict(), dict(iou=.1), dict(iou=.3), dict(iou=.5),
         dict(one_to_one=True), dict(iou=.2, one_to_one=True)]


def masks(shape):
    "Empty, full, one voxel, stripes, a checkerboard, a diagonal, sparse and dense noise"
    rng, at = np.random.default_rng(len(shape)), np.indices(shape)
    one = np.zeros(shape, int)
    one[(-1,)*len(shape)] = 1
    found = [0*one, 0*one + 1, one, 1*(at[-1] % 3 == 0), at.sum(0) % 2, 1*(at[0] == at[1])]
    return found + [1*(rng.random(shape) < d) for d in (.05, .1, .15, .2, .3, .3)]


cases = [pair for shape in ((9, 8), (5, 6, 4)) for pair in product(masks(shape), repeat=2)]
two = st.sampled_from([(1, 7), (7, 8), (4, 5, 3)]).flatmap(
    lambda s: st.tuples(*[hnp.arrays(np.int64, s, elements=st.sampled_from([0, 0, 0, 1, 2]))]*2))


def one_image(a): return a[None] if a.ndim == 3 else a
def on(a, k=1): return pieces(voxel_set(a, lambda x: x == k))
def row(t): return tuple(x.item() for x in t)


def agrees(got, outcomes):
    return any(got[:4] == want[:4] and abs(got[4] - want[4]) < 1e-9 for want in outcomes)


@pytest.mark.parametrize('rule', rules, ids=str)
def test_by_sets(rule):
    asked = 0
    for pred, truth in cases:
        P, T = on(pred), on(truth)
        if rule.get('one_to_one') and len(P)*len(T) > 40: continue
        for least in (0, 3):
            got = row(tally(one_image(pred), one_image(truth), least=least, spacing=(1,)*pred.ndim, **rule))
            assert agrees(got, detection_by_sets(P, T, least=least, **rule)), (pred, truth)
            asked += 1
    assert asked > 200


@pytest.mark.parametrize('rule', rules[:2] + rules[-1:], ids=str)
def test_nobody_looked_by_sets(rule):
    rng = np.random.default_rng(1)
    for _ in range(100):
        pred, truth = 1*(rng.random((2, 7, 8)) < .15)
        truth[ndimage.binary_dilation(rng.random((7, 8)) < .06)] = -1
        unknown = voxel_set(truth, lambda a: a == -1)
        outcomes = detection_by_sets(on(pred), on(truth), unknown, **rule)
        assert agrees(row(tally(pred, truth, **rule)), outcomes), (pred, truth)


def test_challenges():
    rng = np.random.default_rng(2)
    noise = [1*(rng.random((2, 10, 9)) < d) for d in rng.uniform(0, .35, 150)]
    noise += [1*(rng.random((2, 5, 4, 6)) < d) for d in rng.uniform(0, .2, 100)]
    for pred, truth in [*cases, *noise]:
        p, t = one_image(pred), one_image(truth)
        np.testing.assert_allclose(lesion_f1(p, t, empty='one'), isles_f1(pred, truth), atol=1e-12)
        np.testing.assert_allclose(lesion_dice(p, t, empty='one'), brats_dice(pred, truth), atol=1e-12)


def test_assignment_as_scipy():
    rng = np.random.default_rng(3)
    for k in range(60):
        pred, truth = rng.integers(0, 12, (2, 14, 15))
        above = (0, .05, .1)[k % 3]
        every, m = pairs(pred, truth), match(pred, truth, above, one_to_one=True)
        table = np.zeros((len(m.pred), len(m.truth)))
        keep = every.iou > above
        table[every.i[keep], every.j[keep]] = every.iou[keep]
        best = table[linear_sum_assignment(table, maximize=True)].sum()
        np.testing.assert_allclose(m.iou[m.ok].sum(), best, atol=1e-7)
        assert max(np.bincount(m.i[m.ok])) == max(np.bincount(m.j[m.ok])) == 1


def test_best_first_would_lose_a_match():
    truth, pred = np.zeros((2, 1, 30), int)
    truth[0, :12], truth[0, 12:22], pred[0, :4], pred[0, 4:16] = 1, 2, 2, 1
    m = match(pred, truth, one_to_one=True)
    assert set(zip(m.i[m.ok] + 1, m.j[m.ok] + 1)) == {(1, 2), (2, 1)}


@pytest.mark.parametrize('density', [.05, .3])
def test_noise_of_many_pieces(density):
    pred, truth = np.random.default_rng(4).random((2, 128, 128, 128)) < density
    (a, P), (b, T) = (ndimage.label(x, np.ones((3, 3, 3))) for x in (pred, truth))
    found, hits = (len(np.unique(x[pred & truth])) for x in (b, a))
    assert row(tally(pred, truth))[:4] == (found, T - found, hits, P - hits)
    assert len(lesions(pred, truth)) == T + P - hits
    once = tally(pred, truth, one_to_one=True)
    assert once.found == once.hits and 0 < once.found <= min(found, hits)


def test_corners_join():
    assert components(np.eye(5, dtype=bool)).max() == 1
    assert components(np.indices((3, 3, 3)).sum(0) % 3 == 0).max() == 1
    apart = np.zeros((5, 5), bool)
    apart[::2, ::2] = True
    assert components(apart).max() == 9


@given(two, st.sampled_from(rules))
def test_bounds_and_exchange(pair, rule):
    a, b = map(one_image, pair)
    for f in scores[:-1]:
        x = f(a, b, (0, 1, 2), **rule)
        assert x.dtype == np.float64 and x.shape == (3,)
        assert (np.isnan(x) | ((x >= 0) & (x <= 1 + 1e-12))).all()
    swapped = lesion_precision(b, a, (1, 2), **rule)
    np.testing.assert_array_equal(lesion_sensitivity(a, b, (1, 2), **rule), swapped)
    s, p, f = (g(a, b, (1, 2), 'zero', **rule) for g in scores[:3])
    if rule.get('one_to_one') or rule.get('iou', 0) >= .5:
        np.testing.assert_allclose(f*(s + p), 2*s*p, atol=1e-12)
    for g in scores[:-1]: assert (g(a, a, (1, 2), 'one', **rule) == 1).all()
    assert (false_alarms(a, a, (1, 2), **rule) == 0).all()


@given(two, st.sampled_from(rules[:4]), st.integers(1, 3), st.data())
@settings(max_examples=60)
def test_flips_padding_and_turns(pair, rule, width, data):
    axis = data.draw(st.integers(0, pair[0].ndim - 1))
    want = [np.round(x, 9) for x in tally(*map(one_image, pair), (1, 2), **rule)]
    for move in (partial(np.flip, axis=axis), partial(np.pad, pad_width=width), np.transpose):
        got = tally(*(one_image(move(m)) for m in pair), (1, 2), **rule)
        np.testing.assert_array_equal([np.round(x, 9) for x in got], want)


@given(hnp.arrays(np.int64, (2, 6, 7), elements=st.integers(0, 4)), st.sampled_from(rules), st.randoms())
def test_numbers_are_only_names(pair, rule, random):
    names = random.sample(range(1, 400), 4)
    fresh = np.r_[0, names][pair]
    want = row(tally(*pair, instances=True, **rule))
    got = row(tally(*fresh.astype(np.uint16), instances=True, **rule))
    P, T = ([v for k in range(1, 5) if (v := voxel_set(a, lambda x, k=k: x == k))] for a in pair)
    outcomes = detection_by_sets(P, T, **rule)
    assert agrees(want, outcomes) and agrees(got, outcomes)
    table = lesions(*fresh, instances=True, **rule)
    assert set(table.number[table.verdict != 'false alarm']) == set(np.unique(fresh[1])) - {0}


def bar(*spans, n=40):
    a = np.zeros((3, n), int)
    for lo, hi in spans: a[:, lo:hi] = 1
    return a


@pytest.mark.parametrize('truth, pred, want', [   # F1 by one voxel, IoU > 0.1, one-to-one, IoU > 0.5
    (bar((0, 20)), bar((0, 9), (11, 20)), (1, 1, 2/3, 0)),
    (bar((0, 9), (11, 20)), bar((0, 20)), (1, 1, 2/3, 0)),
    (bar((0, 20)), bar((19, 39)), (1, 0, 1, 0)),
    (bar((0, 10)), bar((0, 10), (20, 30)), (2/3,)*4),
    (bar((0, 5), (30, 35)), bar((0, 40)), (1, 1, 2/3, 0)),
])
def test_split_and_merged(truth, pred, want):
    got = [lesion_f1(pred, truth, **rules[n]).item() for n in (0, 1, 4, 3)]
    np.testing.assert_allclose(got, want)


def test_iou_has_to_be_above():
    truth, pred = bar((0, 20)), bar((0, 10))
    assert lesion_f1(pred, truth, iou=.5) == 0 and lesion_f1(pred, truth, iou=.499) == 1


def test_small_ones_are_left_out_after_the_match():
    truth, pred = bar((0, 3), (10, 20), (30, 33)), bar((0, 4), (10, 20), (25, 26))
    assert row(tally(pred, truth))[:4] == (2, 1, 2, 1)
    assert row(tally(pred, truth, least=10, spacing=(1, 1)))[:4] == (1, 0, 1, 0)
    assert row(tally(pred, truth, least=9, spacing=(1, 1)))[:4] == (2, 1, 2, 0)
    speck = bar((12, 13))
    assert row(tally(speck, bar((10, 20)), least=10, spacing=(1, 1)))[:4] == (1, 0, 1, 0)
    verdicts = lesions(pred, truth, least=10, spacing=(1, 1)).verdict
    assert verdicts.tolist() == ['ignored', 'found', 'ignored']


def test_millimeters():
    truth, pred = bar((0, 3), (10, 20)), bar((10, 20))
    def volume(a, *h): return Volume(a[None].astype('uint8'), np.diag([*h, 1]))
    assert tally(volume(pred, 2, 2), volume(truth, 2, 2), least=36).missed == 1
    assert tally(volume(pred, 2, 2), volume(truth, 2, 2), least=36.1).missed == 0
    assert tally(pred, volume(truth, .5, 2), least=9).missed == 1
    assert tally(pred, truth, least=9, spacing=(.5, 2)).missed == 1
    assert lesions(pred, volume(truth, 2, 3)).volume.tolist() == [54, 180]
    assert lesions(pred, truth, spacing=(2, 3)).volume.tolist() == [54, 180]
    assert lesions(pred, truth).volume.isna().all()
    solid = np.ones((2, 3, 4), int)
    assert lesions(solid, Volume(solid[None].astype('uint8'), np.diag([1, 2, 3, 1]))).volume.item() == 144


def test_empty_cases_are_told_apart():
    none, some = bar(), bar((0, 3), (10, 20))
    def said(p, t, **kw): return [f(p, t, **kw).item() for f in scores]
    nan = np.nan
    np.testing.assert_equal(said(none, none), [nan, nan, nan, nan, 0])
    np.testing.assert_equal(said(some, none), [nan, 0, 0, 0, 2])
    np.testing.assert_equal(said(none, some), [0, nan, 0, 0, 0])
    np.testing.assert_equal(said(none, none, empty='one'), [1, 1, 1, 1, 0])
    rule = dict(both=1, truth=.25, pred='zero')
    np.testing.assert_equal(said(none, none, empty=rule), [1]*5)
    np.testing.assert_equal(said(some, none, empty=rule), [.25]*5)
    np.testing.assert_equal(said(none, some, empty=rule), [0]*5)
    np.testing.assert_equal(said(some, some, empty=rule), [1, 1, 1, 1, 0])


@given(two, st.sampled_from(rules))
@settings(max_examples=60)
def test_table_says_what_the_scores_say(pair, rule):
    a, b = map(one_image, pair)
    table, counts = lesions(a, b, (1, 2), **rule), tally(a, b, (1, 2), **rule)
    for n, k in enumerate((1, 2)):
        part = table[table.label == k]
        kinds = part.verdict.value_counts()
        assert [kinds.get(v, 0) for v in ('found', 'missed', 'false alarm')] == [
            counts.found[n], counts.missed[n], counts.alarms[n]]
        np.testing.assert_allclose(part.dice.sum(), counts.dice[n], atol=1e-9)
        assert ((part.pieces > 0) == (part.verdict == 'found')).all()
        numbers, count = ndimage.label(pair[1] == k, np.ones((3,)*pair[1].ndim))
        middle = ndimage.center_of_mass(pair[1] == k, numbers, range(1, count + 1))
        real = part[part.verdict != 'false alarm']
        np.testing.assert_allclose(np.array(real.center.tolist()).reshape(-1, pair[1].ndim),
                                   np.reshape(middle, (-1, pair[1].ndim)), atol=.051)
        np.testing.assert_array_equal(real.voxels, np.bincount(numbers.ravel())[1:])


def test_best_overlap_of_a_near_miss():
    table = lesions(bar((5, 15)), bar((0, 10)), iou=.5)
    assert table.verdict.tolist() == ['missed', 'false alarm']
    np.testing.assert_allclose(table.iou, 1/3)
    assert table.dice.tolist() == [0, 0] and table.pieces.tolist() == [0, 0]


def test_containers():
    pred, truth = bar((0, 3), (10, 20)), bar((10, 20), (30, 35))
    want = row(tally(pred, truth))
    assert want == (1, 1, 1, 1, 1.)
    for make in (torch.tensor, lambda a: a > 0, lambda a: torch.tensor(a)[None] > 0, np.uint8, np.uint64,
                 lambda a: Volume(torch.tensor(a)[None].byte())):
        assert row(tally(make(pred), make(truth))) == want
        assert row(tally(make(pred), make(truth), instances=True))[:2] == (1, 0)


def test_in_evaluate():
    truth = Volume(bar((0, 3), (10, 20))[None].astype('uint8'), np.diag([2., 2, 1]))
    asked = [*scores, partial(lesion_f1, iou=.5), partial(lesion_sensitivity, least=40)]
    table = evaluate(lambda v: v.new(bar((10, 20))[None]), [Case('a', truth, truth)], asked, labels=(1,))
    assert 'error' not in table or table.error.isna().all()
    np.testing.assert_allclose(table.value, [.5, 1, 2/3, .5, 0, 2/3, 1])


ones = np.ones((4, 4), int)


@pytest.mark.parametrize('kw, words', [
    (dict(iou=1.), 'iou is 1.0; wanted'),
    (dict(iou=-.1), 'iou is -0.1'),
    (dict(least=5), r'least is 5 mm.*spacing=\(1., 1., 3.\)'),
    (dict(labels=(1, 2), instances=True), 'one class; wanted one label.*np.where'),
    (dict(labels=(.5,)), 'whole numbers'),
    (dict(empty='eps'), "empty is 'eps'"),
])
def test_refusals(kw, words):
    with pytest.raises(ValueError, match=words): lesion_f1(ones, ones, **kw)


def test_more_refusals():
    with pytest.raises(ValueError, match=r'at most 16777216.*return_inverse'):
        lesion_f1(ones*2**25, ones, instances=True)
    v = Volume(ones[None], np.diag([2., 2, 1]))
    with pytest.raises(ValueError, match='Leave spacing out'): lesion_f1(v, v, spacing=(1, 1))
    with pytest.raises(TypeError, match='float64, but overlap counts integer'): lesion_f1(ones*.5, ones)
    with pytest.raises(ValueError, match='different grids'): lesion_f1(v, Volume(ones[None]))
    with pytest.raises(ValueError, match='Swapped'): lesion_f1(-ones, ones)
    with pytest.raises(TypeError, match='criterion'): lesion_f1(ones, ones, criterion='any')
