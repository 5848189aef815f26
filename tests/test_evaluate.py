"Evaluation: a tidy table against hand-made ones, intervals against scipy."
import os
import warnings
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_nb.core.many import DIED, kept
from medseg_nb.data.case import Case
from medseg_nb.data.sets import LazyCase
from medseg_nb.data.volume import Volume
from medseg_nb.metrics import evaluate as module
from medseg_nb.metrics.evaluate import (
    case_mark, counts, evaluate, interval, metric_name, pick_cases, pooled, summary)
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
    monkeypatch.setattr(module, 'progress_bar', lambda out, total: seen.append(total) or out)
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
    assert ' '.join(row.index) == 'class metric unit n mean std median low high nan errors'


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


# dicts, millimeters, patients, pooling

def stack(id, shift, spacing=(1., 1., 4.)):
    "A box of 4 x 4 x 4 voxels in 12 x 12 x 12; the image holds the box moved along the last axis"
    m = torch.zeros(1, 12, 12, 12, dtype=torch.long)
    m[0, 4:8, 4:8, 4:8] = 1
    affine = np.diag([*spacing, 1.])
    return Case(id, Volume(m.roll(shift, -1)*1., affine), Volume(m, affine), dict(patient=id[0]))


def distances(pred, truth, labels=(1,), unit=1.):
    "Stands for a panel: Dice, and the largest distance of the surfaces in mm"
    far = np.array([hausdorff(pred.numpy()[0] == k, truth.numpy()[0] == k, truth.spacing) for k in labels])
    return {'dice': dice(pred, truth, labels), 'far': far/unit}


def hausdorff(p, t, spacing):
    a, b = (np.argwhere(x)*spacing for x in (p, t))
    d = np.linalg.norm(a[:, None] - b, axis=-1)
    return max(d.min(0).max(), d.min(1).max())


def test_metric_with_several_answers_in_millimeters():
    cases = [stack('a', 2), stack('b', 0), stack('c', 2, spacing=(1., 1., .5))]
    table = evaluate(copy, cases, (distances, iou, partial(distances, unit=2)))
    assert table.metric.tolist() == ['dice', 'far', 'iou', 'dice(unit=2)', 'far(unit=2)']*3
    assert table[table.metric == 'far'].value.tolist() == [8, 0, 1]
    assert table[table.metric == 'far(unit=2)'].value.tolist() == [4, 0, .5]
    assert table[table.metric == 'dice'].value.tolist() == [.5, 1, .5]


def test_failed_rows_are_there_under_every_name():
    def some(pred, truth, labels=(1,)):
        if pred.data[0, 4, 4, 4] == 0: raise ValueError('moved')
        return distances(pred, truth, labels)
    with pytest.warns(UserWarning, match='1 of 2 cases'):
        table = evaluate(copy, [stack('a', 2), stack('b', 0)], some)
    assert table[['case', 'metric', 'error']].fillna('').values.tolist() == [
        ['a', 'dice', 'ValueError: moved'], ['a', 'far', 'ValueError: moved'],
        ['b', 'dice', ''], ['b', 'far', '']]
    assert summary(table)[['n', 'errors', 'nan']].values.tolist() == [[1, 1, 0]]*2
    def odd(pred, truth, labels=(1,)):
        return {k: np.ones(1) for k in ('xy' if pred.data[0, 4, 4, 4] else 'x')}
    with pytest.warns(UserWarning): table = evaluate(copy, [stack('a', 2), stack('b', 0)], odd)
    assert table.metric.tolist() == ['x', 'y']*2 and "gave no 'y' here" in table.error[1]
    def short(pred, truth, labels=(1,)): return {'x': np.ones(3)}
    with pytest.warns(UserWarning): table = evaluate(copy, [stack('a', 2)], short)
    assert table.metric.tolist() == ['short'] and 'shape (3,), wanted (1,)' in table.error[0]


def test_one_name_twice_stops_at_once(tmp_path):
    seen = []
    def watched(image): seen.append(1); return copy(image)
    with pytest.raises(ValueError, match="name 'dice' is there twice, from dice and distances"):
        evaluate(watched, [stack('a', 0), stack('b', 0)], (dice, distances))
    assert len(seen) == 1


def test_summary_of_patients():
    table = tidy([.25, .5, .875, np.nan, .5, np.nan])
    table = table.assign(patient=list('aabbcd'), error=[None]*5 + ['E: x'])
    row = summary(table, unit='patient').iloc[0]
    assert (row.unit, row.n, row['nan'], row.errors) == ('patient', 3, 1, 1)
    np.testing.assert_allclose([row['mean'], row['median']], [(.375 + .875 + .5)/3, .5])
    assert (row.low, row.high) == interval([.375, .875, .5]) != interval([.25, .5, .875, .5])
    with pytest.raises(ValueError, match="No column 'site' in the table; it has"):
        summary(table, unit='site')


