"Surfaces and slices in three dimensions, cast by Python; the page's half is in test_browser_scene."
import json
import sys
from base64 import b64decode
from io import BytesIO
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
import torch
from traitlets import TraitError

from medseg_nb.data.volume import Volume
from medseg_nb.view import scene as room
from medseg_nb.view.rays import VIEWS, Solid, camera, cast, fields, held, rays, votes
from medseg_nb.view.scene import Scene, frame, scene, solid


def ball(radius=20., spacing=(1, 1, 1), turn=None, shape=None):
    "A ball of 1 around the world's origin, on a grid that may be anisotropic and turned"
    spacing = np.array(spacing, float)
    shape = np.array(shape or np.ceil(2*(radius + 4)/spacing), int)
    a = np.eye(4)
    a[:3, :3] = (np.eye(3) if turn is None else turn)*spacing
    a[:3, 3] = -a[:3, :3]@((shape - 1)/2)
    ijk = np.moveaxis(np.indices(shape), 0, -1)@a[:3, :3].T + a[:3, 3]
    return Volume(torch.from_numpy((np.linalg.norm(ijk, axis=-1) <= radius).astype('uint8'))[None], a)


def turned(axis, degrees):
    a, (i, j) = np.radians(degrees), [k for k in range(3) if k != axis]
    m = np.eye(3)
    m[[i, j], [i, j]], m[i, j], m[j, i] = np.cos(a), -np.sin(a), np.sin(a)
    return m


def pixel(s, size, zoom=1.): return .9*s.diagonal/zoom/min(size)


def inside(rgba): return rgba[..., 3] > .5


@pytest.mark.parametrize('spacing', [(1, 1, 1), (.8, 1.2, 3)])
@pytest.mark.parametrize('angles', [(0, 0), (35, 20), (-130, 75)])
def test_silhouette_and_height_of_a_ball(spacing, angles):
    s, size = solid(ball(20, spacing, turned(2, 25)@turned(0, 10)), level=.5), (200, 160)
    rgba, height = cast(s, [1], size=size, angles=angles)
    mm = pixel(s, size)
    assert inside(rgba).sum()*mm**2 == pytest.approx(np.pi*400, rel=.01*max(spacing))
    x, y = np.meshgrid((np.arange(200) - 99.5)*mm, (79.5 - np.arange(160))*mm)
    near = x**2 + y**2 < 18**2
    gap = np.sqrt(x**2 + y**2 + height**2)[near] - 20
    assert abs(gap.mean()) < .2 and abs(gap).max() < .6*max(spacing) and (height[near] > 0).all()


def test_box_is_true_in_millimeters():
    v = Volume(torch.ones(1, 30, 20, 10), np.diag([-1., 2, 4, 1]))
    s = solid(v, level=.5)
    for name, area in dict(front=30*40, left=40*40, top=30*40).items():
        rgba, _ = cast(s, [1], size=(300, 300), angles=VIEWS[name])
        assert inside(rgba).sum()*pixel(s, (300, 300))**2 == pytest.approx(area, rel=.02), name


def test_six_views_look_from_where_they_say():
    toward = dict(front='A', back='P', right='R', left='L', top='S', bottom='I')
    for name, angles in VIEWS.items():
        right, up, out = camera(angles).round(9)
        letter = lambda x: ('RL', 'AP', 'SI')[abs(x).argmax()][int(x.sum() < 0)]
        assert letter(out) == toward[name]
        assert np.allclose(np.cross(right, up), out)
    assert letter(camera(VIEWS['front'])[0]) == 'L' and letter(camera(VIEWS['bottom'])[1]) == 'A'
    assert letter(camera(VIEWS['left'])[0]) == 'P'


def test_letters_lie_where_the_patient_does():
    "On an oblique grid a voxel far to the left must appear on the side of the letter L"
    v = ball(20, (1, 1, 2), turned(2, 40)@turned(0, 30))
    marks = dict(L=(-1, 0, 0), R=(1, 0, 0), A=(0, 1, 0), P=(0, -1, 0), S=(0, 0, 1), I=(0, 0, -1))
    s, size = solid(v, level=.5), (200, 160)
    _, found, mm = frame(s, rays(s, (30, 25), size), size)
    assert {w for w, _, _ in found} == set('LRAPSI')
    for letter, place, near in found:
        x = np.moveaxis(np.indices(v.shape), 0, -1)@v.affine[:3, :3].T + v.affine[:3, 3]
        spot = np.linalg.norm(x - 15*np.array(marks[letter]), axis=-1) < 4
        m = v.new(torch.from_numpy(spot.astype('uint8'))[None])
        rgba, height = cast(solid(v, m, level=.5), [0, 1], size=size, angles=(30, 25))
        spot = np.argwhere(inside(rgba)).mean(0)[::-1] - (99.5, 79.5)
        there = np.subtract(place, (99.5, 79.5))
        assert spot@there/np.linalg.norm(spot)/np.linalg.norm(there) > .99, letter
        assert (np.nanmean(height) > 0) == near, letter


