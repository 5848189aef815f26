"Pictures and the viewer: true proportions, true letters, true values, and nothing left running."
import json
from io import BytesIO
from itertools import permutations, product
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import nibabel as nib
import numpy as np
import pytest
import torch
import traitlets
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nbclient import NotebookClient

from medseg_nb.core import explore
from medseg_nb.data.case import Case
from medseg_nb.data.volume import Volume
from medseg_nb.view import viewer, voxels
from medseg_nb.view.plane import fullest, letters, over, plane, sides, stated, upright, value_range
from medseg_nb.view.show import borders, error_map, outline, pictures, show, show_batch, show_errors
from medseg_nb.view.viewer import Viewer
from medseg_nb.view.voxels import encode, layer, message

live = 'application/vnd.jupyter.widget-view+json'
orders = [''.join(o) for axes in permutations(('LR', 'PA', 'IS')) for o in product(*axes)]


def volume(shape=(9, 10, 11), spacing=(1.2, 1., 3.), dtype='int16', seed=0):
    "Noise with a stated geometry, RAS"
    x = np.random.default_rng(seed).integers(-900, 900, shape).astype(dtype)
    return Volume(x[None], np.diag([*spacing, 1.]))


def tilted(v, degrees, about=2):
    "The same voxels, the grid turned in the world"
    a, b = (i for i in range(3) if i != about)
    turn, r = np.eye(4), np.deg2rad(degrees)
    turn[[a, a, b, b], [a, b, a, b]] = np.cos(r), -np.sin(r), np.sin(r), np.cos(r)
    return Volume(v.data, turn@v.affine)


def some_labels(v): return v.new((v.data > 500).to(torch.uint8) + (v.data > 800).to(torch.uint8))


# ---------------------------------------------------------------- planes and letters

@pytest.mark.parametrize('order', orders)
def test_letters_and_pixels_in_every_storage_order(order):
    v = Volume(np.zeros((1, 8, 8, 8), 'uint8'), np.diag([2., 2, 3, 1]))
    v.data[0, 2, 6, 5] = 1
    turned = upright(v.reorient(order))
    assert np.argwhere(plane(turned, 2, 2)).tolist() == [[1, 5]]
    assert np.argwhere(plane(turned, 1, 1)).tolist() == [[2, 5]]
    assert np.argwhere(plane(turned, 0, 5)).tolist() == [[2, 1]]
    assert [sides(turned, a) for a in range(3)] == [tuple('APSI'), tuple('RLSI'), tuple('RLAP')]


@given(hnp.arrays(float, 3, elements=st.floats(-1, 1)).filter(lambda s: np.linalg.norm(s) > .1))
def test_letters_name_each_part_of_a_step(step):
    part = step/np.linalg.norm(step)
    share = dict(zip('RASLPI', (*part, *-part)))
    named = letters(step)
    assert set(named) == {c for c, s in share.items() if s >= .25}
    assert [share[c] for c in named] == sorted((share[c] for c in named), reverse=True)


@pytest.mark.parametrize('degrees,wanted', [(10, 'R'), (30, 'RA'), (80, 'A'), (60, 'AR')])
def test_letters_of_a_tilted_grid(degrees, wanted):
    v = tilted(volume(), degrees)
    assert letters(v.affine[:3, 0]) == wanted
    assert wanted[0] == nib.aff2axcodes(v.affine)[0]


def test_anatomy_is_not_invented():
    bare = Volume(volume().data)
    assert not stated(bare) and stated(volume()) and not stated(Volume(np.zeros((1, 4, 4))))
    words = [t.get_text() for ax in show(bare).axes for t in ax.texts]
    assert ''.join(words) == '' and [ax.get_title()[:5] for ax in show(bare).axes] == ['slice']*3


@pytest.mark.parametrize('order', ['RAS', 'LAS', 'LPS', 'SPR'])
def test_show_draws_the_letters(order):
    for v in (volume().reorient(order), tilted(volume(), 5).reorient(order)):
        fig = show(v)
        drawn = [''.join(sorted(t.get_text() for t in ax.texts[:4])) for ax in fig.axes]
        assert drawn == ['AIPS', 'ILRS', 'ALPR']
        for ax, at in zip(fig.axes, ('AP', 'RL', 'RL')):
            spots = {t.get_text(): t.get_position()[0] for t in ax.texts}
            assert spots[at[0]] < spots[at[1]]


