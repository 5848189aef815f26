"Segmenters side by side: the table against the metrics themselves, faults, and what is left behind."
import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from medseg_nb.data.case import Case
from medseg_nb.data.volume import Volume
from medseg_nb.metrics import versus as module
from medseg_nb.metrics.overlap import dice
from medseg_nb.metrics.surface import panel
from medseg_nb.metrics.rivals import best, dice_by_slice, in_dispute, said
from medseg_nb.metrics.versus import Versus, compare
from medseg_nb.view import voxels
from medseg_nb.view.viewer import Viewer, link

rng = np.random.default_rng(0)


def solid(classes=2, shape=(12, 14, 10), spacing=(1., 2., 3.)):
    "A case whose truth is made of blocks, as `level` finds them"
    mask = np.zeros(shape, 'uint8')
    for k in range(classes): mask[2 + 4*k:6 + 4*k, 3:11, 2:8] = k + 1
    image = Volume(torch.from_numpy((100.*mask + rng.normal(0, 3, shape)).astype('float32')[None]),
                   np.diag([*spacing, 1.]))
    return Case('blocks', image, image.new(mask[None]))


def flat(spacing=1.):
    "A 2-D case"
    mask = np.zeros((20, 30), 'uint8')
    mask[5:15, 8:22] = 1
    image = Volume(torch.from_numpy((50*mask + rng.integers(0, 9, mask.shape)).astype('int16')[None]),
                   np.diag([spacing, spacing, 1.]))
    return Case('film', image, image.new(mask[None]))


def level(v): return v.new((v.data/100).round().clip(0).to(torch.uint8))
def shifted(v): return v.new(np.roll(level(v).numpy(), 1, 1))
def dented(v):
    out = level(v).data.clone()
    out[..., 3:9, 5] = 0
    return v.new(out)


three = dict(level=level, shifted=shifted, dented=dented)


@pytest.mark.parametrize('tolerance', [1., 2.5])
def test_the_table_is_what_the_metrics_say(tolerance):
    case = solid()
    v = compare(case, three, tolerance=tolerance)
    for name, f in three.items():
        rows, pred = v.scores[v.scores.segmenter == name], f(case.image)
        want = panel(pred, case.mask, labels=(1, 2), tolerance=tolerance)
        for column, key in zip(('Dice', 'HD95, mm', 'ASSD, mm', f'NSD at {tolerance:g} mm'), want):
            np.testing.assert_array_equal(rows[column], want[key])
        ml = np.array([(pred.numpy() == k).sum()*6/1000 for k in (1, 2)])
        true = np.array([(case.mask.numpy() == k).sum()*6/1000 for k in (1, 2)])
        np.testing.assert_allclose(rows.ml, ml)
        np.testing.assert_allclose(rows['off, ml'], ml - true, atol=1e-12)
    assert (v.scores.seconds >= 0).all() and v.scores['class'].tolist() == ['class 1', 'class 2']*3


@pytest.mark.parametrize('plane', ['axial', 'coronal', 'sagittal'])
def test_dice_of_the_slice_follows_the_cross(plane):
    case = solid()
    v = compare(case, three)
    v.plane = plane
    for index in ([3, 5, 4], [7, 5, 2], [0, 0, 0]):
        v.index = index
        cut = tuple(index[a] if a == v.axis else slice(None) for a in range(3))
        want = [dice(f(case.image).data[(0, *cut)], case.mask.data[(0, *cut)], labels=(1, 2))
                for f in three.values()]
        np.testing.assert_array_equal(v.table['Dice, this slice'], np.concatenate(want))
        assert v.place == f'{"ijk"[v.axis]} = {index[v.axis]}'


def test_dice_by_slice_by_loops():
    grid = Volume(torch.zeros(1, 5, 6, 7))
    p, t = (grid.new(rng.integers(low, 4, (1, 5, 6, 7))) for low in (0, -1))
    for axis in range(3):
        got = dice_by_slice(p, t, (1, 3), axis)
        for k in range(grid.shape[axis]):
            for n, c in enumerate((1, 3)):
                both = size = 0
                for a, b in zip(p.numpy()[0].take(k, axis).flat, t.numpy()[0].take(k, axis).flat):
                    if b < 0: continue
                    both, size = both + (a == b == c), size + (a == c) + (b == c)
                assert got[k, n] == (2*both/size if size else pytest.approx(np.nan, nan_ok=True))