def test_frame_and_picture_share_their_pixels():
    v = Volume(torch.ones(1, 30, 20, 10), np.diag([1., 2, 4, 1]))
    s, size, pan = solid(v, level=.5), (200, 160), (9, -5)
    rgba, _ = cast(s, [1], size=size, angles=(30, 25), pan=pan, zoom=.8)
    edges, _, mm = frame(s, rays(s, (30, 25), size, .8, pan), size)
    assert mm == pytest.approx(pixel(s, size, .8))
    at = np.argwhere(inside(rgba))[:, ::-1]
    ends = np.array([p for pair, _ in edges for p in pair])
    assert np.abs(at.min(0) - ends.min(0)).max() < 1.5 and np.abs(at.max(0) - ends.max(0)).max() < 1.5
    assert len(edges) == 12 and sum(near for _, near in edges) == 3


def test_no_voxel_is_outvoted():
    rng = np.random.default_rng(0)
    for share in (.02, .3, .5, .9):
        x = rng.random((9, 8, 7)) < share
        assert ((held(x) >= 32) == x).all()
    one = np.zeros((5, 5, 5), bool)
    one[2, 2, 2] = True
    assert votes(one).sum() == 64 and votes(one)[2, 2, 2] == 8 and held(one)[2, 2, 2] == 56
    assert (votes(np.ones((3, 1, 4), bool)) == 64).all()


def test_single_voxel_is_seen():
    m = torch.zeros(1, 30, 30, 30, dtype=torch.uint8)
    m[0, 11, 15, 17] = 1
    s = solid(Volume(torch.zeros(1, 30, 30, 30)), Volume(m), level=.5)
    assert inside(cast(s, [0, 1], size=(150, 150), zoom=.5)[0]).any()


def test_hidden_labels_and_glass():
    v = ball(20)
    m = v.new(v.data + ball(8, shape=v.shape).data)
    s, size = solid(v, m, level=.5), (120, 120)
    area = lambda *o: inside(cast(s, o, size=size)[0]).sum()
    assert area(0, 0, 1) < .3*area(0, 1, 1) and area(0, 0, 0) == 0
    rgba, height = cast(s, (0, .4, 1), size=size)
    middle, edge = rgba[60, 60], rgba[60, 60 + int(15/pixel(s, size))]
    assert middle[3] == pytest.approx(1, abs=1e-4) and .3 < edge[3] < .95
    blue, orange = (.337, .706, .914), (.902, .624, 0)
    alone = cast(s, (0, 0, 1), size=size)[0][60, 60, :3]
    front = cast(s, (0, 1, 1), size=size)[0][60, 60, :3]
    assert abs(middle[:3] - .6*alone - .4*front).max() < .08 and alone[2] > front[2]
    assert blue[2] > orange[2]


def test_cuts_take_away_and_show_the_image():
    v = ball(20)
    s, size = solid(v, v, level=.5), (120, 120)
    full, _ = cast(s, (0, 1), size=size, angles=VIEWS['front'])
    half, height = cast(s, (0, 1), size=size, angles=VIEWS['front'], clip=((0, .5), (0, 1), (0, 1)))
    assert inside(half).sum() == pytest.approx(inside(full).sum()/2, rel=.05)
    assert inside(half)[:, :60].sum() == 0
    open_, height = cast(s, (0, 1), size=size, angles=VIEWS['front'], clip=((0, 1), (0, .5), (0, 1)))
    assert inside(open_).sum() == pytest.approx(inside(full).sum(), rel=.05)
    assert np.nanmax(np.abs(height)) < .3
    cut = ((0, .5), (0, .5), (0, 1))
    how = dict(size=size, angles=VIEWS['front'], clip=cut)
    both, corner = (cast(s, (0, 1), corner=c, **how)[0] for c in (False, True))
    assert inside(corner).sum() == inside(full).sum() and inside(both).sum() < .6*inside(full).sum()


