"Evaluation: a tidy table against hand-made ones, intervals against scipy."
import warnings
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_nb.data.case import Case
from medseg_nb.data.volume import Volume
from medseg_nb.metrics import evaluate as module
from medseg_nb.metrics.evaluate import evaluate, interval, metric_name, pick_cases, summary
from medseg_nb.metrics.overlap import dice, iou


def square(id, k=1, where=2, meta=None, labels=(1,)):
    "A 12 x 12 image whose mask is a square of 16 voxels for each label"
    m = np.zeros((1, 12, 12), int)
    for i, label in enumerate(labels): m[0, 1 + 5*i:5 + 5*i, where:where+4] = label
    return Case(id, Volume(torch.tensor(m*1.)), Volume(torch.tensor(m)), meta or {})


def copy(image): return image.new(image.data.long())
def shifted(image): return image.new(image.data.long().roll(2, -1))


def test_evaluate_is_tidy():
    classes = 'nothing', 'left', 'right'
    def meta(i): return dict(patient=f'p{i//2}', site='A', age=i, classes=classes, list=[1, 2])
    cases = [square(f'c{i}', where=i, meta=meta(i), labels=(1, 2)) for i in range(4)]
    table = evaluate(shifted, cases, metrics=(dice, iou))
    assert list(table) == ['case', 'patient', 'site', 'age', 'class', 'metric', 'value', 'error']
    assert len(table) == 4*2*2 and not table.duplicated(['case', 'class', 'metric']).any()
    assert set(table['class']) == {'left', 'right'} and table.error.isna().all()
    for (case, kind, metric), v in table.set_index(['case', 'class', 'metric']).value.items():
        c = next(c for c in cases if c.id == case)
        f, k = {'dice': dice, 'iou': iou}[metric], {'left': 1, 'right': 2}[kind]
        assert v == f(shifted(c.image), c.mask, (k,)).item()
    assert table.groupby('case').patient.first().tolist() == ['p0', 'p0', 'p1', 'p1']


def test_evaluate_labels():
    cases = [square('a', labels=(1,)), square('b', labels=(3,))]
    table = evaluate(copy, cases)
    assert table[['case', 'class']].values.tolist() == [['a', 1], ['a', 3], ['b', 1], ['b', 3]]
    assert table.value.isna().tolist() == [False, True, True, False]
    assert evaluate(copy, cases, labels=3)['class'].tolist() == [3, 3]
    assert evaluate(copy, cases, metrics=partial(dice, empty='one')).value.tolist() == [1, 1, 1, 1]
    assert evaluate(copy, [square('a', meta=dict(classes={1: 'x', 7: 'y'}))])['class'].tolist() == ['x', 'y']
    assert evaluate(copy, [square('a', meta=dict(classes=2))])['class'].tolist() == [1]
    with pytest.raises(ValueError, match='No label above 0 in any mask'):
        evaluate(copy, [square('a', labels=())])


def test_one_bad_case_does_not_stop_the_rest():
    def breaks(image):
        if image.data.sum() > 16: raise RuntimeError('out of coffee')
        return copy(image)
    def fussy(pred, truth, labels=(1,)):
        if pred.data[0, 1, 6]: raise ZeroDivisionError('my fault')
        return dice(pred, truth, labels)
    cases = [square('good'), square('bad', labels=(1, 2)), square('odd', where=3)]
    cases += [Case('no mask', square('x').image)]
    with pytest.warns(UserWarning, match='3 of 4 cases have an error; the first: RuntimeError: out of c'):
        table = evaluate(breaks, cases, metrics=(dice, fussy), labels=(1,))
    assert len(table) == 8
    wrong = table.set_index(['case', 'metric']).error
    coffee, mask = 'RuntimeError: out of coffee', 'ValueError: the case has no mask to compare with'
    assert wrong[wrong.notna()].to_dict() == {
        ('odd', 'fussy'): 'ZeroDivisionError: my fault', ('bad', 'dice'): coffee, ('bad', 'fussy'): coffee,
        ('no mask', 'dice'): mask, ('no mask', 'fussy'): mask}
    assert table.value.notna().sum() == 3
    counted = summary(table)[['metric', 'n', 'nan', 'errors']].values.tolist()
    assert counted == [['dice', 2, 0, 2], ['fussy', 1, 0, 3]]


