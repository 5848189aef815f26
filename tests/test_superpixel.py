"Superpixels against loops, scikit-image, all choices of regions, and grids that must not matter."
import itertools

import numpy as np
import pytest
import torch
from grids import affine, often, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import merged_by_scanning, region_graph
from scipy import ndimage
from skimage import graph, measure
from skimage.segmentation import slic

from medseg_nb.classic.superpixel import (
    best_dice, boundary_recall, filled, joins, merge, neighbors, oracle, pool, regions, slic_labels,
    superpixels, undersegmentation, unpool, votes)
from medseg_nb.classic.threshold import multi_otsu
from medseg_nb.data.phantom import phantom
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.overlap import dice

dims = st.sampled_from((2, 3))


def mosaic(seed, dims, holes=True):
    "Random numbers and random regions, with gaps in their numbering, on a random grid"
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7 if dims == 3 else 10, dims))
    x, where = rng.normal(50, 20, shape), affine(rng, dims)
    if holes: x[rng.random(shape) < .1] = np.nan
    if np.isnan(x).all(): x.flat[0] = 1
    return Volume(x[None], where), Volume(rng.choice([0, 1, 2, 3, 5, 8, 9], shape)[None], where)


def noise(shape, spacing=None, seed=0):
    x = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    return Volume(x[None], None if spacing is None else np.diag([*spacing, 1]))


def find(labels):
    "Where a step down leads into another region"
    return labels[1:] != labels[:-1]


# ---- SLIC

def test_slic_is_scikit_images_where_a_step_is_a_whole_number_of_voxels():
    volume = noise((60, 80))
    x = volume.numpy()[0]
    x = (x - x.min())/np.ptp(x)
    low, high = np.percentile(x, (1, 99))
    found = slic_labels(volume, 10., .3).data[0].numpy()
    wanted = measure.label(slic(x, 48, .3*(high - low), channel_axis=None), connectivity=1)
    assert (found == wanted).all() and found.max() > 20


@given(seeds, dims)
@often
def test_every_region_is_connected_and_numbered_without_gaps(seed, dims):
    rng = np.random.default_rng(seed)
    volume = Volume(rng.random((1, *rng.integers(1, 9, dims))), affine(rng, dims))
    volume.data[torch.from_numpy(rng.random(volume.data.shape) < .1)] = torch.nan
    if not volume.data.isfinite().any(): return
    labels = slic_labels(volume, float(rng.uniform(.5, 9)), float(rng.uniform(.05, 2))).data[0].numpy()
    assert ((labels == 0) == ~np.isfinite(volume.numpy()[0])).all()
    assert set(np.unique(labels)) - {0} == set(range(1, labels.max() + 1))
    assert all(ndimage.label(labels == k)[1] == 1 for k in range(1, labels.max() + 1))


@pytest.mark.parametrize('scale', [.5, 3.])
def test_size_is_in_mm(scale):
    volume = noise((40, 50, 20))
    scaled = Volume(volume.data, np.diag([scale]*3 + [1]))
    assert torch.equal(slic_labels(volume, 8.).data, slic_labels(scaled, 8*scale).data)


@pytest.mark.parametrize('spacing', [(1, 1, 4), (5, .9, 1), (1, 3, 1)])
def test_supervoxels_are_as_long_along_thick_axes(spacing):
    volume = noise([int(48/s) for s in spacing], spacing)
    boxes = ndimage.find_objects(slic_labels(volume, 12., 5.).data[0].int().numpy())
    length = np.mean([[(s.stop - s.start)*d for s, d in zip(b, spacing)] for b in boxes], 0)
    assert length.max()/length.min() < 1.5 and 9 < length.mean() < 18, length


def test_number_follows_the_size():
    for shape in ((64, 64), (64, 64, 1), (1, 64, 64)):
        volume = noise(shape)
        assert abs(slic_labels(volume, 8., 5.).data.max().item() - 64) < 10
    assert slic_labels(volume, 1e6).data.max() == 1
    assert slic_labels(noise((6, 7)), .1).data.max() == 42


