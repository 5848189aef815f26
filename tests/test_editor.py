"The editor's Python half: the protocol, prompts and labels, assists, files and the still picture."
import os
from io import BytesIO

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest
import torch
import traitlets

from medseg_nb.data.case import Case
from medseg_nb.data.volume import Volume
from medseg_nb.view.brush import brush, flood, grow, holes, polygon
from medseg_nb.view.editor import Editor, head

affine = np.diag([-1.5, 1., 3., 1.])
affine[:3, 3] = 30, -20, 7


def image(shape=(12, 14, 9)):
    "A bright ball in noise, anisotropic, its first axis reversed"
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1)*[1.5, 1, 3]
    ball = np.linalg.norm(grid - np.multiply(shape, [1.5, 1, 3])/2, axis=-1) < 6
    return Volume((300*ball + np.random.default_rng(0).normal(0, 9, shape)).astype('float32')[None], affine)


def page(e, name='p'):
    "Speaks for a page: say(...) sends a numbered message and returns the last answer"
    got, count = [], iter(range(1, 999))
    e.send = lambda content, buffers: got.append((content, [bytes(b) for b in buffers]))

    def say(kind, bits=None, n=None, **more):
        message = dict(type=kind, page=name, n=n or next(count), label=e.label, solid=False, **more)
        e.answer(e, message, [] if bits is None else [memoryview(bits)])
        return got[-1]
    say('here')
    return say


def stroke(region):
    "A region as the page sends it"
    bits = np.packbits(region.inside.ravel(), bitorder='little').tobytes()
    return dict(bits=bits, low=[b.start for b in region.box], size=list(region.inside.shape), what='brush')


# ---------------------------------------------------------------- the protocol

def test_stroke_arrives_and_is_acknowledged_without_a_box():
    v = image()
    e = Editor(v)
    say, region = page(e), brush(v, [[3, 4, 4], [9, 8, 4]], 3., 2)
    about, buffers = say('stroke', **stroke(region))
    assert (e.edits.labels == region.full(v.shape)).all() and e.edits.count == 1
    assert about['seen'] == {'p': 2} and about['size'] == [] and buffers == []
    assert about['state'] == dict(undo=1, redo=0, since=1, saved='', path='')


def test_second_page_is_told_what_the_first_painted():
    e = Editor(image())
    page(e)
    other = page(e, 'q')
    region = brush(e.image, [[3, 4, 4]], 3., 2)
    about, [labels] = other('stroke', **stroke(region))
    box = tuple(slice(a, a + n) for a, n in zip(about['low'], about['size']))
    assert about['seen'] == dict(p=1, q=2)
    assert (np.frombuffer(labels, np.uint8).reshape(about['size']) == e.edits.labels[box]).all()


def test_refused_stroke_brings_the_truth_back(monkeypatch):
    e = Editor(image())
    say = page(e)
    def full(*what): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(e.edits, 'apply', full)
    about, [labels] = say('stroke', **stroke(brush(e.image, [[3, 4, 4]], 3., 2)))
    assert 'No space left' in about['words'] and not np.frombuffer(labels, np.uint8).any() and len(labels) > 9


def test_tools_are_those_of_brush():
    e = Editor(image())
    say, at = page(e), [6, 7, 4]
    def after(kind, **more):
        e.apply(np.ones(e.image.shape, bool), 0)
        say(kind, **more)
        return e.edits.labels == 1
    full = lambda region: region.full(e.image.shape)
    corners = [[2, 3, 4], [9, 4, 4], [5, 11, 4]]
    assert (after('polygon', corners=corners, axis=2) == full(polygon(e.image, corners, 2))).all()
    found = after('grow', at=at, axis=2, tolerance=60.)
    assert found.any() and (found == full(grow(e.image, at, 60., axis=2))).all()
    assert (after('fill', at=at, axis=0) == full(flood(np.zeros(e.image.shape), at, 0))).all()
    ring = full(brush(e.image, [at], 5., 2)) & ~full(brush(e.image, [at], 2., 2))
    e.apply(np.ones(e.image.shape, bool), 0)
    for k in (4, 5): e.apply(np.roll(ring, k - 4, 2))
    say('holes', at=at, axis=2)
    wanted = full(holes(ring.astype(int), 1, 2))
    assert wanted.any() and (e.edits.labels == (ring | np.roll(ring, 1, 2) | wanted)).all()


def test_random_walker_needs_both_kinds_of_points_in_one_slice():
    e = Editor(image())
    say = page(e)
    e.size, e.points = 3, [[6, 7, 4, 1]]
    assert '+ points' in say('walker', axis=2)[0]['words'] and e.edits.count == 0
    e.points = [[6, 7, 4, 1], [1, 1, 4, 0], [10, 12, 4, 0]]
    say('walker', axis=2)
    found = e.edits.labels == 1
    ball = e.image.numpy()[0] > 150
    assert found[6, 7, 4] and not found[..., :4].any()
    assert 2*(found & ball)[..., 4].sum() > .8*(found.sum() + ball[..., 4].sum())
    e.points = [[6, 7, 4, 1], [1, 1, 5, 0]]
    assert 'slices [4, 5]' in say('walker', axis=2)[0]['words']


