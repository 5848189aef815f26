"Scanners: every number of a machine can be measured back from its pictures."
import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.interpolate import CubicSpline
from scipy.stats import poisson, rice

from medseg_nb.data.case import Case, split
from medseg_nb.data.phantom import phantom
from medseg_nb.data.scanner import (SCANNERS, Scanner, bias_field, blur, contrast, count_photons, scan,
                                    thicker)
from medseg_nb.data.volume import Volume


def flat(value, shape=(400, 500)): return Case('flat', Volume(np.full((1, *shape), value)))
def seen(case, **faults): return scan(case, 3, Scanner(**faults)).image.numpy()[0].astype(float)


@pytest.mark.parametrize('signal', [0., .02, .1, .5])
def test_rician_noise(signal):
    x, exact = seen(flat(signal), noise=.1, rician=True), rice(signal/.1, scale=.1)
    n = x.size
    assert abs(x.mean() - exact.mean()) < 4*exact.std()/math.sqrt(n)
    assert abs(x.var()/exact.var() - 1) < .02
    grid = exact.ppf(np.linspace(.02, .98, 25))
    assert abs((x[..., None] < grid).mean((0, 1)) - exact.cdf(grid)).max() < .005


@pytest.mark.parametrize('signal, photons', [(1., 5), (.3, 100), (2., 50)])
def test_poisson_noise(signal, photons):
    counts = seen(flat(signal), photons=photons)*photons
    assert abs(counts - counts.round()).max() < 1e-3
    mean = signal*photons
    assert abs(counts.mean()/mean - 1) < .01 and abs(counts.var()/mean - 1) < .02
    k = np.arange(int(mean*2))
    assert abs(np.bincount(counts.round().astype(int).ravel(), minlength=len(k))[:len(k)]/counts.size
               - poisson(mean).pmf(k)).max() < .005


def test_gaussian_noise():
    x = seen(flat(.5), noise=.2)
    assert abs(x.mean() - .5) < .002 and abs(x.std() - .2) < .002 and x.min() < 0


def fwhm(line, h):
    "Width at half of the maximum of a spline through the samples, mm"
    fine = np.linspace(0, len(line) - 1, 40*len(line))
    over = fine[CubicSpline(range(len(line)), line)(fine) > line.max()/2]
    return (over[-1] - over[0])*h


@pytest.mark.parametrize('width', [3., 5., 8.])
@pytest.mark.parametrize('spacing', [(1., 1., 1.), (.5, 1., 1.25)])
def test_a_point_is_as_wide_as_stated(width, spacing):
    image = np.zeros((1, 65, 41, 39))
    image[0, 32, 20, 19] = 1
    out = blur(image, width, spacing)[0]
    lines = out[:, 20, 19], out[32, :, 19], out[32, 20]
    assert np.allclose([fwhm(x, h) for x, h in zip(lines, spacing)], width, rtol=.03)
    assert math.isclose(out.sum(), 1, rel_tol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(.01, .95), st.sampled_from([(40, 31), (12, 20, 17)]))
def test_bias_field(seed, strength, shape):
    f = bias_field(shape, strength, np.random.default_rng(seed))
    assert math.isclose(f.mean(), 1, rel_tol=1e-9) and f.min() > 0
    assert math.isclose(abs(f - 1).max(), strength, rel_tol=1e-9)
    spectrum = abs(np.fft.fftn(np.pad(f, [(0, n) for n in shape], mode='symmetric')))
    power = spectrum**2
    low = np.ix_(*[np.abs(np.fft.fftfreq(2*n)*2*n) <= 2.5 for n in shape])
    assert power[low].sum() > .995*power.sum()
    fine = bias_field(tuple(2*n for n in shape), strength, np.random.default_rng(seed))
    for axis in range(len(shape)): fine = (np.take(fine, range(0, 2*shape[axis], 2), axis)
                                           + np.take(fine, range(1, 2*shape[axis], 2), axis))/2
    assert abs(fine - f).max() < .15*strength


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(1, 7.3), st.sampled_from([.7, 1., 2.5]))
def test_thick_slices_are_means(seed, ratio, h):
    rng = np.random.default_rng(seed)
    v = Volume(rng.standard_normal((1, 2, 3, 29)), np.diag([1, 1, h, 1]) + np.eye(4, k=3)*7)
    t = thicker(v, ratio*h)
    fine = np.repeat(v.numpy()[0], 1000, -1)
    for k in range(t.shape[-1]):
        a, b = k*ratio*1000, (k + 1)*ratio*1000
        assert np.allclose(t.numpy()[0, ..., k], fine[..., round(a):round(b)].mean(-1), atol=.01)
    assert math.isclose(t.spacing[-1], ratio*h)
    lower = t.to_world([0, 0, -.5]), v.to_world([0, 0, -.5])
    assert np.allclose(*lower), 'the slab begins where the slices began'


