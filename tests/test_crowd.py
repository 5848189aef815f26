"Fusions of a crowd: against slow loops, an outside EM, known crowds, and at the edges of what can be asked."
import warnings
from math import comb

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from oracles import dawid_skene_by_loops, spammer_score_by_pairs
from sklearn.metrics import cohen_kappa_score

from medseg_nb.data.phantom import phantom
from medseg_nb.data.rater import mislabel
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.crowd import (
    dawid_skene, dawid_skene_fit, gather, majority, mutual_kappa, soft_labels, spammer_score, weighted)
from medseg_nb.metrics.overlap import dice
from medseg_nb.metrics.staple import fit

fusions = pytest.mark.parametrize('fuse', [majority, weighted, dawid_skene])
seeds = st.integers(0, 10**6)


def vol(a): return Volume(torch.as_tensor(np.asarray(a))[None])
def arr(v): return v.numpy()[0]


def crowd(seed, R=5, shape=(6, 7), K=3, right=.7, missing=.1):
    "Masks by raters of one quality"
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, shape)
    said = np.where(rng.random((R, *shape)) < right, truth, rng.integers(0, K, (R, *shape)))
    return [vol(np.where(rng.random(shape) < missing, -1, v)) for v in said]


def stack(masks): return np.stack([arr(m) for m in masks])


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 6), st.integers(1, 4), st.sampled_from([0, .3]), st.sampled_from([1, 2, 7]))
def test_em_is_the_slow_em(seed, R, K, missing, steps):
    masks = crowd(seed, R, (4, 6), K, .8, missing)
    said = stack(masks).reshape(R, -1)
    if (said < 0).all(): return
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = dawid_skene_fit(gather(masks), tol=-1, steps=steps)
    labels, prior, theta, T = dawid_skene_by_loops(said, steps)
    assert found.labels.tolist() == labels
    np.testing.assert_allclose(found.prior, prior, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.confusion, theta, rtol=0, atol=1e-9, equal_nan=True)
    probs = found.probs[found.where].reshape(-1, len(labels))
    for i in range(said.shape[1]):
        if i in T: np.testing.assert_allclose(probs[i], T[i], rtol=0, atol=1e-9)
        else: assert np.isnan(probs[i]).all()


def test_em_where_a_rater_never_met_a_label():
    said = np.array([[0, 0, 1, 0, 1], [0, 0, 0, 1, 1], [0, 0, -1, -1, -1]])
    with pytest.warns(UserWarning, match='still moves'):
        found = dawid_skene_fit(gather([vol(v[None]) for v in said]), tol=-1, steps=3)
    T = dawid_skene_by_loops(said, 3)[3]
    np.testing.assert_allclose(found.probs[found.where[0]], [T[i] for i in range(5)], rtol=0, atol=1e-12)


TEETH = [1880, 789, 43, 75, 23, 63, 8, 22, 188, 191, 17, 67, 15, 85, 8, 56,
         22, 26, 6, 14, 1, 20, 2, 17, 2, 20, 6, 27, 3, 72, 1, 100]  # Handelman et al. 1986: 00000, 00001, ...
# Made by crowd-kit 1.4.2: DawidSkene(n_iter=3000, tol=1e-12).fit(df), a row of df for each tooth and dentist
CROWDKIT = [.001229, .029431, .034844, .470843, .117312, .766115, .79591, .989703, .026193, .398655, .441111,
            .951107, .743952, .986228, .988407, .999524, .071924, .656364, .694566, .982471, .893292, .995177,
            .995946, .999835, .62884, .976612, .980282, .999185, .994566, .999778, .999814, .999992]


def test_dentists_as_crowd_kit():
    table = np.array([[int(v) for v in f'{i:05b}'] for i in range(32)])
    found = dawid_skene_fit(gather([vol(v[None]) for v in np.repeat(table, TEETH, 0).T]), tol=1e-12)
    first = np.r_[0, np.cumsum(TEETH)[:-1]]
    np.testing.assert_allclose(found.probs[found.where[0, first], 1], CROWDKIT, rtol=0, atol=2e-6)
    assert found.prior[1] == pytest.approx(.196066, abs=1e-6)
    right = [.989382, .898013, .986409, .968437, .694722], [.403349, .712880, .598126, .488842, .915472]
    for k in (0, 1): np.testing.assert_allclose(found.confusion[:, k, k], right[k], rtol=0, atol=1e-6)