def test_dispute_and_the_way_to_it():
    case = solid()
    v = compare(case, three)
    preds = [f(case.image).numpy()[0] for f in three.values()]
    want = np.array([len({p[i] for p in preds}) > 1 for i in np.ndindex(12, 14, 10)]).reshape(12, 14, 10)
    np.testing.assert_array_equal(v.rivals.mistakes, want)
    counts, order = v.rivals.disputes(2)
    assert counts == want.sum((0, 1)).tolist()
    assert [counts[k] for k in order] == sorted(filter(None, counts))[::-1]
    assert v.index[2] == order[0] == int(np.argmax(counts))
    assert v.farthest(1)[2] == order[1] == v.index[2]
    alone = in_dispute([shifted(case.image)], case.mask)
    np.testing.assert_array_equal(alone, shifted(case.image).numpy()[0] != case.mask.numpy()[0])
    assert not in_dispute([case.mask]).any()
    same = compare(case, dict(a=level, b=level))
    with pytest.raises(ValueError, match='No slice is in dispute'): same.farthest()


def test_each_runs_once_and_a_fault_is_a_row():
    case, calls = solid(), []
    before = case.image.data.clone()
    def counted(v): calls.append(v); return level(v)
    def raises(v): raise RuntimeError('no <weights>')
    def edits(v): v.data[0, 0, 0, 0] += 1; return level(v)
    faulty = dict(raises=raises, edits=edits, cropped=lambda v: level(v)[1:],
                  array=lambda v: v.numpy()[0] > 50, nothing=lambda v: None,
                  minus=lambda v: v.new(level(v).data.long() - 1),
                  half=lambda v: v.new(level(v).data + .5), moved=lambda v: Volume(level(v).data, np.eye(4)))
    v = compare(case, dict(counted=counted) | faulty)
    assert len(calls) == 1 and torch.equal(case.image.data, before) and list(v.preds) == ['counted']
    words = dict(raises='RuntimeError: no <weights>', edits='It changed the image', cropped='not on the grid',
                 array='It returned a ndarray', nothing='It returned a NoneType', minus='It has label -1',
                 half='not whole', moved='not on the grid')
    assert list(v.faults) == list(faulty) and all(words[n] in v.faults[n] for n in faulty)
    assert v.table.failed.notna().sum() == len(faulty) and len(v.table) == 2 + len(faulty)
    assert 'failed: RuntimeError: no &lt;weights&gt;' in v.html and '8 failed' in repr(v)
    with pytest.raises(ValueError, match='Nobody gave labels. raises: RuntimeError: .* edits: ValueError'):
        compare(case, dict(raises=raises, edits=edits))


def test_an_image_with_nan_is_not_called_changed():
    case = solid()
    case.image.data[0, 0] = np.nan
    v = compare(case.image, dict(a=lambda v: v.new(v.data.nan_to_num().gt(50).byte())))
    assert list(v.preds) == ['a']


@pytest.mark.parametrize('wrong', [[level], {}, level], ids=['list', 'empty', 'function'])
def test_what_is_no_dict_is_refused(wrong):
    with pytest.raises(TypeError, match='wanted a dict'): compare(solid(), wrong)


def test_a_truth_elsewhere_is_refused_before_anybody_runs():
    case, calls = solid(), []
    with pytest.raises(ValueError, match='truth is not on the grid'):
        compare(case.image, dict(a=calls.append), truth=case.mask[1:])
    assert not calls