def test_partial_volume_of_a_half_covered_slice():
    for covered in (0, .25, .5, 1):
        fine = np.zeros((1, 2, 2, 16))
        fine[..., :8 + int(4*covered)] = 1
        assert np.allclose(thicker(Volume(fine), 4).numpy()[0, 0, 0], [1, 1, covered, 0])
    mask = Volume((fine*0 + np.repeat([3, 3, 0, 2], 4)).astype(np.uint8))
    assert thicker(mask, 8, labels=True).numpy()[0, 0, 0].tolist() == [3, 0]
    looked = Volume(np.repeat([[[[-1, 1, 0, 2]]]], 3, -1).astype(np.int16))
    assert thicker(looked, 3, labels=True).numpy().ravel().tolist() == [-1, 1, 0, 2]
    assert thicker(looked, 3, labels=True).data.dtype == looked.data.dtype
    tied = Volume(np.tile([2, 1, 0], 4)[None, None, None], np.diag([1, 1, .1, 1]))
    assert not thicker(tied, .1*3, labels=True).numpy().any(), 'of equal shares the lowest label, always'


def test_a_scan_moves_nothing():
    c = phantom('organs', 2, 3, 48, 0)
    for name in SCANNERS:
        s = scan(c, 0, name)
        for shape in c.meta['shapes']:
            at = tuple(s.mask.to_voxel(shape['center']).round().astype(int))
            assert s.mask.numpy()[(0, *at)] == shape['label'], name
    s = scan(c, 0, Scanner(thickness=3., fwhm=4.))
    for k in (1, 2, 3):
        places = [m.to_world(np.argwhere(m.numpy()[0] == k)).mean(0) for m in (c.mask, s.mask)]
        assert abs(np.subtract(*places)).max() < .6


def test_the_seed_is_of_the_scan():
    quiet = [phantom('organs', s, noise=0) for s in (0, 1)]
    added = [seen(c, noise=.1) - c.image.numpy()[0] for c in quiet]
    assert np.allclose(*added, atol=1e-6)
    plain, noisy = (seen(quiet[0], bias=.4, noise=n) for n in (0, .001))
    assert abs(plain - noisy).max() < .01
    a, b, c = (scan(quiet[0], s, 'B').image.numpy() for s in (1, 1, 2))
    assert a.tobytes() == b.tobytes() != c.tobytes()
    phantoms = phantom('organs', 5, noise=.1)
    rescan = scan(phantom('organs', 5, noise=0), 5, Scanner(noise=.1))
    noise = [(x.image.numpy() - phantom('organs', 5, noise=0).image.numpy()).ravel()
             for x in (phantoms, rescan)]
    assert abs(np.corrcoef(*noise)[0, 1]) < .06


def test_contrast():
    c = phantom('organs', 0, noise=0)
    x = contrast(c, (.9, .1, .2, .3))
    assert {k: set(x[c.mask.numpy() == k]) for k in range(4)} == {0: {.9}, 1: {.1}, 2: {.2}, 3: {.3}}
    assert np.allclose(contrast(c, gamma=.5), c.image.numpy()**.5)
    bare = Case('bare', c.image)
    assert np.array_equal(contrast(bare, (.9, .1)), c.image.numpy())


def test_meta_and_split():
    people = [phantom('disks', s, noise=0) for s in range(10)]
    everybody = [scan(c, 0, name) for c in people for name in 'ABD']
    assert len({c.id for c in everybody}) == 30
    assert everybody[1].meta['site'] == 'B' and everybody[1].meta['vendor'] == SCANNERS['B'].vendor
    assert everybody[1].meta['volume'] == people[0].meta['volume']
    train, test = split(everybody, (.7, .3), seed=0)
    assert not {c.patient for c in train} & {c.patient for c in test}


@pytest.mark.parametrize('fault, words', [
    (lambda: scan(flat(1.), scanner='Z'), 'one of A, B'), (lambda: seen(flat(-1.), photons=3), 'negative'),
    (lambda: seen(flat(-1.), gamma=.5), 'Shift'), (lambda: bias_field((4, 4), 1.2, None), 'below 1'),
    (lambda: thicker(phantom(dims=3, size=8).image, .5), 'wanted 1 to 8'),
    (lambda: thicker(phantom(dims=3, size=8).image, 9), 'wanted 1 to 8'),
    (lambda: contrast(phantom('organs'), (0, 1)), 'intensities for 0 to 1')])
def test_refused(fault, words):
    with pytest.raises(ValueError, match=words): fault()


def test_photons_are_drawn_from_the_signal():
    with pytest.raises(ValueError, match='negative'):
        count_photons(np.array([-.1]), 4, np.random.default_rng(0))


def digest(*volumes):
    "sha256 of voxels rounded to a thousandth, so that a last bit of another machine does not matter"
    data = b''.join(np.round(v.numpy().astype('float64')*1000).astype('<i8').tobytes() for v in volumes)
    return hashlib.sha256(data).hexdigest()[:16]


def golden():
    "Run `python -c 'from test_scanner import golden; print(golden())'` in tests/ to make these again"
    clean = phantom('lesions', 3, 3, 24, 0, 64/24)
    cases = {k: scan(clean, 3, replace(s, thickness=s.thickness and 5.)) for k, s in SCANNERS.items()}
    return {k: digest(c.image, c.mask) for k, c in cases.items()}


def test_golden(): assert golden() == GOLDEN


GOLDEN = {'A': '42583be3e33da7c2', 'B': '87808135f5b22a25', 'C': 'a8698445429c83d2', 'D': '595184229163139f',
          'E': '0edb01eea7eb6c0a', 'F': '2bbfe073563bb4fe'}
