"Fuzzy c-means: formulas by loops, energies that fall, scikit-fuzzy, neighbors in mm, gain fields"
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize

from medseg_nb.classic.fuzzy import (bcfcm, closeness, distances, fcm, first_centers, fit, fit_bias, grades,
                                     kfcm, log_image, memberships, polynomials, sfcm, summarized)
from medseg_nb.classic.kmeans import features, lloyd
from medseg_nb.data.volume import Volume
from oracles import bias_energy, fuzzy_round, spatial_round

METHODS = 'fcm', 'sfcm', 'kfcm', 'bcfcm'
SEGMENTERS = dict(fcm=fcm, sfcm=sfcm, kfcm=kfcm, bcfcm=bcfcm)


def cloud(seed, n=60, c=1):
    rng = np.random.default_rng(seed)
    return rng.normal(rng.choice([0., 3, 7], (n, 1)), 1, (n, c))


def blocks(noise=.05, seed=0, side=24):
    "Three stripes at 0.3, 0.6 and 1"
    truth = np.repeat([0, 1, 2], side//3)[:, None].repeat(side, 1)
    x = np.array([.3, .6, 1.])[truth] + np.random.default_rng(seed).normal(0, noise, truth.shape)
    return x, truth


@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([1.2, 2., 3.5]))
@settings(max_examples=25, deadline=None)
def test_one_round_is_the_formula(seed, c, m):
    x, w = cloud(seed, 12, c), np.random.default_rng(seed).integers(1, 5, 12)
    start = x[[0, 5, 9]]
    u, centers, energy = fuzzy_round(x, start, m, w)
    np.testing.assert_allclose(grades(x, start, m), u, atol=1e-12)
    mine = fit(x, 3, m, w, centers=start, steps=1)
    np.testing.assert_allclose(mine[0], centers[np.argsort(centers[:, 0])])
    np.testing.assert_allclose(mine[2], [energy])


@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([1., 1.1, 2., 4.]),
       st.sampled_from([None, .7, 5.]))
@settings(max_examples=40, deadline=None)
def test_energy_falls_and_shares_sum_to_one(seed, c, m, width):
    centers, u, energy = fit(cloud(seed, c=c), 4, m, width=width)
    assert (np.diff(energy) <= 1e-9*energy[0]).all()
    np.testing.assert_allclose(u.sum(0), 1)
    assert (np.diff(centers[:, 0]) >= 0).all() and u.min() >= 0


def test_kernel_centers_are_where_the_formula_holds():
    x = cloud(3, 80)[:, 0]
    centers, u, _ = fit(x, 3, width=2., tol=1e-12, steps=3000)
    kernel = np.exp(-(x - centers[:, None])**2/4)
    np.testing.assert_allclose((u**2*kernel*x).sum(1)/(u**2*kernel).sum(1), centers, rtol=1e-6)
    odd = (1 - kernel)**-1.
    np.testing.assert_allclose(u, odd/odd.sum(0))


@pytest.mark.parametrize('m', [1.5, 2., 3.])
def test_centers_are_scikit_fuzzys(m):
    cmeans = pytest.importorskip('skfuzzy').cmeans
    for seed, c in ((0, 1), (1, 2), (2, 3)):
        x = cloud(seed, 200, c)
        centers, u, energy = fit(x, 3, m, tol=1e-9, steps=3000)
        theirs, their_u, *_ = cmeans(x.T, 3, m, 1e-10, 3000, seed=seed)
        order = np.argsort(theirs[:, 0])
        np.testing.assert_allclose(centers, theirs[order], atol=1e-3)
        np.testing.assert_allclose(u, their_u[order], atol=1e-3)


def test_fuzziness_one_is_kmeans():
    for c in (1, 3):
        x = cloud(c, 300, c)
        start = first_centers(x, 3, np.ones(len(x)))
        centers, labels, objective = lloyd(x, start)
        mine, u, energy = fit(x, 3, m=1.)
        np.testing.assert_allclose(mine, centers[np.argsort(centers[:, 0])])
        np.testing.assert_allclose(energy[-1], objective[-1])
        assert set(np.unique(u)) == {0, 1}


