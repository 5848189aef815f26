"Comparison: pairs are made by name, tests agree with slow ones and with statsmodels, ranks with loops."
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from medseg_nb.metrics.compare import blobs, compare, difference, holm, paired, ranks
from medseg_nb.metrics.evaluate import interval


def tidy(values, metric='dice', kinds=('lung',), patient=None):
    "A table with a case for each row of `values`, a class for each column"
    values = np.asarray(values, float).reshape(len(values), -1)
    rows = [{'case': f'c{i}', 'patient': patient[i] if patient else f'c{i}', 'class': k, 'metric': metric,
             'value': v, 'error': None} for i, row in enumerate(values) for k, v in zip(kinds, row)]
    return pd.DataFrame(rows)


def three(n=12, seed=0):
    x = np.random.default_rng(seed).beta(8, 2, (3, n))
    return dict(zip('PQR', map(tidy, x))), x


def test_paired_matches_by_name():
    tables, x = three()
    mixed = {'P': tables['P'][::-1], 'Q': tables['Q'].sample(frac=1, random_state=1), 'R': tables['R']}
    got = paired(mixed)
    assert list(got) == ['P', 'Q', 'R']
    for j, name in enumerate('PQR'):
        assert got[name].to_dict() == {f'c{i}': x[j, i] for i in range(12)}
    one = pd.concat([t.assign(system=name) for name, t in tables.items()])
    pd.testing.assert_frame_equal(paired(one).sort_index(), got.sort_index())


def test_paired_unit_and_classes():
    who = ['p', 'p', 'p', 'q']
    x = np.arange(8.).reshape(4, 2)
    both = {'A': tidy(x, kinds='lr', patient=who), 'B': tidy(x + 1, kinds='lr', patient=who)}
    assert paired(both).A.to_dict() == {'c0': .5, 'c1': 2.5, 'c2': 4.5, 'c3': 6.5}
    assert paired(both, unit='patient').A.to_dict() == {'p': 2.5, 'q': 6.5}
    assert compare(both, unit='patient').n[0] == 2 and compare(both, unit='patient').unit[0] == 'patient'
    left = {k: t[t['class'] == 'l'] for k, t in both.items()}
    assert paired(left).A.tolist() == [0, 2, 4, 6]


def test_missing_is_stated():
    a = tidy([[.9, .8], [.7, np.nan], [.5, .6], [.2, .3]], kinds='lr')
    b = tidy([[.8, .9], [.6, np.nan], [np.nan, .7], [.1, .2]], kinds='lr')
    words = r"1 rows lack 'dice' for some systems, such as 'B' on \('c2', 'l'\)"
    with pytest.raises(ValueError, match=words): compare(dict(A=a, B=b))
    drop = paired(dict(A=a, B=b), missing='drop')
    np.testing.assert_allclose(drop, [[.85, .85], [.7, .6], [.6, .7], [.25, .15]])
    worth = paired(dict(A=a, B=b), missing=0)
    np.testing.assert_allclose(worth, [[.85, .85], [.7, .6], [.55, .35], [.25, .15]])
    for bad in ('nan', np.nan, None, np.inf):
        with pytest.raises(ValueError, match="wanted 'error', 'drop'"): paired(dict(A=a, B=b), missing=bad)


@pytest.mark.parametrize('spoil, words', [
    (lambda a, b: a, 'Wanted {name: table'),
    (lambda a, b: {'A': a}, 'Wanted {name: table'),
    (lambda a, b: {'A': a, 'B': b[1:]}, r"'B' was not scored on 1 of 4 rows, such as \('c0', 'lung'\)"),
    (lambda a, b: {'A': a[2:], 'B': b[:2]}, "System 'A' was not scored on 2 of 4 rows"),
    (lambda a, b: {'A': a, 'B': pd.concat([b, b[:1]])}, "Case 'c0' is there twice for system 'B'"),
    (lambda a, b: {'A': a, 'B': b.assign(metric='iou')}, "System 'B' was not scored on 4 of 4 rows"),
])
def test_bad_tables(spoil, words):
    a, b = tidy([.1, .2, .3, .4]), tidy([.2, .3, .4, .5])
    for f in (compare, ranks):
        with pytest.raises(ValueError, match=words): f(spoil(a, b))


def test_unknown_names():
    tables, _ = three()
    with pytest.raises(ValueError, match=r"No metric 'nsd' in the table; it has \['dice'\]"):
        compare(tables, 'nsd')
    with pytest.raises(ValueError, match="no column 'site'"): compare(tables, unit='site')
    with pytest.raises(ValueError, match="best is 'max'"): ranks(tables, best='max')
    with pytest.raises(ValueError, match="first is 'median'"): ranks(tables, first='median')


# one pair

@pytest.mark.parametrize('n', [2, 5, 9, 12])
def test_sign_flips_are_all_sign_flips(n):
    d = np.random.default_rng(n).normal(.02, .03, n)
    flipped = np.array([(np.array(s)*d).mean() for s in product((-1, 1), repeat=n)])
    want = (np.abs(flipped) >= abs(d.mean()) - 1e-12).mean()
    assert difference(d)['permutation'] == pytest.approx(want, abs=1e-12)


def test_difference_is_scipys():
    d = np.random.default_rng(0).normal(.01, .03, 40)
    got = difference(d)
    assert got == difference(d) and got['n'] == 40 and got['difference'] == d.mean()
    assert (got['low'], got['high']) == interval(d)
    assert got['wilcoxon'] == stats.wilcoxon(d).pvalue
    rng = np.random.default_rng(5)
    tosses = np.abs((rng.choice([-1, 1], (40_000, 40))*d).mean(1)) >= abs(d.mean())
    assert got['permutation'] == pytest.approx(tosses.mean(), abs=.01)
    assert difference(d, level=.5)['low'] > got['low']