def test_likelihood_never_falls():
    masks = crowd(0, 6, (20, 20))
    said, last = stack(masks).reshape(6, -1), -np.inf
    for steps in range(1, 12):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            f = dawid_skene_fit(gather(masks), tol=-1, steps=steps)
        now = 0
        for v in said.T:
            p = f.prior.copy()
            for r, j in enumerate(v):
                if j >= 0: p = p*f.confusion[r, :, j]
            now += np.log(p.sum()) if (v >= 0).any() else 0
        assert now > last - 1e-9
        last = now


def test_staple_given_the_prior_ends_at_the_same_place():
    masks = crowd(3, 7, (40, 40), 3, .75, .1)
    found = dawid_skene_fit(gather(masks))
    same = fit(stack(masks).astype(np.int32), prior=found.prior)
    np.testing.assert_allclose(same.confusion, found.confusion, atol=1e-5)


def simulated():
    "A known crowd over an organ phantom with four labels"
    truth = phantom('organs', 1, size=96, noise=0).mask
    K = int(truth.data.max()) + 1
    tables = {f'expert {i}': .95*np.eye(K) + .05/K for i in range(3)}
    tables |= {f'lay {i}': .6*np.eye(K) + .4/K for i in range(7)}
    tables |= {'random': np.full((K, K), 1/K), 'always 0': np.eye(K)[[0]*K]}
    return truth, tables, {n: mislabel(truth, t, 0, i) for i, (n, t) in enumerate(tables.items())}


def test_known_crowd_is_recovered_within_sampling_error():
    truth, tables, masks = simulated()
    found, t = dawid_skene_fit(gather(masks)), arr(truth)
    n = np.bincount(t.ravel())
    for r, table in enumerate(tables.values()):
        error = np.sqrt(table*(1 - table)/n[:, None])
        assert (abs(found.confusion[r] - table) <= 4.5*error + 2e-3).all()
    assert (abs(found.prior - n/n.sum()) < 2e-3).all()


def test_spammers_and_nobody_else_are_found():
    truth, _, masks = simulated()
    masks['copycat'] = masks['random']
    fused, raters = dawid_skene(masks)
    assert raters.index[raters.spammer].tolist() == ['random', 'always 0', 'copycat']
    assert raters.score.filter(like='expert').min() > .8 > .5 > raters.score.filter(like='lay').max() > .3
    quality = [dice(f(masks)[0], truth, labels=(1, 2, 3)).mean() for f in (majority, weighted, dawid_skene)]
    assert quality == sorted(quality) and quality[2] > .97


def test_a_liar_is_not_a_spammer():
    truth = phantom('disks', 1, size=64, noise=0).mask
    truth = truth.new((truth.data > 0).long())
    people = [mislabel(truth, .05, 0, i) for i in range(4)]
    fused, raters = dawid_skene(people + [truth.new(1 - truth.data)])
    assert torch.equal(fused.data.long(), truth.data) and raters.score[4] > .99 and not raters.spammer[4]


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 5))
def test_spammer_score_as_pairs(seed, K):
    table = np.random.default_rng(seed).dirichlet(np.ones(K), K)
    assert spammer_score(table[None])[0] == pytest.approx(spammer_score_by_pairs(table), abs=1e-12)
    assert spammer_score(np.tile(table[:1], (K, 1))[None])[0] == pytest.approx(0, abs=1e-12)
    assert spammer_score(np.eye(K)[::-1][None])[0] == 1
    unknown = table.copy()
    unknown[1:] = np.nan
    assert np.isnan(spammer_score(unknown[None])[0])


def test_spammer_score_of_two_labels_is_youden_squared():
    assert spammer_score(np.array([[[.9, .1], [.3, .7]]]))[0] == pytest.approx((.9 + .7 - 1)**2)


@pytest.mark.parametrize('n', [1, 3, 7, 15])
@pytest.mark.parametrize('p', [.3, .7, .9])
def test_majority_of_equals_is_the_binomial(n, p):
    truth = vol(np.arange(200*200).reshape(200, 200) % 2)
    masks = [mislabel(truth, [[p, 1 - p], [1 - p, p]], 0, 10*n + i) for i in range(n)]
    seen = (majority(masks)[0].data == truth.data).double().mean().item()
    known = sum(comb(n, m)*p**m*(1 - p)**(n - m) for m in range(n//2 + 1, n + 1))
    assert abs(seen - known) < 4*np.sqrt(known*(1 - known)/40_000) + 1e-6


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 6), st.integers(1, 4))
def test_majority_and_weights_by_counting(seed, R, K):
    masks = crowd(seed, R, (4, 5), K, .4, .3)
    said = stack(masks)
    if (said < 0).all(): return
    w = np.random.default_rng(seed).integers(0, 4, R) + np.eye(R)[0]
    for (fused, _), by in ((majority(masks), np.ones(R)), (weighted(masks, w), w)):
        for i, label in np.ndenumerate(arr(fused)):
            behind = {}
            for r in range(R):
                if said[(r, *i)] >= 0 and by[r]: behind[said[(r, *i)]] = behind.get(said[(r, *i)], 0) + by[r]
            most = [k for k in sorted(behind) if behind[k] == max(behind.values())]
            assert label == (most[0] if most else -1)