def test_closeness_in_hard_places():
    d = np.array([[0., 0, 1e300, 0], [0., 4, 1e-300, 9], [3., 1, 1, 0]])
    np.testing.assert_allclose(closeness(d), [[.5, 1, 0, .5], [.5, 0, 1, 0], [0, 0, 0, .5]], atol=1e-200)
    assert np.isfinite(closeness(d, 1 + 1e-6)).all()
    for m in (.99, np.nan, np.inf):
        with pytest.raises(ValueError, match=f'm={m}'): closeness(d, m)


def test_distances_are_squared():
    assert distances([1., 4.], [0., 2.]).tolist() == [[1, 16], [1, 4]]
    assert distances(np.array([[3., 4]]), np.zeros((1, 2))).tolist() == [[25]]


def test_counted_levels_are_the_voxels():
    x = np.random.default_rng(0).integers(0, 30, 500).astype(float)
    levels, counts = summarized(x[:, None])
    for m in (1., 2.):
        one, many = fit(x, 3, m), fit(levels[:, 0], 3, m, counts)
        np.testing.assert_allclose(one[0], many[0], rtol=1e-7)
        np.testing.assert_allclose(one[2], many[2], rtol=1e-7)
    zero = fit(np.append(levels[:, 0], 1e6), 3, 2., np.append(counts, 0))
    np.testing.assert_allclose(zero[0], many[0])
    assert zero[1].shape == (3, len(levels) + 1)


def test_fine_fractions_are_binned_without_harm():
    x = np.random.default_rng(0).normal(np.repeat([0, 5], 5000), 1)[:, None]
    points, counts = summarized(x)
    assert len(points) <= 4096 and counts.sum() == len(x)
    np.testing.assert_allclose(fit(points, 2, 2., counts)[0], fit(x, 2)[0], atol=2e-3)
    assert summarized(np.ones((5, 2)))[1] is None


def test_start_follows_the_long_axis():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal([0, 0], .1, (50, 2)), rng.normal([9, 9], .1, (20, 2))])
    np.testing.assert_allclose(first_centers(x, 2, np.ones(70)), [x[:50].mean(0), x[50:].mean(0)])
    assert len(first_centers(x[[0, 0, 60]], 5, np.ones(3))) == 2


@pytest.mark.parametrize('name', METHODS)
def test_shares_on_the_grid_and_nothing_where_nothing_is(name):
    x, truth = blocks()
    x[3, 4], x[:, 7], x[0, 0] = np.nan, np.inf, -np.inf
    volume = Volume(x[None].astype('float32'), np.diag([.7, 1.2, 1]))
    flat = dict(degree=0) if name == 'bcfcm' else {} # it takes stripes for a gain
    u = memberships(volume, name, k=3, **flat)
    lost = ~np.isfinite(x)
    assert u.data.dtype == torch.float32 and np.array_equal(u.affine, volume.affine)
    np.testing.assert_allclose(u.numpy().sum(0), ~lost, atol=1e-6)
    labels = SEGMENTERS[name](volume, **flat).numpy()[0]
    assert (labels[~lost] == u.numpy().argmax(0)[~lost]).all() and not labels[lost].any()
    assert (labels == truth)[~lost].mean() > .97


@pytest.mark.parametrize('name', METHODS)
def test_fewer_levels_than_groups(name):
    few = Volume(np.array([[[9, 9, 2], [2, 5, 5]]]))
    if name in ('fcm', 'kfcm'): assert SEGMENTERS[name](few, 8).data.tolist() == [[[2, 2, 0], [0, 1, 1]]]
    assert len(memberships(few, name, k=8).data) == 3
    flat = memberships(Volume(np.full((1, 4, 5), 7.)), name)
    assert flat.shape == (4, 5) and (flat.data == 1).all() and len(flat.data) == 1


