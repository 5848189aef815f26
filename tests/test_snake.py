"Snakes against scikit-image, gradient vector flow against its own energy, and both in millimeters."
import numpy as np
import pytest
from grids import often, seeds
from hypothesis import given
from scipy import ndimage
from scipy.interpolate import RectBivariateSpline
from skimage.draw import polygon2mask
from skimage.filters import sobel
from skimage.segmentation import active_contour

from medseg_nb.classic.snake import (
    crawl, edges, energy, evenly, filled, gvf, gvf_snake, outline, settle, slope, snake, started, stiffness)
from medseg_nb.data.phantom import phantom
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.overlap import dice


def circle(n, radius, center=(0, 0)):
    a = 2*np.pi*np.arange(n)/n
    return np.column_stack([np.sin(a), np.cos(a)])*radius + center


def disk(spacing=(1, 1), noise=.02, margin=8, side=96):
    "A disk and a painted start that reaches `margin` mm beyond it"
    case = phantom('disk', seed=2, size=tuple(round(side/s) for s in spacing), spacing=spacing, noise=noise)
    wide = ndimage.distance_transform_edt(case.mask.numpy()[0] == 0, spacing) < margin
    return case, case.image.new(wide[None].astype('uint8'))


@often
@given(seeds)
def test_crawl_is_scikit_images(seed):
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.random((40, 50)), 3)*20
    begin, (alpha, beta, gamma) = circle(60, 12, (20, 24)), rng.uniform(.02, .5, 3)
    spline = RectBivariateSpline(np.arange(40), np.arange(50), sobel(image), kx=2, ky=2, s=0)
    def force(p): return np.stack([spline(*p.T, dx=1, grid=False), spline(*p.T, dy=1, grid=False)], 1)
    ours = crawl(begin, force, 1., alpha, beta, 1/gamma, 1., 25)
    theirs = active_contour(image, begin, alpha=alpha, beta=beta, w_edge=1, gamma=gamma, max_num_iter=25,
                            convergence=0)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


@often
@given(seeds)
def test_stiffness_is_minus_the_slope_of_the_energy(seed):
    rng = np.random.default_rng(seed)
    points, alpha, beta = circle(12, 5.) + rng.normal(0, .2, (12, 2)), *rng.uniform(.1, 2, 2)
    h, v = .7, rng.normal(size=(12, 2))
    def inner(p):
        first, second = p - np.roll(p, 1, 0), np.roll(p, -1, 0) - 2*p + np.roll(p, 1, 0)
        return h*(alpha/2*(first**2).sum()/h**2 + beta/2*(second**2).sum()/h**4)
    along = (inner(points + 1e-5*v) - inner(points - 1e-5*v))/2e-5
    np.testing.assert_allclose((h*stiffness(12, h, alpha, beta)@points*v).sum(), along, rtol=1e-6)
    A = stiffness(12, h, alpha, beta)
    assert (np.count_nonzero(abs(A) > 1e-12, axis=1) == 5).all()


def test_energy_of_a_circle_is_known():
    ring = circle(2000, 10., (30, 30))
    gain = np.full((60, 60), .25)
    wanted = 2*np.pi*10*(3/2 + 5/2/10**2 - .25)
    np.testing.assert_allclose(energy(ring, gain, (1, 1), 3., 5.), wanted, rtol=1e-4)


@pytest.mark.parametrize('spacing', [(1, 1), (.8, 1.6)])
@pytest.mark.parametrize('alpha', [.3, 1.])
def test_energy_falls_and_the_disk_is_found(spacing, alpha):
    case, init = disk(spacing)
    edge = edges(case.image)
    reach = np.linalg.norm(slope(edge, spacing), axis=0).max()
    path = settle(outline(started(case.image, init), spacing), slope(edge, spacing)/reach, spacing, alpha, .5)
    costs = np.array([energy(p, edge/reach, spacing, alpha, .5) for p in path])
    assert np.diff(costs).max() < 2e-3*np.ptp(costs) and costs[-1] < costs[0]


@pytest.mark.parametrize('spacing', [(1, 1), (.8, 1.6), (1.6, .8)])
def test_area_is_in_millimeters(spacing):
    case, init = disk(spacing)
    exact = float(case.mask.data.sum())
    assert abs(float(gvf_snake(case.image, init).data.sum())/exact - 1) < .06


