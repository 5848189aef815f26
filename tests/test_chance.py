"Scores that know of luck: against exact fractions, scikit-learn, MONAI, MedPy and published numbers."
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import chance_by_fractions, label_images

from medseg_nb.data.volume import Volume
from medseg_nb.metrics import chance
from medseg_nb.metrics.chance import (
    accuracy, balanced_accuracy, kappa, mcc, volume_difference, volume_error)
from medseg_nb.metrics.overlap import Counts, dice, sensitivity

scores = (accuracy, balanced_accuracy, kappa, mcc, volume_error)
pairs = [pair for shape in ((7, 5), (6, 5), (1, 3, 4, 5)) for pair in product(label_images(shape), repeat=2)]
two = st.sampled_from([(1, 5), (6, 7), (1, 2, 5, 4)]).flatmap(
    lambda s: st.tuples(*[hnp.arrays(np.int64, s, elements=st.integers(0, 2))]*2))


@pytest.mark.parametrize('score', scores, ids=lambda f: f.__name__)
def test_by_fractions(score):
    "Equal to exact fractions on 507 pairs, and nan in the same places"
    rng = np.random.default_rng(0)
    for pred, truth in pairs:
        truth = np.where(rng.random(truth.shape) < .1, -1, truth)
        want = [chance_by_fractions(score.__name__, pred, truth, k) for k in range(3)]
        got = score(pred, truth, (0, 1, 2))
        np.testing.assert_allclose(got, np.array(want, float), rtol=1e-12, atol=1e-15)


def test_nobody_looked_anywhere():
    for f in scores:
        assert np.isnan(f(np.ones((3, 3), int), np.full((3, 3), -1)))
        assert f(np.ones((3, 3), int), np.full((3, 3), -1), empty=dict(both=.5)) == .5


@pytest.mark.filterwarnings('ignore:A single label')
def test_scikit_learn():
    from sklearn import metrics as sk
    n = 0
    for pred, truth in pairs[::3]:
        for k in range(3):
            p, t = pred.ravel() == k, truth.ravel() == k
            assert accuracy(pred, truth, k) == pytest.approx(sk.accuracy_score(t, p), rel=1e-12)
            theirs = sk.matthews_corrcoef(t, p)
            assert mcc(pred, truth, k, empty='zero') == pytest.approx(theirs, rel=1e-6, abs=1e-12)
            if t.all() or not t.any(): continue   # theirs warn and answer otherwise
            theirs = sk.balanced_accuracy_score(t, p)
            assert balanced_accuracy(pred, truth, k) == pytest.approx(theirs, rel=1e-12)
            assert kappa(pred, truth, k) == pytest.approx(sk.cohen_kappa_score(t, p), rel=1e-6, abs=1e-12)
            n += 1
    assert n > 200


def test_monai():
    from monai.metrics import compute_confusion_matrix_metric, get_confusion_matrix
    for pred, truth in pairs[1::2]:
        p, t = (torch.nn.functional.one_hot(torch.tensor(a.ravel()), 3).T[None] for a in (pred, truth))
        cells = get_confusion_matrix(p, t)
        for f, name in ((accuracy, 'acc'), (balanced_accuracy, 'ba'), (mcc, 'mcc')):
            want = compute_confusion_matrix_metric(name, cells)[0]
            np.testing.assert_allclose(f(pred, truth, (0, 1, 2)), want, atol=2e-6, err_msg=name)


def test_medpy():
    from medpy.metric.binary import ravd
    for pred, truth in pairs[::2]:
        for k in range(3):
            if (truth == k).any():
                want = ravd(pred == k, truth == k)
                assert volume_error(pred, truth, k) == pytest.approx(want, rel=1e-12)


