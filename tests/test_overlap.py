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
from oracles import overlap_by_sets

from medseg_nb.data.volume import Volume
from medseg_nb.metrics.overlap import confusion, dice, iou, precision, sensitivity, specificity

scores = (dice, iou, sensitivity, specificity, precision)
policies = {'nan': np.nan, 'one': 1., 'zero': 0.}


def masks(shape, labels=3):
    "Adversarial masks: empty, full, one voxel, a checkerboard, stripes, every label, random ones"
    rng, one = np.random.default_rng(len(shape)), np.zeros(shape, int)
    one[(0,)*len(shape)] = 1
    at = np.indices(shape)
    found = [0*one, 0*one + 1, 0*one + labels-1, one, at.sum(0) % 2, at[-1] % labels, at.sum(0) % labels]
    found += [(rng.random(shape) < d).astype(int) for d in (.02, .5, .98)]
    return found + [rng.integers(0, labels, shape) for _ in range(3)]


pairs = [pair for shape in ((7, 5), (1, 6, 5), (3, 4, 5)) for pair in product(masks(shape), repeat=2)]
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


def test_conventions_on_the_page():
    "The libraries' answers to the empty mask are those that the notebook teaches"
    import SimpleITK as sitk
    from monai.metrics import compute_dice
    from sklearn.metrics import f1_score
    page = json.loads((Path(__file__).parents[1]/'nbs/03_metrics/01_overlap.ipynb').read_text())
    source = next(s for c in page['cells'] if (s := ''.join(c['source'])).startswith('conventions = {'))
    said = {'np': np}
    exec(source.split('\ncases =')[0], said)
    says = {name.split(':')[0]: f for name, f in said['conventions'].items()}
    line = np.arange(200).reshape(10, 20)
    for pred, truth in product([line < 0, line < 1, line < 50, (line >= 10) & (line < 60)], repeat=2):
        sizes = (pred & truth).sum(), pred.sum(), truth.sum()
        filt = sitk.LabelOverlapMeasuresImageFilter()
        filt.Execute(*(sitk.GetImageFromArray(m.astype('uint8')) for m in (pred, truth)))
        want = {'SimpleITK': filt.GetDiceCoefficient(), 'scikit-learn': f1_score(truth.ravel(), pred.ravel()),
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
    assert confusion(full, full).tp.item() == full.size - 1 != int(np.float32(full.size - 1))


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
    ((ones, ones, (-1,)), ValueError, r'labels is \(-1,\)'),
    ((ones, ones, (.5,)), ValueError, 'whole numbers'),
    ((ones, ones, ()), ValueError, 'whole numbers'),
    ((ones, ones, 1, 'eps'), ValueError, "empty is 'eps'; wanted 'nan', 'one' or 'zero'"),
])
def test_refusals(args, error, words):
    for f in scores:
        with pytest.raises(error, match=words): f(*args)
