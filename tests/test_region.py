"Growing against walks and sorted lists, splitting against its definition, pieces against counting."
import numpy as np
import pytest
import torch
from grids import affine, often, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import even_blocks, grown_by_queue, grown_by_sorted_list
from scipy import ndimage
from skimage import segmentation

from medseg_nb.classic.region import (
    blocks, borders, compete, drop_small, fill_holes, largest, merged, pieces, region_growing, seeded_growing,
    split_merge, voxel_size)
from medseg_nb.classic.threshold import otsu
from medseg_nb.data.phantom import phantom
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.overlap import dice

dims = st.sampled_from((2, 3))


def scene(seed, n, levels=12, nan=0.):
    "A small image of few levels, so that ties are common, and one to four seeds"
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 9 if n == 2 else 6, n))
    x = ndimage.gaussian_filter(rng.integers(0, levels, shape).astype(float), .6).round()
    s = np.zeros(shape, int)
    for k in range(rng.integers(1, 5)): s[tuple(rng.integers(0, shape))] = k + 1
    x[(rng.random(shape) < nan) & (s == 0)] = np.nan
    grid = affine(rng, n)
    return Volume(x[None], grid), Volume(s[None], grid), rng


def spot(volume, *at):
    out = np.zeros(volume.shape, np.uint8)
    for k, i in enumerate(at, 1): out[i] = k
    return volume.new(torch.from_numpy(out[None]))


# ---- growing

@often
@given(seeds, dims, st.sampled_from((0., 1., 2., 5.)))
def test_one_seed_grows_as_flood(seed, n, tolerance):
    volume, _, rng = scene(seed, n)
    at = tuple(int(i) for i in rng.integers(0, volume.shape))
    got = region_growing(volume, spot(volume, at), tolerance).numpy()[0] > 0
    assert (got == segmentation.flood(volume.numpy()[0], at, connectivity=1, tolerance=tolerance)).all()


@often
@given(seeds, dims)
def test_a_cube_of_seeds_grows_as_the_editor_does(seed, n):
    volume, _, rng = scene(seed, n)
    at = tuple(int(i) for i in rng.integers(0, volume.shape))
    cube = np.zeros(volume.shape, int)
    cube[tuple(slice(max(i - 1, 0), i + 2) for i in at)] = 1
    got = region_growing(volume, volume.new(torch.from_numpy(cube[None])), 2.5).numpy()[0] > 0
    want = grown_by_queue(volume, at, 2.5)
    assert got[want].all()
    parts, _ = ndimage.label(got)
    assert (parts[want] == parts[at]).all() and got[cube > 0].all()


def test_fixed_growing_gives_a_voxel_to_the_nearest_mean_and_keeps_the_seeds():
    volume = Volume(np.array([[[0., 3, 4, 6, 7, 10, 20]]]))
    s = spot(volume, (0, 0), (0, 5))
    assert region_growing(volume, s, 5.).numpy().tolist() == [[[1, 1, 1, 2, 2, 2, 0]]]
    assert region_growing(volume, s, 3.).numpy().tolist() == [[[1, 1, 0, 0, 2, 2, 0]]]
    tie = Volume(np.array([[[10., 5, 0]]]))
    assert region_growing(tie, spot(tie, (0, 2), (0, 0)), 5.).numpy().tolist() == [[[2, 1, 1]]]
    apart = volume.new(torch.tensor([[[1, 0, 0, 0, 0, 1, 0]]]))
    assert region_growing(volume, apart, 0.).numpy().tolist() == [[[1, 0, 0, 0, 0, 1, 0]]], 'mean is 5'


@often
@given(seeds, dims, st.sampled_from((0., .2)))
def test_competing_regions_are_those_of_a_sorted_list(seed, n, nan):
    volume, s, _ = scene(seed, n, nan=nan)
    x, s = volume.numpy()[0], s.numpy()[0]
    assert (compete(x, s) == grown_by_sorted_list(x, s)).all()


def test_competing_by_hand():
    x, s = np.array([[0., 1, 5, 9, 10]]), np.array([[7, 0, 0, 0, 3]])
    assert compete(x, s)[0, [0, 1, 3, 4]].tolist() == [7, 7, 3, 3]
    x = np.array([[0., 4, 6, 7, 11]])
    assert compete(x, s).tolist() == [[7, 7, 3, 3, 3]]
    drift = np.array([[0., 1, 2, 3, 4, 8.]])
    assert compete(drift, np.array([[1, 0, 0, 0, 0, 2]])).tolist() == [[1, 1, 1, 1, 1, 2]]