@pytest.mark.parametrize('name', METHODS)
def test_wrong_knobs_are_refused(name):
    f, image = SEGMENTERS[name], Volume(blocks()[0][None])
    for k in (1, 256, 2.5):
        with pytest.raises(ValueError, match=f'k={k} groups'): f(image, k)
    with pytest.raises(ValueError, match='m=0.5'): f(image, m=.5)
    more = dict(sfcm=[dict(p=-1.), dict(q=np.nan), dict(p=0., q=0.), dict(window=-3.)],
                kfcm=[dict(width=0.), dict(width=-1.)],
                bcfcm=[dict(alpha=-1.), dict(alpha=np.nan), dict(degree=-1), dict(degree=9), dict(window=0.)])
    for options in more.get(name, []):
        with pytest.raises(ValueError, match=f'Got .*{next(iter(options))}='): f(image, **options)
    with pytest.raises(ValueError, match="method='soft', wanted one of fcm"): memberships(image, 'soft')


@pytest.mark.parametrize('window,spacing,sizes', [(5., (1., 1.), (5, 5)), (3., (1., 9.), (3, 1)),
                                                  (None, (2., .5), (1, 5)), (None, (.4, .4), (5, 5))])
def test_neighbors_are_counted_in_mm(window, spacing, sizes):
    x, _ = blocks(.2, side=12)
    volume = Volume(x[None], np.diag([*spacing, 1]))
    for p, q in ((1., 1.), (0., 2.)):
        u = memberships(volume, 'sfcm', window=window, p=p, q=q).numpy()
        values, there = features(volume)
        centers = fit(*(lambda v, n: (v, 3, 2., n))(*summarized(values)))[0]
        for _ in range(100):
            slow, new = spatial_round(values.reshape(x.shape), centers[:, 0], sizes, p, q)
            if abs(new - centers[:, 0]).max() <= 1e-4*np.ptp(values): break
            centers = new[:, None]
        np.testing.assert_allclose(u, slow, atol=1e-6)


def test_neighbors_remove_noise():
    x, truth = blocks(.15)
    plain, spatial = ((f(Volume(x[None])).numpy()[0] == truth).mean() for f in (fcm, sfcm))
    assert spatial > plain + .05
    alone = sfcm(Volume(x[None]), q=0.).data
    assert (alone == fcm(Volume(x[None])).data).float().mean() > .97


def test_kernel_is_not_pulled_by_metal():
    x, truth = blocks(.02)
    metal = x.copy(); metal[0, 0] = 50.
    assert (kfcm(Volume(metal[None]), width=1.).numpy()[0] == np.where(metal > 9, 2, truth)).all()
    assert (fcm(Volume(metal[None])).numpy()[0] == truth).mean() < .8
    wide = memberships(Volume(x[None]), 'kfcm', width=1e3).numpy()
    np.testing.assert_allclose(wide, memberships(Volume(x[None])).numpy(), atol=1e-4)


def test_polynomials_are_all_of_that_degree():
    assert polynomials((7, 9), 3).shape == (9, 7, 9) and polynomials((7, 9, 8), 2).shape == (9, 7, 9, 8)
    assert polynomials((7, 1), 3).shape == (3, 7, 1) and polynomials((1, 1), 3).shape == (0, 1, 1)
    assert len(polynomials((5, 5), 0)) == 0
    i, j = np.indices((7, 9))
    basis = np.concatenate([np.ones((1, 63)), polynomials((7, 9), 3).reshape(9, -1)]).T
    wanted = (3*i**3 - i*j**2 + j).ravel()
    np.testing.assert_allclose(basis @ np.linalg.lstsq(basis, wanted, rcond=None)[0], wanted, atol=1e-8)


def test_bias_energy_is_ahmeds_and_falls():
    x, _ = blocks(.1, side=9)
    y = np.log(np.maximum(x, .05)); y[2, 3] = y[5, 5] = np.nan
    for sizes, alpha, m in (([3, 3], .7, 2.), ([3, 1], 2., 2.), ([5, 3], .7, 1.4), ([3, 3], 0., 2.)):
        u, field, energy = fit_bias(y, sizes, 3, m, alpha, 2, tol=1e-9, steps=60)
        assert (np.diff(energy) <= 1e-9*energy[0]).all() and len(energy) > 3
        start = fit(*(lambda v, n: (v, 3, m, n))(*summarized(y[~np.isnan(y)][:, None])))[0][:, 0]
        np.testing.assert_allclose(energy[0], bias_energy(y, 0*y, start, sizes, m, alpha))
        np.testing.assert_allclose(field[~np.isnan(y)].mean(), 0, atol=1e-12)
        assert (field[np.isnan(y)] == 0).all() and not u[:, np.isnan(y)].any()