def test_interrupt_goes_through():
    def stop(image): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): evaluate(stop, [square('a')])


@pytest.mark.parametrize('segmenter, words', [
    (lambda v: v.data.long(), 'TypeError: The segmenter returned a Tensor; wanted a Volume'),
    (lambda v: v, 'TypeError: The segmentation is torch.float64, but overlap counts'),
    (lambda v: copy(v).flip(0), 'left the grid of the image: flip'),
    (lambda v: copy(v)[1:], 'left the grid of the image: shape'),
    (lambda v: Volume(v.data.long(), np.diag([2., 2, 1])), 'left the grid of the image: spacing'),
    (lambda v: copy(v).new(-copy(v).data), 'The segmentation has label -1; labels start at 0'),
    (lambda v: copy(v).new(torch.cat([copy(v).data]*2)), r'shape \(2, 12, 12\); wanted the labels of one'),
])
def test_segmenter_output_is_checked(segmenter, words):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        error = evaluate(segmenter, [square('a')]).error
    assert error.str.contains(words).all(), error[0]


@pytest.mark.parametrize('call, words', [
    (lambda: evaluate(copy, []), '0 cases'),
    (lambda: evaluate(copy, [square('a')], metrics=()), '0 metrics'),
    (lambda: evaluate(copy, [square('a'), square('a')]), "case id 'a' is there twice"),
    (lambda: evaluate(copy, [square('a')], metrics=(dice, dice)), "metric name 'dice' is there twice"),
    (lambda: evaluate(copy, [square('a', meta=dict(value=3))]), r"meta of case 'a' has \['value'\]"),
])
def test_refused_before_anything_runs(call, words):
    with pytest.raises(ValueError, match=words): call()


def test_fractional_labels_are_refused():
    with pytest.raises(TypeError, match='float'): evaluate(copy, [square('a')], labels=(1.5,))


def test_metric_shape_is_checked():
    def lump(pred, truth, labels=(1,)): return np.float64(.5)
    with pytest.warns(UserWarning): table = evaluate(copy, [square('a')], (lump,), labels=(1, 2))
    assert 'returned shape (), wanted (2,)' in table.error[0]


def test_metric_names():
    assert metric_name(partial(partial(dice, empty='one'))) == 'dice(empty=one)'
    table = evaluate(copy, [square('a')], metrics=(dice, partial(dice, empty='zero')))
    assert table.metric.tolist() == ['dice', 'dice(empty=zero)']


def test_bar_only_when_wanted(monkeypatch):
    seen = []
    monkeypatch.setattr(module, 'progress_bar', lambda cases: seen.append(len(cases)) or cases)
    monkeypatch.setenv('IN_TEST', '1')
    evaluate(copy, [square('a')])
    monkeypatch.delenv('IN_TEST')
    evaluate(copy, [square('a')], progress=False)
    assert seen == []
    evaluate(copy, [square('a'), square('b')])
    assert seen == [2]


def test_real_bar_runs(monkeypatch, capsys):
    monkeypatch.delenv('IN_TEST', raising=False)
    assert len(evaluate(copy, [square('a'), square('b')])) == 2


# summary

def tidy(values, metric='dice', kind='lung'):
    return pd.DataFrame({'case': [f'c{i}' for i in range(len(values))], 'class': kind, 'metric': metric,
                         'value': np.array(values, float)})


