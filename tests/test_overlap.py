"Overlap: against sets of voxels, scikit-learn, MONAI and SimpleITK."
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import label_images, overlap_by_sets

from medseg_nb.data.volume import Volume
from medseg_nb.metrics.overlap import (
    by_asking, by_table, confusion, dice, iou, one_hot, precision, sensitivity, settle, specificity)

scores = (dice, iou, sensitivity, specificity, precision)
policies = {'nan': np.nan, 'one': 1., 'zero': 0.}


pairs = [pair for shape in ((7, 5), (1, 6, 5), (3, 4, 5)) for pair in product(label_images(shape), repeat=2)]
two = st.sampled_from([(1, 5), (6, 7), (2, 5, 4)]).flatmap(
    lambda s: st.tuples(*[hnp.arrays(np.int64, s, elements=st.integers(0, 2))]*2))


def one_image(a): return a[None] if a.ndim == 3 else a   # a volume of 2 slices may look one-hot

@pytest.mark.parametrize('score', scores, ids=lambda f: f.__name__)
def test_by_sets(score):
    for pred, truth in pairs:
        for empty in policies:
            want = [overlap_by_sets(score.__name__, pred, truth, k, empty) for k in range(4)]
            got = score(one_image(pred), one_image(truth), labels=range(4), empty=empty)
            np.testing.assert_array_equal(got, want)


def test_nobody_looked_by_sets():
    rng = np.random.default_rng(0)
    for _ in range(100):
        pred, truth = rng.integers(0, 3, (5, 6)), rng.integers(-1, 3, (5, 6))
        for f in scores:
            want = [overlap_by_sets(f.__name__, pred, truth, k, 'nan') for k in range(3)]
            np.testing.assert_array_equal(f(pred, truth, (0, 1, 2)), want)


@pytest.mark.parametrize('policy', policies)
def test_scikit_learn(policy):
    from sklearn import metrics as sk
    for pred, truth in pairs[::6]:
        p, t = pred.ravel(), truth.ravel()
        theirs = {precision: sk.precision_score, sensitivity: sk.recall_score, dice: sk.f1_score}
        if policy != 'nan': theirs[iou] = sk.jaccard_score   # which has no nan
        for f, score in theirs.items():
            want = score(t, p, labels=[0, 1, 2], average=None, zero_division=policies[policy])
            np.testing.assert_allclose(f(p, t, (0, 1, 2), policy), want, atol=1e-12)
        want = [sk.recall_score(t != k, p != k, zero_division=policies[policy]) for k in range(3)]
        np.testing.assert_allclose(specificity(p, t, (0, 1, 2), policy), want, atol=1e-12)


def test_monai():
    from monai.metrics import compute_dice, compute_iou, get_confusion_matrix
    def hot(a): return torch.nn.functional.one_hot(torch.tensor(a), 3).movedim(-1, 0)[None].float()
    for pred, truth in pairs[1::6]:
        p, t = hot(pred), hot(truth)
        for f, theirs in ((dice, compute_dice), (iou, compute_iou)):
            got = f(one_image(pred), one_image(truth), (0, 1, 2), 'one')
            np.testing.assert_allclose(got, theirs(p, t, ignore_empty=False)[0], atol=1e-6)
        tp, fp, tn, fn = get_confusion_matrix(p, t)[0].numpy().astype(int).T
        ours = confusion(one_image(pred), one_image(truth), (0, 1, 2))
        for got, want in zip(ours, (tp, fp, fn, tn)): np.testing.assert_array_equal(got, want)