def test_ties_go_to_the_lowest_or_to_the_label_named():
    masks = [vol([[0, 2, 1, -1]]), vol([[2, 1, 1, -1]])]
    assert arr(majority(masks)[0]).tolist() == [[0, 1, 1, -1]]
    assert arr(majority(masks, tie=-1)[0]).tolist() == [[-1, -1, 1, -1]]
    for fuse in (weighted, dawid_skene): assert arr(fuse([masks[0]]*2)[0]).tolist() == [[0, 2, 1, -1]]


def test_mutual_kappa_as_scikit_learn():
    masks = crowd(5, 4, (30, 30), 3, .6, .2)
    said, ours = stack(masks).reshape(4, -1), mutual_kappa(gather(masks))
    for a in range(4):
        for b in range(4):
            both = (said[a] >= 0) & (said[b] >= 0)
            if a == b: assert np.isnan(ours[a, a])
            else: assert abs(ours[a, b] - cohen_kappa_score(said[a][both], said[b][both])) < 1e-12


def test_weights_by_agreement_are_log_odds():
    raters = weighted(crowd(6, 5, (30, 30), 2, .8))[1]
    p = (1 + raters.kappa)/2
    np.testing.assert_allclose(raters.weight, np.log(p/(1 - p)), rtol=1e-12)


def test_weights_by_name_in_any_order_or_as_a_column():
    masks = dict(zip('abc', crowd(7, 3, missing=0)))
    fused, raters = weighted(masks, {'c': 9, 'a': 1, 'b': 1})
    assert torch.equal(fused.data.long(), masks['c'].data)
    assert raters.weight.to_dict() == dict(a=1, b=1, c=9)
    assert torch.equal(weighted(masks, raters.weight[::-1])[0].data, fused.data)


@pytest.mark.parametrize('weights,words', [
    ([1, 2], 'weights are for 2 numbers'), (dict(a=1, b=1), r"for \['a', 'b'\]; wanted one for each"),
    ([0, 0, 0], 'not all of them 0'), ([1, -1, 1], 'numbers from 0'), ([1, np.nan, 1], 'numbers from 0')])
@pytest.mark.parametrize('f', [weighted, soft_labels])
def test_weights_that_make_no_sense(f, weights, words):
    with pytest.raises(ValueError, match=words): f(dict(zip('abc', crowd(0, 3))), weights)


@fusions
@settings(max_examples=25, deadline=None)
@given(seed=seeds, K=st.integers(1, 4), R=st.integers(1, 6))
def test_unanimity(fuse, seed, K, R):
    mask = crowd(seed, 1, K=K, missing=0)[0]
    fused, raters = fuse([mask]*R)
    assert torch.equal(fused.data.long(), mask.data) and (raters.agreement == 1).all()


@fusions
@settings(max_examples=25, deadline=None)
@given(seed=seeds, R=st.integers(2, 7), K=st.integers(2, 4))
def test_order_of_raters_flips_and_places_do_not_matter(fuse, seed, R, K):
    masks = {f'r{i}': m for i, m in enumerate(crowd(seed, R, (8, 9), K))}
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        fused, raters = fuse(masks)
        mixed, moved = fuse({n: masks[n] for n in rng.permutation(list(masks))})
        assert torch.equal(mixed.data, fused.data)
        pd.testing.assert_frame_equal(moved.loc[raters.index], raters, rtol=1e-6, atol=1e-9)
        flipped = fuse({n: m.flip(1) for n, m in masks.items()})[0]
    assert torch.equal(flipped.data, fused.flip(1).data) and np.allclose(flipped.affine, fused.flip(1).affine)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, K=st.integers(2, 4))