def test_bare_voxels_and_smooth_ones_agree_on_where():
    s, size = solid(ball(20), level=.5), (120, 120)
    a, b = (inside(cast(s, [1], size=size, soft=soft, angles=(30, 20))[0]) for soft in (True, False))
    assert 2*(a & b).sum()/(a.sum() + b.sum()) > .97


def test_slices_lie_in_place():
    v = ball(20)
    s = Scene(v, level=.5)
    s.slices, s.hidden, s.index, s.angles = True, ['image'], [24, 30, 24], VIEWS['front']
    assert np.allclose(s.at + s.image.to_voxel(s.solid.affine[:3, 3]), s.index)
    rgba, height = s.picture((120, 120))
    at = np.nanmedian(height)
    assert at == pytest.approx(v.to_world((24, 30, 24))[1], abs=.1)
    assert s.solid.gray[0, 0, 0] == 0 and not rgba[0, 0].any()


def test_lungs_are_no_outside_air():
    x = torch.full((1, 40, 40, 30), -1000.)
    x[:, 5:35, 5:35] = 40
    x[:, 10:18, 10:30], x[:, 30:33, 10:30] = -900, 800
    s = solid(Volume(x, np.diag([1., 1, 2, 1])))
    assert s.level == -300
    lung = s.gray[10, 15, 8]
    assert lung > 0 and s.gray[10, 0, 0] == 0


steps = np.indices((9, 9, 9)).sum(0)
odd = dict(constant=np.full((9, 9, 9), 7), nan=np.full((9, 9, 9), np.nan), one=np.ones((1, 1, 1)),
           thin=np.arange(1200.).reshape(1, 40, 30), flat=np.indices((40, 1, 30)).sum(0),
           half=np.tile(np.eye(9, dtype='float16'), (9, 1, 1)), bool=steps > 9, int64=steps,
           inf=np.where(steps > 12, np.inf, 1.))


@pytest.mark.parametrize('name', odd)
def test_odd_images_are_drawn(name):
    x = torch.from_numpy(odd[name])[None]
    s = scene(x)
    rgba, _ = s.picture((60, 50))
    assert np.isfinite(rgba).all() and inside(rgba).any() == (name != 'nan')
    assert plt.imread(BytesIO(s.still())).std() > .01
    assert ('no finite value' in ' '.join(s.notes)) == (name == 'nan')


def test_many_labels_and_empty_ones():
    m = np.arange(20**3).reshape(20, 20, 20) % 301
    v = ball(6, shape=(20, 20, 20))
    s = scene(v, m)
    assert len(s.solid.names) == 301 and s.solid.rows.dtype == np.uint16 and s.solid.rows.max() == 301
    assert len(s.still()) > 1000
    empty = scene(v, 0*m)
    assert 'the mask is empty' in empty.notes and inside(empty.picture((60, 50))[0]).any()
    unseen = scene(v, np.where(m > 150, -1, 0))
    assert 'the mask is empty' in unseen.notes
    same = scene(v, m % 3, classes={1: 'lung', 2: 'lung'})
    assert same.solid.names == ['image', 'lung (1)', 'lung (2)']


def test_large_volumes_are_thinned_and_say_so():
    s = scene(Volume(torch.ones(1, 600, 30, 20, dtype=torch.uint8)))
    assert s.solid.steps == (3, 1, 1) and max(s.solid.rows.shape) <= 256 and '3×1×1' in ' '.join(s.notes)
    assert np.allclose(s.solid.size*np.linalg.norm(s.solid.affine[:3, :3], axis=0), (600, 30, 20))


def test_refused():
    x = torch.ones(1, 5, 5, 5)
    wrong = {'2-D': dict(image=torch.ones(1, 9, 9)), 'mask has shape': dict(image=x, mask=x[..., :4]),
             'complex': dict(image=x*1j), "'own' or": dict(image=x, backend='vtk'),
             'not whole': dict(image=x, mask=.5*x)}
    for words, given in wrong.items():
        with pytest.raises(ValueError, match=words): scene(**given)
    s = scene(ball(5))
    for name, value in dict(index=[0, 0, 99], clip=[[.5, .2], [0, 1], [0, 1]], angles=[1.], zoom=0.).items():
        with pytest.raises(TraitError): setattr(s, name, value)


