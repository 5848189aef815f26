"Thresholds against scikit-image, brute force, and changes of unit that must not matter."
import itertools
import os

import numpy as np
import pytest
import torch
from grids import affine, often, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import best_lines, flood
from skimage import filters

from medseg_nb.classic.threshold import (
    above, band, channels, cuts, histogram, hysteresis, labeled, multi_otsu, nothing, otsu, otsu_value,
    own_lines, separation, thresholds, values)
from medseg_nb.data.grid import grid_difference
from medseg_nb.data.sets import cases
from medseg_nb.data.volume import Volume

ks = st.integers(2, 5)


def image(rng, dtype='uint8', dims=2):
    "Random hills on a random grid"
    shape = tuple(rng.integers(2, 14, dims))
    x = rng.normal(rng.choice(rng.uniform(0, 200, 4), shape), rng.uniform(0, 20))
    return Volume(x.clip(0, 255).astype(dtype)[None], affine(rng, dims))


# ---- the shared helpers

@pytest.mark.parametrize('dtype,seen', [('bool', 'uint8'), ('uint8', 'uint8'), ('int16', 'int16'),
                                        ('uint64', 'float64'), ('float16', 'float32'),
                                        ('float32', 'float32'), ('float64', 'float64')])
def test_values_keep_whole_numbers_and_widen_halves(dtype, seen):
    x = np.arange(6).reshape(2, 3).astype(dtype)
    v = values(Volume(x[None]))
    assert v.dtype == seen and v.shape == (2, 3) and (v == x).all()


def test_values_are_locked_and_share_no_fate_with_the_image():
    for dtype in (torch.uint8, torch.float32):
        volume = Volume(torch.ones(1, 4, 4, dtype=dtype))
        with pytest.raises(ValueError, match='read-only'): values(volume)[0, 0] = 7
        assert (volume.data == 1).all()


def test_a_voxel_that_lacks_one_channel_lacks_all():
    x = np.ones((2, 3, 3))
    x[0, 0, 0], x[1, 1, 1] = np.nan, np.inf
    assert np.isnan(channels(Volume(x))).sum() == 4 and np.isnan(channels(Volume(x))[:, 0, 0]).all()
    assert not labeled(Volume(x), np.ones((3, 3), int)).data[0, [0, 1], [0, 1]].any()


def test_bad_images_are_refused():
    with pytest.raises(TypeError, match='Got a ndarray, wanted a Volume'): values(np.zeros((1, 4, 4)))
    imaginary = torch.zeros(1, 4, 4, dtype=torch.complex64)
    with pytest.raises(TypeError, match='complex'): values(Volume(imaginary))
    with pytest.raises(ValueError, match='Got 3 channels'): otsu(Volume(np.zeros((3, 4, 4))))
    with pytest.raises(ValueError, match='Not one of the 16 voxels'): otsu(Volume(np.full((1, 4, 4), np.nan)))


def test_labels_keep_a_tilted_grid_and_grow_when_they_must():
    volume = image(np.random.default_rng(0), dims=3)
    out = labeled(volume, np.full(volume.shape, 255))
    assert out.data.dtype == torch.uint8 and not grid_difference(volume, out)
    assert labeled(volume, np.full(volume.shape, 70_000)).data.max() == 70_000
    for bad, error in ((np.zeros(3), ValueError), (np.zeros(volume.shape), TypeError),
                       (np.full(volume.shape, -1), ValueError)):
        with pytest.raises(error, match='[Ll]abel'): labeled(volume, bad)
    assert nothing(volume).data.sum() == 0


# ---- by hand

def test_above_and_band_at_their_ends():
    volume = Volume(np.array([[[-1000, -400, 0, 40, 300]]], dtype='int16'))
    assert above(volume, 0).data.tolist() == [[[0, 0, 0, 1, 1]]]
    assert band(volume, -400, 40).data.tolist() == [[[0, 1, 1, 1, 0]]]
    assert band(volume, -np.inf, -400).data.tolist() == [[[1, 1, 0, 0, 0]]]
    assert above(Volume(np.array([[[200, 3]]], dtype='uint8')), -5).data.tolist() == [[[1, 1]]]
    assert above(Volume(np.array([[[200, 3]]], dtype='uint8')), 1e6).data.sum() == 0
    with pytest.raises(ValueError, match='low=5 and high=4'): band(volume, 5, 4)
    with pytest.raises(ValueError, match='nan'): above(volume, np.nan)
    with pytest.raises(ValueError, match='nan'): band(volume, np.nan, 4)


# ---- Otsu

@often
@given(seeds)
@pytest.mark.filterwarnings('ignore:threshold_otsu is expected')
def test_otsu_is_scikit_images_on_whole_numbers(seed):
    volume = image(np.random.default_rng(seed), ['uint8', 'int16', 'int32'][seed % 3], 2 + seed % 2)
    x = volume.numpy()[0]
    if len(np.unique(x)) == 1: return
    ours, theirs = otsu_value(volume), filters.threshold_otsu(x)
    assert ours == theirs or tied(volume)
    assert between(x, ours) == pytest.approx(between(x, theirs), rel=1e-9)