def test_published_confusion_of_monai():
    "tests/metrics/test_compute_confusion_matrix.py of MONAI 1.6, its channels as labels"
    preds, truths = ([[2, 0], [1, 1]], [[1, 2], [2, 0]]), ([[1, 2], [1, 0]], [[1, 1], [2, 0]])
    for f, per_class, mean in ((accuracy, [.75, .625, .625], .6667), (mcc, [.3333, .2887, .1220], .2480),
                               (balanced_accuracy, [.6667, .625, .5833], .6250)):
        got = [f(p, t, (0, 1, 2)) for p, t in zip(preds, truths)]
        np.testing.assert_allclose(np.mean(got, 0), per_class, atol=1e-4)
        np.testing.assert_allclose(np.mean(got), mean, atol=1e-4)


def test_published_metrics_reloaded():
    "tests/metrics/test_metrics_reloaded.py of MONAI 1.6; some of theirs add a constant"
    pred, truth = [[1, 0], [0, 1]], [[1, 0], [1, 1]]
    for f, want in ((accuracy, .75), (balanced_accuracy, .833327), (kappa, .5), (mcc, .57735),
                    (volume_error, -.333333)):   # theirs has no sign
        np.testing.assert_allclose(f(pred, truth), want, atol=1e-5)
    classes = [[2, 2], [2, 0]], [[0, 1], [2, 0]]
    assert sensitivity(*classes, labels=(0, 1, 2)).mean() == .5   # 'Balanced Accuracy' of many classes


@given(two)
def test_symmetry_and_bounds(pair):
    a, b, ks = *pair, (0, 1, 2, 5)
    for f in (accuracy, kappa, mcc): np.testing.assert_array_equal(f(a, b, ks), f(b, a, ks))
    for f in scores:
        x = f(a, b, ks)
        assert x.dtype == np.float64 and x.shape == (4,)
        lowest = {accuracy: 0, balanced_accuracy: 0}.get(f, -1)
        assert (np.isnan(x) | (x >= lowest)).all() and (np.isnan(x) | (x <= 1) | (f is volume_error)).all()
        same = f(a, a, ks)
        assert (np.isnan(same) | (same == (f is not volume_error))).all()
    k, m = kappa(a, b, ks), mcc(a, b, ks)
    assert (np.isnan(m) | (abs(k) <= abs(m) + 1e-12)).all()
    known = ~np.isnan(m)
    np.testing.assert_array_equal(np.sign(k)[known], np.sign(m)[known])
    if a.ndim == 4:
        ab, ba = (volume_difference(*masks, (1, 1, 1), ks) for masks in ((a, b), (b, a)))
        np.testing.assert_array_equal(ab, -ba)


@given(two)
def test_label_and_rest_are_alike(pair):
    a, b = (m.clip(max=1) for m in pair)
    for f in (accuracy, balanced_accuracy, kappa, mcc):
        rest, label = f(a, b, (0, 1))
        np.testing.assert_array_equal(rest, label)
    np.testing.assert_allclose(mcc(1 - a, b), -mcc(a, b), atol=1e-15)


@given(two, st.data())
@settings(max_examples=50)
def test_only_pairs_of_voxels_count(pair, data):
    "Flips, any other order, and voxels that nobody looked at"
    a, b = pair
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(a.size)
    hole = data.draw(hnp.arrays(bool, a.shape))
    for f in scores:
        want = f(a, b, (0, 1, 2))
        np.testing.assert_array_equal(f(a.ravel()[order], b.ravel()[order], (0, 1, 2)), want)
        np.testing.assert_array_equal(f(np.flip(a, -1), np.flip(b, -1), (0, 1, 2)), want)
        want = f(a[~hole], b[~hole], (0, 1, 2))
        np.testing.assert_array_equal(f(a, np.where(hole, -1, b), (0, 1, 2)), want)


@given(two)
@settings(max_examples=50)
def test_padding(pair):
    "More background: luck is judged anew, volumes stay, and kappa tends to Dice"
    a, b = (m.ravel() for m in pair)
    more = [np.concatenate([m.astype('uint8'), np.zeros(1_000_000, 'uint8')]) for m in (a, b)]
    np.testing.assert_array_equal(volume_error(*more), volume_error(a, b))
    assert not (accuracy(*more) < accuracy(a, b)).any()
    if (a == 1).any() or (b == 1).any(): np.testing.assert_allclose(kappa(*more), dice(a, b), atol=1e-4)


