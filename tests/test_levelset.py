"Level sets against scikit-image and SimpleITK, energies added up by hand, and lengths in millimeters."
from itertools import product

import numpy as np
import pytest
import SimpleITK as sitk
from grids import often, seeds
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage import segmentation

from medseg_nb.classic.levelset import (
    blurred, border, chan_vese, descend, energy, geodesic, means, morph_chan_vese, morph_geodesic, multiphase,
    phases, signed)
from medseg_nb.classic.snake import edges
from medseg_nb.classic.threshold import multi_otsu, otsu
from medseg_nb.data.phantom import phantom
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.overlap import dice


def ball(n, spacing, radius):
    r2 = sum(((i - (m - 1)/2 + .13)*h)**2 for i, m, h in zip(np.indices(n), n, spacing))
    return r2 < radius**2


def core(case, spacing, inset=12):
    depth = ndimage.distance_transform_edt(case.mask.numpy()[0] > 0, spacing)
    return case.image.new((depth > inset)[None].astype('uint8'))


def disk(spacing=(1, 1), noise=.05):
    return phantom('disk', seed=2, size=tuple(round(96/h) for h in spacing), spacing=spacing, noise=noise)


@often
@given(seeds, st.integers(1, 3), st.sampled_from((2, 3)))
def test_energy_never_rises(seed, m, dims):
    rng = np.random.default_rng(seed)
    shape, spacing = rng.integers(1, 14, dims), rng.uniform(.5, 3, dims)
    f = rng.random(shape)
    f[rng.random(shape) < .1] = np.nan
    start = rng.random((m, *shape)) < .5
    sigma = rng.uniform(.5, 3)*max(spacing)
    end, costs = descend(f, start, spacing, rng.uniform(0, 2), sigma)
    assert np.diff(costs).max(initial=-1) <= 1e-9*abs(costs).max()
    assert len(costs) < 200 and end.shape == start.shape


@often
@given(seeds, st.integers(1, 2))
def test_energy_is_the_sum_over_all_pairs(seed, m):
    rng = np.random.default_rng(seed)
    shape, spacing, mu, sigma = (5, 6), rng.uniform(.5, 3, 2), rng.uniform(0, 2), rng.uniform(1, 4)
    f, u = rng.random(shape), rng.random((m, *shape)) < .5
    eye = np.eye(30).reshape(30, *shape)
    G = np.stack([blurred(e, spacing, sigma).ravel() for e in eye])
    total = 0.
    for bits in product((False, True), repeat=m):
        here = f[(u.reshape(m, -1).T == bits).all(1).reshape(shape)]
        total += ((here - here.mean())**2).sum() if here.size else 0
    for v in u.reshape(m, -1):
        total += mu*(2*np.pi)**.5/sigma*sum(
            G[i, j] for i in range(30) for j in range(30) if v[i] and not v[j])
    np.testing.assert_allclose(energy(f, u, spacing, mu, sigma), total*np.prod(spacing), rtol=1e-9)
    assert np.linalg.eigvalsh((G + G.T)/2).min() > -1e-12
    np.testing.assert_allclose(G, G.T, atol=1e-13)


@pytest.mark.parametrize('spacing', [(1, 1), (.8, 2), (2, .8), (1, 1, 1), (.8, 1, 2)])
def test_border_of_a_ball_is_in_millimeters(spacing):
    inside = ball([round(60/h) for h in spacing], spacing, 20.)
    exact = 2*np.pi*20 if len(spacing) == 2 else 4*np.pi*400
    assert abs(border(inside, spacing, 1.5*max(spacing))/exact - 1) < .03


@often
@given(seeds)
def test_free_border_is_otsu(seed):
    rng = np.random.default_rng(seed)
    volume = Volume(np.concatenate([rng.integers(0, 30, 60), rng.integers(60, 90, 39)]).reshape(1, 9, 11))
    assert np.array_equal(chan_vese(volume, mu=0.).data, otsu(volume).data)
    assert np.array_equal(chan_vese(volume, mu=0., dark=True).data, 1 - otsu(volume).data)


@pytest.mark.parametrize('seed', range(3))
def test_calm_labels_are_scikit_images(seed):
    case = phantom('organs', seed=seed, size=96, noise=.05)
    x, split = case.image.numpy()[0].astype(float), otsu(case.image).numpy()[0] > 0
    mu = .5*((x[split].mean() - x[~split].mean())/np.ptp(x))**2
    theirs = segmentation.chan_vese(x, mu=mu, max_num_iter=500, tol=1e-5)
    ours = chan_vese(case.image, .5).numpy()[0] > 0
    assert max((ours == theirs).mean(), (ours != theirs).mean()) > .97
    f = (x - x[~split].mean())/(x[split].mean() - x[~split].mean())
    assert energy(f, ours[None], (1, 1), .5, 1.5) <= 1.001*energy(f, theirs[None], (1, 1), .5, 1.5)


@pytest.mark.parametrize('dims', (2, 3))
def test_noise_is_no_obstacle(dims):
    case = phantom('disks' if dims == 2 else 'organs', seed=1, size=96 if dims == 2 else 40,
                   noise=.3 if dims == 2 else .15, dims=dims)
    truth = case.mask.new((case.mask.data > 0).int())
    a, b = (dice(f(case.image), truth)[0] for f in (lambda v: chan_vese(v, 2.), otsu))
    assert a > .8 and a > b + .2, (a, b)