def test_fullest_slice():
    v = volume()
    mask = v.new(torch.zeros_like(v.data, dtype=torch.uint8))
    mask.data[0, 2:4, 5:9, 7] = 1
    mask.data[0, 3, 5:9, 7:9] = 1
    assert fullest(v) == fullest(v, v.new(mask.data*0 + 1)) == [4, 5, 5]
    assert fullest(v, None, mask) == [3, 7, 7]


def test_value_range_survives_wild_voxels():
    x = np.random.default_rng(0).normal(100, 10, (1, 60, 60, 60)).astype('float32')
    calm = value_range(Volume(x))
    x[0, 0, 0, :5], x[0, 1, 1, :5] = 1e9, np.nan
    assert value_range(Volume(x)) == pytest.approx(calm, abs=1)
    x[0, 2, 2, :9] = np.inf, -np.inf, *[np.nan]*7
    assert value_range(Volume(x)) == pytest.approx(calm, abs=1)
    for same in (7, -2**62):
        low, high = value_range(Volume(np.full((1, 4, 4), same)))
        assert low < same < high
    assert value_range(Volume(np.full((1, 4, 4), np.nan))) == (0, 1)
    with pytest.raises(ValueError, match='Complex'): value_range(Volume(np.zeros((1, 4, 4), complex)))


# ---------------------------------------------------------------- figures

flat, solid = Volume(np.zeros((1, 5, 6))), volume()

@pytest.mark.parametrize('item,planes', [
    (solid, 3), (flat, 1), (Case('a', solid, some_labels(solid)), 3), (np.zeros((5, 6)), 1),
    (torch.rand(1, 5, 6), 1), (torch.rand(3, 5, 6), 1), (np.zeros((8, 9, 10), bool), 3),
    (torch.zeros(2, 8, 9, 10, dtype=torch.int32), 3)])
def test_show_takes_what_is_at_hand(item, planes):
    fig = show(item)
    assert isinstance(fig, plt.Figure) and len(fig.axes) == planes and plt.get_fignums() == []


@pytest.mark.parametrize('spacing', [(1, 1, 1), (1, 1, 5), (.5, 2, 3), (4, .7, .7)])
def test_proportions_are_true_and_planes_share_one_scale(spacing):
    v = volume(spacing=spacing)
    fig = show(v, size=2.5)
    fig.savefig(BytesIO())
    x, y, z = np.multiply(v.shape, v.spacing)
    scales = []
    for ax, (w, h) in zip(fig.axes, ((y, z), (x, z), (x, y))):
        assert ax.images[0].get_extent() == pytest.approx((0, w, h, 0))
        (x0, y0), (x1, y1) = ax.transData.transform([(0, 0), (w, h)])
        assert (x1 - x0)/(y0 - y1) == pytest.approx(w/h, rel=.01)
        scales.append((x1 - x0)/w)
    assert max(scales)/min(scales) == pytest.approx(1, rel=.01)


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)))
def test_outline_is_the_border(region):
    edges = outline(region)
    inside = {tuple(p) for p in np.argwhere(region).tolist()}
    around = (0, 1), (1, 0), (0, -1), (-1, 0)
    lone = sum((y + dy, x + dx) not in inside for y, x in inside for dy, dx in around)
    assert len(edges) == lone == len(np.unique(edges.reshape(-1, 4), axis=0))
    assert (np.abs(edges[:, 1] - edges[:, 0]).sum(-1) == 1).all()
    assert (np.unique(edges.reshape(-1, 2), axis=0, return_counts=True)[1] % 2 == 0).all()


@settings(deadline=None)
@given(hnp.arrays(int, (6, 7), elements=st.integers(0, 3)))
def test_borders_of_all_classes_are_those_of_each(labels):
    edges, owners = borders(labels)
    assert (np.diff(owners) >= 0).all() and set(owners) == set(np.unique(labels)) - {0}
    for k in set(owners):
        mine, alone = edges[owners == k], outline(labels == k)
        assert sorted(mine.reshape(-1, 4).tolist()) == sorted(alone.reshape(-1, 4).tolist())


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(orders), st.tuples(*[st.integers(0, 4)]*3), st.integers(0, 40))
def test_cut_slices_are_those_of_the_turned_volume(order, at, degrees):
    v = tilted(volume((5, 6, 7)), degrees).reorient(order)
    turned = upright(v)
    there = np.rint(turned.to_voxel(v.to_world(at))).astype(int)
    for axis, p in enumerate(pictures(v, some_labels(v), at=at)):
        assert np.array_equal(p.pixels, plane(turned, axis, there[axis]))
        assert np.array_equal(p.mask, plane(some_labels(turned), axis, there[axis]))
        assert p.edges == sides(turned, axis) and p.bar == (axis == 0)