def test_two_dimensions_and_units():
    film = flat()
    drawn = film.mask.new(np.roll(film.mask.numpy(), 2, 2))
    v = compare(film, dict(lit=lambda v: v.new((v.data > 25).byte()), drawn=drawn))
    assert v.axis is None and v.place == '' and 'Dice, this slice' not in v.table
    assert {'HD95, voxels', 'NSD at 1 voxels', 'voxels', 'off, voxels'} <= set(v.table)
    assert v.scores.voxels.tolist() == [140, 140]
    assert np.isnan(v.scores.seconds[1]) and v.scores.seconds[0] >= 0
    known = compare(flat(.5), dict(lit=lambda v: v.new((v.data > 25).byte())))
    assert known.scores['cm²'].tolist() == [pytest.approx(140*.25/100)] and 'HD95, mm' in known.scores
    for x in (v, known): assert Image.open(io.BytesIO(x.still())).size[0] > 100
    with pytest.raises(ValueError, match='No slice'): v.farthest()


def test_without_truth_each_is_compared_with_each():
    case = solid()
    v = compare(case.image, three)
    preds = {n: f(case.image) for n, f in three.items()}
    for n, p in preds.items():
        rows = v.table[v.table.segmenter == n]
        others = {m: dice(p, q, labels=(1, 2)) for m, q in preds.items() if m != n}
        for m, d in others.items(): np.testing.assert_array_equal(rows[f'Dice with {m}'], d)
        np.testing.assert_allclose(rows['Dice, all others'], np.mean(list(others.values()), 0))
        k = v.index[2]
        here = [dice(p.data[..., k], q.data[..., k], labels=(1, 2)) for m, q in preds.items() if m != n]
        np.testing.assert_allclose(rows['Dice, this slice'], np.mean(here, 0))
    count, inks = v.votes()
    np.testing.assert_array_equal(count.numpy(), sum((p.numpy() > 0).astype(int) for p in preds.values()))
    assert list(inks) == ['1 of 3', '2 of 3', '3 of 3'] and not any(c.startswith('HD95') for c in v.table)
    assert '<b>' not in v.html


@pytest.mark.parametrize('case', [solid(), flat()], ids=['3d', '2d'])
@pytest.mark.parametrize('graded', [True, False])
def test_one_alone(case, graded):
    v = compare(case if graded else case.image, dict(shifted=case.mask.new(np.roll(case.mask.numpy(), 1, 1))))
    assert v.rivals.mistakes.any() == graded and ('Dice' in v.scores) == graded
    assert [p['name'] for p in v.packed()[0]['panes']] == ['shifted'] and len(v.still()) > 1000


def test_labels_are_those_of_the_truth_or_those_asked_for():
    case = solid()
    assert compare(case, dict(a=level), labels=2).scores['class'].tolist() == ['class 2']
    named = Case('blocks', case.image, case.mask, dict(classes=('background', 'liver', 'spleen')))
    assert compare(named, dict(a=level)).scores['class'].tolist() == ['liver', 'spleen']
    empty = case.mask.new(0*case.mask.data)
    assert compare(case.image, dict(a=empty, b=empty)).scores['Dice with b'].isna().all()


def test_where_nobody_looked():
    case = solid()
    truth = case.mask.new(case.mask.data.to(torch.int8))
    truth.data[..., :4] = -1
    v = compare(case.image, dict(shifted=shifted), truth=truth)
    p = shifted(case.image)
    np.testing.assert_array_equal(v.scores.Dice, dice(p, truth, labels=(1, 2)))
    known = truth.new(np.where(truth.numpy() < 0, p.numpy(), truth.numpy()))
    np.testing.assert_array_equal(v.scores['ASSD, mm'], panel(p, known, labels=(1, 2))['assd'])
    assert not v.rivals.mistakes[..., :4].any() and v.rivals.mistakes.any()


def test_the_page_gets_the_image_once():
    case = solid()
    v = compare(case, three)
    about, sent = v.packed()
    size = np.prod(case.image.shape)
    assert [x.nbytes for x in sent] == [2*size, size, size, size, size]
    assert v.megabytes == sum(x.nbytes for x in sent)/2**20
    assert [(p['name'], p['layers']) for p in about['panes']] == [
        (n, [(0, 'Truth'), (k, 'Prediction')]) for k, n in enumerate(three, 1)]
    for a in range(3):
        got = np.array(about['slices'][a], float)
        np.testing.assert_allclose(got, v.rivals.by_slice(a), atol=1e-4)
        assert tuple(about['differ'][a].values()) == v.rivals.disputes(a)
    votes = compare(case.image, three).packed()[0]
    assert [p['name'] for p in votes['panes']] == [*three, 'how many say so']
    assert votes['panes'][-1]['layers'] == [(3, 'Votes')]
    assert [c['name'] for c in votes['layers'][3]['classes']] == ['1 of 3', '2 of 3', '3 of 3']


