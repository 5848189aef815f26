"The viewer's Python half: layers, windows, channels, worst slices, links, clicks and the still picture."
import itertools
import pickle
from io import BytesIO
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import traitlets
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg_nb.data.volume import Volume
from medseg_nb.view.plane import upright
from medseg_nb.view.show import ERRORS
from medseg_nb.view.viewer import Viewer, link
from medseg_nb.view.voxels import (
    PRESETS, errors, frame, heat_layer, layer, looks_ct, message, presets, screen, slice_dice, window_of,
    windows)

rng = np.random.default_rng(0)


def volume(shape=(9, 10, 11), spacing=(1.2, 1., 3.), dtype='int16'):
    "Noise with a stated geometry"
    x = np.random.default_rng(1).integers(-900, 900, shape).astype(dtype)
    return Volume(x[None], np.diag([*spacing, 1.]))


def labels(v, seed=2):
    "Classes 0, 1 and 2 anywhere"
    return v.new(torch.from_numpy(np.random.default_rng(seed).integers(0, 3, v.shape)[None]))


def answered(v):
    "What the page would get"
    sent = []
    v.send = lambda content, buffers: sent.append((content, buffers))
    v._handle_custom_msg({'type': 'ready'}, [])
    [(about, buffers)] = sent
    return about, buffers


def pixels(v):
    "The still picture as an array"
    return plt.imread(BytesIO(v.still()))


# ---------------------------------------------------------------- layers

def test_kind_of_a_layer_is_its_dtype():
    v = volume()
    kinds = dict(a=torch.uint8, b=torch.bool, c=torch.int64, d=torch.float16, e=torch.float64)
    layers = {n: v.new(torch.ones(1, *v.shape).to(d)) for n, d in kinds.items()}
    about, buffers = answered(Viewer(v, layers=layers))
    assert {part['title']: part['kind'] for part in about['layers']} == \
        dict(a='labels', b='labels', c='labels', d='map', e='map')
    assert 'c (labels)' in repr(Viewer(v, layers=dict(c=labels(v)))) and len(buffers) == 6


def test_map_arrives_within_half_a_step():
    x = rng.normal(0, 5, (9, 10, 11)).astype('float32')
    x[0, 0, 0], x[1, 1, 1], x[2, 2, 2] = np.nan, np.inf, -np.inf
    about, codes = heat_layer(Volume(x[None]), 'Heat')
    codes = codes[..., 0].transpose(2, 1, 0)[::-1, ::-1, ::-1]
    finite = np.isfinite(x)
    assert (codes[~finite] == 0).all() and (codes[finite] > 0).all()
    back = about['slope']*codes + about['intercept']
    assert np.abs(back - x)[finite].max() <= about['slope']*.51
    assert about['range'][0] == -about['range'][1] and len(about['colors']) == 768 and not about['empty']


@pytest.mark.parametrize('value', [np.nan, np.inf, 0., 3.])
def test_map_of_one_value(value):
    v = volume()
    about, codes = heat_layer(v.new(torch.full((1, *v.shape), value)), 'Heat')
    assert about['empty'] == (not np.isfinite(value)) and about['range'][0] < about['range'][1]
    assert set(np.unique(codes)) == ({1} if np.isfinite(value) else {0})
    Viewer(v, heat=v.new(torch.full((1, *v.shape), value))).still()


def test_probabilities_by_name():
    v = volume()
    p = torch.rand(3, *v.shape).softmax(0)
    found = Viewer(v, probs=p, classes=['none', 'lung', 'heart'])
    assert list(found.maps) == ['P(lung)', 'P(heart)'] and found.hidden == ['P(heart)'] and not found.fill
    about, _ = answered(found)
    assert [part['range'] for part in about['layers']] == [(0, 1), (0, 1)]
    assert list(Viewer(v, probs=p[1]).maps) == ['Probability']
    with pytest.raises(ValueError, match='softmax'): Viewer(v, probs=9*p - 3)
    p[:, 0] = np.nan
    assert list(Viewer(v, probs=p).maps)