def test_fog_of_labels_is_only_filled():
    speckle = np.indices((200, 200)).sum(0) % 2
    assert not show(np.zeros((200, 200)), mask=speckle).axes[0].collections
    assert show(np.zeros((200, 200)), mask=speckle*(np.arange(200) < 20)).axes[0].collections


def pixels(fig):
    "The figure as an (H,W,3) array, row 0 at the bottom, and its first axes' box"
    fig.savefig(file := BytesIO())
    return plt.imread(BytesIO(file.getvalue()))[::-1, :, :3], fig.axes[0].get_window_extent()


def test_label_is_painted_where_it_lies():
    image, mask = np.zeros((20, 20)), np.zeros((20, 20), 'uint8')
    mask[2:8, 12:18] = 1
    image[0, 0] = 1
    x, box = pixels(show(image, mask=mask, size=3))
    part = x[int(box.y0):int(box.y1), int(box.x0):int(box.x1)]
    lit = np.argwhere(part[..., 0] - part[..., 2] > .1)/part.shape[:2]
    assert lit.min(0) == pytest.approx([.6, .6], abs=.02) and lit.max(0) == pytest.approx([.9, .9], abs=.02)


def test_outline_lies_around_the_label():
    mask = np.zeros((1, 20, 20), 'uint8')
    mask[0, 2:8, 12:18] = 1
    fig = show(Volume(mask*9., np.diag([4., 1, 1])), mask=mask)
    corners = np.concatenate(fig.axes[0].collections[-1].get_segments())
    assert corners.min(0).tolist() == [12, 8] and corners.max(0).tolist() == [18, 32]


def test_legend_names_the_classes():
    v = volume()
    case = Case('a', v, some_labels(v), dict(classes=('background', 'liver', 'vein')))
    words = lambda fig: [t.get_text() for t in fig.legends[0].texts]
    assert words(show(case)) == ['liver', 'vein']
    both = ['one', 'class 2', 'one, predicted', 'class 2, predicted']
    assert words(show(case, pred=case.mask, classes={1: 'one'})) == both
    kinds = ['correct', 'false alarm', 'missed', 'wrong class']
    assert words(show_errors([('w', case, case.mask)])) == ['liver', 'vein', *kinds]


def test_nobody_looked_there():
    v = Volume(np.zeros((1, 6, 6)))
    mask = v.new(torch.full((1, 6, 6), -1))
    fig = show(v, mask=mask)
    x, _ = pixels(fig)
    assert not fig.legends and np.ptp(x, axis=-1).max() == 0


def test_labels_must_fit():
    v = volume()
    moved = Volume(v.data, v.affine + np.outer([3, 0, 0, 0], [0, 0, 0, 1]))
    with pytest.raises(ValueError, match='shift: by .*resample'): show(v, mask=moved)
    with pytest.raises(ValueError, match='shape'): over(v, np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match='shape'): over(v, np.zeros((2, *v.shape)))
    for at in ((0, 0, 11), (-1, 0, 0), (1, 1)):
        with pytest.raises(ValueError, match='outside the image'): show(v, at=at)
    with pytest.raises(ValueError, match='pred is not on the grid'): Viewer(v, pred=moved)
    with pytest.raises(ValueError, match='2 images'): show(v, v, mask=v)
    with pytest.raises(ValueError, match='show_batch'): show(np.zeros((2, 1, 3, 4, 5)))
    with pytest.raises(ValueError, match="'a' has no mask"): show_errors([('w', Case('a', v), v)])


@given(hnp.arrays(int, 30, elements=st.integers(0, 3)), hnp.arrays(int, 30, elements=st.integers(-1, 3)))
def test_error_map(pred, truth):
    def fate(p, t):
        if t == -1 or p == t == 0: return 0
        return 1 if p == t else 2 if t == 0 else 3 if p == 0 else 4
    assert error_map(pred, truth).tolist() == [fate(p, t) for p, t in zip(pred, truth)]


