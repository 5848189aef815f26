"Agreement of raters: published examples, the field's libraries, loops over voxels, and what must not matter."
import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from oracles import alpha_by_pairs, conformity_by_pairs, kappa_by_pairs

from medseg_nb.data.sets import cases, raters
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.agreement import (
    conformity, fleiss, krippendorff, pairwise, patterns, rater_names, tally, votes)
from medseg_nb.metrics.overlap import dice, sensitivity

close = dict(rtol=0, atol=1e-9, equal_nan=True)


def votes_of(seed, R=4, N=60, K=3, missing=.0, same=.6):
    "Votes of R raters who follow a truth more or less closely"
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, N)
    said = np.where(rng.random((R, N)) < same, truth, rng.integers(0, K, (R, N)))
    return np.where(rng.random((R, N)) < missing, -1, said)


some = st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 40), st.integers(1, 4)
each_level = pytest.mark.parametrize('level', ['nominal', 'ordinal', 'interval'])


def test_fleiss_of_his_formula_on_the_textbook_table():
    table = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
             [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    people = np.array([np.repeat(np.arange(5), n) for n in table]).T
    assert round(fleiss(people), 3) == .210


@pytest.mark.parametrize('level,wanted', [('nominal', .743), ('ordinal', .815), ('interval', .849)])
def test_krippendorffs_own_example(level, wanted):
    own = [[1, 2, 3, 3, 2, 1, 4, 1, 2, -1, -1, -1], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, -1, 3],
           [-1, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, -1], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, -1]]
    assert round(krippendorff(own, level), 3) == wanted


@settings(max_examples=60, deadline=None)
@given(*some)
def test_fleiss_as_statsmodels_and_as_loops(seed, R, N, K):
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa
    v = votes_of(seed, R, N, K)
    with np.errstate(all='ignore'): theirs = fleiss_kappa(aggregate_raters(v.T)[0])
    np.testing.assert_allclose(fleiss(v), theirs, **close)
    np.testing.assert_allclose(fleiss(v), kappa_by_pairs(v), **close)


@each_level
@settings(max_examples=60, deadline=None)
@given(*some, st.sampled_from([0, .2, .6]))
def test_alpha_as_krippendorff_and_as_loops(level, seed, R, N, K, missing):
    import krippendorff as package
    v = votes_of(seed, R, N, K, missing)
    seen = v[:, (v >= 0).sum(0) > 1]
    wanted = alpha_by_pairs(v, level)
    np.testing.assert_allclose(krippendorff(v, level), wanted, **close)
    if len(np.unique(seen[seen >= 0])) > 1:
        known = np.where(v < 0, np.nan, v)
        theirs = package.alpha(known, level_of_measurement=level)
        np.testing.assert_allclose(krippendorff(v, level), theirs, **close)


@settings(max_examples=60, deadline=None)
@given(*some, st.sampled_from([0, .3]))
def test_conformity_as_loops(seed, R, N, K, missing):
    v = votes_of(seed, R, N, K, missing)
    wanted = [conformity_by_pairs(v, k) for k in range(K)]
    np.testing.assert_allclose(conformity(v, range(K)), wanted, **close)


def test_two_raters_of_equal_shares_fleiss_is_cohens_kappa():
    from sklearn.metrics import cohen_kappa_score
    a = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10]))
    b = np.where(np.arange(100) < 60, a, np.random.default_rng(1).permutation(a))
    assert fleiss([a, a[::-1]]) == pytest.approx(cohen_kappa_score(a, a[::-1]), abs=1e-12)
    assert fleiss([a, b]) <= cohen_kappa_score(a, b) + 1e-12


def test_pairwise_takes_any_metric():
    from sklearn.metrics import cohen_kappa_score
    v = dict(zip('abc', votes_of(3, 3, 200, 2)))
    cohen = lambda p, t, labels: np.array([cohen_kappa_score(p.ravel(), t.ravel())])
    table = pairwise(v, cohen)
    assert list(table.index) == list(table.columns) == ['a', 'b', 'c']
    assert table.loc['a', 'c'] == pytest.approx(cohen_kappa_score(v['a'], v['c']), abs=1e-12)
    s = pairwise(v, sensitivity)
    assert s.loc['a', 'b'] == sensitivity(v['a'], v['b']).item() != s.loc['b', 'a']
    assert (np.diag(pairwise(v)) == 1).all() and pairwise(v).loc['b', 'c'] == dice(v['b'], v['c']).item()