@pytest.mark.parametrize('change', [lambda x: x*1000 - 500, lambda x: x*1e-6])
def test_units_do_not_matter(change):
    volume = noise((40, 40))
    other = volume.new(change(volume.data))
    assert torch.equal(slic_labels(volume, 5.).data, slic_labels(other, 5.).data)
    assert torch.equal(superpixels(volume, 5.).data, superpixels(other, 5.).data)


def test_one_hot_voxel_does_not_flatten_the_rest():
    volume = noise((60, 60))
    hot = volume.new(volume.data.clone())
    hot.data[0, 0, 0] = 1000
    a, b = (slic_labels(v, 6.).data[0, 20:, 20:].numpy() for v in (volume, hot))
    assert (find(a) == find(b)).mean() > .97


def test_a_few_voxels_on_an_empty_ground_need_no_unit():
    x = np.zeros((1, 60, 60))
    x[0, 20:22, 30:32], x[0, 40:44, 10:13] = 1e-3, 2e-3
    labels = slic_labels(Volume(x), 8.)
    assert torch.equal(labels.data, slic_labels(Volume(x*1e6), 8.).data)
    assert len(labels.data[0, 40:44, 10:13].unique()) == 1


def test_a_thick_slice_is_three_thin_ones():
    thick = noise((24, 24, 8), (1, 1, 3))
    thin = Volume(thick.data.repeat_interleave(3, -1))
    a, b = slic_labels(thick, 6., .5).numpy()[0], slic_labels(thin, 6., .5).numpy()[0, ..., 1::3]
    assert (find(a) == find(b)).mean() > .97


def test_holes_hold_what_is_nearest_in_mm():
    x, holes = np.arange(9.).reshape(3, 3), np.zeros((3, 3), bool)
    holes[1, 1] = True
    assert filled(x, holes, (1., 3.))[1, 1] in (1, 7) and filled(x, holes, (3., 1.))[1, 1] in (3, 5)
    both = filled(np.stack([x, -x]), holes, (1., 3.))
    assert both[0, 1, 1] == -both[1, 1, 1] in (1, 7) and (both[0] == x).sum() == 8
    assert filled(x, holes | True, (1., 1.)) is x and filled(x, holes & False, (1., 1.)) is x


@pytest.mark.parametrize('spacing', [(1, 1, 4), (1, 3, 1), (5, .9, 1)])
def test_thick_slices_leave_no_crumbs(spacing):
    x = np.random.default_rng(2).random((1, *(int(30/s) for s in spacing)))
    n = np.bincount(slic_labels(Volume(x, np.diag([*spacing, 1.])), 6.).numpy().ravel())[1:]
    assert len(n) > 10 and n.min() > .2*6**3/np.prod(spacing)


def test_slices_of_nan_leave_the_rest_alone():
    volume = noise((40, 40, 12))
    volume.data[:, :, :, 5] = torch.nan
    labels = slic_labels(volume, 5.)
    assert (labels.data[..., 5] == 0).all() and labels.data.max() > 100
    assert not set(labels.data[..., :5].unique().tolist()) & set(labels.data[..., 6:].unique().tolist())


def test_bad_knobs_are_refused():
    for size in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match='mm, wanted more than 0'): slic_labels(noise((8, 8)), size)
    with pytest.raises(ValueError, match='compactness=0'): slic_labels(noise((8, 8)), 4., 0)
    with pytest.raises(ValueError, match='k=1 groups'): superpixels(noise((8, 8)), k=1)


def test_channels_are_weighed_by_their_own_range():
    rng = np.random.default_rng(2)
    x = np.stack([ndimage.gaussian_filter(rng.random((60, 80)), 1.5) for _ in range(3)])
    x = np.stack([(c - c.min())/np.ptp(np.percentile(c, (1, 99))) for c in x])
    top = np.ptp(x)
    wanted = slic(np.moveaxis(x, 0, -1), 48, .4/top, convert2lab=False)
    wanted = measure.label(wanted, connectivity=1)
    found = slic_labels(Volume(x*np.array([1, 1000, .01])[:, None, None] - 5), 10., .4).data[0].numpy()
    assert (found == wanted).mean() > .999 and found.max() > 20
    alone = slic_labels(Volume(x[:1]), 10., .4).data[0].numpy()
    assert (find(found) != find(alone)).any()