@pytest.mark.parametrize('shape', [(5, 1, 8, 9), (5, 3, 8, 9), (5, 1, 6, 8, 9)])
def test_batch(shape):
    x = torch.rand(shape, requires_grad=True)
    fig = show_batch(x, (x[:, :1] > .5).long())
    assert len([ax for ax in fig.axes if ax.images]) == 5 and plt.get_fignums() == []


# ---------------------------------------------------------------- what the page is told

whole = st.sampled_from(['uint8', 'int8', 'int16', 'uint16', 'int32', 'uint32'])


@given(whole.flatmap(lambda d: hnp.arrays(d, 20)))
def test_integers_arrive_exactly(x):
    codes, slope, intercept = encode(x)
    assert codes.dtype in ('uint8', 'uint16')
    if int(x.max()) - int(x.min()) < 2**16:
        assert slope == 1 and [int(c) + int(intercept) for c in codes] == x.tolist()


ranges = [(255, 8, True), (256, 16, True), (65_535, 16, True), (65_536, 16, False)]


@pytest.mark.parametrize('last,bits,exact', ranges)
def test_how_many_integers_fit(last, bits, exact):
    codes, slope, intercept = encode(np.array([0, 1, last]) - 10)
    assert (8*codes.itemsize, slope == 1, intercept) == (bits, exact, -10)


@given(hnp.arrays('float32', 20, elements=st.floats(-1e6, 1e6, width=32)))
def test_decimals_arrive_within_half_a_step(x):
    codes, slope, intercept = encode(x)
    assert np.abs(slope*codes.astype(float) + intercept - x).max() <= slope*.5001 + 1e-12
    assert slope == 1 or slope <= (float(x.max()) - float(x.min()))/65535*1.001


def test_nothing_and_infinity_have_a_code():
    odd = np.array([np.nan, np.inf, -np.inf, 1., 3.])
    with np.errstate(all='raise'): codes, slope, intercept = encode(odd)
    assert (slope*codes + intercept) == pytest.approx([1, 3, 1, 1, 3])
    assert encode(np.full(3, np.nan))[0].tolist() == [0, 0, 0]


def page_reads(v):
    "What a page would say of each voxel in file order: its value and place, from the message alone"
    about, buffers = message(v)
    about = json.loads(json.dumps(about))
    codes = np.frombuffer(buffers[0].tobytes(), f'u{about["bits"]//8}')
    codes = codes.reshape(*about['shape'][::-1], about['channels'])
    ijk = np.argwhere(np.ones(v.shape))
    xyz = np.c_[ijk, np.ones(len(ijk))]@np.array(about['from_file']).T
    x, y, *z = np.rint(xyz).astype(int).T
    values = about['slope']*codes[z[0] if z else 0, y, x] + about['intercept']
    back = np.c_[xyz, np.ones(len(xyz))]@np.array(about['to_file']).T
    assert np.allclose(back, ijk)
    return values, np.c_[xyz, np.ones(len(xyz))]@np.array(about['world']).T, ijk


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(orders), st.integers(0, 44), st.integers(0, 2),
       st.sampled_from(['uint8', 'int16', 'float32']))
def test_page_reads_the_true_voxels(order, degrees, about, dtype):
    v = tilted(volume((4, 5, 6), dtype=dtype), degrees, about).reorient(order)
    values, mm, ijk = page_reads(v)
    assert np.allclose(values[:, 0], v.numpy().ravel(), atol=.05 if dtype == 'float32' else 0)
    assert np.allclose(mm, v.to_world(ijk), atol=1e-6)


@pytest.mark.parametrize('channels', [1, 3])
def test_page_reads_a_film(channels):
    x = np.random.default_rng(0).integers(0, 255, (channels, 5, 7)).astype('uint8')
    film = Volume(x, np.diag([2., .5, 1])).flip(1)
    values, mm, ijk = page_reads(film)
    assert np.array_equal(values.T.reshape(channels, 5, 7), film.numpy())
    assert np.allclose(mm, film.to_world(ijk))
    about = message(film)[0]
    assert about['shape'] == (7, 5, 1) and about['spacing'] == (.5, 2., 1.) and len(about['planes']) == 1