def test_pairwise_leaves_out_what_one_of_two_did_not_see():
    a, b = np.array([[1, 1, 0, -1, 1]]), np.array([[1, -1, 1, 1, 0]])
    assert pairwise([a, b]).iloc[0, 1] == pairwise([a, b]).iloc[1, 0] == dice([[1, 0, 1]], [[1, 1, 0]]).item()
    volumes = [Volume(torch.tensor(m)[None]) for m in (a, b)]
    assert pairwise(volumes).equals(pairwise([a, b]))
    spaced = lambda p, t, labels: np.array([p.spacing[1]])
    volumes = [Volume(torch.tensor(m)[None], np.diag([1, 2.5, 1])) for m in (a, b)]
    assert pairwise(volumes, spaced).iloc[0, 1] == 2.5


@settings(max_examples=40, deadline=None)
@given(*some)
def test_what_must_not_matter(seed, R, N, K):
    v = votes_of(seed, R, N, K)
    rng = np.random.default_rng(seed)
    changed = rng.permutation(v)[:, rng.permutation(N)]
    renamed = rng.permutation(K + 2)[v]
    for f in (fleiss, krippendorff):
        np.testing.assert_allclose(f(changed), f(v), **close)
        np.testing.assert_allclose(f(renamed), f(v), **close)
        assert not f(v) > 1 + 1e-12
    np.testing.assert_allclose(conformity(changed, range(K)), conformity(v, range(K)), **close)
    np.testing.assert_allclose(krippendorff(v*3 + 2, 'interval'), krippendorff(v, 'interval'), **close)


def test_full_agreement_is_one_and_dice_throwing_is_none():
    m = np.arange(60) % 3
    assert fleiss([m]*4) == krippendorff([m]*4) == krippendorff([m]*4, 'ordinal') == 1
    assert (fleiss([m]*4, labels=(0, 1, 2)) == 1).all() and (conformity([m]*4, (1, 2)) == 1).all()
    noise = np.random.default_rng(0).integers(0, 2, (3, 40_000))
    assert abs(fleiss(noise)) < .01 and abs(krippendorff(noise)) < .01


def test_one_label_against_the_others():
    v = votes_of(5, 4, 300, 3)
    for f in (fleiss, krippendorff):
        assert f(v, labels=(2,))[0] == pytest.approx(f((v == 2).astype(int)), abs=1e-12)
        assert f(v, labels=(0, 1)).shape == (2,)
    gaps = votes_of(5, 4, 300, 3, .3)
    wanted = krippendorff(np.where(gaps < 0, -1, gaps == 2))
    assert krippendorff(gaps, labels=(2,))[0] == pytest.approx(wanted, abs=1e-12)


def test_kappa_becomes_dice_when_background_grows():
    a, b = votes_of(1, 2, 400, 2)
    grown = [np.pad(m, (0, 10**6)) for m in (a, b)]
    assert abs(fleiss([a, b]) - dice(a, b)) > .05
    assert fleiss(grown) == pytest.approx(dice(a, b).item(), abs=1e-3)


def test_where_there_is_nothing_to_agree_on():
    blank = np.zeros((3, 8), int)
    unseen = np.full((3, 8), -1)
    assert np.isnan(fleiss(blank)) and np.isnan(krippendorff(blank)) and np.isnan(krippendorff(unseen))
    assert np.isnan(conformity(blank)).all() and np.isnan(pairwise(unseen).values).all()
    lonely = np.where(np.eye(3), 1, -1)
    assert np.isnan(krippendorff(lonely)) and np.isnan(conformity(lonely)).all()
    assert np.isnan(fleiss([[0, 1], [0, 1]], labels=(7,))).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(1, 120))