def test_other_names_for_the_labels_give_the_same_model(seed, K):
    masks = crowd(seed, 5, (12, 12), K, .8)
    names = np.random.default_rng(seed).permutation(K + 3)
    other = [vol(np.where(arr(m) < 0, -1, names[arr(m)])) for m in masks]
    a, b = (dawid_skene_fit(gather(m)) for m in (masks, other))
    order = np.argsort(names[a.labels])
    np.testing.assert_allclose(b.prior, a.prior[order], atol=1e-6)
    np.testing.assert_allclose(b.confusion, a.confusion[:, order][:, :, order], atol=1e-6)


@fusions
def test_one_rater_is_right(fuse):
    mask = crowd(1, 1, K=3)[0]
    fused, raters = fuse([mask])
    assert torch.equal(fused.data.long(), mask.data) and raters.agreement[0] == 1
    assert 0 < raters.looked[0] < 1


@fusions
@pytest.mark.parametrize('label', [0, 1, 9])
def test_masks_of_one_label(fuse, label):
    fused, raters = fuse([vol(np.full((3, 4), label))]*3)
    assert (fused.data == label).all() and len(raters) == 3


@fusions
def test_who_looked_nowhere_has_a_row_and_no_say(fuse):
    masks = crowd(2, 4, missing=0)
    alone = fuse(masks)[0]
    fused, raters = fuse(masks + [vol(np.full((6, 7), -1))])
    assert torch.equal(fused.data, alone.data)
    assert raters.looked[4] == 0 and np.isnan(raters.agreement[4])
    if fuse is dawid_skene: assert np.isnan(raters.score[4]) and not raters.spammer[4]


@fusions
def test_nobody_looked_anywhere(fuse):
    with pytest.raises(ValueError, match='nobody looked anywhere'): fuse([vol(np.full((3, 4), -1))]*2)


def test_only_spammers_say_so():
    noise = [vol(np.random.default_rng(i).integers(0, 2, (100, 100))) for i in range(5)]
    idle = [vol(np.zeros((10, 10), int)), vol(np.eye(10, dtype=int)), vol(1 - np.eye(10, dtype=int))]
    with pytest.warns(UserWarning, match='No rater agrees with the others beyond chance'):
        fused, raters = weighted(idle)
    assert (raters.weight == 1).all() and torch.equal(fused.data, majority(idle)[0].data)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        raters = dawid_skene(noise)[1]
    assert raters.score.median() < .2 and raters.spammer.any()


@fusions
def test_sixty_four_raters(fuse):
    truth = phantom('disks', 1, size=48, noise=0).mask
    masks = [mislabel(truth, .3, 0, i) for i in range(64)]
    fused, raters = fuse(masks)
    assert len(raters) == 64 and (fused.data == truth.data).double().mean() > .95


@fusions
def test_three_dimensions_large_labels_and_untouched_masks(fuse):
    masks = [Volume(m.data[..., None].repeat(1, 1, 1, 3)*30_000, np.diag([1, 2, 3, 1]))
             for m in crowd(4, 3, (4, 5), 3, missing=0)]
    kept = [m.data.clone() for m in masks]
    fused, _ = fuse(masks)
    assert fused.shape == (4, 5, 3) and fused.spacing == (1, 2, 3)
    assert set(np.unique(arr(fused))) == {0, 30_000, 60_000}
    assert all(torch.equal(m.data, k) for m, k in zip(masks, kept))


def test_em_that_is_stopped_early_says_so():
    with pytest.warns(UserWarning, match='still moves by .* after 2 steps'):
        dawid_skene_fit(gather(crowd(0, 5, (20, 20))), steps=2)


def test_soft_labels_are_shares_of_votes():
    masks = [vol([[0, 2, 1, -1]]), vol([[2, 2, -1, -1]])]
    soft = soft_labels(masks)
    assert soft.data.dtype == torch.float32 and soft.shape == (1, 4)
    assert soft.data[:, 0].T.tolist() == [[.5, 0, .5], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert soft_labels(masks, weights=[3, 1]).data[:, 0, 0].tolist() == [.75, 0, .25]
    assert soft_labels(masks, weights=[0, 1]).data[:, 0].T.tolist() == [[0, 0, 1], [0, 0, 1], [0]*3, [0]*3]
    assert soft_labels(masks, classes=5).data.shape == (5, 1, 4)
    with pytest.raises(ValueError, match='classes is 2, but there is a label 2'):
        soft_labels(masks, classes=2)


def test_soft_labels_keep_the_grid():
    masks = [Volume(m.data, np.diag([2, 3, 1])) for m in crowd(8, 3)]
    assert soft_labels(masks).spacing == (2, 3)