def test_nobody_crosses_what_is_not_finite():
    volume = Volume(np.array([[[1., 1, np.nan, 1, 1]]]))
    s = spot(volume, (0, 0))
    for f in (region_growing, seeded_growing): assert f(volume, s).numpy().tolist() == [[[1, 1, 0, 0, 0]]]
    both = spot(volume, (0, 2), (0, 4))
    for f in (region_growing, seeded_growing): assert f(volume, both).numpy().tolist() == [[[0, 0, 0, 2, 2]]]


def test_units_do_not_matter():
    volume, s, _ = scene(5, 2)
    moved = volume.new(volume.data*4 - 1000)
    assert torch.equal(seeded_growing(volume, s).data, seeded_growing(moved, s).data)
    assert torch.equal(region_growing(volume, s).data, region_growing(moved, s).data)
    assert torch.equal(split_merge(volume).data, split_merge(moved).data)


@pytest.mark.parametrize('f', [region_growing, seeded_growing])
def test_bad_seeds_are_refused(f):
    volume = Volume(np.arange(12.).reshape(1, 3, 4))
    with pytest.raises(ValueError, match='There is no seed'): f(volume, spot(volume))
    with pytest.raises(ValueError, match='another grid.*shape'): f(volume, spot(volume[:2], (0, 0)))
    shifted = Volume(spot(volume, (0, 0)).data, np.diag([2., 1, 1]))
    with pytest.raises(ValueError, match='another grid'): f(volume, shifted)
    with pytest.raises(TypeError, match='Seeds are a ndarray'): f(volume, np.ones((1, 3, 4)))
    with pytest.raises(ValueError, match='float64'): f(volume, volume)
    below = volume.new(-spot(volume, (0, 0)).data.int())
    with pytest.raises(ValueError, match='labels from 0'): f(volume, below)
    blind = Volume(np.array([[[np.nan, 1.]]]))
    with pytest.raises(ValueError, match='got 1 where it is not'): f(blind, spot(blind, (0, 0)))


def test_bad_numbers_are_refused():
    volume = Volume(np.arange(12.).reshape(1, 3, 4))
    for bad in (-1., np.nan):
        with pytest.raises(ValueError, match='tolerance'): region_growing(volume, spot(volume, (0, 0)), bad)
        with pytest.raises(ValueError, match='tolerance'): split_merge(volume, tolerance=bad)
        with pytest.raises(ValueError, match='least'): drop_small(spot(volume, (0, 0)), bad)
    with pytest.raises(ValueError, match='k=1'): split_merge(volume, 1)
    with pytest.raises(ValueError, match='n=0'): largest(spot(volume, (0, 0)), 0)
    with pytest.raises(TypeError, match='whole numbers'): largest(volume)


# ---- split and merge

@often
@given(seeds, dims, st.sampled_from((0., 1., 3.)), st.sampled_from((0., .2)))
def test_blocks_are_those_of_the_recursion(seed, n, tolerance, nan):
    x = scene(seed, n, nan=nan)[0].numpy()[0]
    got, want = blocks(x, tolerance), even_blocks(x, tolerance)
    pairs = np.unique(np.stack([got.ravel(), want.ravel()]), axis=1).shape[1]
    assert pairs == len(np.unique(got)) == len(np.unique(want))


@often
@given(seeds, dims, st.sampled_from((0., 1., 3.)), st.sampled_from((0., .2)))
def test_merged_neighbors_differ_and_parts_stay_whole(seed, n, tolerance, nan):
    x = scene(seed, n, nan=nan)[0].numpy()[0]
    tree = blocks(x, tolerance)
    parts, mean = merged(x, tree, tolerance)
    assert ((parts == 0) == np.isnan(x)).all()
    for k in np.unique(parts[parts > 0]): assert mean[k] == pytest.approx(x[parts == k].mean())
    for k in np.unique(tree): assert len(np.unique(parts[(tree == k) & ~np.isnan(x)])) <= 1
    a, b = borders(parts)
    assert not len(a) or abs(mean[a] - mean[b]).min() > tolerance


