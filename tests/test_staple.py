"STAPLE: ITK's filters, an EM that visits every voxel, raters whose rates are known, and cases that hurt."
import warnings

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from hypothesis import example, given, settings, strategies as st
from oracles import staple_by_voxels

from medseg_nb.data.rater import mislabel
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.agreement import patterns
from medseg_nb.metrics.staple import em, expect, fit, grades, indicators, maximize, staple, staple_probs

pytestmark = pytest.mark.filterwarnings('ignore:STAPLE still moves')


def raters_at(rng, shape, R, K=2, share=None, wrong=None):
    "A truth of random share, and what R raters of random carelessness say of it"
    share = rng.random() if share is None else share
    truth = np.where(rng.random(shape) < share, rng.integers(0, K, shape), 0)
    wrong = rng.random(R)*.6 if wrong is None else np.broadcast_to(wrong, R)
    said = [np.where(rng.random(shape) < w, rng.integers(0, K, shape), truth) for w in wrong]
    return truth, np.stack(said).astype('int32')


def adversarial():
    "Small votes that hurt: ties, speckle, one voxel, nearly empty, nearly full, opposites, copies, a crowd"
    speckle = np.random.default_rng(0).random((3, 8, 9)) < .3
    one = np.zeros((3, 5, 5), int)
    one[0, 0, 0] = 1
    half = np.arange(30).reshape(1, 5, 6) < 15
    corner = np.zeros((4, 8, 7), int)
    corner[[0, 1, 3], :2, :2] = 1
    cases = dict(speckle=speckle, one=one, nearly_full=1 - one, opposite=np.concatenate([half, ~half]),
                 copies=np.repeat(speckle[:1], 5, 0), copies_and_one=speckle[[0, 0, 0, 1]], corner=corner,
                 one_rater=speckle[:1], two=speckle[:2], thin=speckle[:, :1],
                 tie=np.concatenate([half, half, ~half, ~half]))
    return {k: v.astype('int32') for k, v in cases.items()}


def itk_binary(said, most=2000):
    f = sitk.STAPLEImageFilter()
    f.SetMaximumIterations(most)
    soft = sitk.GetArrayFromImage(f.Execute([sitk.GetImageFromArray(s.astype('uint8')) for s in said]))
    return soft, np.array(f.GetSensitivity()), np.array(f.GetSpecificity())


def itk_labels(said, tol=1e-9, most=10_000):
    f, (R, K) = sitk.MultiLabelSTAPLEImageFilter(), (len(said), int(said.max()) + 1)
    f.SetTerminationUpdateThreshold(tol)
    f.SetMaximumNumberOfIterations(most)
    fused = f.Execute([sitk.GetImageFromArray(s.astype('uint8')) for s in said])
    tables = np.array([f.GetConfusionMatrix(r) for r in range(R)]).reshape(R, K + 1, K)
    return sitk.GetArrayFromImage(fused), tables[:, :K].swapaxes(1, 2)