@pytest.mark.parametrize('d, p', [([], None), ([.1], None), ([0, 0, 0], 1), ([.1, .1, .1], .25)])
def test_little_to_compare(d, p):
    got = difference(d)
    assert got['n'] == len(d) and np.isnan(got['low'])
    for test in ('wilcoxon', 'permutation'): assert np.isnan(got[test]) if p is None else got[test] == p


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=10), st.floats(.5, 100))
@settings(max_examples=10, deadline=None)
def test_swap_and_scale(d, k):
    "B - A and A - B are one question; the unit of the metric does not matter to the tests"
    d = np.round(d, 3)
    a, b = difference(d), difference(-d)
    assert a['difference'] == -b['difference'] and a['wilcoxon'] == b['wilcoxon']
    assert a['permutation'] == pytest.approx(b['permutation'], abs=1e-12)
    assert difference(d*2**int(k % 5))['permutation'] == pytest.approx(a['permutation'], abs=1e-12)


# many

@pytest.mark.parametrize('n', [0, 1, 2, 10, 45])
def test_holm_is_statsmodels(n):
    rng = np.random.default_rng(n)
    gaps = np.where(rng.random(n) < .3, np.nan, rng.random(n)/9)
    for p in (rng.random(n)**3, rng.integers(0, 4, n)/20, gaps):
        tested, out = ~np.isnan(p), holm(p)
        assert np.isnan(out[~tested]).all() and out.shape == (n,)
        if tested.any():
            np.testing.assert_allclose(out[tested], multipletests(p[tested], method='holm')[1], rtol=1e-12)


def test_compare_every_pair():
    tables, x = three()
    got = compare(tables, seed=3, level=.9)
    assert got[['a', 'b']].values.tolist() == [['P', 'Q'], ['P', 'R'], ['Q', 'R']]
    for (_, row), (i, j) in zip(got.iterrows(), ((0, 1), (0, 2), (1, 2))):
        want = difference(x[j] - x[i], .9, 3)
        assert {k: row[k] for k in want} == want
    for test in ('wilcoxon', 'permutation'):
        np.testing.assert_array_equal(got[f'{test}_holm'], holm(got[test]))
    assert set(got.metric) == {'dice'} and set(got.unit) == {'case'}


def test_false_positives_and_power():
    rng = np.random.default_rng(0)
    hard = rng.gamma(3, .03, (300, 15))
    a, b = 1 - hard*rng.gamma(30, 1/30, (2, 300, 15))
    p = stats.wilcoxon(b - a, axis=1).pvalue
    assert p[7] == difference(b[7] - a[7])['wilcoxon']
    assert .015 < (p < .05).mean() < .085
    assert (stats.wilcoxon(b + .03 - a, axis=1).pvalue < .05).mean() > .85


# ranks

@pytest.mark.parametrize('first', ['mean', 'rank'])
@pytest.mark.parametrize('best', ['high', 'low'])
def test_ranks_by_loops(first, best):
    tables, x = three()
    got = ranks(tables, best=best, first=first, draws=200, seed=4)
    def places(values):
        "1 + how many are better"
        better = (lambda u, v: u > v + 1e-11) if best == 'high' else (lambda u, v: u < v - 1e-11)
        return [1 + sum(better(u, v) for u in values) for v in values]
    def of(cases):
        if first == 'mean': return places([np.mean(x[j, cases]) for j in range(3)])
        each = [stats.rankdata(x[:, i] if best == 'low' else -x[:, i]) for i in cases]
        average = np.mean(each, axis=0)
        return [1 + sum(u < v - 1e-11 for u in average) for v in average]
    drawn = np.random.default_rng(4).integers(12, size=(200, 12))
    found = np.array([of(cases) for cases in drawn])
    own = dict(zip('PQR', of(range(12))))
    assert got['rank'].to_dict() == own and got['rank'].is_monotonic_increasing
    for j, name in enumerate('PQR'):
        for k in (1, 2, 3): assert got.loc[name, k] == pytest.approx((found[:, j] == k).mean(), abs=1e-12)


def test_ranks_of_equals_and_of_the_sure():
    x = np.random.default_rng(0).beta(8, 2, 9)
    got = ranks({'worst': tidy(x - .5), 'one': tidy(x), 'two': tidy(x)})
    assert got['rank'].to_dict() == {'one': 1, 'two': 1, 'worst': 3}
    assert got[1].tolist() == [1, 1, 0] and got[3].tolist() == [0, 0, 1]


def test_a_patient_is_drawn_whole():
    who = ['p']*30 + ['q']
    a, b = tidy([.9]*30 + [.1], patient=who), tidy([.8]*30 + [.9], patient=who)
    assert ranks(dict(a=a, b=b)).loc['a', 1] > .9
    assert .15 < ranks(dict(a=a, b=b), unit='patient').loc['a', 1] < .35


def test_blobs_are_the_shares():
    tables, _ = three()
    shares = ranks(tables)
    ax = blobs(shares)
    assert [t.get_text() for t in ax.get_xticklabels()] == list(shares.index)
    for dots, (_, row) in zip(ax.collections, shares.iterrows()):
        np.testing.assert_allclose(dots.get_sizes()/dots.get_sizes().sum(), row[[1, 2, 3]].to_numpy(float))
    assert blobs(shares, ax) is ax