def test_nobody_looked_has_a_code_of_its_own():
    v = volume()
    m = labels(v)
    m.data[0, 0] = -1
    about, x = layer(m, 'Mask', mark=True)
    assert about['unseen'] == 255 and (x == 255).sum() == 110 and set(np.unique(x)) == {0, 1, 2, 255}
    m.data[0, 1] = 255
    about, x = layer(m, 'Mask', mark=True)
    assert x.dtype == np.uint16 and about['unseen'] == 65535 and 255 in x
    assert 'unseen' not in layer(labels(v), 'Mask', mark=True)[0]


def test_errors_cost_no_bytes():
    v = volume()
    about, buffers = answered(Viewer(v, labels(v), labels(v, 3)))
    *_, last = about['layers']
    assert len(buffers) == 3 and last['of'] == ('Mask', 'Prediction') and last['kind'] == 'errors'
    assert [c['name'] for c in last['classes']] == list(ERRORS)
    assert [c['color'] for c in last['classes']] == [c[:7] for c in ERRORS.values()]
    assert len(errors(1)['classes']) == 3
    assert Viewer(v, labels(v), labels(v)).hidden == ['Errors'] and Viewer(v, labels(v)).hidden == []


bad = {
    'mask of decimals': (dict(mask=torch.rand(9, 10, 11)), 'not whole'),
    'mask of channels': (dict(mask=torch.ones(3, 9, 10, 11)), '3 channels'),
    'mask of another shape': (dict(mask=torch.ones(9, 10, 12)), r'has shape \(9, 10, 12\)'),
    'heat of channels': (dict(heat=torch.rand(3, 9, 10, 11)), '3 channels'),
    'heat of another shape': (dict(heat=torch.rand(11, 10, 9)), 'heat has shape'),
    'heat elsewhere': (dict(heat=Volume(torch.rand(1, 9, 10, 11))), 'heat is not on the grid'),
    'complex heat': (dict(heat=torch.rand(9, 10, 11) + 1j), 'complex'),
    'taken name': (dict(layers={'Errors': torch.ones(9, 10, 11)}), 'already'),
}


@pytest.mark.parametrize('name', bad)
def test_bad_layers_are_refused(name):
    given, words = bad[name]
    with pytest.raises(ValueError, match=words): Viewer(volume(), **given)


# ---------------------------------------------------------------- right and wrong, slice by slice

def by_loops(t, p):
    "Mean Dice of the classes of one slice, the slow way"
    t, p = t[t >= 0], p[t >= 0]
    found = [2*((t == c) & (p == c)).sum()/((t == c).sum() + (p == c).sum())
             for c in range(1, 9) if (t == c).any() or (p == c).any()]
    return np.mean(found) if found else np.nan


slices = hnp.arrays('int64', (4, 3, 5), elements=st.integers(-1, 3))


@settings(deadline=None, max_examples=60)
@given(slices, slices.map(np.abs), st.integers(0, 2))
def test_dice_of_each_slice(t, p, axis):
    dice, order = slice_dice(Volume(t[None]), Volume(p[None]), axis)
    wanted = [by_loops(t.take(k, axis), p.take(k, axis)) for k in range(t.shape[axis])]
    assert np.allclose(dice, wanted, equal_nan=True)
    assert sorted(order) == np.flatnonzero(np.isfinite(wanted)).tolist()
    assert (np.diff(dice[order]) >= -1e-12).all()


def test_of_equals_the_slice_with_more_wrong_voxels_is_worse():
    t, p = (np.zeros((1, 5, 5, 4), 'uint8') for _ in range(2))
    t[0, 0, 0, 0], t[0, :3, :3, 1], t[0, 0, :2, 3] = 1, 1, 1
    assert slice_dice(Volume(t), Volume(p))[1] == [1, 3, 0]