def same_as_itk(said):
    soft, p, q = itk_binary(said)
    mine = fit(said, steps=2000)
    np.testing.assert_allclose(mine.probs[mine.where][..., -1], soft, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(mine.confusion[:, 1, 1], p, rtol=0, atol=2e-7)
    np.testing.assert_allclose(mine.confusion[:, 0, 0], q, rtol=0, atol=2e-7)


@pytest.mark.parametrize('block', range(4))
def test_binary_is_itks(block):
    for seed in range(60):
        rng = np.random.default_rng([block, seed])
        shape = [(6, 7), (3, 4, 5), (1, 9), (12, 11)][block]
        said = raters_at(rng, shape, int(rng.integers(1, 9)))[1]
        if len(np.unique(said)) == 2: same_as_itk(said)


@pytest.mark.parametrize('name', adversarial())
def test_binary_is_itks_where_it_hurts(name): same_as_itk(adversarial()[name])


def test_binary_is_itks_on_a_volume():
    rng = np.random.default_rng(3)
    same_as_itk(raters_at(rng, (40, 50, 30), 5, share=.05, wrong=[.01, .02, .05, .2, .4])[1])


def test_labels_follow_itk_step_by_step():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        K, R, n = int(rng.integers(2, 6)), int(rng.integers(2, 7)), int(rng.integers(1, 15))
        said = raters_at(rng, 120, R, K, share=1)[1]
        number = np.stack([(said == k).sum(0) for k in range(K)])
        clear = np.sort(number, 0)[-1] > np.sort(number, 0)[-2]
        said, won = said[:, clear], number[:, clear].argmax(0)
        if said.shape[1] < 5 or len(np.unique(said)) < K: continue
        start = np.zeros((R, K, K))
        for r in range(R): np.add.at(start[r], (won, said[r]), 1)
        start /= np.maximum(start.sum(1, keepdims=True), 1)
        table, where, counts = patterns(said)
        S, confusion = indicators(table, np.arange(K)), start
        for _ in range(n):
            confusion = maximize(S, counts, expect(S, confusion, np.bincount(said.flat)/said.size))
        np.testing.assert_allclose(confusion, itk_labels(said[:, None], 0., n)[1], rtol=0, atol=1e-9)


def test_labels_end_where_itk_ends():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        said = raters_at(rng, (19, 20, 18), 5, 4, share=1, wrong=[.05, .1, .2, .3, .5])[1]
        fused, tables = itk_labels(said)
        mine = fit(said, tol=1e-9)
        np.testing.assert_allclose(mine.confusion, tables, rtol=0, atol=1e-6)
        assert (staple([Volume(s[None]) for s in said])[0].numpy()[0] == fused).mean() > .999


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 12), st.booleans())
@example(187, 3, 4, 2, True)
def test_patterns_are_exact(seed, R, K, steps, gaps):
    rng = np.random.default_rng(seed)
    said = raters_at(rng, 25, R, K)[1]
    if gaps: said[rng.random(said.shape) < .2] = -1
    if (said < 0).all(): return
    soft, confusion = staple_by_voxels(said, steps)
    mine = fit(said, tol=-1, steps=steps)
    seen = (said >= 0).any(0)
    np.testing.assert_allclose(mine.probs[mine.where][seen], soft[seen], rtol=1e-9, atol=1e-9)
    assert np.isnan(mine.probs[mine.where][~seen]).all()
    known = np.array([soft[row >= 0].sum(0) for row in said]) > 1e-100
    np.testing.assert_allclose(mine.confusion[known], confusion[known], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('rates', [[(.95, .99), (.9, .95), (.7, .98), (.99, .8), (.6, .7)], [(.9, .9)]*5])
def test_known_rates_come_back(rates):
    truth = Volume((torch.arange(300*300).reshape(1, 300, 300) % 300 < 90).to(torch.uint8))
    masks = [mislabel(truth, [[q, 1 - q], [1 - p, p]], seed=s) for s, (p, q) in enumerate(rates)]
    raters = staple(masks, prior=[.7, .3])[1].to_numpy()
    n = np.array([(truth.data == k).sum() for k in (1, 0)])
    error = np.sqrt(np.array(rates)*(1 - np.array(rates))/n)
    assert (abs(raters - rates) < 6*error + .001).all()


def test_known_tables_come_back():
    rng = np.random.default_rng(5)
    tables = rng.dirichlet([1, 1, 1], (6, 3))*.3 + np.eye(3)*.7
    truth = Volume(rng.integers(0, 3, (1, 200, 200)))
    said = np.stack([mislabel(truth, t, seed=s).numpy()[0] for s, t in enumerate(tables)])
    error = np.sqrt(tables*(1 - tables)*3/truth.data.numel())
    assert (abs(fit(said).confusion - tables) < 6*error + .001).all()


def test_the_probability_of_what_was_said_never_falls():
    for seed in range(30):
        table, where, counts = patterns(raters_at(np.random.default_rng(seed), 200, 4, 3, share=1)[1])
        K, S, prior = 3, indicators(table, np.arange(3)), np.array([.5, .2, .3])
        before = -np.inf
        for steps in range(1, 15):
            confusion = em(S, counts, prior, tol=-1, steps=steps)[1]
            joint = prior*np.prod(confusion[np.arange(4)[:, None], :, table.T], 0)
            now = counts@np.log(joint.sum(1))
            assert now >= before - 1e-9 and joint.shape[1] == K
            before = now


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 6), st.integers(2, 4))
def test_order_of_raters_flips_and_names_of_labels(seed, R, K):
    rng = np.random.default_rng(seed)
    said = raters_at(rng, (6, 7), R, K, wrong=.15)[1]
    if len(np.unique(said)) < K: return
    base = fit(said)
    soft = base.probs[base.where]
    order, names = rng.permutation(R), rng.permutation(K)
    other = fit(said[order])
    np.testing.assert_allclose(other.probs[other.where], soft, atol=1e-5)
    np.testing.assert_allclose(other.confusion, base.confusion[order], atol=1e-5)
    flipped = fit(said[:, ::-1, ::-1])
    np.testing.assert_allclose(flipped.probs[flipped.where][::-1, ::-1], soft, atol=1e-5)
    renamed = fit(names[said])
    np.testing.assert_allclose(renamed.probs[renamed.where][..., names], soft, atol=1e-5)
    np.testing.assert_allclose(renamed.confusion[:, names][:, :, names], base.confusion, atol=1e-5)


def test_labels_may_be_any_numbers():
    said = raters_at(np.random.default_rng(1), (8, 9), 4, 3, share=1, wrong=.2)[1]
    far = np.array([0, 7, 14175])
    fused, raters = staple([Volume(s[None]) for s in said])
    other, named = staple([Volume(far[s][None]) for s in said])
    assert (other.numpy() == far[fused.numpy()]).all()
    assert list(named) == ['label 0', 'label 7', 'label 14175'] and np.array_equal(named, raters)