def test_an_edge_in_any_channel_is_followed():
    x = np.zeros((2, 40, 40))
    x[0, :, 13:], x[1, 27:] = 1, 50
    labels = slic_labels(Volume(x), 10., .2).data[0].numpy()
    parts = (np.arange(40) >= 13) + 2*(np.arange(40) >= 27)[:, None]
    assert all(len(set(parts[labels == k].tolist())) == 1 for k in range(1, labels.max() + 1))


def test_a_hole_in_one_channel_is_a_hole():
    x = np.random.default_rng(0).random((2, 20, 20))
    x[1, 4, 5] = np.nan
    assert slic_labels(Volume(x), 5.).data[0, 4, 5] == 0
    x[0, 4, 5] = 1e9
    assert torch.equal(slic_labels(Volume(x), 5.).data, slic_labels(Volume(np.where(x > 1, 0, x)), 5.).data)


# ---- pooling

@given(seeds, dims)
@often
def test_pooling_is_scipys_mean(seed, dims):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7, dims))
    x, labels = rng.normal(size=(2, 3, *shape)), rng.choice([0, 1, 2, 5], (2, *shape))
    means = pool(torch.from_numpy(x), torch.from_numpy(labels))
    assert means.shape == (2, 3, labels.max() + 1)
    back = unpool(means, torch.from_numpy(labels))
    assert back.shape == x.shape
    for b, c, r in itertools.product(range(2), range(3), range(labels.max() + 1)):
        here = labels[b] == r
        wanted = ndimage.mean(x[b, c], labels[b], r) if here.any() else 0
        np.testing.assert_allclose(means[b, c, r], wanted, atol=1e-12)
        np.testing.assert_allclose(back[b, c][here], means[b, c, r])


def test_pooling_has_gradients():
    x = torch.rand(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(24).view(2, 3, 4) % 5
    assert torch.autograd.gradcheck(lambda x: unpool(pool(x, labels), labels), x)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.uint8, torch.int64])
def test_pooling_counts_and_sums_in_enough_digits(dtype):
    x, labels = torch.full((1, 1, 300, 300), 100).to(dtype), torch.ones(1, 300, 300, dtype=torch.uint8)
    means = pool(x, labels)
    assert means.dtype == torch.float32 and means.tolist() == [[[0, 100]]]


def test_pooling_keeps_holes_to_themselves():
    x = torch.tensor([[[[1., torch.nan, 5]]]])
    means = pool(x, torch.tensor([[[1, 0, 1]]]))
    assert means[0, 0, 1] == 3 and means[0, 0, 0].isnan()


def test_pooling_wants_one_labeling_an_image():
    for shape in ((4, 5), (1, 4, 5), (2, 4, 6), (2, 3, 4, 5)):
        with pytest.raises(ValueError, match='wanted .B,C,.S. and .B,.S.'):
            pool(torch.zeros(2, 3, 4, 5), torch.zeros(shape, dtype=torch.int64))


# ---- the graph

@given(seeds, dims)
@often
def test_graph_is_that_of_a_loop(seed, dims):
    volume, labels = mosaic(seed, dims)
    r = np.where(np.isnan(volume.numpy()[0]), 0, labels.numpy()[0])
    found, size = neighbors(volume, labels), np.array(volume.spacing)
    wanted = region_graph(volume.numpy()[0], r, np.prod(size)/size)
    assert set(zip(found.a, found.b)) == set(wanted)
    for row in found.itertuples():
        np.testing.assert_allclose([row.border, row.difference], wanted[row.a, row.b], rtol=1e-9, atol=1e-9)


@given(seeds, dims)
@often
def test_regions_are_counted_and_measured(seed, dims):
    volume, labels = mosaic(seed, dims)
    x, r = volume.numpy()[0], labels.numpy()[0]
    table = regions(volume, labels)
    for k in range(1, 10):
        inside = x[(r == k) & np.isfinite(x)]
        assert (k in table.index) == (inside.size > 0)
        if inside.size:
            mm = inside.size*np.prod(volume.spacing)
            np.testing.assert_allclose(table.loc[k], [inside.size, mm, inside.mean()])