@often
@given(seeds)
def test_gvf_makes_its_energy_least(seed):
    rng = np.random.default_rng(seed)
    spacing, mu = rng.uniform(.5, 2, 2), rng.uniform(.05, 1)
    edge = ndimage.gaussian_filter(rng.random((9, 8)), 1)
    seen = slope(edge, spacing)
    def cost(w):
        smooth = sum((np.diff(w, axis=a + 1)**2).sum()/h**2 for a, h in enumerate(spacing))
        return mu*smooth + ((seen**2).sum(0)*(w - seen)**2).sum()
    best = gvf(edge, spacing, mu)
    v = rng.normal(size=best.shape)
    assert cost(best) < min(cost(seen), cost(best + .01*v), cost(best - .01*v))
    np.testing.assert_allclose((cost(best + .01*v) - cost(best - .01*v))/.02, 0, atol=1e-9*cost(v) + 1e-9)


def test_gvf_works_in_three_dimensions_and_on_flat_ground():
    x = np.zeros((7, 8, 9)); x[2:5, 3:6, 3:7] = 1
    field = gvf(ndimage.gaussian_filter(x, 1), (1, 1, 2))
    assert field.shape == (3, 7, 8, 9) and (np.linalg.norm(field, axis=0) > 0).all()
    assert not gvf(np.ones((5, 6)), (1, 1)).any()


def test_only_gvf_enters_the_cave():
    u = np.zeros((96, 96)); u[20:76, 20:76] = 1; u[16:60, 40:56] = 0
    init = np.zeros_like(u); init[10:86, 10:86] = 1
    U, init = Volume(u[None]), Volume(init[None].astype('uint8'))
    truth = U.new(U.data.int())
    assert dice(gvf_snake(U, init), truth)[0] > .97 > .92 > dice(snake(U, init, steps=2500), truth)[0]


def test_more_than_one_piece_and_a_piece_that_shrinks_away():
    x = np.zeros((60, 90)); x[15:45, 10:40] = 1
    init = np.zeros_like(x); init[12:48, 7:43] = 1; init[20:26, 70:76] = 1
    out = snake(Volume(x[None]), Volume(init[None])).numpy()[0]
    assert out[20:40, 15:35].all() and not out[:, 60:].any()


def test_outline_and_polygon_are_inverse():
    rng = np.random.default_rng(0)
    blob = ndimage.gaussian_filter(rng.random((40, 40)), 5) > .5
    blob = ndimage.label(blob)[0]
    blob = ndimage.binary_fill_holes(blob == np.bincount(blob.ravel())[1:].argmax() + 1)
    line = outline(blob, (.5, 2))
    assert np.array_equal(polygon2mask(blob.shape, line/(.5, 2)), blob)
    points = evenly(line, .25)
    gaps = np.linalg.norm(points - np.roll(points, 1, 0), axis=1)
    assert gaps.max() < .251 and len(points) > 100


def test_holes_in_the_data_are_no_edges():
    case, init = disk()
    x = case.image.data.clone().double()
    x[:, 4:8, 40:60] = np.nan
    edge = edges(case.image.new(x))
    assert edge[2:10, 38:62].max() < .2 and np.isfinite(edge).all()
    assert np.array_equal(filled(np.array([[1, np.nan, np.nan, 5.]])), [[1, 1, 5, 5]])
    out = gvf_snake(case.image.new(x), init).numpy()[0]
    assert not out[4:8, 40:60].any() and out.any()


def test_units_of_brightness_do_not_matter():
    case, init = disk()
    moved = case.image.new(case.image.data.double()*700 - 1000)
    plain = case.image.new(case.image.data.double())
    for f in (snake, gvf_snake):
        assert (f(moved, init).data == f(plain, init).data).float().mean() > .999


def test_what_it_says_about_bad_starts():
    case, init = disk()
    for f in (snake, gvf_snake):
        with pytest.raises(ValueError, match='initial contour is empty'): f(case.image, init.new(init.data*0))
        with pytest.raises(ValueError, match='another grid'): f(case.image, init[:50])
        with pytest.raises(TypeError, match='init is a ndarray'): f(case.image, init.numpy())
        with pytest.raises(ValueError, match='sigma=-1'): f(case.image, init, sigma=-1)