def test_bias_rests_where_nothing_is_cheaper():
    y = np.log(np.maximum(blocks(.1, side=6)[0], .05))
    _, field, energy = fit_bias(y, [3, 3], 2, degree=1, tol=1e-10, steps=2000)
    basis = polynomials(y.shape, 1)
    def cost(v): return bias_energy(y, field + np.tensordot(v[2:], basis, 1), v[:2], [3, 3], 2., .7)
    best = minimize(cost, [*np.quantile(y - field, [.25, .75]), 0, 0], method='BFGS')
    np.testing.assert_allclose(energy[-1], best.fun, rtol=1e-6)


def test_smooth_gain_is_found():
    truth = np.random.default_rng(0).integers(0, 3, (30, 40))
    i, j = np.meshgrid(np.linspace(-1, 1, 30), np.linspace(-1, 1, 40), indexing='ij')
    gain = np.exp(.5*i - .4*j + .3*i*j - .2*j**2)
    x = np.array([.3, .6, 1.])[truth]*gain
    u, field, _ = fit_bias(np.log(x), [3, 3], alpha=0., tol=1e-7, steps=500)
    np.testing.assert_allclose(field, np.log(gain) - np.log(gain).mean(), atol=.01)
    volume = Volume(x[None])
    assert (bcfcm(volume, alpha=0.).numpy()[0] == truth).mean() > .995
    assert (fcm(volume).numpy()[0] == truth).mean() < .85


def test_gain_of_the_whole_image_does_not_matter():
    volume = Volume(blocks(.1)[0][None])
    for factor in (1e-6, 700.):
        assert torch.equal(bcfcm(volume.new(volume.data*factor)).data, bcfcm(volume).data)


def test_no_gain_and_no_neighbors_is_fcm_of_the_logarithm():
    volume = Volume(blocks(.05)[0][None])
    logs = Volume(log_image(volume)[None])
    np.testing.assert_allclose(memberships(volume, 'bcfcm', alpha=0., degree=0).numpy(),
                               memberships(logs).numpy(), atol=2e-2)


def test_neighbors_of_the_gain_are_counted_in_mm():
    x = blocks(.12, side=12)[0][None]
    flat, thick = (Volume(x, np.diag([s, 1., 1.])) for s in (1., 9.))
    wanted = [fit_bias(log_image(flat), sizes)[0] for sizes in ([3, 3], [1, 3])]
    for v, u in zip((flat, thick), wanted):
        np.testing.assert_allclose(memberships(v, 'bcfcm').numpy(), u, atol=1e-6)
    assert abs(wanted[0] - wanted[1]).max() > .1


def test_log_needs_light():
    with pytest.raises(ValueError, match='bright voxels are -1'):
        bcfcm(Volume(np.array([[[-3., -2], [-1, -1]]])))
    dark = log_image(Volume(np.array([[[0., 100], [np.nan, 100]]])))
    np.testing.assert_allclose(dark, np.log([[1, 100], [np.nan, 100]]), atol=1e-6)


def test_several_channels():
    x, truth = blocks(.1)
    both = Volume(np.stack([x, 1000*x[::-1].copy() + 5]))
    for f in (fcm, sfcm, kfcm): assert len(f(both).data.unique()) == 3
    tenfold = both.new(both.data*torch.tensor([10., .01])[:, None, None])
    assert torch.equal(fcm(both).data, fcm(tenfold).data)
    with pytest.raises(ValueError, match='Got 2 channels, wanted 1'): bcfcm(both)


def test_two_and_three_dimensions_agree():
    x = blocks(.1)[0]
    for f in (fcm, sfcm, kfcm, bcfcm):
        flat, deep = f(Volume(x[None])), f(Volume(x[None, ..., None], np.diag([1., 1, 9, 1])))
        assert torch.equal(flat.data, deep.data[..., 0])