def test_undo_redo_and_nothing_to_do():
    e = Editor(image())
    say = page(e)
    assert say('undo')[0]['words'] == 'Nothing changed.'
    say('stroke', **stroke(brush(e.image, [[3, 4, 4]], 3., 2)))
    was = e.edits.labels.copy()
    about, [labels] = say('undo')
    assert not e.edits.labels.any() and not any(labels) and about['state']['redo'] == 1
    say('redo')
    assert (e.edits.labels == was).all()
    assert 'does not know' in say('dance')[0]['words']
    assert [name for name in ('undo', 'redo') if getattr(e, name)()] == [] and (e.edits.labels == was).all()


def test_page_gets_codes_and_a_head_for_its_file():
    m = torch.zeros(1, 12, 14, 9, dtype=torch.int16)
    m[0, 2, 3, 4], m[0, 0] = 7, -1
    e = Editor(image(), image().new(m))
    sent = []
    e.send = lambda content, buffers: sent.append((content, buffers))
    e.answer(e, dict(type='ready'), [])
    [(about, buffers)] = sent
    [part] = about['layers']
    assert part['unseen'] == 255 and part['edited']['kind'] == 'int32' and part['edited']['unit'] == 'mm'
    assert (buffers[1] == 255).sum() == 14*9 and (buffers[1] == 7).sum() == 1
    assert [c['label'] for c in e.palette] == [7]
    assert part['edited']['measure'] == (pytest.approx(.0045), 'ml')


@pytest.mark.parametrize('kind', ['uint8', 'int32'])
def test_head_and_voxels_are_a_file(tmp_path, kind):
    v, x = image(), np.arange(12*14*9).reshape(12, 14, 9).astype(kind)
    (tmp_path/'m.nii').write_bytes(head(v, kind) + x.tobytes('F'))
    file = nib.load(tmp_path/'m.nii')
    assert (np.asarray(file.dataobj) == x).all() and np.allclose(file.affine, v.affine)
    assert file.header.get_xyzt_units()[0] == 'mm' and file.get_data_dtype() == kind
    (tmp_path/'flat.nii').write_bytes(head(Volume(torch.zeros(1, 12, 14)), kind) + x[..., 0].tobytes('F'))
    assert (np.asarray(nib.load(tmp_path/'flat.nii').dataobj) == x[..., 0]).all()


# ---------------------------------------------------------------- what a user sets and reads

def test_mask_is_a_copy_and_can_be_set_as_one_step():
    e, new = Editor(image()), torch.zeros(12, 14, 9, dtype=torch.long)
    new[3:5, 4:9] = 2
    e.mask = new
    assert (e.mask.data[0] == new).all() and e.edits.count == 1
    e.mask.data[:] = 9
    assert e.edits.labels.max() == 2
    with pytest.raises(ValueError, match='mask has shape'): e.mask = new[1:]
    e.undo()
    assert not e.mask.data.any()


def test_prompts_are_checked():
    e = Editor(image())
    e.points, e.boxes = [[0, 0, 0, 1], [11, 13, 8, 0]], [[1, 2, 3, 1, 9, 3]]
    for bad in ([[12, 0, 0, 1]], [[0, 0, 0, 2]], [[0, 0, 1]]):
        with pytest.raises(traitlets.TraitError, match='none of the points'): e.points = bad
    for bad in ([[1, 2, 3, 0, 9, 3]], [[0, 0, 0, 12, 0, 0]]):
        with pytest.raises(traitlets.TraitError, match='none of the boxes'): e.boxes = bad
    assert len(e.points) == 2 and len(e.boxes) == 1


def test_labels_have_names_colors_and_bounds():
    e = Editor(image(), classes=['background', 'liver', 'tumor'])
    assert [(c['label'], c['name']) for c in e.palette] == [(1, 'liver'), (2, 'tumor')] and e.label == 1
    e.label = 5
    assert e.palette[-1]['name'] == 'class 5'
    with pytest.raises(traitlets.TraitError, match='below 255'): e.label = 255
    with pytest.raises(ValueError, match='below 255'): e.apply(np.ones(e.image.shape, bool), 300)
    with pytest.raises(traitlets.TraitError, match='label, name, color'): e.palette = [dict(label=1)]
    many = Editor(image(), image().new(torch.full((1, 12, 14, 9), 300)))
    assert many.top == 2**16 - 1 and many.palette[0]['label'] == 300