def test_worst_slice_in_any_storage():
    m = torch.zeros(1, 6, 7, 8, dtype=torch.uint8)
    m[:, 1:5, 1:5, 1:7] = 1
    p = m.clone()
    p[..., 3], p[..., 5] = 0, p[..., 5].roll(1, 1)
    v = Volume(torch.rand(1, 6, 7, 8), np.diag([1., 1, 2, 1]))
    a = Viewer(v, v.new(m), v.new(p))
    assert a.worst()[2] == 3 and a.worst(1)[2] == 5 and len(a.dice[1]) == 6
    turned = Viewer(*(x.reorient('SPR') for x in (v, v.new(m), v.new(p))))
    k = turned.worst()[0]
    assert turned.image.to_world(turned.index)[2] == pytest.approx(v.to_world((0, 0, 3))[2])
    about, _ = answered(turned)
    assert about['dice']['worst'][0] == k and about['dice']['values'].count(None) == 2
    assert answered(Viewer(v, v.new(m)))[0]['dice'] is None
    with pytest.raises(ValueError, match='mask and pred'): Viewer(v, v.new(m)).worst()
    with pytest.raises(ValueError, match='No slice'): Viewer(v, v.new(0*m), v.new(0*m)).worst()


# ---------------------------------------------------------------- windows and channels

def test_presets_only_for_hounsfield_units():
    x = np.full((20, 20, 20), -1000, 'int16')
    x[5:15, 5:15, 5:15] = rng.integers(-100, 1200, (10, 10, 10))
    assert looks_ct(Volume(x[None])) and len(presets(Volume(x[None]))) == len(PRESETS)
    padded = x.copy()
    padded[:3] = -3024
    assert looks_ct(Volume(padded[None])) and windows(Volume(padded[None]))[0][0] == -1024
    lung, = (p for p in presets(Volume(x[None])) if p['name'] == 'lung')
    assert lung['window'] == (-1350, 150)
    for other in (x - x.min(), x/1000, x*20, rng.normal(0, 1, x.shape), 0*x):
        assert not looks_ct(Volume(other[None])) and presets(Volume(other[None])) == []


def test_channels_are_sent_and_windowed():
    x = rng.integers(0, 200, (3, 4, 5, 6)).astype('int16')
    v = Viewer(Volume(x*np.array([1, 2, 3], 'int16')[:, None, None, None]))
    about, (codes,) = answered(v)
    assert about['frames'] == 3 and codes.shape == (3, 6, 5, 4, 1) and len(set(about['ranges'])) == 1
    turned = codes[..., 0].transpose(0, 3, 2, 1)[:, ::-1, ::-1, ::-1]
    assert np.array_equal(turned + about['intercept'], x*np.array([1, 2, 3])[:, None, None, None])
    far = Viewer(Volume(x*np.array([1, 2, 100], 'int16')[:, None, None, None]))
    assert len(set(far.windows)) == 3
    far.channel = 2
    assert tuple(far.window) == far.windows[2]
    far.window = (0, 5)
    far.channel = 0
    assert far.window == [0, 5]
    with pytest.raises(traitlets.TraitError, match='Channel 3'): far.channel = 3
    assert message(Volume(np.zeros((3, 4, 5), 'uint8')))[0]['frames'] == 1
    assert message(Volume(np.zeros((2, 4, 5), 'uint8')))[0]['frames'] == 2


# ---------------------------------------------------------------- points, clicks, links

def test_point_and_index_are_one_place():
    v = Viewer(volume(spacing=(-1.2, 1, 3)))
    v.point = (-1.3, 2.2, 8.)
    assert v.index == [1, 2, 3] and v.point == pytest.approx([-1.2, 2, 9])
    v.index = [0, 0, 1]
    assert v.point == pytest.approx([0, 0, 3])
    with pytest.raises(traitlets.TraitError, match='outside the image'): v.point = (5, 0, 0)
    assert v.index == [0, 0, 1] and v.point == pytest.approx([0, 0, 3])
    assert 'point' not in v.get_state()