def test_graph_is_scikit_images():
    volume = noise((40, 40))
    labels = slic_labels(volume, 5.)
    theirs = graph.rag_mean_color(volume.numpy()[0], labels.numpy()[0].astype(int), connectivity=1)
    ours = neighbors(volume, labels)
    assert {tuple(sorted(e)) for e in theirs.edges} == set(zip(ours.a, ours.b))
    three_channels = [theirs[a][b]['weight'] for a, b in zip(ours.a, ours.b)]
    np.testing.assert_allclose(ours.difference*3**.5, three_channels)


def test_faces_of_a_sheared_grid():
    volume = Volume(np.zeros((1, 2, 1)), np.array([[2., 1, 0], [0, 3, 0], [0, 0, 1]]))
    labels = Volume(np.array([[[1], [2]]]), volume.affine)
    np.testing.assert_allclose(neighbors(volume, labels).border, np.hypot(1, 3))
    np.testing.assert_allclose(regions(volume, labels)['size'], 6)


def test_one_region_has_no_neighbors():
    volume = noise((5, 6))
    assert len(neighbors(volume, volume.new(torch.ones(1, 5, 6, dtype=torch.int64)))) == 0
    assert len(regions(volume, volume.new(torch.zeros(1, 5, 6, dtype=torch.int64)))) == 0


def test_labels_of_another_grid_are_refused():
    volume, labels = noise((6, 6)), Volume(np.ones((1, 6, 6), int), np.diag([2., 1, 1]))
    for f in (regions, neighbors, votes, oracle, boundary_recall):
        with pytest.raises(ValueError, match='another grid'): f(volume, labels)


# ---- merging

def same_parts(a, b):
    "Whether two labelings are one up to names"
    pairs = set(zip(a.ravel().tolist(), b.ravel().tolist()))
    return len(pairs) == len({p for p, _ in pairs}) == len({q for _, q in pairs})


@given(seeds, dims, st.sampled_from([dict(until=5.), dict(until=20.), dict(k=1), dict(k=3)]))
@often
def test_merging_is_that_of_scanning_all_pairs(seed, dims, stop):
    volume, labels = mosaic(seed, dims)
    r = np.where(np.isnan(volume.numpy()[0]), 0, labels.numpy()[0])
    found = merge(volume, labels, **stop).numpy()[0]
    assert same_parts(found, merged_by_scanning(volume.numpy()[0], r, **stop))
    assert set(np.unique(found)) - {0} == set(range(1, found.max() + 1))


def test_merging_superpixels_is_that_of_scanning():
    volume = noise((30, 30), seed=3)
    labels = slic_labels(volume, 5.)
    for stop in (dict(k=6), dict(until=.02)):
        wanted = merged_by_scanning(volume.numpy()[0], labels.numpy()[0].astype(int), **stop)
        assert same_parts(merge(volume, labels, **stop).numpy()[0], wanted)


def test_merging_stops_where_it_should():
    volume = noise((50, 50))
    labels = slic_labels(volume, 4.)
    n = labels.data.max().item()
    done = merge(volume, labels, until=.05)
    assert neighbors(volume, done).difference.min() >= .05 and 1 < done.data.max() < n
    assert [merge(volume, labels, k=k).data.max().item() for k in (1, 7, n, 9999)] == [1, 7, n, n]
    assert same_parts(merge(volume, labels, until=0).numpy(), labels.numpy())
    steps = Volume(np.array([[[0., 2, 4, 5]]]))
    parts = steps.new(torch.tensor([[[1, 2, 3, 4]]]))
    assert merge(steps, parts, until=1.).data.tolist() == parts.data.tolist()
    assert merge(steps, parts, until=1.01).data.tolist() == [[[1, 2, 3, 3]]]
    assert len(joins(regions(volume, labels), neighbors(volume, labels), k=7)) == n - 7


def test_parts_that_do_not_touch_stay_apart():
    x = torch.ones(1, 5, 5)
    x[0, 2] = torch.nan
    volume, labels = Volume(x), Volume(torch.arange(1, 26).view(1, 5, 5))
    assert merge(volume, labels, k=1).data.max() == 2


def test_merging_wants_one_rule():
    volume = noise((6, 6))
    for stop in (dict(), dict(until=1., k=3)):
        with pytest.raises(ValueError, match='wanted one of them'): merge(volume, slic_labels(volume), **stop)
    with pytest.raises(ValueError, match='k=0'): merge(volume, slic_labels(volume), k=0)