def test_interval_is_scipys():
    from scipy.stats import bootstrap
    x = np.random.default_rng(1).beta(8, 2, 30)
    def theirs(seed, **how):
        found = bootstrap((x,), np.mean, method='BCa', rng=np.random.default_rng(seed), **how)
        return tuple(found.confidence_interval)
    assert interval(x) == theirs(42, n_resamples=9999, batch=999) == interval(list(x))
    np.testing.assert_allclose(interval(x), theirs(7, n_resamples=20_000), atol=.003)
    assert interval(x, seed=1) != interval(x)
    wide, narrow = interval(x, level=.99), interval(x, level=.5)
    assert wide[0] < narrow[0] < x.mean() < narrow[1] < wide[1]


def test_interval_by_hand():
    "BCa from its formulas, on every one of the 4**4 replays of four values"
    from scipy.stats import norm
    x = np.array([.2, .7, .8, .95])
    means = np.array([np.mean(c) for c in product(x, repeat=4)])
    z0 = norm.ppf((np.mean(means < x.mean()) + np.mean(means <= x.mean()))/2)
    d = x.mean() - np.array([np.delete(x, i).mean() for i in range(4)])
    a = (d**3).sum()/(6*(d**2).sum()**1.5)
    want = [np.quantile(means, norm.cdf(z0 + (z0 + z)/(1 - a*(z0 + z)))) for z in norm.ppf([.025, .975])]
    np.testing.assert_allclose(interval(x), want, atol=.03)
    assert abs(interval(x)[0] - np.quantile(means, .025)) > .01


@pytest.mark.parametrize('x', [[], [.9], [.9]*3, [1.]*50, [.5, np.nan], [np.inf, 1.]], ids=str)
def test_no_spread_no_interval(x):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.isnan(interval(x)).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_interval_never_leaves_the_scores(x):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        low, high = interval(x)
    if np.ptp(x) > 1e-9: assert min(x) - 1e-12 <= low <= high <= max(x) + 1e-12


def test_summary_by_hand():
    values = [.9, .8, np.nan, .4, .7]
    row = summary(tidy(values)).iloc[0]
    x = np.array([.9, .8, .4, .7])
    assert (row.n, row['nan'], row.errors) == (4, 1, 0)
    np.testing.assert_allclose([row['mean'], row['std'], row['median']], [x.mean(), x.std(ddof=1), .75])
    assert (row.low, row.high) == interval(x)
    assert ' '.join(row.index) == 'class metric n mean std median low high nan errors'


def test_summary_keeps_groups_apart_and_in_order():
    nothing = tidy([np.nan]*2, 'dice', 'z')
    table = pd.concat([tidy([.5, .6], 'iou', 'z'), tidy([.7, .8], 'dice', 'a'), nothing])
    got = summary(table)
    assert got[['class', 'metric']].values.tolist() == [['z', 'iou'], ['a', 'dice'], ['z', 'dice']]
    assert got.n.tolist() == [2, 2, 0] and np.isnan(got.low[2]) and np.isnan(got['mean'][2])
    pd.testing.assert_frame_equal(got, summary(table))


def test_pick_cases():
    lung, heart = tidy([.3, .9, np.nan, .5, .1]), tidy([.1, .9, np.nan, .1, .5], kind='heart')
    table = pd.concat([lung, heart, tidy(range(5), 'hd')])
    assert pick_cases(table) == {'worst': 'c0', 'median': 'c3', 'best': 'c1'}
    assert pick_cases(lung) == {'worst': 'c4', 'median': 'c0', 'best': 'c1'}
    assert pick_cases(table, 'hd', best='low') == {'worst': 'c4', 'median': 'c2', 'best': 'c0'}
    assert pick_cases(tidy([.5])) == {'worst': 'c0', 'median': 'c0', 'best': 'c0'}
    with pytest.raises(ValueError, match=r"No metric 'nsd' in the table; it has \['dice', 'hd'\]"):
        pick_cases(table, 'nsd')
    with pytest.raises(ValueError, match="best is 'max'"): pick_cases(table, best='max')
    with pytest.raises(ValueError, match='No case has a value'): pick_cases(tidy([np.nan]))