def test_links_by_millimeters_and_by_voxels():
    v = volume((20, 20, 20))
    a, b, c = Viewer(v), Viewer(v[::2, ::2, ::2]), Viewer(v[5:15].reorient('PSL'))
    link(a, b, c)
    a.index = [8, 4, 6]
    assert b.index == [4, 2, 3] and c.point == pytest.approx(a.point)
    b.point = b.image.to_world((0, 9, 9))
    assert a.index == [0, 18, 18] and c.point[0] == pytest.approx(6)
    assert len({a.group, b.group, c.group}) == 1 and a.group.startswith('world')
    flat = [Viewer(rng.random((6, 7))) for _ in range(2)]
    link(*flat)
    flat[1].index = [5, 1]
    assert flat[0].index == [5, 1] and flat[0].group.startswith('voxel')
    with pytest.raises(ValueError, match='share no voxels'): link(flat[0], Viewer(rng.random((7, 7))))
    with pytest.raises(ValueError, match='two viewers'): link(a, a)


def test_python_does_not_move_what_the_page_moves():
    v = volume((20, 20, 20))
    a, b = Viewer(v), Viewer(v)
    link(a, b)
    a.set_state(dict(index=[1, 2, 3]))
    assert b.index == [1, 2, 3]
    was = b.index
    b.comm = SimpleNamespace(comm_id='it', kernel=None, send=print, on_msg=print, close=print)
    a.set_state(dict(index=[4, 5, 6]))
    assert b.index == was
    a.index = [7, 8, 9]
    assert b.index == [7, 8, 9]


def test_click_calls_back():
    v, places = Viewer(volume(), labels(volume())), []
    v.on_click(places.append)
    v._handle_custom_msg({'type': 'click', 'index': [1, 2, 3], 'plane': 'axial'}, [])
    place, = places
    value, label = v.image.data[0, 1, 2, 3].item(), v.mask.data[0, 1, 2, 3].item()
    assert place == dict(index=[1, 2, 3], point=pytest.approx([1.2, 2, 9]), value=value, label=label)
    v.on_click(places.append, remove=True)
    v._handle_custom_msg({'type': 'click', 'index': [1, 2, 3]}, [])
    assert len(places) == 1


# ---------------------------------------------------------------- anything can be looked at

odd = {
    'constant': np.full((5, 6, 7), 7), 'zero': np.zeros((5, 6, 7)), 'all NaN': np.full((5, 6, 7), np.nan),
    'some NaN': np.where(rng.random((5, 6, 7)) < .5, np.nan, 1.),
    'infinite': np.array([[0, 1], [np.inf, -np.inf]]),
    'one voxel': np.ones((1, 1, 1, 1)), 'one slice': rng.random((1, 30, 40, 1)),
    'thin': rng.random((1, 1, 40, 30)), 'bool': rng.random((5, 6, 7)) < .5,
    'int64': rng.integers(-2**40, 2**40, (5, 6, 7)), 'uint8': np.eye(5, dtype='uint8'),
    'float16': rng.random((5, 6, 7)).astype('float16'), 'float64': rng.random((5, 6, 7)),
    'channels': rng.random((4, 5, 6, 7)), 'two channels': rng.random((2, 1, 5, 6)),
    'color': rng.random((3, 5, 6)),
}


@pytest.mark.parametrize('name', odd)
@pytest.mark.filterwarnings('error')
def test_odd_images(name):
    v = Viewer(odd[name])
    about, buffers = answered(v)
    assert about['type'] == 'voxels' and about['finite'] == (name != 'all NaN')
    assert about['ranges'][0][0] < about['ranges'][0][1] and np.isfinite(about['ranges']).all()
    assert pixels(v)[..., :3].std() > .01
    if name in ('some NaN', 'infinite'):
        x = np.where(np.isfinite(odd[name]), 0, 1)
        assert (buffers[0] == about['nothing']).sum() == x.sum()


@pytest.mark.parametrize('dtype', ['bool', 'int64', 'uint8', 'float32', 'float16'])
def test_masks_of_any_type(dtype):
    v, m = volume(), np.zeros((9, 10, 11), dtype)
    m[2:5, 2:5, 2:5] = 1
    about, buffers = answered(Viewer(v, m))
    assert buffers[1].sum() == 27 and [c['label'] for c in about['layers'][0]['classes']] == [1]