def between(x, t):
    "Between-class variance by its definition"
    dark, bright = x[x <= t].astype(float), x[x > t].astype(float)
    return len(dark)*len(bright)/x.size**2*(bright.mean() - dark.mean())**2


@often
@given(seeds)
def test_otsu_is_scikit_images_within_half_a_bin_on_fractions(seed):
    volume = image(np.random.default_rng(seed), 'float64')
    x = volume.numpy()[0]
    if np.ptp(x) == 0: return
    width = np.ptp(x)/256
    edge = filters.threshold_otsu(x) + width/2
    assert np.array_equal(otsu(volume).numpy()[0] > 0, x >= edge - 1e-9*width)


@often
@given(seeds)
def test_no_line_is_better_than_otsus(seed):
    volume = image(np.random.default_rng(seed))
    x = volume.numpy()[0]
    if len(np.unique(x)) == 1: return
    best = max(between(x, t) for t in np.unique(x)[:-1])
    assert between(x, otsu_value(volume)) == pytest.approx(best, rel=1e-9)


@often
@given(seeds, st.integers(1, 20), st.integers(-500, 500))
def test_units_do_not_matter_to_otsu(seed, gain, offset):
    volume = image(np.random.default_rng(seed))
    moved = volume.new(volume.data.int()*gain + offset)
    if not tied(volume): assert torch.equal(otsu(moved).data, otsu(volume).data)
    halves = volume.new(volume.data.double()*2.**(gain - 10))
    assert torch.equal(multi_otsu(halves, 3).data, multi_otsu(volume.new(volume.data.double()), 3).data)


def tied(volume):
    "Whether two lines are as good as each other, up to rounding"
    scores = np.sort(separation(*histogram(values(volume))[:2]))
    return len(scores) > 1 and scores[-1] - scores[-2] < 1e-9*scores[-1]


def test_dark_is_the_other_side_but_never_what_is_not_finite():
    x = np.array([[0., 1, 9, 10, np.nan]])
    volume = Volume(x[None])
    assert otsu(volume).data.tolist() == [[[0, 0, 1, 1, 0]]]
    assert otsu(volume, dark=True).data.tolist() == [[[1, 1, 0, 0, 0]]]


def test_constant_and_nearly_constant_images_have_no_line():
    for x in (np.full((3, 3), 7), np.full((3, 3), .1), np.array([[1., 1 + 2e-16, 1, 1]])):
        for dark in (False, True): assert otsu(Volume(x[None]), dark=dark).data.sum() == 0
        assert otsu_value(Volume(x[None])) == np.inf and multi_otsu(Volume(x[None]), 4).data.sum() == 0


def test_two_voxels_are_two_groups():
    for pair in ([0, 1], [-1e-3, 1e-3], [5., 5.0001], [-1000, 3000]):
        volume = Volume(np.array([[pair]]))
        assert otsu(volume).data.tolist() == [[[0, 1]]] and multi_otsu(volume, 8).data.tolist() == [[[0, 1]]]


def test_the_histogram_counts_all_and_leaves_out_empty_bins_and_nan():
    levels, counts, ends = histogram(np.array([1, 1, 4, 1000], dtype='int16'))
    assert levels.tolist() == [1, 4, 1000] and counts.tolist() == [2, 1, 1]
    assert ends.tolist() == [1.5, 4.5, 1000.5]
    assert histogram(np.array([0, .1, np.nan, 1]), bins=4)[1].tolist() == [2, 1]
    x = np.arange(0, 60_000, dtype='uint16')
    assert len(histogram(x)[0]) == 8192 and histogram(x)[1].sum() == 60_000
    with pytest.raises(ValueError, match='bins=1'): histogram(np.arange(3.), bins=1)


# ---- several groups

@often
@given(seeds, ks)
def test_dynamic_programming_is_brute_force(seed, k):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(k, 11))
    levels, counts = np.sort(rng.choice(60, n, replace=False)).astype(float), rng.integers(1, 9, n)
    score, lines = best_lines(levels, counts, k)
    found = cuts(levels, counts, k)
    assert len(found) == k - 1 and found == sorted(set(found))
    assert best_lines(levels, counts, k, only=[found])[0] == pytest.approx(score, rel=1e-12)
    assert found in lines


