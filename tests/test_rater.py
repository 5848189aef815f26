"Raters: bias, trembling and rates come out as they were asked for."
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import ndimage

from medseg_nb.data.phantom import phantom
from medseg_nb.data.rater import mislabel, random_field, rate, signed_distance
from medseg_nb.data.volume import Volume


def radius(m, h): return ((m > 0).sum()*h**3*3/4/math.pi)**(1/3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]))
def test_signed_distance_against_all_faces(seed, dims):
    rng = np.random.default_rng(seed)
    mask, h = rng.random(rng.integers(3, 8, dims)) < .4, rng.uniform(.5, 3, dims)
    mask.flat[0], mask.flat[-1] = True, False
    faces = []
    for axis in range(dims):
        at = np.argwhere(np.diff(mask, axis=axis)) + .5*np.eye(dims)[axis]
        faces.append(at)
    faces, found = np.concatenate(faces), signed_distance(mask, h)
    for i, inside in np.ndenumerate(mask):
        d = np.linalg.norm((faces - i)*h, axis=1).min()
        assert math.isclose(found[i], -d if inside else d, rel_tol=1e-9)


def test_no_outline_no_distance():
    assert (signed_distance(np.zeros((3, 3), bool), (1, 1)) == np.inf).all()
    assert (signed_distance(np.ones((3, 3), bool), (1, 1)) == -np.inf).all()


@pytest.mark.parametrize('dims', [2, 3])
def test_distance_on_a_plane_is_exact(dims):
    mask = np.zeros((9,)*dims, bool)
    mask[:4] = True
    exact = (np.arange(9) - 3.5)*2
    assert np.allclose(signed_distance(mask, (2.,)*dims), exact.reshape(-1, *[1]*(dims - 1)))


@pytest.mark.parametrize('bias', [-5., -2., 1., 4.])
def test_bias_on_a_ball(bias):
    off = []
    for n in (40, 64):
        c = phantom('disk', 1, 3, n, 0, 60/n)
        off.append(abs(
            radius(rate(c, bias=bias).numpy(), 60/n) - c.meta['shapes'][0]['radii'][0] - bias)*n/60)
    assert max(off) < .3, f'off by {off} voxels'


def test_nothing_wrong_is_the_truth():
    for kind in ('organs', 'lesions', 'vessels'):
        c = phantom(kind, 2, noise=0)
        assert np.array_equal(rate(c).numpy(), c.mask.numpy())
        assert np.array_equal(mislabel(c.mask, 0.).numpy(), c.mask.numpy())
        assert rate(c).data.dtype == c.mask.data.dtype


@pytest.mark.parametrize('length, spacing', [
    (3., (1., 1.)), (6., (.5, 2.)), (4., (1., 1., 1.)), (0., (1., 1.)), (40., (1., 1.))])
def test_field_has_its_length_and_deviation(length, spacing):
    shape = (96,)*2 if len(spacing) == 2 else (40,)*3
    many = np.stack([random_field(shape, spacing, length, np.random.default_rng(s))
                     for s in range(80 if length < 40 else 400)])
    assert abs(many.mean()) < .05*(1 + length/8) and abs(many.std() - 1) < .06
    if length in (0., 40.): return
    for axis, h in enumerate(spacing):
        for k in (1, 2, 4, 6):
            seen = (many*np.roll(many, k, axis + 1)).mean()/many.var()
            assert abs(seen - math.exp(-(k*h)**2/(2*length**2))) < .05, (axis, k)


def test_white_noise_is_white():
    f = random_field((200, 200), (1, 1), 0., np.random.default_rng(0))
    assert abs((f*np.roll(f, 1, 0)).mean()) < .02


@pytest.mark.parametrize('sd, length, bias', [(1., 8., 0.), (2., 12., 1.5)])
def test_trembling_on_a_plane(sd, length, bias):
    half, h = np.zeros((1, 160, 600), np.uint8), .25
    half[:, :80] = 1
    v = Volume(half, np.diag([h, 1., 1]))
    edge = np.stack([rate(v, s, bias=bias, sd=sd, length=length).numpy()[0].sum(0) - 80.
                     for s in range(24)])*h
    assert abs(edge.mean() - bias) < .25*sd
    assert abs(math.sqrt(edge.var() - h*h/12)/sd - 1) < .08
    edge -= edge.mean()
    for k in (2, 5, 10, 15):
        seen = (edge*np.roll(edge, k, 1)).mean()/edge.var()
        assert abs(seen - math.exp(-k*k/(2*length**2))) < .1, k


def pieces(v): return ndimage.label(v.numpy()[0], np.ones((3,)*v.ndim))[1]