def test_pooled_by_hand():
    def some(sizes):
        "Masks of n voxels of which the image shows the first m, and k wrong ones"
        out = []
        for i, (n, m, k) in enumerate(sizes):
            t, p = torch.zeros(1, 10, 10), torch.zeros(1, 10, 10)
            t.view(-1)[:n], p.view(-1)[:m], p.view(-1)[100 - k:] = 1, 1, 1
            out.append(Case(f'{"xy"[i % 2]}{i}', Volume(p), Volume(t.long()), dict(patient='xy'[i % 2])))
        return out
    table = evaluate(copy, some([(40, 40, 0), (1, 0, 1), (50, 45, 5), (4, 1, 0)]), (dice, counts))
    x2 = table[table.case == 'x2'].set_index('metric').value.to_dict()
    assert x2 == dict(dice=.9, tp=45, fp=5, fn=5, tn=45)
    row = pooled(table).iloc[0]
    assert (row['class'], row.cases) == (1, 4)
    np.testing.assert_allclose(row[['dice', 'iou', 'sensitivity', 'precision']].astype(float),
                               [2*86/(2*86 + 6 + 9), 86/101, 86/95, 86/92])
    by = pooled(table, by='patient').set_index('patient')
    np.testing.assert_allclose(by.dice, [2*85/(2*85 + 10), 2/(2 + 1 + 4)])
    assert by.cases.tolist() == [2, 2]
    cases = some([(40, 40, 0), (1, 0, 1)])
    everything = np.concatenate([c.image.numpy().ravel() for c in cases]).astype(int)
    truth = np.concatenate([c.mask.numpy().ravel() for c in cases])
    two = pooled(table[table.case.isin(['x0', 'y1'])]).dice[0]
    assert two == pytest.approx(dice(everything, truth).item())
    with pytest.raises(ValueError, match=r'No counts in the table; evaluate\(..., metrics=\(dice, co'):
        pooled(table[table.metric == 'dice'])
    with pytest.raises(ValueError, match='1 cases have no counts'):
        pooled(table.assign(value=table.value.where(table.case != 'x0')))


# workers

def lazy(tmp_path, id, bad=False):
    "A case whose voxels are read from files by a closure"
    file = tmp_path/f'{id}.npy'
    np.save(file, stack(id, 0).mask.numpy())
    def load():
        if bad: raise OSError('unreadable')
        m = torch.from_numpy(np.load(file))
        return Volume(m*1.), Volume(m)
    return LazyCase(id, load, dict(classes=['', 'box'], age=3), [file])


def test_workers_change_nothing(tmp_path):
    "A network in a closure, lazy cases, errors: the same table in the same order, and the same file"
    net = torch.nn.Conv3d(1, 2, 1).eval()
    @torch.no_grad()
    def segmenter(v):
        if v.data[0, 0, 0, 0] == 8: raise ValueError('eight')
        net(v.data[None].float())
        return v.new((v.data == 1).long())
    eight = stack('e', 1)
    eight.image.data[0, 0, 0, 0] = 8
    cases = [stack('a', 1), lazy(tmp_path, 'b'), lazy(tmp_path, 'd', bad=True), eight, stack('f', 3)]
    cases.append(stack('g', 0))
    both, file = (distances, iou), tmp_path/'kept'
    with pytest.warns(UserWarning, match='2 of 6 cases'): one = evaluate(segmenter, cases, both, 1)
    with pytest.warns(UserWarning, match='2 of 6 cases'):
        two = evaluate(segmenter, cases, both, 1, workers=2, keep=file)
    pd.testing.assert_frame_equal(two, one)
    assert sorted(r['note']['id'] for r in kept(file)) == ['a', 'b', 'f', 'g']
    with pytest.warns(UserWarning, match='2 of 6 cases'):
        again = evaluate(segmenter, cases, both, 1, keep=file)
    pd.testing.assert_frame_equal(again, one)


def test_a_dead_worker_is_a_row(monkeypatch):
    "`many` is tested by itself; here only that its error becomes rows"
    died = [(1, None, DIED), (0, [[{'dice': [.5], 'far': [2.]}, None]], None)]
    monkeypatch.setattr(module, 'many', lambda f, items, workers: iter(died))
    with pytest.warns(UserWarning, match='1 of 2 cases have an error; the first: WorkerDied'):
        table = evaluate(copy, [stack('a', 0), stack('b', 0)], distances, workers=2)
    assert (table.case + table.metric).tolist() == ['adice', 'afar', 'bdice', 'bfar']
    assert table.value.tolist()[:2] == [.5, 2] and table.error[2:].str.startswith('WorkerDied').all()


def test_unsendable_segmenter_and_bad_workers():
    import threading
    lock = threading.Lock()
    with pytest.raises(TypeError, match='cannot be sent to worker processes'):
        evaluate(lambda v: lock and copy(v), [stack('a', 0)], workers=2)
    with pytest.raises(ValueError, match='workers is 0'): evaluate(copy, [stack('a', 0)], workers=0)


# resume

class Counting:
    "A segmenter that notes what it was given where its own mark does not see it"
    log = []
    def __init__(self, label=1): self.label = label
    def __call__(self, v):
        Counting.log.append(v.shape)
        if v.data.max() > 5: raise KeyboardInterrupt
        return v.new((v.data == self.label).long())