@often
@given(seeds, st.integers(2, 4))
def test_multi_otsu_is_scikit_images(seed, k):
    volume = image(np.random.default_rng(seed))
    x = (volume.numpy()[0]//8*8)
    volume = volume.new(torch.from_numpy(x[None]))
    if len(np.unique(x)) <= k: return
    levels, counts, _ = histogram(x)
    theirs = [int(levels.searchsorted(t, 'right')) - 1 for t in filters.threshold_multiotsu(x, k)]
    ours = levels.searchsorted(thresholds(volume, k)).tolist()
    _, near = best_lines(levels, counts, k, near=1e-3)
    assert ours in best_lines(levels, counts, k)[1]
    assert theirs in near, 'theirs misses the best by more than a thousandth'
    if len(near) == 1: assert ours == theirs


def test_two_groups_of_multi_otsu_are_otsus():
    for seed in range(20):
        volume = image(np.random.default_rng(seed), ['uint8', 'float32'][seed % 2])
        if not tied(volume): assert torch.equal(multi_otsu(volume, 2).data, otsu(volume).data)


def test_a_tie_goes_to_the_dark():
    assert cuts(np.array([0., 1, 2]), np.array([1, 1, 1]), 2) == [0]
    assert thresholds(Volume(np.array([[[0, 2, 8, 10]]])), 3).tolist() == [0, 2]


def test_groups_run_from_dark_to_bright_and_never_outnumber_the_levels():
    volume = Volume(np.array([[[30, 10, 20, 10]]], dtype='uint8'))
    assert multi_otsu(volume, 8).data.tolist() == [[[2, 0, 1, 0]]]
    for bad in (1, 256, 2.5, '3'):
        with pytest.raises(ValueError, match='groups, wanted 2 to 255'): multi_otsu(volume, bad)
    rng = np.random.default_rng(0)
    many = multi_otsu(Volume(rng.random((1, 40, 40))), 40)
    assert len(many.data.unique()) == 40


# ---- hysteresis

@often
@given(seeds, st.integers(2, 3))
def test_hysteresis_is_scikit_images_and_a_flood(seed, dims):
    rng = np.random.default_rng(seed)
    volume = Volume(rng.random((1, *rng.integers(1, 9, dims))))
    x, (low, high) = volume.numpy()[0], np.sort(rng.random(2))
    ours = hysteresis(volume, low, high).numpy()[0] > 0
    assert np.array_equal(ours, filters.apply_hysteresis_threshold(x, low, high))
    assert np.array_equal(ours, flood(x > high, x > low))
    dark = hysteresis(volume, low, high, dark=True).numpy()[0] > 0
    assert np.array_equal(dark, flood(x <= low, x <= high))


@often
@given(seeds)
def test_hysteresis_asks_only_what_is_larger(seed):
    rng = np.random.default_rng(seed)
    volume = Volume(rng.integers(0, 100, (1, 9, 9)))
    low, high = np.sort(rng.integers(0, 100, 2)).tolist()
    curved = volume.new(volume.data**3 - 7)
    assert torch.equal(hysteresis(curved, low**3 - 7, high**3 - 7).data, hysteresis(volume, low, high).data)


def test_hysteresis_lies_between_its_lines():
    volume = image(np.random.default_rng(3))
    weak, both, strong = above(volume, 60).data, hysteresis(volume, 60, 150).data, above(volume, 150).data
    assert (strong <= both).all() and (both <= weak).all()
    assert torch.equal(hysteresis(volume, 60, 60).data, weak)


def test_the_lines_it_finds_are_in_order_and_mirror_each_other():
    for seed in range(30):
        volume = image(np.random.default_rng(seed), 'int16')
        (low, high), (dark_low, dark_high) = own_lines(volume), own_lines(volume, dark=True)
        assert low <= high and dark_low <= dark_high == low
    assert hysteresis(Volume(np.full((1, 4, 4), 3.)), dark=True).data.sum() == 0
    for bad in (dict(low=1), dict(high=1), dict(low=2, high=1), dict(low=np.nan, high=1)):
        with pytest.raises(ValueError, match='wanted both'): hysteresis(volume, **bad)


# ---- real images

def test_scikit_image_agrees_on_real_films():
    for film in cases('chest', 5):
        x = film.image.numpy()[0]
        assert otsu_value(film.image) == filters.threshold_otsu(x)
        for k in (2, 3, 4):
            assert thresholds(film.image, k).tolist() == filters.threshold_multiotsu(x, k).tolist()


@pytest.mark.skipif('MEDSEG_DATA' not in os.environ, reason='wants dsb2018 in MEDSEG_DATA')
def test_otsu_finds_nuclei():
    def nuclei(case):
        gray = case.image.new(case.image.data[:3].float().mean(0, keepdim=True))
        return otsu(gray, dark=bool(gray.data.median() > 127))
    found = []
    for case in itertools.islice(cases('dsb2018'), 0, 60, 3):
        truth = case.mask.new((case.mask.data > 0).byte())
        pred = nuclei(case).data.bool()
        found.append(2*(pred & (truth.data > 0)).sum()/(pred.sum() + truth.data.sum()))
    assert np.mean(found) > .7, np.mean(found)