def test_misses_and_alarms():
    c = phantom('lesions', 1, size=48, spacing=64/48, noise=0)
    c = c.mask.new((c.mask.data == 2).byte())
    n = pieces(c)
    left = [pieces(rate(c, s, miss=.25)) for s in range(400)]
    sure = 4*math.sqrt(.25*.75/n/400)
    assert abs(np.mean(left)/n - .75) < sure
    assert 0 < np.var(left) < 2*n*.25*.75
    assert pieces(rate(c, miss=1.)) == 0
    room = Volume(np.zeros((1, 64, 64), np.uint8), np.diag([4., 4, 1]))
    found = [rate(room, s, alarms=2.).numpy() for s in range(300)]
    assert abs(np.mean([ndimage.label(f[0], np.ones((3, 3)))[1] for f in found]) - 2) < .35
    assert all(set(np.unique(f)) <= {0, 1} for f in found)
    one = rate(c, 0, alarms=3.).numpy()
    assert (one[c.numpy() > 0] == 1).all() and one.sum() > c.numpy().sum()
    near = ndimage.distance_transform_edt(c.numpy()[0] == 0)[(one > c.numpy())[0]].min()
    assert near > 1, 'an alarm is clear of the truth'
    ball = np.zeros((40, 40), np.uint8)
    ball[17:24, 17:24] = 1
    apart = Volume(ball[None], np.diag([1, 2, 1]))
    near = [ndimage.distance_transform_edt(ball == 0)[(rate(apart, s, alarms=6.).numpy()[0] > ball)]
            for s in range(60)]
    assert np.concatenate(near).min() > 1.5, 'not even at a corner'


def test_each_label_keeps_its_place():
    c = phantom('organs', 3, size=96, noise=0)
    out = rate(c, 1, bias=1., sd=1., length=8).numpy()
    for k in (1, 2, 3):
        both = ((out == k) & (c.mask.numpy() == k)).sum()
        assert 2*both/((out == k).sum() + (c.mask.numpy() == k).sum()) > .75
    touching = np.zeros((1, 20, 40), np.uint8)
    touching[:, 4:16, 4:20], touching[:, 4:16, 20:36] = 1, 2
    grown = rate(Volume(touching), bias=2.).numpy()
    assert (grown[0, 4:16, 20:36] == 2).all() and (grown[0, 4:16, 4:20] == 1).all()
    assert (grown[0, 2:4, 6:34] > 0).all() and not grown[0, :2].any()


def test_nobody_looked_stays():
    m = phantom('disks', 0).mask.numpy().astype(np.int16)
    m[:, :10] = -1
    for out in (rate(Volume(m), 1, bias=3., alarms=2), mislabel(Volume(m), .3)):
        assert (out.numpy()[:, :10] == -1).all() and out.numpy()[:, 10:].min() >= 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0., 2.]), st.integers(2, 4))
def test_rates_are_as_asked(seed, length, K):
    rng = np.random.default_rng(seed)
    asked = rng.dirichlet(np.ones(K), K)
    truth = Volume(np.repeat(np.arange(K), 12)[None, :, None].repeat(160, 2).astype(np.uint8))
    said = np.concatenate([mislabel(truth, asked, length, s).numpy() for s in range(30)])
    found = np.array([[(said[:, truth.numpy()[0] == i] == j).mean() for j in range(K)] for i in range(K)])
    assert abs(found - asked).max() < (.02 if length == 0 else .08)


def test_patches_are_patches():
    c = phantom('disk', 0, size=96, noise=0).mask
    def runs(length): return pieces(c.new((mislabel(c, .1, length).data != c.data).byte()))
    alone, patches = runs(0.), runs(5.)
    assert patches < alone/10
    assert abs((mislabel(c, .1).data != c.data).float().mean() - .1) < .01


def test_seed():
    c = phantom('organs', 0, noise=0)
    def draw(s): return rate(c, s, bias=.5, sd=1, length=6, miss=.2, alarms=1).numpy().tobytes()
    assert draw(1) == draw(1) != draw(2)
    assert mislabel(c.mask, .1, 2, 1).numpy().tobytes() == mislabel(c.mask, .1, 2, 1).numpy().tobytes()


@pytest.mark.parametrize('fault, words', [
    (lambda c: rate(c, sd=3, length=4), 'tears the outline'),
    (lambda c: mislabel(c.mask, [[.5, .6], [0, 1]]), 'add up to 1'),
    (lambda c: mislabel(phantom('organs').mask, np.eye(2)), 'row per label'),
    (lambda c: rate(type(c)('x', c.image)), 'no mask')])
def test_refused(fault, words):
    with pytest.raises(ValueError, match=words): fault(phantom('disk', 0))


def digest(v): return hashlib.sha256(v.numpy().astype('<i2').tobytes()).hexdigest()[:16]


def golden():
    "Run `python -c 'from test_rater import golden; print(golden())'` in tests/ to make these again"
    flat, solid = phantom('organs', 3, 2, 48, 0), phantom('organs', 3, 3, 24, 0, 2.)
    return {'2d': digest(rate(flat, 4, bias=.6, sd=1., length=7., miss=.2, alarms=1.)),
            '3d': digest(rate(solid, 4, bias=.6, sd=1., length=7., miss=.2, alarms=1.)),
            'patches': digest(mislabel(flat.mask, .15, 3., 2))}


def test_golden(): assert golden() == GOLDEN


GOLDEN = {'2d': 'edf401ab4ab2d3ef', '3d': '3524a608244ed6f4', 'patches': '3344aae38b3620fc'}