def test_resume_after_interrupt(tmp_path):
    file, cases = tmp_path/'scores'/'a.jsonl', [square(f'c{i}', where=i) for i in range(5)]
    stop = Case('stop', cases[0].image.new(cases[0].image.data*9), cases[0].mask)
    Counting.log.clear()
    with pytest.raises(KeyboardInterrupt): evaluate(Counting(), [*cases[:3], stop, *cases[3:]], keep=file)
    assert len(Counting.log) == 4
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        table = evaluate(Counting(), cases[::-1], keep=file)
        assert len(Counting.log) == 6
        assert len(evaluate(Counting(), cases, keep=file)) == 5 and len(Counting.log) == 6
    pd.testing.assert_frame_equal(table, evaluate(Counting(), cases[::-1]))
    with file.open('ab') as f: f.truncate(file.stat().st_size - 9)
    Counting.log.clear()
    evaluate(Counting(), cases, keep=file)
    assert len(Counting.log) == 1


def test_changes_are_noticed(tmp_path):
    file, cases = tmp_path/'a.jsonl', [square('c0'), square('c1', where=3)]
    evaluate(Counting(), cases, keep=file)
    def again(done, what, segmenter=None, cases=cases, metrics=dice, labels=None):
        Counting.log.clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            table = evaluate(segmenter or Counting(), cases, metrics, labels, keep=file)
        assert len(Counting.log) == done
        assert [str(w.message) for w in said] == [] if not what else what in str(said[0].message), said
        fresh = evaluate(segmenter or Counting(), cases, metrics, labels)
        pd.testing.assert_frame_equal(table, fresh)
    again(0, '')
    again(2, 'of other segmenter (2 of 2)', Counting(2))
    again(2, 'of other metrics (2 of 2)', metrics=(dice, iou))
    again(2, 'of other metrics (2 of 2)', metrics=partial(dice, empty='one'))
    again(2, 'of other labels (2 of 2)', labels=(1, 2))
    again(1, 'of other voxels (1 of 2)', cases=[cases[0], square('c1', where=4)])
    other = Case('c0', cases[0].image, cases[0].mask.new(cases[0].mask.data.roll(1, -1)))
    again(1, 'of other voxels (1 of 2)', cases=[other, cases[1]])
    again(1, '', cases=[*cases, square('c2')])
    again(0, '', cases=[Case(c.id, c.image, c.mask, dict(patient='new', classes=('', 'box'))) for c in cases])
    again(0, '')


def test_errors_are_tried_again(tmp_path):
    file, cases = tmp_path/'a.jsonl', [square('c0'), square('c1')]
    flag = tmp_path/'fixed'
    def fussy(pred, truth, labels=(1,)):
        if not flag.exists(): raise ValueError('not yet')
        return dice(pred, truth, labels)
    with pytest.warns(UserWarning, match='2 of 2'): evaluate(copy, cases, fussy, keep=file)
    flag.touch()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert evaluate(copy, cases, fussy, keep=file).value.tolist() == [1, 1]


def test_lazy_cases_are_told_by_their_files(tmp_path):
    cases = [lazy(tmp_path, i) for i in 'ab']
    segment = lambda v: v.new(v.data.long())
    evaluate(segment, cases, keep=tmp_path/'kept')
    def unread(): raise AssertionError('was read')
    before = case_mark(cases[0])
    object.__setattr__(cases[1], 'read', unread)
    assert len(evaluate(segment, cases, keep=tmp_path/'kept')) == 2
    np.save(tmp_path/'a.npy', stack('a', 1).mask.numpy())
    os.utime(tmp_path/'a.npy', (1, 1))
    assert case_mark(cases[0]) != before
    folder = tmp_path/'dicom'
    folder.mkdir()
    (folder/'1').touch()
    series = LazyCase('s', cases[0].load, files=[folder])
    one = case_mark(series)
    (folder/'2').touch()
    assert case_mark(series) != one


def test_keep_refuses_other_files_before_anything_runs(tmp_path):
    (tmp_path/'table.csv').write_text('case,dice\n')
    Counting.log.clear()
    with pytest.raises(ValueError, match='table.csv is not a file of finished items'):
        evaluate(Counting(), [square('a')], keep=tmp_path/'table.csv')
    assert Counting.log == [] and (tmp_path/'table.csv').read_text() == 'case,dice\n'


def test_an_unreadable_mask_is_a_row(tmp_path):
    good, bad = square('a'), lazy(tmp_path, 'b', bad=True)
    bad.meta.pop('classes')
    with pytest.warns(UserWarning, match='1 of 2 cases .* unreadable'):
        table = evaluate(copy, [bad, good])
    assert table.case.tolist() == ['b', 'a'] and table.value.isna().tolist() == [True, False]


def test_the_real_panel_in_millimeters():
    from medseg_nb.metrics.surface import panel
    case = stack('a', 2)
    table = evaluate(copy, [case], metrics=panel).set_index('metric').value
    want = panel(copy(case.image).numpy()[0], case.mask.numpy()[0], spacing=(1., 1., 4.))
    assert table.to_dict() == {name: v.item() for name, v in want.items()} and table['hd95'] == 8