# ---- the bound

@given(seeds)
@often
def test_bounds_are_those_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    labels, truth = Volume(rng.integers(0, n + 1, (1, 5, 6))), Volume(rng.integers(-1, 3, (1, 5, 6)))
    seen = truth.data >= 0
    right, best = 0, 0.
    for choice in itertools.product(range(3), repeat=n):
        pred = torch.tensor([0, *choice])[labels.data]
        right = max(right, (pred == truth.data)[seen].sum().item())
        best = max(best, np.nan_to_num(dice(Volume(pred), truth)[0]))
    assert (oracle(labels, truth).data == truth.data)[seen].sum() == right
    found = best_dice(labels, truth)
    np.testing.assert_allclose(found, best if (truth.data == 1).any() else np.nan)


def test_without_regions_nothing_is_reached():
    none, truth = Volume(np.zeros((1, 3, 4), int)), Volume(np.ones((1, 3, 4), int))
    assert best_dice(none, truth) == 0 and (oracle(none, truth).data == 0).all()


def test_no_segmenter_beats_the_bound_on_its_own_regions():
    for seed in range(4):
        tree = phantom('vessels', seed=seed, size=96, noise=.12)
        for size in (3., 8.):
            most = best_dice(slic_labels(tree.image, size), tree.mask)
            assert dice(superpixels(tree.image, size, 2), tree.mask)[0] <= most + 1e-12
            assert dice(oracle(slic_labels(tree.image, size), tree.mask), tree.mask)[0] <= most + 1e-12


@given(seeds)
@often
def test_undersegmentation_is_its_formula(seed):
    rng = np.random.default_rng(seed)
    labels, truth = rng.integers(1, 6, (1, 6, 6)), rng.integers(0, 3, (1, 6, 6))
    leak = sum(min(((labels == s) & (truth == g)).sum(), ((labels == s) & (truth != g)).sum())
               for s in range(1, 6) for g in range(3))
    np.testing.assert_allclose(undersegmentation(Volume(labels), Volume(truth)), leak/36)


def test_perfect_regions_leak_nothing():
    tree = phantom('vessels', seed=0, size=64)
    own = tree.mask.new(tree.mask.data.int() + 1)
    assert undersegmentation(own, tree.mask) == 0 and best_dice(own, tree.mask) == 1
    assert boundary_recall(own, tree.mask, 0.) == 1
    assert torch.equal(oracle(own, tree.mask).data, tree.mask.data.byte())


def test_boundary_recall_counts_mm():
    labels = np.ones((1, 10, 20), int)
    labels[..., 13:] = 2
    truth = (np.arange(20) >= 10)*np.ones((1, 10, 1), int)
    for step in (1., 2.5):
        where = np.diag([1, step, 1])
        a, b = Volume(labels, where), Volume(truth, where)
        got = [boundary_recall(a, b, t*step) for t in (1.9, 2, 2.9, 3)]
        assert got == [0, .5, .5, 1]
    assert boundary_recall(a.new(a.data*0 + 1), b) == 0 and np.isnan(boundary_recall(a, a.new(a.data*0)))
    hidden = b.new(torch.where(b.data == 1, -1, 0))
    assert np.isnan(boundary_recall(a, hidden))


# ---- the segmenter

def test_superpixels_calm_noise():
    disk = phantom('disk', seed=4, size=96, noise=.3)
    each, together = multi_otsu(disk.image, 2), superpixels(disk.image, 6., 2, .5)
    assert dice(together, disk.mask)[0] > dice(each, disk.mask)[0] + .05


def test_every_superpixel_has_one_label_and_they_rise():
    volume = noise((40, 40, 10))
    labels, found = slic_labels(volume, 5.), superpixels(volume, 5., 4)
    assert set(found.data.unique().tolist()) == {0, 1, 2, 3}
    assert all(len(found.data[labels.data == k].unique()) == 1 for k in range(1, labels.data.max() + 1))
    means = [volume.data[found.data == g].mean() for g in range(4)]
    assert means == sorted(means)


def test_more_groups_than_superpixels():
    volume = noise((8, 8))
    n = slic_labels(volume, 4.).data.max().item()
    assert superpixels(volume, 4., 200).data.max() < n