def test_counts_beyond_32_bits(monkeypatch):
    "Products of four counts of a billion voxels neither overflow nor lose the sign"
    far = np.array([2**33])
    counts = Counts(far, far//2, far//2, far)
    monkeypatch.setattr(chance, 'confusion', lambda *_: counts)
    assert kappa(0, 0) == mcc(0, 0) == pytest.approx(1/3, rel=1e-12) and accuracy(0, 0) == 2/3
    counts = Counts(far, 0*far, 0*far, far)
    assert kappa(0, 0) == mcc(0, 0) == accuracy(0, 0) == 1
    counts = Counts(0*far, far, far + 5, 0*far)
    assert mcc(0, 0) == -1


def test_shuffling_costs_everything_but_accuracy():
    rng = np.random.default_rng(0)
    pred, truth = rng.random((2, 100_000)) < .05
    assert accuracy(pred, truth) > .9 and all(abs(f(pred, truth)) < .01 for f in (kappa, mcc))
    assert abs(balanced_accuracy(pred, truth) - .5) < .01


@pytest.mark.parametrize('score', [*scores, lambda p, t, **kw: volume_difference(p, t, (1, 1, 1), **kw)])
def test_rules(score):
    none, spot = np.zeros((1, 2, 4, 4), int), np.eye(4, dtype=int)[None, None].repeat(2, 1)
    rule = dict(both=7., truth=8., pred=9.)
    assert [score(p, t, empty=rule).item() for p, t in product((none, spot), repeat=2)][:3] == [7, 9, 8]
    assert score(spot, spot, empty=rule) == score(spot, spot)
    with pytest.raises(ValueError, match="empty is 'mean'"): score(spot, spot, empty='mean')


@pytest.mark.parametrize('score', scores)
def test_scores_are_no_labels(score):
    with pytest.raises(TypeError, match='argmax'): score(np.full((4, 4), .3), np.ones((4, 4), int))


def test_milliliters():
    truth, pred = np.zeros((2, 10, 10, 10), np.uint8)
    truth[2:7], pred[2:7, :8], pred[0] = 1, 1, 2
    affine = np.diag([2., 1, .5, 1])
    t, p = Volume(truth[None], affine), Volume(pred[None], affine)
    for args in ((p, t), (pred, t), (p, truth), (pred, truth, (2, 1, .5)), (p, t, (2, 1, .5))):
        np.testing.assert_allclose(volume_difference(*args, labels=(1, 2, 3)), [-.1, .1, 0], rtol=1e-12)
    np.testing.assert_allclose(volume_error(p, t, labels=(1, 2)), [-.2, np.nan])
    assert volume_difference(p, np.where(pred == 1, -1, truth.astype(int))) == pytest.approx(-.1)


@pytest.mark.parametrize('spacing, words', [
    (None, 'Arrays do not know how large a voxel is'), ((1, 1), 'wanted 3 numbers above 0'),
    (2., 'wanted 3 numbers'), ((1, 0, 1), 'above 0'), ((1, np.nan, 1), 'above 0'), ((1, 1, -1), 'above 0')])
def test_spacing_is_stated(spacing, words):
    a = np.ones((1, 3, 3, 3), int)
    with pytest.raises(ValueError, match=words): volume_difference(a, a, spacing)


def test_spacing_is_not_contradicted():
    v = Volume(np.ones((1, 3, 3, 3), np.uint8), np.diag([1., 1, 3, 1]))
    with pytest.raises(ValueError, match=r'\(1.0, 1.0, 1.0\), but the Volume says \(1.0, 1.0, 3.0\)'):
        volume_difference(v, v, (1, 1, 1))
    film = Volume(np.ones((1, 3, 3), np.uint8))
    for x in (film, film.numpy()[0], film.numpy().ravel()):
        with pytest.raises(ValueError, match='axes, which has no volume'): volume_difference(x, x, (1, 1, 1))