def test_many_labels_and_none():
    v = volume((10, 10, 10))
    many = np.arange(1000).reshape(10, 10, 10) % 301
    about, buffers = answered(Viewer(v, many, 0*many))
    assert len(about['layers'][0]['classes']) == 300 and buffers[1].dtype == np.uint16
    assert about['layers'][1]['classes'] == []
    assert len(Viewer(v, many, 0*many).still()) > 5000
    with pytest.raises(ValueError, match='65,536'): layer(v.new(torch.from_numpy(many[None])*300), 'Mask')


def test_page_is_told_why_it_gets_nothing(monkeypatch):
    monkeypatch.setattr('medseg_nb.view.voxels.MOST', 100)
    about, buffers = answered(Viewer(volume()))
    assert about['type'] == 'refused' and 'every second voxel' in about['reason'] and buffers == []


def test_window_of_what_is_finite():
    x = np.full((4, 5, 6), 3.)
    x[0], x[1] = np.nan, np.inf
    assert window_of(Volume(x[None])) == (2.5, 3.5)
    assert window_of(Volume(np.full((1, 4, 5, 6), np.nan))) == (0, 1)


# ---------------------------------------------------------------- the still picture follows

def test_still_follows_the_state():
    drawn = lambda v: pickle.dumps(v._pictures()[0])
    v = volume((5, 6, 7))
    heat = torch.linspace(-1, 1, 5*6*7).reshape(5, 6, 7)
    a = Viewer(v, labels(v), labels(v, 3), heat=heat, layers=dict(third=labels(v, 4)))
    seen = [drawn(a)]
    states = [('hidden', []), ('hidden', ['Errors', 'Mask']), ('hidden', ['Errors', 'Heat']),
              ('fill', True),
              ('hidden', ['Errors', 'Heat', 'third']), ('opacities', dict(Mask=1.)),
              ('index', [1, 1, 1]),
              ('window', (-10, 10)), ('hidden', ['Mask', 'Prediction', 'third', 'Heat', 'Errors'])]
    for name, value in states:
        a.set_trait(name, value)
        assert drawn(a) not in seen, (name, value)
        seen.append(drawn(a))
    bare = Viewer(v)
    bare.index, bare.window = [1, 1, 1], (-10, 10)
    assert seen[-1] == drawn(bare) and len(a.still()) > 1000


def test_still_shows_the_errors():
    v = Volume(np.zeros((1, 20, 20), 'uint8'))
    truth, guess = np.zeros((2, 20, 20), 'uint8')
    truth[2:9], guess[5:14] = 1, 1
    a = Viewer(v, truth, guess)
    a.hidden, a.opacity = ['Mask', 'Prediction'], 1
    colors = {tuple(c) for c in np.rint(255*pixels(a)[..., :3]).astype(int).reshape(-1, 3)}
    for word in ('correct', 'false alarm', 'missed'):
        assert tuple(int(ERRORS[word][i:i + 2], 16) for i in (1, 3, 5)) in colors, word


@pytest.mark.parametrize('perm', list(itertools.permutations(range(3))))
def test_frame_and_screen_are_upright_in_every_orientation(perm):
    rng, turn = np.random.default_rng(0), np.array([[.8, -.6, 0], [.6, .8, 0], [0, 0, 1]])
    for signs in itertools.product((1, -1), repeat=3):
        affine = np.eye(4)
        affine[:3, :3] = turn@(np.diag(signs)@np.eye(3)[list(perm)])*[.7, 1.1, 3]
        affine[:3, 3] = 4, -9, 2
        v = Volume(rng.integers(0, 99, (1, 5, 6, 7)).astype('int16'), affine)
        grid, known = frame(v)[0], upright(v)
        assert grid.shape == known.shape
        np.testing.assert_allclose(grid.affine, known.affine, atol=1e-9)
        np.testing.assert_array_equal(screen(v), known.numpy().transpose(3, 2, 1, 0))