def test_conventions_on_the_page(monkeypatch):
    "The libraries' answers to the empty mask are those that the notebook teaches"
    import medpy.metric.binary as medpy
    import SimpleITK as sitk
    from monai.metrics import compute_dice
    from sklearn.metrics import f1_score
    page = json.loads((Path(__file__).parents[1]/'nbs/03_metrics/01_overlap.ipynb').read_text())
    source = next(s for c in page['cells'] if (s := ''.join(c['source'])).startswith('conventions = {'))
    said = {'np': np}
    exec(source.split('\ncases =')[0], said)
    says = {name.split(':')[0]: f for name, f in said['conventions'].items()}
    line = np.arange(200).reshape(10, 20)
    counted = np.count_nonzero
    monkeypatch.setattr(np, 'count_nonzero', lambda a: int(counted(a)))   # as in older NumPy: 0 / 0 raises
    for pred, truth in product([line < 0, line < 1, line < 50, (line >= 10) & (line < 60)], repeat=2):
        sizes = (pred & truth).sum(), pred.sum(), truth.sum()
        filt = sitk.LabelOverlapMeasuresImageFilter()
        filt.Execute(*(sitk.GetImageFromArray(m.astype('uint8')) for m in (pred, truth)))
        want = {'SimpleITK': filt.GetDiceCoefficient(), 'MedPy': medpy.dc(pred, truth),
                'scikit-learn': f1_score(truth.ravel(), pred.ravel()),
                'MONAI': compute_dice(*(torch.tensor(m)[None, None].float() for m in (pred, truth))).item()}
        for name, value in want.items():
            np.testing.assert_allclose(says[name](*sizes), value, atol=1e-6, err_msg=name)


@given(two)
def test_symmetry_and_bounds(pair):
    a, b = map(one_image, pair)
    for f in (dice, iou): np.testing.assert_array_equal(f(a, b, (0, 1, 2)), f(b, a, (0, 1, 2)))
    np.testing.assert_array_equal(sensitivity(a, b, (0, 1, 2)), precision(b, a, (0, 1, 2)))
    for f in scores:
        x = f(a, b, (0, 1, 2))
        assert (np.isnan(x) | ((x >= 0) & (x <= 1))).all()
        assert x.dtype == np.float64 and x.shape == (3,)
    d, j = dice(a, b, (0, 1, 2)), iou(a, b, (0, 1, 2))
    np.testing.assert_allclose(j, d/(2-d), atol=1e-12)
    assert (dice(a, a, (0, 1, 2), 'one') == 1).all()


@given(two, st.integers(1, 3), st.data())
def test_flips_and_padding(pair, width, data):
    axis = data.draw(st.integers(0, pair[0].ndim - 1))
    a, b = map(one_image, pair)
    flipped = [np.flip(m, axis + (m.ndim == 4)) for m in (a, b)]
    padded = [one_image(np.pad(m, width)) for m in pair]
    for f in scores:
        np.testing.assert_array_equal(f(*flipped, (0, 1, 2)), f(a, b, (0, 1, 2)))
        if f is not specificity: np.testing.assert_array_equal(f(*padded, (1, 2)), f(a, b, (1, 2)))
    assert not (specificity(*padded, (1, 2)) < specificity(a, b, (1, 2))).any()


@given(two)
@settings(max_examples=50)
def test_any_container_same_score(pair):
    want = dice(*map(one_image, pair), labels=(0, 1, 2))
    for kind in (np.uint8, np.int16, np.uint64):
        np.testing.assert_array_equal(dice(*(one_image(m.astype(kind)) for m in pair), (0, 1, 2)), want)
    if pair[0].ndim > 2: pair = [m[None] for m in pair]
    for make in (torch.tensor, lambda m: torch.tensor(m[None]) if m.ndim == 2 else torch.tensor(m),
                 lambda m: Volume(torch.tensor(m if m.ndim == 4 else m[None]))):
        np.testing.assert_array_equal(dice(*map(make, pair), (0, 1, 2)), want)


@given(two, st.data())
@settings(max_examples=50)
def test_left_out_is_deleted(pair, data):
    pred, truth = (m.ravel() for m in pair)
    hole = data.draw(hnp.arrays(bool, truth.shape))
    for f in scores:
        want = f(pred[~hole], truth[~hole], (0, 1, 2))
        np.testing.assert_array_equal(f(pred, np.where(hole, -1, truth), (0, 1, 2)), want)