def test_sliders_count_file_axes():
    v = volume((4, 5, 6)).reorient('SPR')
    about = message(v)[0]
    assert [(p['name'], p['file_axis'], about['shape'][p['axis']]) for p in about['planes']] == \
        [('sagittal', 2, 4), ('coronal', 1, 5), ('axial', 0, 6)]


def test_layers_keep_their_labels():
    v = volume((4, 5, 6))
    labels = v.new(torch.zeros(v.data.shape, dtype=torch.int64))
    labels.data[0, 0, 0], labels.data[0, 1, 1] = -1, 300
    about, x = layer(labels, 'Mask', {300: 'far'})
    assert x.dtype == np.uint16 and about['bits'] == 16 and np.unique(x).tolist() == [0, 300]
    assert [(c['label'], c['name']) for c in about['classes']] == [(300, 'far')]
    labels.data[0, 2] = 70_000
    with pytest.raises(ValueError, match='65,536'): layer(labels, 'Mask')


def test_too_large_for_a_page(monkeypatch):
    monkeypatch.setattr(voxels, "MOST", 100)
    with pytest.raises(ValueError, match='every second voxel'): message(volume())


# ---------------------------------------------------------------- the widget, without and with a page

@pytest.fixture
def page(monkeypatch):
    "A kernel that says a page listens"
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True))
    monkeypatch.setattr(explore, 'get_ipython', lambda: shell)


def test_picture_only_where_no_page_listens():
    v = Viewer(volume(), some_labels(volume()))
    bundle, _ = v._repr_mimebundle_()
    assert set(bundle) == {'text/plain', 'image/png'} and v.comm is None
    v.index, v.window, v.opacity = [0, 0, 0], [0, 1], 0


def test_picture_and_view_where_a_page_listens(page):
    v = Viewer(volume())
    bundle, _ = v._repr_mimebundle_()
    assert set(bundle) == {'text/plain', 'image/png', live} and bundle[live]['model_id'] == v.model_id


def test_viewer_made_before_the_page_came(monkeypatch):
    v = Viewer(volume())
    assert v.comm is None
    monkeypatch.setattr(viewer, 'front_end', lambda: True)
    assert live in v._repr_mimebundle_()[0] and v.comm is not None


def test_still_picture_is_small():
    noise = np.random.default_rng(0).integers(0, 255, (1, 150, 160, 140)).astype('uint8')
    assert 10_000 < len(Viewer(noise).still()) < 150_000


def test_page_asks_and_is_answered():
    v, sent = Viewer(volume(), some_labels(volume()), pred=some_labels(volume())), []
    v.send = lambda content, buffers: sent.append((content, buffers))
    v._handle_custom_msg({'type': 'something else'}, [])
    v._handle_custom_msg({'type': 'ready'}, [])
    [(about, buffers)] = sent
    assert [b.nbytes for b in buffers] == [990*2, 990, 990]
    assert [part['title'] for part in about['layers']] == ['Mask', 'Prediction', 'Errors']


def test_state_holds_no_voxels(page):
    big = Viewer(volume((60, 60, 60)), some_labels(volume((60, 60, 60))))
    state = {k: x for k, x in big.get_state().items() if k not in ('_esm', '_css')}
    assert len(json.dumps(state, default=str)) < 2000


def test_traits_are_checked():
    v = Viewer(volume())
    for bad in ([0, 0, 11], [-1, 0, 0], [0, 0]):
        with pytest.raises(traitlets.TraitError, match='outside the image'): v.index = bad
    with pytest.raises(traitlets.TraitError, match='empty'): v.window = [3, 3]
    with pytest.raises(traitlets.TraitError): v.opacity = 1.5
    assert v.index == [4, 5, 5]


def test_static_files_fetch_nothing():
    for text in (str(Viewer._esm), str(Viewer._css)):
        assert 'http' not in text and 'import' not in text and len(text) > 1000


def test_runner_without_a_page_stores_a_picture_and_no_widget(tmp_path):
    cell = ('import numpy as np\nfrom medseg_nb.view.viewer import Viewer\n'
            'Viewer(np.arange(60).reshape(1, 3, 4, 5))')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    where = dict(metadata=dict(path=str(tmp_path)))
    NotebookClient(nb, timeout=120, kernel_name='python3', resources=where).execute()
    [out] = nb.cells[0].outputs
    assert 'image/png' in out.data and live not in out.data and 'widgets' not in nb.metadata