def test_too_much_for_a_page_is_refused_and_the_table_stands(monkeypatch):
    v, said = compare(solid(), three), []
    monkeypatch.setattr(voxels, 'MOST', 1000)
    monkeypatch.setattr(Versus, 'send', lambda self, content, buffers=None: said.append(content))
    v.answer(v, dict(type='ready'), [])
    assert said[0]['type'] == 'refused' and 'MiB' in said[0]['reason'] and 'level' in v.html


def test_it_is_a_viewer():
    case = solid()
    v, places = compare(case, three), []
    other = Viewer(case.image)
    link(v, other)
    v.index = [1, 2, 3]
    assert other.index == [1, 2, 3]
    v.on_click(places.append)
    v.answer(v, dict(type='click', index=[4, 5, 5]), [])
    assert places[0]['index'] == [4, 5, 5] and places[0]['label'] == 1
    with pytest.raises(Exception, match='outside the image'): v.index = [99, 0, 0]


def test_the_best_is_bold_and_numbers_are_readable():
    v = compare(solid(), three)
    rows = [re.findall('<t[hd][^>]*>(.*?)</t[hd]>', r) for r in re.findall('<tr>(.*?)</tr>', v.html)]
    assert [len(r) for r in rows] == [len(v.table.columns)]*(1 + len(v.table))
    for words, name, value in zip(rows[1:], v.table.segmenter, v.table.Dice):
        assert words[0] == name and float(re.sub('<.*?>', '', words[2])) == round(value, 3)
    assert v.html.count('mnb-here') == len(v.table) and '<td><b>1.000</b></td>' in v.html
    for column in ('Dice', 'ASSD, mm'):
        assert {i for i, c in best(v.table) if c == column} == {0, 1}, column
    assert said('off, ml', -1234.5) == '−1,234.50' and said('off, ml', 3.) == '+3.00'
    assert said('Dice', np.nan) == '–'


def test_picture_and_table_where_no_page_listens(monkeypatch):
    v, shown = compare(solid(), three | dict(broken=lambda v: 1/0)), []
    monkeypatch.setattr(module, 'display', lambda data, **how: shown.append(data))
    v._ipython_display_()
    picture, table = shown
    assert set(picture) == {'text/plain', 'image/png'} and set(table) == {'text/plain', 'text/html'}
    png = base64.b64decode(picture['image/png'])
    assert len(png) <= 150_000 and Image.open(io.BytesIO(png)).size[1] > 200
    assert 'ZeroDivisionError' in table['text/html'] and 'Dice, this slice' in table['text/plain']
    assert f'{v.place}</span>' in table['text/html'] and v.place in picture['text/plain'] + v._rows()[0][0][0]


def test_the_notebook_ran_without_a_page_and_kept_both():
    path = Path(__file__).parents[1]/'nbs/03_metrics/17_versus.ipynb'
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
    kept = [[set(o.get('data', {})) for o in c.outputs] for c in code]
    pairs = [k for k in kept if k[:2] == [{'text/plain', 'image/png'}, {'text/plain', 'text/html'}]]
    assert len(pairs) == 3


def test_still_shows_the_slice_and_stays_small():
    v = compare(solid(), three)
    first = v.still()
    v.index = [0, 0, 0]
    assert v.still() != first and len(first) <= 150_000
    assert len(v.still(len(first) - 1)) < len(first)
    many = {f'reader {n}': v.preds['shifted'] for n in range(6)}
    wide, high = Image.open(io.BytesIO(compare(solid(), many).still())).size
    assert high > wide*.8