@pytest.mark.parametrize('spacing', [(1, 1), (.8, 1.6), (1, 1, 1), (1, 1, 2)])
def test_area_of_a_disk(spacing):
    radius = 12. if len(spacing) == 2 else 9.
    inside = ball([round(2.8*radius/h) for h in spacing], spacing, radius)
    x = inside + np.random.default_rng(0).normal(0, .3, inside.shape)
    volume = Volume(x[None], np.diag([*spacing, 1.]))
    exact = np.pi*radius**2 if len(spacing) == 2 else 4/3*np.pi*radius**3
    for f in (chan_vese, morph_chan_vese):
        assert abs(float(f(volume).data.sum())*np.prod(spacing)/exact - 1) < .08, f


def test_four_phases():
    x = np.kron(np.array([[0., 10], [20, 30]]), np.ones((16, 16)))
    noisy = Volume((x + np.random.default_rng(0).normal(0, 4, x.shape))[None])
    truth = noisy.new((Volume(x[None]).data/10).int())
    ours, parent = ((f.data.int() == truth.data).float().mean() for f in (multiphase(noisy, .3),
                                                                         multi_otsu(noisy, 4)))
    assert ours > .99 > .95 > parent
    few = Volume(np.array([[[3, 3, 8], [8, 8, 3]]]))
    assert np.array_equal(multiphase(few, 0.).data, (few.data == 8).int())


def test_phases_and_means():
    u = np.array([[[0, 1, 0, 1]], [[0, 0, 1, 1]]], bool)
    assert np.array_equal(phases(u), [[0, 1, 2, 3]])
    np.testing.assert_allclose(means(np.array([[4., np.nan, 6, 8]]), np.array([[0, 0, 0, 2]]), 3), [5, 0, 8])


@pytest.mark.parametrize('spacing', [(1, 1), (.8, 1.6), (1.6, .8)])
def test_front_is_where_simpleitks_is(spacing):
    case = disk(spacing)
    seed = core(case, spacing)
    g = sitk.GetImageFromArray((1/(1 + (edges(case.image)/.2)**2)).astype('float32'))
    phi = sitk.GetImageFromArray(-signed(seed.numpy()[0] > 0, spacing).astype('float32'))
    for image in (g, phi): image.SetSpacing([float(h) for h in spacing[::-1]])
    end = sitk.GeodesicActiveContourLevelSet(phi, g, 1e-5, 1., 1., 1., 400)
    theirs = (sitk.GetArrayFromImage(end) < 0)[None].astype(int)
    ours = geodesic(case.image, seed, mu=1., reach=40.)
    assert dice(ours.data, theirs)[0] > .95 and dice(ours, case.mask)[0] > .95


@pytest.mark.parametrize('f', (geodesic, morph_geodesic))
@pytest.mark.parametrize('spacing', [(1, 1), (.7, 1.4), (1, 1, 1), (1, 1, 2)])
def test_front_walks_in_millimeters(f, spacing):
    n = [round(40/h) for h in spacing]
    start = ball(n, spacing, 6.)
    flat = Volume(np.zeros((1, *n)), np.diag([*spacing, 1.]))
    options = dict(mu=0.) if f is geodesic else dict(smoothing=0)
    out = f(flat, flat.new(start[None].astype('uint8')), reach=8., **options).numpy()[0]
    row = tuple(m//2 for m in n)
    for axis, h in enumerate(spacing):
        line = out[tuple(slice(None) if a == axis else i for a, i in enumerate(row))]
        assert abs(line.sum()*h/2 - 14) <= 1.6*max(spacing), (axis, line.sum()*h/2)


def test_balloons_blow_and_suck():
    case = disk()
    inner, wide = core(case, (1, 1), 6), ndimage.distance_transform_edt(case.mask.numpy()[0] == 0) < 8
    wide = case.image.new(wide[None].astype('uint8'))
    for f in (geodesic, morph_geodesic):
        assert dice(f(case.image, inner), case.mask)[0] > .94, f
        assert dice(f(case.image, wide, balloon=-1), case.mask)[0] > .9, f


def test_units_of_brightness_do_not_matter():
    case = disk(noise=.2)
    x = (case.image.data*1000).round().int()
    a, b, seed = case.image.new(x), case.image.new(x*3 - 1000), core(case, (1, 1))
    for f in (chan_vese, multiphase, morph_chan_vese, lambda v: geodesic(v, seed),
              lambda v: morph_geodesic(v, seed)):
        assert (f(a).data == f(b).data).float().mean() > .999


def test_signed_distance():
    d = signed(np.array([[0, 0, 1, 1, 0]], bool), (1, 2.))
    assert np.array_equal(d > 0, [[0, 0, 1, 1, 0]]) and d[0, 0] == .5 - 4


def test_what_they_say_about_bad_input():
    case = disk()
    seed = core(case, (1, 1))
    empty = seed.new(seed.data*0)
    for f in (chan_vese, geodesic, morph_chan_vese, morph_geodesic):
        with pytest.raises(ValueError, match='initial contour is empty'): f(case.image, init=empty)
        with pytest.raises(ValueError, match='another grid'): f(case.image, init=seed[:50])
    for f in (chan_vese, multiphase):
        with pytest.raises(ValueError, match='mu=-1'): f(case.image, mu=-1)
    for f in (geodesic, morph_geodesic):
        with pytest.raises(ValueError, match='contrast=0'): f(case.image, seed, contrast=0)