def test_answers_the_page():
    s, said = scene(ball(9), ball(9)), []
    s.send = lambda content, buffers=None: said.append((content, buffers))
    s.answer(s, dict(type='ready', why=''), [])
    (about, (rows, gray)), = said
    json.dumps(about)
    assert about['type'] == 'solid' and rows.shape == gray.shape == tuple(about['size'][::-1])
    assert rows.flags.c_contiguous and gray.flags.c_contiguous
    assert about['names'] == ['image', 'class 1'] and about['initial']['opacities'] == {'image': .15}
    s.answer(s, dict(type='ready', why='there is no WebGL2'), [])
    about, (png,) = said[1]
    assert about['type'] == 'still' and 'WebGL2' in about['why'] and plt.imread(BytesIO(png)).ndim == 3


def test_still_picture_without_a_page():
    data, about = scene(ball(9))._repr_mimebundle_()
    assert set(data) == {'text/plain', 'image/png'} and not about
    assert b64decode(data['image/png'])[1:4] == b'PNG'


def test_itkwidgets_is_refused_with_a_reason(monkeypatch):
    v, ask = ball(5), lambda: scene(ball(5), backend='itkwidgets')
    monkeypatch.setenv('IN_TEST', '1')
    with pytest.raises(RuntimeError, match='IN_TEST'): ask()
    monkeypatch.delenv('IN_TEST')
    with pytest.raises(RuntimeError, match='no page listens'): ask()
    monkeypatch.setattr(room, 'front_end', lambda: True)
    monkeypatch.setattr(room, 'find_spec', lambda name: None)
    with pytest.raises(RuntimeError, match='pip install .itkwidgets==1.0a55'): ask()
    monkeypatch.setattr(room, 'find_spec', lambda name: name)
    monkeypatch.setattr(room, 'reachable', lambda host: False)
    with pytest.raises(RuntimeError, match='cannot reach'): ask()
    monkeypatch.setattr(room, 'reachable', lambda host: True)
    image = lambda kind, **what: SimpleNamespace(kind=kind, **what)
    fake = dict(itkwasm=SimpleNamespace(Image=image, ImageType=lambda **k: k),
                itkwidgets=SimpleNamespace(view=lambda **k: k))
    for name, module in fake.items(): monkeypatch.setitem(sys.modules, name, module)
    shown = scene(v, v, backend='itkwidgets')
    assert list(shown) == ['image', 'label_image'] and shown['image'].size == list(v.shape)
    assert np.allclose(shown['image'].direction, np.diag([-1, -1, 1]))
    assert shown['image'].data.shape == v.shape[::-1]


def test_papermill_goes_on_after_itkwidgets(tmp_path, monkeypatch):
    "A module that would hang at its import proves that it is never imported; the cell after it runs"
    (tmp_path/'itkwidgets.py').write_text('import time\ntime.sleep(10**6)')
    cells = ['import sys, numpy as np; sys.path.insert(0, ".")\nfrom medseg_nb.view.scene import scene\n'
             'scene(np.ones((9, 9, 9)))',
             'try: scene(np.ones((9, 9, 9)), backend="itkwidgets")\nexcept RuntimeError as e: print(e)',
             'assert "itkwidgets" not in sys.modules\n6*7']
    spec = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    cells = list(map(nbformat.v4.new_code_cell, cells))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), tmp_path/'in.ipynb')
    monkeypatch.delenv('IN_TEST', raising=False)
    papermill.execute_notebook(tmp_path/'in.ipynb', tmp_path/'out.ipynb', cwd=tmp_path, kernel_name='python3',
                               execution_timeout=120, progress_bar=False)
    first, second, third = (c.outputs for c in nbformat.read(tmp_path/'out.ipynb', 4).cells)
    picture, number = ([o.data for o in outputs if 'data' in o] for outputs in (first, third))
    assert set(picture[0]) == {'text/plain', 'image/png'} and number[0]['text/plain'] == '42'
    assert 'no page listens' in ''.join(o.text for o in second if o.get('name') == 'stdout')


def test_solid_by_hand():
    rows = np.zeros((12, 12, 12), np.uint8)
    rows[3:9, 3:9, 3:9] = 1
    s = Solid(rows, rows, np.eye(4), ['image'], ['#ffffff'], (1, 1, 1), 1.)
    groups, field, full = fields(s, [1])
    assert groups == [[1]] and field.shape == (1, 12, 12, 12) and full.shape == (2, 2, 2)
    far = np.zeros((20, 20, 20), np.uint8)
    far[7, 18, 18] = 1
    _, _, full = fields(Solid(far, far, np.eye(4), ['image'], ['#ffffff'], (1, 1, 1), 1.), [1])
    assert full.sum() == 2 and full[0, 2, 2] and full[1, 2, 2]