def test_patterns_put_every_voxel_back(seed, R, K):
    v = votes_of(seed, R, 24, K, .2).reshape(R, 4, 6)
    table, which, size = patterns(v)
    assert (table[which] == np.moveaxis(v, 0, -1)).all()
    assert size.sum() == 24 and len(np.unique(table, axis=0)) == len(table)
    assert (size == np.bincount(which.ravel())).all()


def test_patterns_of_many_raters_do_not_run_into_each_other():
    v = np.vstack([votes_of(1, 3, 50, 3), np.zeros((80, 50), int)])
    assert len(patterns(v)[0]) == len(np.unique(v, axis=1).T) > 10


def test_tally_is_of_patterns():
    labels, n, size = tally(np.array([[0, 0, 5, -1], [0, 0, 9, 5]]))
    assert labels.tolist() == [0, 5, 9] and sorted(zip(n.tolist(), size)) == [
        ([0, 1, 0], 1), ([0, 1, 1], 1), ([2, 0, 0], 2)]


def test_sixty_four_raters_and_large_labels():
    v = votes_of(2, 64, 500, 3)
    assert fleiss(v) == pytest.approx(kappa_by_pairs(v), abs=1e-9)
    assert krippendorff(v*60_000) == pytest.approx(krippendorff(v), abs=1e-12)


def test_names_come_from_the_dict_or_are_numbered():
    m = np.ones((2, 3), int)
    assert rater_names(dict(ann=m, bo=m)) == ['ann', 'bo'] and rater_names([m, m]) == [0, 1]
    assert votes(np.stack([m, m, m])).shape == (3, 2, 3)


@pytest.mark.parametrize('masks,error,words', [
    ([], ValueError, 'Got no masks'),
    ([np.zeros((2, 2), int), np.zeros((2, 3), int)], ValueError,
     r'masks\[1\] has shape \(2, 3\), the first one \(2, 2\)'),
    ([np.zeros((2, 2)), np.zeros((2, 2))], TypeError, r'masks\[0\] is float64'),
    ([np.full((2, 2), -2), np.zeros((2, 2), int)], ValueError, r'masks\[0\] has labels from -2 to -2'),
    ([np.full((2, 2), 2**40), np.zeros((2, 2), int)], ValueError, 'labels from'),
    (Volume(torch.zeros(1, 2, 2, dtype=int)), TypeError, 'Got one Volume')])
def test_masks_that_cannot_be_compared(masks, error, words):
    with pytest.raises(error, match=words): votes(masks)


def test_volumes_on_other_grids_are_refused():
    a = Volume(torch.ones(1, 3, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r'masks\[1\] lies on another grid than masks\[0\]: flip'):
        fleiss([a, a.flip(0)])


def test_one_mask_or_gaps_where_none_may_be():
    m = np.ones((2, 2), int)
    for f in (fleiss, krippendorff, conformity):
        with pytest.raises(ValueError, match='Got one mask'): f([m])
    with pytest.raises(ValueError, match='1 voxels were not seen by all 2 raters'):
        fleiss([[0, 1, -1], [0, 1, 1]])
    with pytest.raises(ValueError, match="level is 'ratio'"): krippendorff([m, m], 'ratio')


def test_inputs_stay_as_they_were():
    masks = [torch.tensor([[0, 1, -1]]), torch.tensor([[1, 1, 0]])]
    before = [m.clone() for m in masks]
    pairwise(masks), krippendorff(masks), conformity(masks)
    assert all(torch.equal(a, b) for a, b in zip(masks, before))


@pytest.mark.skipif(not os.path.isdir(os.path.join(os.environ.get('MEDSEG_DATA', ''), 'chase_db1')),
                    reason='CHASE DB1 is not at hand')
def test_numbers_quoted_for_chase():
    rows = []
    for case in cases('chase_db1'):
        masks = raters(case)
        rows.append((pairwise(masks).iloc[0, 1], fleiss(masks)))
    d, kappa = pd.DataFrame(rows).to_numpy().T
    assert (len(d), *np.round([d.mean(), d.min(), d.max(), kappa.mean()], 3)) == (28, .777, .739, .827, .760)
