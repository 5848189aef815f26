"Maps over images, montages, and volumes that show themselves: the right color in the right place."
import subprocess
import sys
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from IPython.core.formatters import DisplayFormatter

from medseg_nb.data.case import Case
from medseg_nb.data.volume import Volume
from medseg_nb.view.maps import (
    covered, hottest, map_scale, montage, png, show_map, show_probs, translucent)
from medseg_nb.view.show import VOID, show

rng = np.random.default_rng(0)
mm = np.diag([1.5, 1., 3., 1.])
solid = Volume(rng.integers(0, 200, (1, 20, 24, 16)).astype('int16'), mm)


def block(*box, like=solid, value=1):
    "Labels: a box of ones"
    x = np.zeros((1, *like.shape), 'uint8')
    x[(0, *(slice(*b) for b in box))] = value
    return Volume(x, like.affine)


def inside(fig, n=0):
    "The pixels of one of the pictures of a figure, (H,W,3), row 0 at the top"
    fig.savefig(file := BytesIO())
    x = plt.imread(BytesIO(file.getvalue()))[..., :3]
    box, h = fig.axes[n].get_window_extent(), len(x)
    return x[int(h - box.y1) + 1:int(h - box.y0) - 1, int(box.x0) + 1:int(box.x1) - 1]


def colored(x): return np.ptp(x, axis=-1) > .08
def bars(fig): return [ax for ax in fig.axes if ax.get_label() == '<colorbar>']
def words(fig): return [t.get_text() for legend in fig.legends for t in legend.texts]


# ---------------------------------------------------------------- numbers and their colors