def test_merging_takes_the_more_similar_neighbor():
    x = np.array([[0., 0, 4, 6, 6]])
    parts, mean = merged(x, np.array([[0, 0, 1, 2, 2]]), 4.5)
    assert parts[0, 2] == parts[0, 3] != parts[0, 0]


def test_split_and_merge_is_otsu_where_regions_are_even_and_beats_it_in_noise():
    clean = Volume(np.kron([[1., 5], [9, 5]], np.ones((8, 8)))[None])
    assert torch.equal(split_merge(clean, tolerance=0.).data, otsu(clean).data)
    assert split_merge(clean, k=3, tolerance=0.).data[0, ::8, ::8].tolist() == [[0, 1], [2, 1]]
    for seed in range(3):
        p = phantom('organs', seed=seed, size=64, noise=.2)
        truth = p.mask.new((p.mask.data > 0).byte())
        assert dice(split_merge(p.image, tolerance=.2), truth)[0] > dice(otsu(p.image), truth)[0] + .08


# ---- pieces

def solid(seed, n):
    rng = np.random.default_rng(seed)
    return Volume(rng.integers(0, 4, tuple(rng.integers(1, 7, n)))[None], affine(rng, n))


@often
@given(seeds, dims, st.integers(1, 3))
def test_the_largest_pieces_stay(seed, n, most):
    labels = solid(seed, n)
    x, got = labels.numpy()[0], largest(labels, most).numpy()[0]
    assert ((got == x) | (got == 0)).all()
    for k in range(1, 4):
        sizes = sorted(np.bincount(ndimage.label(x == k)[0].ravel())[1:])[::-1][:most]
        assert sorted(np.bincount(ndimage.label(got == k)[0].ravel())[1:])[::-1] == sizes


@often
@given(seeds, dims)
def test_small_pieces_go_by_their_volume(seed, n):
    labels = solid(seed, n)
    voxel = np.prod(labels.spacing)/(1000 if n == 3 else 1)
    assert voxel_size(labels) == pytest.approx(voxel)
    x, got = labels.numpy()[0], drop_small(labels, 3*voxel).numpy()[0]
    for k in range(1, 4):
        parts, _ = ndimage.label(x == k)
        want = (np.bincount(parts.ravel()) >= 3)[parts] & (parts > 0)
        assert ((got == k) == want).all()


def test_holes_are_those_of_one_label_and_go_to_the_inner_one():
    for n in (2, 3):
        x = np.zeros((9,)*n, np.int16)
        for k, (lo, hi) in zip((300, 0, 2, 0), ((1, 8), (2, 7), (3, 6), (4, 5))): x[(slice(lo, hi),)*n] = k
        y = fill_holes(Volume(x[None]))
        assert y.data.dtype == torch.int16 and (y.numpy()[0][(4,)*n], y.numpy()[0][(2,)*n]) == (2, 300)
        assert (y.numpy()[0] > 0).sum() == 7**n and y.numpy()[0][(3,)*n] == 2
    open_ = np.ones((5, 5), int)
    open_[2, 2:] = 0
    assert torch.equal(fill_holes(Volume(open_[None])).data, Volume(open_[None]).data)


@pytest.mark.parametrize('f', [largest, lambda v: drop_small(v, 0.), lambda v: drop_small(v, 1e9),
                               fill_holes])
def test_cleaning_keeps_type_grid_and_input_and_takes_no_labels(f):
    for dtype in (torch.bool, torch.uint8, torch.int64):
        labels = Volume((torch.arange(24).reshape(1, 4, 6) % 5 > 1).to(dtype), np.diag([2., 3, 1]))
        before = labels.data.clone()
        out = f(labels)
        assert out.data.dtype == dtype and torch.equal(labels.data, before) and out.spacing == labels.spacing
        assert not f(labels.new(torch.zeros_like(before))).data.any()


def test_pieces_are_numbered_by_label():
    parts, kinds, sizes = pieces(Volume(np.array([[[5, 0, 2, 2, 5, 5]]])))
    assert kinds.tolist() == [0, 2, 5, 5] and sizes.tolist() == [1, 2, 1, 2]
    assert parts.tolist() == [[2, 0, 1, 1, 3, 3]]
