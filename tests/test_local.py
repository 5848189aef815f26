"Local lines against scikit-image, against windows looked at one by one, and under changes of light."
import os
from functools import partial

import numpy as np
import pytest
import torch
from grids import affine, often, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import window_stats
from scipy import ndimage
from skimage import filters

from medseg_nb.classic.local import box_sum, niblack, sauvola, surroundings, window_sizes
from medseg_nb.classic.threshold import otsu
from medseg_nb.data.phantom import phantom
from medseg_nb.data.scanner import bias_field
from medseg_nb.data.sets import cases
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.overlap import dice


@often
@given(seeds, st.integers(1, 3))
def test_running_totals_are_windows_added_up(seed, dims):
    rng = np.random.default_rng(seed)
    x = rng.integers(-9, 9, rng.integers(1, 9, dims))
    sizes = (2*rng.integers(0, 7, dims) + 1).tolist()
    mean, _ = window_stats(x.astype(float), sizes)
    np.testing.assert_allclose(box_sum(np.ones(x.shape), sizes)*mean, box_sum(x, sizes), atol=1e-9)
    padded = ndimage.uniform_filter(x.astype(float), sizes, mode='constant')*np.prod(sizes)
    np.testing.assert_allclose(box_sum(x, sizes), padded, atol=1e-9)


@often
@given(seeds, st.sampled_from((2, 3)))
def test_surroundings_are_windows_looked_at_holes_included(seed, dims):
    rng = np.random.default_rng(seed)
    x = rng.normal(50, 20, rng.integers(2, 8, dims))
    x[rng.random(x.shape) < .2] = np.nan
    x.flat[0] = 1.
    volume, window = Volume(x[None], affine(rng, dims)), rng.uniform(8.2, 25)
    ground, mean, spread, reach = surroundings(volume, window)
    there = np.isfinite(x)
    m, s = window_stats(x - np.nanmin(x), window_sizes(volume, window))
    np.testing.assert_allclose(mean[there], m[there], atol=1e-9)
    np.testing.assert_allclose(spread[there], s[there], atol=1e-5)
    assert reach == np.nanmax(x) - np.nanmin(x) and np.array_equal(ground, x - np.nanmin(x), equal_nan=True)


@often
@given(seeds, st.sampled_from((3, 5, 9, 15)))
def test_lines_are_scikit_images(seed, size):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 200, (12, 15)).astype(float)
    x[0, 0], r = 0, size//2
    wide, inner = np.pad(x, r, mode='reflect'), (slice(r, -r),)*2
    _, mean, spread, _ = surroundings(Volume(wide[None]), float(size))
    mean, spread = mean[inner], spread[inner]
    np.testing.assert_allclose(mean - .3*spread, filters.threshold_niblack(x, size, .3), atol=1e-6)
    sauvolas = filters.threshold_sauvola(x, size, .3, r=90)
    np.testing.assert_allclose(mean*(1 + .3*(spread/90 - 1)), sauvolas, atol=1e-6)
    wide = Volume(wide[None])
    for ours, line in ((niblack(wide, size, .3, dark=True), filters.threshold_niblack(x, size, .3)),
                       (sauvola(wide, size, .3, dark=True, R=90), sauvolas)):
        clear = abs(x - line) > 1e-3
        assert np.array_equal((ours.numpy()[0] > 0)[inner][clear], (x < line)[clear])


@often
@given(seeds, st.integers(1, 30), st.integers(-2000, 500))
def test_units_do_not_matter(seed, gain, offset):
    rng = np.random.default_rng(seed)
    volume = Volume(rng.integers(0, 50, (1, 9, 10, 3)))
    moved = volume.new(volume.data*gain + offset)
    for f in (niblack, sauvola):
        for dark in (False, True):
            assert torch.equal(f(moved, 5., dark=dark).data, f(volume, 5., dark=dark).data)


@often
@given(seeds)
def test_dark_things_are_bright_things_of_the_negative(seed):
    volume = Volume(np.random.default_rng(seed).integers(0, 50, (1, 9, 10)))
    negative = volume.new(77 - volume.data)
    for f in (niblack, sauvola):
        assert torch.equal(f(negative, 5., dark=True).data, f(volume, 5.).data)


def test_windows_are_millimeters():
    thin = Volume(np.zeros((1, 9, 9, 9)), np.diag([.5, 1, 4, 1]))
    assert window_sizes(thin, 5.5) == [11, 5, 1] and window_sizes(thin, 13.)[1:] == [13, 3]
    for bad in (0, -3., np.inf, np.nan):
        with pytest.raises(ValueError, match='wanted more than 0'): niblack(thin, bad)
    with pytest.raises(ValueError, match='holds one voxel; they have 0.5 mm'): sauvola(thin, .3)
    with pytest.raises(ValueError, match='R=0'): sauvola(thin, R=0)


def test_the_same_body_on_a_finer_grid_is_marked_alike():
    coarse = phantom('disk', seed=1, size=48, spacing=2., noise=0.).image
    fine = phantom('disk', seed=1, size=96, spacing=1., noise=0.).image
    a, b = niblack(coarse, 30.), niblack(fine, 30.)
    small = b.data[:, ::2, ::2].bool()
    assert (a.data.bool() == small).float().mean() > .97


def test_flat_ground_is_never_marked():
    x = np.full((30, 30), .1) + 1e3
    x[10:14, 10:14] += .7
    for f in (niblack, sauvola):
        for dark in (False, True):
            out = f(Volume(x[None]), 7., dark=dark).numpy()[0]
            assert not out[:4].any() and not out[-4:].any(), (f, dark)
            assert f(Volume(np.full((1, 9, 9), 1/3)), 7., dark=dark).data.sum() == 0


def test_more_k_marks_less():
    film = cases('chest', 1)[0].image
    for f in (niblack, sauvola):
        marked = [f(film, 31., k, dark=True).data.float().mean() for k in (.1, .3, .6)]
        assert marked[0] > marked[1] > marked[2] > 0


def test_a_local_line_stands_a_bias_field_that_otsu_does_not():
    found = {f: [] for f in ('otsu', 'sauvola')}
    for seed in range(4):
        tree = phantom('vessels', seed=seed, size=128, noise=.06)
        field = torch.tensor(bias_field(tree.image.shape, .4, np.random.default_rng(seed)))
        image = tree.image.new((.9 - .5*tree.image.data)*field)
        found['otsu'].append(dice(otsu(image, dark=True), tree.mask)[0])
        found['sauvola'].append(dice(sauvola(image, 25., dark=True), tree.mask)[0])
    assert np.mean(found['sauvola']) > .8 > .5 > np.mean(found['otsu'])


@pytest.mark.skipif('MEDSEG_DATA' not in os.environ, reason='wants chase_db1 in MEDSEG_DATA')
def test_local_lines_find_more_vessels_of_the_eye_than_otsu():
    scores = {}
    rivals = {'otsu': partial(otsu, dark=True), 'sauvola': partial(sauvola, window=41., k=.1, dark=True)}
    for name, f in rivals.items():
        found = []
        for case in cases('chase_db1')[:6:2]:
            green = case.image.new(case.image.data[1:2])
            found.append(dice(f(green), case.mask.new((case.mask.data > 0).byte()))[0])
        scores[name] = np.mean(found)
    assert scores['sauvola'] > scores['otsu'] + .1, scores