@pytest.mark.parametrize('signed,none', [(False, [0]), (True, [127, 128])])
def test_nothing_is_transparent(signed, none):
    alpha = translucent('viridis', signed)(np.arange(256))[:, 3]
    assert np.flatnonzero(alpha == alpha.min()).tolist() == none and alpha.min() < .01
    assert alpha[[-1, 255*3//4 + 1]] == pytest.approx(.75) and (alpha <= .75).all()


numbers = hnp.arrays(float, 30, elements=st.floats(-1e6, 1e6)).filter(lambda x: np.abs(x).max() > 1e-6)


@settings(deadline=None)
@given(numbers)
def test_scale_has_zero_where_it_says(x):
    low, high = map_scale(x).get_clim()
    assert low == (-high if x.min() < 0 else 0) and 0 < high <= np.abs(x).max()


@settings(deadline=None)
@given(numbers)
def test_opposite_numbers_are_equally_strong(x):
    scale = map_scale(np.concatenate([x, -x]))
    assert scale.to_rgba(x)[:, 3] == pytest.approx(scale.to_rgba(-x)[:, 3], abs=.02)


def test_scale_ignores_the_wild_and_the_missing():
    x = rng.uniform(0, 1, 10_000)
    wild = np.r_[x, 1e9, np.nan, np.inf]
    assert map_scale(wild).get_clim() == pytest.approx(map_scale(x).get_clim(), abs=.02)
    sparse = np.zeros(10_000)
    sparse[5] = .01
    assert map_scale(sparse).get_clim() == (0, .01)
    assert map_scale(np.zeros(5)).get_clim() == (0, 1)
    with pytest.raises(ValueError, match='no finite'): map_scale(np.full(4, np.nan))


def test_limits():
    assert map_scale([3.], (1, 4)).get_clim() == (1, 4)
    assert map_scale([3.], (-1, 4)).get_clim() == (-4, 4)
    for bad in ((2, 2), (3, 1), (np.nan, 1)):
        with pytest.raises(ValueError, match='low < high'): map_scale([3.], bad)


# ---------------------------------------------------------------- a map over an image

@pytest.mark.parametrize('dtype', [float, 'float16', 'int64', bool])
def test_color_lies_where_the_heat_is(dtype):
    heat = np.zeros((20, 20))
    heat[2:8, 12:18] = 1
    x = inside(show_map(np.ones((20, 20)), heat.astype(dtype), limits=(0, 1), size=3))
    lit = np.argwhere(colored(x))/x.shape[:2]
    assert lit.min(0) == pytest.approx([.1, .6], abs=.02) and lit.max(0) == pytest.approx([.4, .9], abs=.02)


def test_not_finite_is_not_drawn():
    heat = np.full((20, 20), 5.)
    heat[:5], heat[:, 10:], heat[:, 15:] = -5, np.nan, -np.inf
    fig = show_map(np.ones((20, 20)), heat, size=3)
    x = inside(fig)
    assert colored(x[:, :len(x)*9//20]).all() and not colored(x[:, len(x)*11//20:]).any()
    assert words(fig) == ['200 not finite: not drawn'] and bars(fig)[0].get_ylim() == (-5, 5)


def test_no_heat_leaves_the_image():
    plain = inside(show_map(solid.data[0, :, :, 3], np.zeros((20, 24)), size=3))
    assert not colored(plain).any() and plain.std() > .1


def test_signs_have_their_colors():
    heat = np.zeros((20, 20))
    heat[:, :8], heat[:, 12:] = -2, 1
    fig = show_map(np.ones((20, 20)), heat, size=3, words='HU')
    x = inside(fig)
    left, middle, right = (x[:, int(f*x.shape[1])] for f in (.2, .5, .8))
    assert (left[:, 2] > left[:, 0] + .1).all() and (right[:, 0] > right[:, 2] + .1).all()
    assert not colored(middle).any()
    bar, = bars(fig)
    assert bar.get_ylim() == (-2, 2) and bar.get_ylabel() == 'HU' and len(bar.get_yticklabels()) > 2


steps = st.sampled_from([-1, -.5, 0, .5, 1])


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(float, (6, 7), elements=steps), steps.filter(lambda v: abs(v) < 1))
def test_contour_encloses_its_level(heat, level):
    fig = show_map(np.ones((6, 7)), heat, limits=(-1, 1), levels=(level,))
    region = np.pad(heat >= level if level >= 0 else heat <= level, 1)
    wanted = sum((region != np.roll(region, 1, a)).sum() for a in (0, 1))
    drawn = [c for c in fig.axes[0].collections if len(c.get_linewidths()) and c.get_linewidths()[0] == 1.2]
    assert sum(len(c.get_segments()) for c in drawn) == wanted
    assert words(fig) == [f'{"≤" if level < 0 else "≥"} {level:g}']


def test_planes_pass_through_the_heat():
    heat = np.zeros(solid.shape)
    heat[3:5, 17:20, 9] = 1
    fig = show_map(solid, heat)
    assert [ax.get_title() for ax in fig.axes[:3]] == ['sagittal, i = 4', 'coronal, j = 18', 'axial, k = 9']
    assert all(colored(inside(fig, n)).any() for n in range(3))
    assert hottest(solid.new(torch.full((1, *solid.shape), 2.))) == [10, 12, 8]
    fig = show_map(solid, heat, planes=('axial',), at=(1, 1, 2))
    assert [ax.get_title() for ax in fig.axes[:-1]] == ['axial, k = 2'] and not colored(inside(fig)).any()


@pytest.mark.parametrize('order', ['RAS', 'LPS', 'SPR', 'AIL'])
def test_heat_is_turned_with_its_image(order):
    heat = Volume(np.zeros((1, *solid.shape)), mm)
    heat.data[0, 2:6, 18:22, 9] = 1
    ones = solid.new(torch.ones_like(solid.data))
    fig = show_map(ones.reorient(order), heat.reorient(order), planes=('axial',))
    lit = np.argwhere(colored(inside(fig)))/inside(fig).shape[:2]
    letters = {t.get_text() for t in fig.axes[0].texts[:4]}
    assert letters == set('LRAP') and lit.mean(0) == pytest.approx([1 - 20/24, 1 - 4/20], abs=.03)


def test_several_maps_share_one_scale():
    a, b = rng.uniform(0, 1, (2, *solid.shape))
    fig = show_map(solid, dict(first=a, second=9*b), at=(9, 9, 9))
    assert len(bars(fig)) == 2 and {bar.get_ylim() for bar in bars(fig)} == {map_scale([a, 9*b]).get_clim()}
    fig = show_map(a[0], dict(first=a[0], second=b[0]))
    assert [ax.get_title() for ax in fig.axes[:2]] == ['first', 'second'] and plt.get_fignums() == []


def test_heat_must_fit():
    moved = Volume(solid.data, mm + np.outer([3, 0, 0, 0], [0, 0, 0, 1]))
    with pytest.raises(ValueError, match='heat is not on the grid.*shift.*order=1'): show_map(solid, moved)
    small = np.zeros((3, 3, 3))
    with pytest.raises(ValueError, match='heat is not on the grid.*shape'): show_map(solid, small)
    with pytest.raises(ValueError, match='mask is not on the grid'): show_map(solid, solid, mask=small)
    with pytest.raises(ValueError, match='2 channels.*show_probs'):
        show_map(solid, Volume(np.zeros((2, *solid.shape)), mm))
    with pytest.raises(ValueError, match='no finite'): show_map(solid, np.full(solid.shape, np.inf))
    with pytest.raises(ValueError, match='outside the image'): show_map(solid, solid, at=(0, 0, 16))


# ---------------------------------------------------------------- probabilities

def test_probabilities_have_one_scale():
    x = torch.rand(3, *solid.shape).softmax(0)
    case = Case('a', solid, block((2, 9), (3, 9), (2, 9)), dict(classes=('background', 'liver', 'vein')))
    fig = show_probs(case, x)
    assert {bar.get_ylim() for bar in bars(fig)} == {(0, 1)} and len(bars(fig)) == 2
    assert [part.get_suptitle() for part in fig.subfigs] == ['liver', 'vein']
    assert words(fig) == ['liver', '≥ 0.5']
    fig = show_probs(solid.data[0, 4], x[:, 4], labels=[2], classes={2: 'bone'})
    assert [ax.get_title() for ax in fig.axes[:-1]] == ['bone']


def test_channel_of_a_class():
    x = np.zeros((3, 20, 20))
    x[1, :, :10], x[2, :, 10:] = 1, 1
    for label, side in ((1, slice(0, 9)), (2, slice(11, 20))):
        drawn = colored(inside(show_probs(np.ones((20, 20)), x, labels=[label], levels=(), size=3)))
        columns = drawn.mean(0).reshape(-1)
        there = np.arange(len(columns))*20//len(columns)
        assert columns[(there >= side.start) & (there < side.stop)].all() and .4 < drawn.mean() < .6
    alone = show_probs(np.ones((20, 20)), x[1:2], size=3)
    assert .4 < colored(inside(alone)).mean() < .6


def test_logits_are_not_probabilities():
    x = torch.rand(2, *solid.shape)
    with pytest.raises(ValueError, match='wanted 0 to 1.*softmax'): show_probs(solid, 9*x - 4)
    with pytest.raises(ValueError, match='not on the grid'): show_probs(solid, x[..., :4])
    with pytest.raises(ValueError, match='no class 3'): show_probs(solid, x, labels=[3])


# ---------------------------------------------------------------- montage

@pytest.mark.parametrize('order', ['RAS', 'LPI', 'SPR'])
@pytest.mark.parametrize('plane,axis', [('sagittal', 0), ('coronal', 1), ('axial', 2)])
def test_slices_are_named_and_in_order(order, plane, axis):
    v, mask = solid.reorient(order), block((4, 15), (4, 15), (3, 14)).reorient(order)
    fig = montage(v, n=5, mask=mask, plane=plane)
    titles = [ax.get_title() for ax in fig.axes if ax.images]
    at, places = zip(*((int(t.split(',')[0][4:]), float(t.split(' ')[-2])) for t in titles))
    assert list(places) == sorted(places, reverse=True) and len(at) == 5
    file_axis = [next(a for a, c in enumerate(v.axcodes) if c in pair) for pair in ('LR', 'PA', 'IS')][axis]
    for k, place in zip(at, places):
        corner = np.eye(3)[file_axis]*k
        assert v.to_world(corner)[axis] == pytest.approx(place)
    first, last = covered(v, file_axis, mask)
    assert last - first == 10 and set(np.abs(np.diff(at))) <= {2, 3}
    assert 0 <= min(at) - first and 0 <= last - max(at) and abs(min(at) - first - last + max(at)) <= 1


def test_letters_and_bar_stand_once():
    fig = montage(solid, n=7, columns=3)
    texts = [[t.get_text() for t in ax.texts] for ax in fig.axes if ax.images]
    assert len(texts) == 7 and set(texts[0][:4]) == set('LRAP') and 'mm' in texts[0][4]
    assert texts[1:] == [[]]*6


def test_montage_finds_the_body():
    x = np.full((1, 30, 30, 40), -1000, 'int16')
    x[0, 5:25, 5:25, 11:31] = 40
    v = Volume(x, mm)
    assert covered(v, 2) == covered(v, 2, block((0, 0), (0, 0), (0, 0), like=v)) == (11, 30)
    assert covered(v, 2, block((3, 4), (3, 4), (35, 38), like=v)) == (35, 37)
    assert covered(Volume(np.zeros((1, 4, 5, 6))), 1) == (0, 4)
    assert len(montage(v, n=99, plane='sagittal', size=.5).axes) >= 20


def test_montage_says_what_it_wants():
    with pytest.raises(ValueError, match='call show'): montage(np.zeros((5, 6)))
    with pytest.raises(ValueError, match='sagittal, coronal, axial'): montage(solid, plane='oblique')
    with pytest.raises(ValueError, match='at least 1'): montage(solid, n=0)
    with pytest.raises(ValueError, match='not on the grid'): montage(solid, mask=np.zeros((4, 4, 4)))


def test_montage_paints_the_mask():
    fig = montage(solid, n=3, mask=block((5, 15), (5, 15), (2, 8)), classes={1: 'lump'})
    assert words(fig) == ['lump'] and all(colored(inside(fig, n)).any() for n in range(3))


# ---------------------------------------------------------------- volumes that show themselves

def labels(n, shape=(40, 40, 40)): return (np.arange(np.prod(shape)) % (n + 1)).reshape(1, *shape)


noise = rng.normal(size=(1, 20, 30, 40))
holes = np.where(noise > 0, noise, np.nan)
odd = dict(
    constant=np.full((1, 9, 9, 9), 7), zeros=np.zeros((1, 9, 9)), holes=holes,
    nan=np.full((1, 9, 9, 9), np.nan), infinite=np.where(noise > 1, np.inf, noise),
    thin_i=noise[:, :1], thin_j=noise[:, :, :1], thin_k=noise[..., :1], needle=noise[:, :1, :1],
    wide=np.arange(900.).reshape(1, 1, 900), tall=np.arange(900.).reshape(1, 900, 1),
    point=np.ones((1, 1, 1, 1)), labels=labels(300), bool=noise > 0, int64=(noise*1e18).astype('int64'),
    uint8=(noise > 0).astype('uint8'), half=noise.astype('float16'), bfloat=torch.as_tensor(noise).bfloat16(),
    rgb=rng.integers(0, 255, (3, 30, 40)).astype('uint8'), channels=np.concatenate([noise]*4),
    rgb_holes=np.where(rng.random((3, 30, 40)) > .5, 1, np.nan))


@pytest.mark.parametrize('name', odd)
def test_odd_volumes_show_themselves(name):
    v = Volume(odd[name], None if odd[name].ndim == 3 else mm)
    data = v._repr_png_()
    assert data[:4] == b'\x89PNG' and len(data) < 150_000
    x = plt.imread(BytesIO(data))[..., :3]
    fig = show(v)
    drawn = inside(fig)
    assert .02 < (x.min(-1) < .95).mean() and (drawn.mean() > .02 or name in ('zeros',))
    assert max(x.shape) < 1400


def test_void_is_marked():
    v = Volume(odd['nan'], mm)
    assert words(show(v)) == ['not a finite number']
    r, g, b = (int(VOID[i:i + 2], 16)/255 for i in (1, 3, 5))
    assert inside(show(v))[5, 5] == pytest.approx([r, g, b], abs=.01)
    assert words(show(Volume(noise, mm))) == []


def test_slivers_are_left_out():
    assert [ax.get_title() for ax in show(Volume(np.zeros((1, 1, 50, 60)), mm)).axes] == ['sagittal, i = 0']
    needle = show(Volume(np.zeros((1, 1, 1, 60)), mm))
    assert ['thickened' in ax.get_title() for ax in needle.axes] == [True, True, False]


def test_hundreds_of_labels():
    case = Case('many', Volume(np.zeros((1, 40, 40, 40)), mm), Volume(labels(300), mm))
    names = words(show(case))
    assert len(names) == 18 and names[-1] == 'and 283 more'
    assert len(case._repr_png_()) < 150_000


def test_noise_stays_small():
    for shape in ((1, 300, 300, 200), (3, 500, 2000)):
        x = rng.integers(0, 255, shape).astype('uint8')
        assert 10_000 < len(png(Volume(x))) < 150_000


@pytest.mark.parametrize('how', [dict(dtype=torch.complex64), dict(device='meta')])
def test_what_cannot_be_drawn_stays_text(how):
    v = Volume(torch.zeros(1, 4, 4, **how))
    assert v._repr_png_() is None and 'Volume 1×4×4' in repr(v)


def test_notebook_gets_picture_and_text():
    shown_by = DisplayFormatter()
    case = Case('a', solid, block((2, 9), (3, 9), (2, 9)), dict(classes=('background', 'liver')))
    for item in (solid, case):
        shown, _ = shown_by.format(item)
        assert shown['text/plain'] == repr(item) and shown['image/png'][:4] == b'\x89PNG'


def test_drawing_is_loaded_when_first_asked():
    code = ('import sys, numpy as np\nfrom medseg_nb.data.case import Case\n'
            'from medseg_nb.data.volume import Volume\n'
            'late = lambda: any(m.startswith(("matplotlib.pyplot", "medseg_nb.view")) for m in sys.modules)\n'
            'before = late(); case = Case("a", Volume(np.eye(9)[None]))\n'
            'print(before, case._repr_png_()[:4] == bytes([137, 80, 78, 71]), late())')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False', 'True', 'True']