def test_one_who_did_not_look_is_left_out_there():
    rng = np.random.default_rng(2)
    said = raters_at(rng, (20, 20), 4, wrong=[.05, .1, .2, .3])[1]
    nobody = np.full_like(said[:1], -1)
    with_nobody, without = fit(np.concatenate([said, nobody])), fit(said)
    np.testing.assert_allclose(with_nobody.probs[with_nobody.where], without.probs[without.where], atol=1e-12)
    assert np.isnan(with_nobody.confusion[4]).all()
    half = said.copy()
    half[3, :, :10] = -1
    masks = [Volume(s[None]) for s in half]
    counted = grades(fit(half), range(4)).loc[3]
    soft = staple_probs(masks).numpy()[0][:, 10:]
    said_yes = half[3, :, 10:] == 1
    assert np.isclose(counted.sensitivity, soft[said_yes].sum()/soft.sum(), atol=1e-4)
    half[:, 0, 0] = -1
    masks = [Volume(s[None]) for s in half]
    assert staple(masks)[0].data[0, 0, 0] == -1 and torch.isnan(staple_probs(masks).data[0, 0, 0])
    assert torch.isnan(staple_probs(masks).data).sum() == 1 and (staple(masks)[0].data == -1).sum() == 1
    assert torch.isnan(staple_probs(masks, label=9).data).sum() == 1


def test_soft_truth():
    said = raters_at(np.random.default_rng(4), (10, 10), 5, 3, share=1, wrong=.2)[1]
    masks = [Volume(s[None], np.diag([2., 3., 1.])) for s in said]
    each = [staple_probs(masks, label=k) for k in range(3)]
    assert all(e.data.dtype == torch.float32 and e.spacing == (2., 3.) for e in each)
    assert torch.allclose(sum(e.data for e in each), torch.ones(1, 10, 10))
    assert torch.equal(torch.stack([e.data for e in each]).argmax(0), staple(masks)[0].data.long())
    assert not staple_probs(masks, label=9).data.any()


def test_one_rater_and_two_opposites():
    half = Volume((torch.arange(30).reshape(1, 5, 6) < 12).to(torch.uint8))
    fused, raters = staple([half])
    assert torch.equal(fused.data, half.data.int()) and (raters == 1).all(None)
    opposite = [half, half.new(1 - half.data)]
    assert torch.allclose(staple_probs(opposite).data, torch.tensor(.5))
    assert not staple(opposite)[0].data.any(), 'a tie goes to the lower label'


def test_nothing_and_everything():
    for value, names in ((0, [np.nan, 1]), (1, [1, np.nan]), (7, [1, np.nan])):
        fused, raters = staple([Volume(torch.full((1, 4, 5), value))]*3)
        assert (fused.data == value).all() and list(raters) == ['sensitivity', 'specificity']
        assert np.array_equal(raters.to_numpy(), [names]*3, equal_nan=True)


def test_a_crowd_does_not_underflow():
    votes = np.zeros((400, 1, 101), 'int32')
    votes[:, :, :50] = votes[:200, :, 100:] = 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = fit(votes)
    assert np.isfinite(found.probs).all() and np.isfinite(found.confusion).all()
    rng = np.random.default_rng(0)
    truth, said = raters_at(rng, (30, 30), 64, 3, share=1, wrong=.6)
    assert (staple([Volume(s[None]) for s in said])[0].numpy()[0] == truth).mean() > .99


def test_prior_is_used_and_checked():
    said = raters_at(np.random.default_rng(6), (30, 30), 2, wrong=[.3, .3])[1]
    masks = [Volume(s[None]) for s in said]
    assert staple(masks, [.99, .01])[0].data.sum() < staple(masks, [.01, .99])[0].data.sum()
    for bad in ([.5], [.5, .6], [0., 1.], [.2, .3, .5], .5):
        with pytest.raises(ValueError, match=r'add up to 1.*\[0, 1\]'): staple(masks, bad)


def test_no_convergence_is_said():
    said = raters_at(np.random.default_rng(7), (9, 9), 4)[1]
    with pytest.warns(UserWarning, match='after 2 steps'): fit(said, steps=2)


def test_nobody_looked():
    with pytest.raises(ValueError, match='nobody looked'): staple([Volume(torch.full((1, 3, 3), -1))]*2)


def test_more_air_makes_it_generous():
    said = raters_at(np.random.default_rng(8), (40, 40), 5, share=.4, wrong=[.1, .1, .5, .5, .5])[1]
    tight = staple([Volume(s[None]) for s in said])[0].data.sum()
    wide = staple([Volume(np.pad(s, 400)[None]) for s in said])[0].data.sum()
    assert wide > 1.1*tight


def test_table_has_names():
    half = Volume((torch.arange(30).reshape(1, 5, 6) < 12).to(torch.uint8))
    raters = staple(dict(ann=half, bob=half))[1]
    pd.testing.assert_frame_equal(raters, pd.DataFrame(1., ['ann', 'bob'], ['sensitivity', 'specificity']))