def test_assists_get_the_prompts_and_answer_in_one_step():
    seen = []
    def binary(image, **prompts):
        seen.append(prompts)
        return image.new(image.data > 150)
    def several(image, **prompts): return image.new((image.data > 150).long()*2 + (image.data < -20).long())
    def broken(image, **prompts): raise KeyError('weights')
    def elsewhere(image, **prompts): return image.data[0, 1:] > 0
    e = Editor(image(), assist={f.__name__: f for f in (binary, several, broken, elsewhere)})
    say = page(e)
    e.points, e.boxes, e.label = [[6, 7, 4, 1], [0, 0, 0, 0]], [[1, 2, 3, 5, 6, 3]], 3
    say('assist', name='binary')
    assert seen == [dict(points=[[6, 7, 4], [0, 0, 0]], labels=[1, 0], boxes=[[[1, 2, 3], [5, 6, 3]]])]
    assert set(np.unique(e.edits.labels)) == {0, 3} and e.edits.count == 1
    say('assist', name='several')
    assert e.edits.count == 2 and set(np.unique(e.edits.labels)) == {0, 1, 2}
    assert [c['label'] for c in e.palette] == [1, 3, 2]
    assert say('assist', name='broken')[0]['words'] == "KeyError: 'weights'"
    assert 'answer of elsewhere' in say('assist', name='elsewhere')[0]['words'] and e.edits.count == 2


def test_changes_are_told():
    e, told = Editor(image()), []
    e.on_change(told.append)
    say = page(e)
    say('stroke', **stroke(brush(e.image, [[3, 4, 4]], 3., 2)))
    say('undo')
    e.redo()
    assert [t['what'] for t in told] == ['brush', 'undo', 'redo'] and told[0]['box'] == told[1]['box']
    e.on_change(told.append, remove=True)
    e.undo()
    assert len(told) == 3


# ---------------------------------------------------------------- files

def test_strokes_outlive_the_editor_and_save_keeps_the_geometry(tmp_path):
    path = tmp_path/'anna.nii.gz'
    e = Editor(image(), path=path)
    page(e)('stroke', **stroke(brush(e.image, [[3, 4, 4]], 3., 2)))
    was = e.edits.labels.copy()
    again = Editor(image(), path=path)
    assert (again.edits.labels == was).all() and again._state()['since'] == 1
    about, _ = page(again)('save')
    assert about['state']['saved'] and about['state']['since'] == 0 and not os.path.exists(f'{path}.edits')
    file = nib.load(path)
    assert (np.asarray(file.dataobj) == was).all() and np.allclose(file.affine, affine)
    case = Case('a', image(), image().new(torch.ones(1, 12, 14, 9, dtype=torch.uint8)))
    assert (Editor(case, path=path).edits.labels == was).all() and Editor(case).edits.labels.all()
    with pytest.raises(ValueError, match='no name to save under'): Editor(image()).save()
    assert 'no name' in page(Editor(image()))('save')[0]['words']


def test_bad_masks_and_paths_are_refused(tmp_path):
    with pytest.raises(ValueError, match='not whole'): Editor(image(), torch.rand(12, 14, 9))
    with pytest.raises(ValueError, match='mask has shape'): Editor(image(), torch.ones(12, 14, 8))
    with pytest.raises(ValueError, match='nii'): Editor(image(), path=tmp_path/'m.xyz')


# ---------------------------------------------------------------- what is left behind

def test_still_picture_shows_colors_and_prompts():
    e = Editor(image())
    read = lambda: plt.imread(BytesIO(e.still()))
    bare = read()
    e.apply(brush(e.image, [[6, 7, 4]], 4.))
    painted = read()
    e.palette = [dict(e.palette[0], color='#0000ff')]
    blue = read()
    assert [p.palette[0] for p in e._pictures()[0]] == ['#0000ff']*3
    e.points = [[6, 7, 4, 1]]
    marked = read()
    e.palette = [dict(e.palette[0], shown=False)]
    e.points = []
    count = lambda a, b: int((np.abs(a - b).max(-1) > .1).sum()) if a.shape == b.shape else -1
    assert len({x.tobytes() for x in (bare, painted, blue, marked)}) == 4
    assert count(painted, blue) != 0 and read().shape == bare.shape and count(read(), bare) == 0


def test_picture_of_two_axes():
    film = np.random.default_rng(0).integers(0, 255, (20, 30)).astype('uint8')
    e = Editor(film)
    say = page(e)
    say('polygon', corners=[[2, 3], [12, 4], [6, 20]], axis=None)
    assert e.edits.labels.any() and e.mask.ndim == 2 and 'PNG' in str(e.still()[:8])
    e.points = [[3, 4, 1]]
    assert e.helped is not None and e._layers()[0][0]['edited']['unit'] == 'pixels'