def test_counts_stay_exact_beyond_float32():
    full = np.ones((1, 3, 2**24//3 + 1), np.uint8)
    full[0, 0, 0] = 0
    for labels in ((1,), range(12)):   # asked, and filed in a table
        assert confusion(full, full, labels).tp.max() == full.size - 1 != int(np.float32(full.size - 1))
    full[0, 0, 1] = 7
    assert confusion(full, full, range(12)).tp.tolist() == [1, full.size - 2] + [0]*5 + [1] + [0]*4


def test_table_counts_as_asking_does():
    rng, ks = np.random.default_rng(0), np.array([3, 0, 5, 200])
    for kind in (np.uint8, np.int8, np.uint64, np.int64, bool):
        top = 1 if kind is bool else np.iinfo(kind).max
        p, t = (np.array([0, 3, 5, 6, 7, top], kind)[rng.integers(0, 6, 999)] for _ in range(2))
        np.testing.assert_array_equal(by_table(p, t, ks), by_asking(p, t, ks))
    pred, truth = rng.integers(0, 300, (2, 500, 800))   # more than one portion, and -1
    truth[:, ::7] = -1
    for labels in (range(9), range(10), [511, *range(290, 301)], [512, *range(290, 301)]):
        got = confusion(pred, truth, labels)
        for i, k in enumerate(labels):
            p, t = pred[truth >= 0] == k, truth[truth >= 0] == k
            assert [c[i] for c in got] == [(p & t).sum(), (p & ~t).sum(), (~p & t).sum(), (~p & ~t).sum()]


def test_one_hot_is_what_it_says():
    rng = np.random.default_rng(0)
    hot = [np.eye(3, dtype=int)[rng.integers(0, 3, (2, 3))].transpose(2, 0, 1) for _ in range(20)]
    close = [np.where(rng.random(h.shape) < .05, 1 - h, h) for h in hot] + [2*h for h in hot]
    for a in hot + close + [h[:1] for h in hot] + [h[0] for h in hot]:
        plain = a.ndim == 3 and len(a) > 1 and set(a.flat) <= {0, 1} and bool((a.sum(0) == 1).all())
        assert one_hot(a) == plain


three = np.array([np.nan, 0, 0]), np.array([True, False, True]), np.array([True, True, False])


@pytest.mark.parametrize('empty, want', [
    ('nan', [np.nan, 0, 0]), ('one', [1, 0, 0]), ('zero', [0, 0, 0]), (.25, [.25, 0, 0]),
    (np.inf, [np.inf, 0, 0]), (np.float32(2), [2, 0, 0]), (-1, [-1, 0, 0]), ({}, [np.nan, 0, 0]),
    (dict(both='one'), [1, 0, 0]), (dict(both='one', truth='nan'), [1, np.nan, 0]),
    (dict(truth=.5, pred='one'), [np.nan, .5, 1]), (dict(both=3, truth=4, pred=5), [3, 4, 5])])
def test_settle(empty, want):
    np.testing.assert_array_equal(settle(*three, empty), want)
    assert settle(*three, empty).dtype == np.float64
    assert np.isnan(three[0][0]) and settle([.5], [False], [False], empty) == .5


@pytest.mark.parametrize('empty, words', [
    (None, 'empty is None'), (True, 'empty is True'), ('1', "empty is '1'"), (['one'], r"empty is \['one'\]"),
    (dict(both=None), 'empty is None'), (dict(pred={}), 'empty is {}'), (dict(truth='One'), "empty is 'One'"),
    (dict(both=1, prediction=0), "empty has the key 'prediction'.*who lacks"),
    ({1: 0}, 'empty has the key 1')])
def test_settle_refuses(empty, words):
    with pytest.raises(ValueError, match=words): settle(*three, empty)
    for f in scores:
        with pytest.raises(ValueError, match=words): f(ones, ones, empty=empty)


@given(two, st.dictionaries(st.sampled_from(['both', 'truth', 'pred']),
                            st.sampled_from(['nan', 'one', 'zero', .5, -3])))
def test_rule_holds_for_the_lacking_only(pair, rule):
    pred, truth = map(one_image, pair)
    for k in range(4):
        p, t = (pred == k).any(), (truth == k).any()
        who = {(False, False): 'both', (True, False): 'truth', (False, True): 'pred'}.get((p, t))
        for f in (dice, iou, sensitivity, precision):
            want = policies.get(rule[who], rule[who]) if who in rule else f(pred, truth, k)
            np.testing.assert_array_equal(f(pred, truth, k, rule), np.atleast_1d(want))


@given(two, st.one_of(st.sampled_from(['nan', 'one', 'zero', 7.]), st.fixed_dictionaries(
    dict(both=st.just('one')), optional=dict(truth=st.just(.3), pred=st.just(.4)))))
def test_dualities(pair, empty):
    "Precision is sensitivity with the masks exchanged; specificity is the sensitivity of the rest"
    pred, truth = (one_image(m) for m in pair)
    swap = dict(truth='pred', pred='truth')
    other = {swap.get(k, k): v for k, v in empty.items()} if isinstance(empty, dict) else empty
    for k in range(4):
        p, t = pred == k, truth == k
        if one_hot(p) or one_hot(~p): p, t = p[None], t[None]
        np.testing.assert_array_equal(precision(p, t, empty=empty), sensitivity(t, p, empty=other))
        np.testing.assert_array_equal(specificity(p, t, empty=empty), sensitivity(~p, ~t, empty=empty))


def by_channel(score, case, **kw):
    "A score of each channel of each item by itself, as MONAI takes them (B,C,...)"
    pred, truth = (np.asarray(case[k]) for k in ('y_pred', 'y'))
    return np.array([[score(p, t, **kw).item() for p, t in zip(*item)] for item in zip(pred, truth)])


some = dict(y_pred=[[[[0, 1], [0, 0]], [[0, 0], [1, 1]], [[1, 0], [0, 0]]],
                    [[[0, 0], [0, 1]], [[1, 0], [0, 0]], [[0, 1], [1, 0]]]],
            y=[[[[0, 0], [0, 1]], [[1, 0], [1, 0]], [[0, 1], [0, 0]]],
               [[[0, 0], [0, 1]], [[1, 1], [0, 0]], [[0, 0], [1, 0]]]])
nothing, everything = [[0, 0], [0, 0]], [[1, 1], [1, 1]]
wrong = dict(y_pred=[[nothing, nothing, everything]]*2,
             y=[[everything, nothing, nothing], [[[0, 1], [1, 0]], [[1, 0], [0, 1]], nothing]])
mixed = ([[[1, 1], [1, 0]], [[0, 1], [0, 0]], [[0, 1], [1, 1]]],
         [[[1, 0], [1, 1]], [[0, 1], [1, 1]], [[0, 1], [1, 0]]])
half = dict(y_pred=mixed, y=[[everything, nothing, nothing], some['y'][1]])
first = dict(y_pred=mixed, y=[[everything, nothing, nothing]]*2)


def test_published_tables_of_monai():
    "tests/metrics of MONAI 1.6: test_compute_meandice, test_compute_meaniou, test_compute_confusion_matrix"
    skip = dict(empty=dict(both='nan', truth='nan'))   # ignore_empty=True, MONAI's default
    none, full, small = np.zeros((2, 2, 3, 3), int), np.ones((2, 2, 3, 3), int), [[[[1, 0], [0, 1]]]]
    for f, two_thirds, values, per_class, mean, total, first_mean in (
            (dice, .8, [[.5, 0], [.6667, .6667]], [.6786, .4, .6667], .689683, 1.7143, .857143),
            (iou, .6667, [[.3333, 0], [.5, .5]], [.5416, .25, .5], .5555, 1.5, .75)):
        kept = {name: by_channel(f, case, **skip) for name, case in
                dict(some=some, wrong=wrong, half=half, first=first, full=dict(y=full, y_pred=full)).items()}
        strict = [by_channel(f, dict(y=none, y_pred=p), empty='one') for p in (none, full)]   # not ignored
        assert np.isnan(kept['wrong']).tolist() == [[False, True, True], [False, False, True]]
        for got, want in ((by_channel(f, dict(y_pred=small, y=[[[[1, 0], [1, 1]]]])), [[two_thirds]]),
                          (kept['some'][:, 1:], values),
                          (np.nanmean(kept['half'], 0), per_class),
                          (np.nanmean(np.nanmean(kept['half'], 1)), mean),
                          (np.nansum(kept['first'], 0), [total, 0, 0]),
                          (np.nanmean(kept['first']), first_mean),
                          (kept['full'], np.ones((2, 2))),
                          (strict, [np.ones((2, 2)), np.zeros((2, 2))])):
            np.testing.assert_allclose(got, want, atol=1e-4)


def test_published_confusion_of_monai():
    "tests/metrics/test_compute_confusion_matrix.py and test_metrics_reloaded.py of MONAI 1.6"
    labels = [np.argmax(some[k], 1) for k in ('y_pred', 'y')]   # the channels exclude each other
    want = [[[0, 1, 2, 1], [1, 1, 1, 1], [0, 1, 2, 1]],   # TP FP TN FN
            [[1, 0, 3, 0], [1, 0, 2, 1], [1, 1, 2, 0]]]
    for pred, truth, cells in zip(*labels, want):
        tp, fp, fn, tn = confusion(pred, truth, (0, 1, 2))
        assert np.stack([tp, fp, tn, fn], 1).tolist() == cells
    for f, want in ((sensitivity, [.5, .5, .5]), (specificity, [.8333, .75, .6667]),
                    (precision, [.5, .75, .25]), (iou, [.5, .4167, .25]), (dice, [.5, .5833, .3333])):
        got = [f(p, t, (0, 1, 2)) for p, t in zip(*labels)]
        np.testing.assert_allclose(np.nanmean(got, 0), want, atol=1e-4)
    lacking = dict(y_pred=[some['y_pred'][0], *wrong['y_pred']], y=[some['y'][0], *wrong['y']])
    for f, total, known in ((sensitivity, [0, .5, 0], [3, 2, 1]),
                            (specificity, [1.6667, 2.5, .6667], [2, 3, 3])):
        got = by_channel(f, lacking)
        np.testing.assert_allclose(np.nansum(got, 0), total, atol=1e-4)
        assert (~np.isnan(got)).sum(0).tolist() == known
    pred, truth = np.array([[1, 0], [0, 1]]), np.array([[1, 0], [1, 1]])
    for f, want in ((sensitivity, .666664), (specificity, .99999), (precision, .999995),
                    (dice, .799992), (iou, .666664)):   # theirs add a constant
        np.testing.assert_allclose(f(pred, truth), want, atol=2e-5)


def test_containers_may_differ():
    a = np.eye(4) > 0
    tensor = torch.tensor(a)
    for other in (a.astype(int), a[None], tensor, tensor[None], Volume(tensor[None].byte())):
        assert dice(a, other) == dice(other, a) == 1
    solid = np.stack([a, ~a, a])
    assert dice(solid, Volume(solid[None].astype('uint8'))) == dice(solid, solid[None]) == 1


ones = np.ones((4, 4), int)
hot = np.stack([ones, 0*ones])


@pytest.mark.parametrize('args, error, words', [
    ((ones*.5, ones), TypeError, 'pred is float64, but overlap counts integer labels.*argmax'),
    ((ones, ones*1.), TypeError, 'truth is float64'),
    ((torch.zeros(4, 4, dtype=torch.bfloat16), ones), TypeError, 'pred is torch.bfloat16'),
    ((torch.randn(2, 4, 4), torch.ones(4, 4, dtype=torch.long)), TypeError, 'torch.float32'),
    ((ones*1j, ones), TypeError, 'complex128'),
    ((hot, hot), ValueError, 'look one-hot, 2 classes along axis 0.*argmax'),
    ((hot, ones), ValueError, r'pred has shape \(2, 4, 4\) and truth \(4, 4\).*argmax'),
    ((ones[:3], ones), ValueError, r'shape \(3, 4\) and truth \(4, 4\)'),
    ((hot[None], hot[None, :, :3]), ValueError, 'shape'),
    ((np.zeros((8, 1, 4, 4), int), np.zeros((8, 1, 4, 4), int)), ValueError, 'score a batch case by case'),
    ((Volume(hot), Volume(hot)), ValueError, 'One-hot channels become labels by argmax'),
    ((Volume(ones[None]).flip(0), Volume(ones[None])), ValueError, 'different grids: flip'),
    ((Volume(ones[None], np.diag([2., 1, 1])), Volume(ones[None])), ValueError, 'different grids: spacing'),
    ((-ones, ones), ValueError, 'pred has label -1.*Swapped'),
    ((ones, -2*ones), ValueError, 'truth has label -2; labels start at 0, -1 is unknown'),
    ((ones, ones, (-1,)), ValueError, r'labels is \(-1,\)'),
    ((ones, ones, (.5,)), ValueError, 'whole numbers'),
    ((ones, ones, ()), ValueError, 'whole numbers'),
    ((ones, ones, 1, 'eps'), ValueError, "empty is 'eps'; wanted 'nan', 'one', 'zero', a number, or a rule"),
])
def test_refusals(args, error, words):
    for f in scores:
        with pytest.raises(error, match=words): f(*args)
