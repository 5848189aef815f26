"k-means against scikit-learn, the exact lines of multi-Otsu, slow loops and changes that must not matter."
import tracemalloc

import numpy as np
import pytest
import torch
from grids import affine, often, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import minibatch_loop
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from medseg_nb.classic.kmeans import (
    around, dark_first, features, fit, kmeans, lloyd, minibatch, moved, nearest, plusplus, totals)
from medseg_nb.classic.threshold import cuts, multi_otsu
from medseg_nb.data.volume import Volume


def blobs(rng, n=300, k=4, d=2):
    "Overlapping clouds of points"
    return rng.normal(rng.uniform(-5, 5, (k, d))[rng.integers(k, size=n)], rng.uniform(.2, 2))


def exact(x, k):
    "The smallest objective of k groups of numbers, from the lines of multi-Otsu"
    levels, counts = np.unique(x, return_counts=True)
    lines = cuts(levels, counts, k)
    groups = np.split(np.repeat(levels, counts), np.cumsum(counts)[lines])
    return sum(((g - g.mean())**2).sum() for g in groups)


# ---- Lloyd

@given(seeds, st.integers(2, 6), st.integers(1, 4))
@often
def test_lloyd_is_scikit_learns(seed, k, d):
    rng = np.random.default_rng(seed)
    x = blobs(rng, d=d)
    start = x[rng.choice(len(x), k, replace=False)]
    centers, labels, objective = lloyd(x, start)
    theirs = KMeans(k, init=start, n_init=1, tol=0, algorithm='lloyd').fit(x)
    np.testing.assert_allclose(centers, theirs.cluster_centers_, atol=1e-9)
    assert (labels == theirs.labels_).all() and np.isclose(objective[-1], theirs.inertia_)


@given(seeds, st.integers(2, 9))
@often
def test_the_objective_never_rises_even_from_the_worst_starts(seed, k):
    rng = np.random.default_rng(seed)
    x = blobs(rng).round()
    start = np.repeat(rng.uniform(-99, 99, (1, 2)), k, 0)
    centers, labels, objective = lloyd(x, start)
    assert (np.diff(objective) <= 1e-9*objective[0]).all()
    assert np.isclose(objective[-1], ((x - centers[labels])**2).sum())
    assert len(np.unique(labels)) == k


def test_lloyd_ends_where_groups_and_means_agree():
    x = blobs(np.random.default_rng(0))
    centers, labels, _ = lloyd(x, x[:5])
    np.testing.assert_allclose(centers, [x[labels == j].mean(0) for j in range(5)])
    assert (nearest(x, centers)[0] == labels).all()


def test_an_empty_group_takes_the_voxel_that_is_worst_off():
    x = np.array([[0.], [1.], [9.]])
    labels, d2 = nearest(x, np.array([[0.], [50.], [60.]]))
    assert moved(x, labels, d2, np.array([[0.], [50.], [60.]]))[:, 0].tolist() == [10/3, 9, 1]


@pytest.mark.parametrize('room', [1, 7, 100, 10**6])
def test_distances_by_the_stretch_are_those_at_once(room):
    rng = np.random.default_rng(room)
    x, centers = rng.normal(size=(50, 3)), rng.normal(size=(7, 3))
    table = ((x[:, None] - centers)**2).sum(-1)
    labels, d2 = nearest(x, centers, room)
    assert (labels == table.argmin(1)).all()
    np.testing.assert_allclose(d2, table.min(1))


def test_memory_is_bounded():
    x = np.random.default_rng(0).normal(size=(400_000, 2))
    tracemalloc.start()
    lloyd(x, x[:100], rounds=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6 < len(x)*100*8


# ---- starts

def test_plusplus_draws_by_squared_distance():
    x = np.array([[0., 0], [1, 0], [0, 2], [3, 4], [3, 4]])
    rng, n = np.random.default_rng(0), 20_000
    seen = np.zeros((5, 5))
    for _ in range(n):
        a, b = plusplus(x, 2, rng)
        seen[np.flatnonzero((x == a).all(1))[0], np.flatnonzero((x == b).all(1))[0]] += 1
    first = np.array([1, 1, 1, 2, 0])/5
    d2 = ((x[:, None] - x)**2).sum(-1)
    p = first[:, None]*d2/d2.sum(1, keepdims=True)
    p[:, 3] += p[:, 4]
    p[:, 4] = 0
    assert (seen[p == 0] == 0).all()
    some = p > 0
    chi2 = ((seen[some] - n*p[some])**2/(n*p[some])).sum()
    assert chi2 < 32 # 11 degrees of freedom: one in a thousand


@given(seeds, st.integers(2, 6))
@often
def test_plusplus_keeps_its_promise(seed, k):
    x = blobs(np.random.default_rng(seed), n=60, d=1)
    best = exact(x[:, 0], k)
    starts = [nearest(x, plusplus(x, k, np.random.default_rng(i)))[1].sum() for i in range(30)]
    assert best*(1 - 1e-9) <= min(starts) and np.mean(starts) <= 8*(np.log(k) + 2)*best


def test_plusplus_stops_when_points_run_out():
    x = np.array([[1.], [1.], [2.], [5.]])
    for i in range(20):
        assert sorted(plusplus(x, 9, np.random.default_rng(i))[:, 0]) == [1, 2, 5]


@given(seeds, st.integers(2, 5))
@often
def test_no_start_beats_the_exact_lines_and_the_best_of_many_reaches_them(seed, k):
    x = blobs(np.random.default_rng(seed), n=80, d=1).round(1)
    best = exact(x[:, 0], k)
    scores = [fit(x, k, 1, seed=i)[0] for i in range(8)]
    assert min(scores) >= best*(1 - 1e-9) - 1e-9
    assert fit(x, k, 40)[0] <= best*1.02 + 1e-9


def test_fit_keeps_the_best_start():
    x = blobs(np.random.default_rng(3), k=9)
    rng = np.random.default_rng(5)
    each = [lloyd(x, plusplus(x, 9, rng))[2][-1] for _ in range(6)]
    assert fit(x, 9, 6, seed=5)[0] == min(each) < max(each)


# ---- mini-batches

@given(seeds, st.integers(1, 40))
@often
def test_a_batch_at_once_is_one_voxel_at_a_time(seed, batch):
    x = blobs(np.random.default_rng(seed))
    fast = minibatch(x, x[:4], batch, np.random.default_rng(seed), rounds=9)
    slow = minibatch_loop(x, x[:4], batch, np.random.default_rng(seed), 9)
    np.testing.assert_allclose(fast, slow, atol=1e-9)


def test_batches_come_near_the_minimum_and_leave_the_start_alone():
    x = blobs(np.random.default_rng(1), n=20_000)
    start = x[:4].copy()
    minibatch(x, start, 100, np.random.default_rng(0))
    assert (start == x[:4]).all()
    full, few = fit(x, 4, 4)[0], fit(x, 4, 4, batch=200)[0]
    assert full*(1 - 1e-9) <= few < 1.05*full


# ---- features

def test_the_neighborhood_is_in_mm():
    def bump(spacing, n=61): # the same smooth scene on finer voxels
        at = [(np.arange(round(n/s)) + .5)*s - n/2 for s in spacing]
        r2 = sum(v**2 for v in np.meshgrid(*at, indexing='ij'))
        return np.exp(-r2/2/36)
    for spacing in ((1, 1), (.5, 1), (1, .25), (.5, .5)):
        x = bump(spacing)
        seen = around(x, x > -1, 4., spacing)
        assert abs(seen.max() - 36/(36 + 16)) < .01


def test_the_neighborhood_skips_what_is_not_there():
    x = np.full((20, 20), 7.)
    there = np.random.default_rng(0).random((20, 20)) > .4
    np.testing.assert_allclose(around(np.where(there, x, np.nan), there, 2., (1, 1))[there], 7)


def test_positions_are_in_mm_and_count_by_their_weight():
    image = Volume(np.zeros((1, 4, 5)), np.diag([2., 3., 1]))
    x, _ = features(image, place=.5)
    assert x.shape == (20, 3) and x[:, 1].max() == .5*2*3 and x[:, 2].max() == .5*3*4


@given(seeds, st.floats(.01, 1000), st.floats(-1000, 1000))
@often
def test_unit_and_offset_of_each_channel_do_not_matter(seed, gain, offset):
    image = Volume(np.random.default_rng(seed).integers(0, 200, (2, 6, 7)).astype(float))
    other = image.data.clone()
    other[1] = other[1]*gain + offset
    for o in (dict(), dict(sigma=1.5), dict(place=.2)):
        np.testing.assert_allclose(features(image, **o)[0], features(image.new(other), **o)[0], atol=1e-6)


# ---- the segmenter

@pytest.mark.parametrize('k', [2, 3, 4])
def test_one_channel_is_multi_otsu(k):
    x = np.random.default_rng(k).normal(np.repeat([20, 90, 150, 220], 100), 9).clip(0, 255).astype('uint8')
    image = Volume(x.reshape(1, 20, 20))
    assert (kmeans(image, k, starts=20).data == multi_otsu(image, k).data).all()


def test_three_channels_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=(16, 16))
    x = rng.normal(np.array([[10, 90, 30], [40, 20, 80], [90, 50, 10]])[:, truth], 5)
    mine = kmeans(Volume(x), 3).data[0].numpy()
    z = (x/x.std((1, 2), keepdims=True)).reshape(3, -1).T
    theirs = KMeans(3, n_init=10, random_state=0).fit(z)
    assert adjusted_rand_score(mine.ravel(), theirs.labels_) == 1
    assert np.all(np.diff([x[0][mine == i].mean() for i in range(3)]) > 0)


@given(seeds, st.integers(2, 3))
@often
def test_groups_run_from_dark_to_bright(seed, dims):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 8, dims))
    image = Volume(rng.normal(size=(2, *shape)), affine(rng, dims))
    groups = kmeans(image, 4, sigma=1., place=.1, starts=1, seed=seed)
    means = [image.data[0][groups.data[0] == i].mean().item() for i in range(int(groups.data.max()) + 1)]
    assert (np.diff(means) > 0).all()


def test_dark_first_leaves_no_number_out():
    assert dark_first(np.array([9., 1, 5]), np.array([7, 3, 0])).tolist() == [2, 0, 1]


def test_fewer_levels_than_groups_get_one_each():
    few = Volume(np.array([[[9, 9, 2], [2, 5, 5]]]))
    for k in (3, 4, 255): assert kmeans(few, k).data.tolist() == [[[2, 2, 0], [0, 1, 1]]]


def test_same_seed_same_labels_and_another_seed_may_differ():
    image = Volume(np.random.default_rng(0).normal(size=(1, 30, 30)))
    def once(seed): return kmeans(image, 9, starts=1, seed=seed).data
    assert torch.equal(once(1), once(1))
    assert any(not torch.equal(once(1), once(i)) for i in range(2, 6))


def test_far_position_cuts_the_image_into_cells():
    flat = Volume(np.random.default_rng(0).normal(size=(1, 8, 40)), np.diag([1., 1, 1]))
    cells = kmeans(flat, 2, place=100.).data[0]
    assert all(len(column.unique()) == 1 for column in cells.T[:15]) and len(cells.unique()) == 2
    thin = Volume(flat.data, np.diag([9., 1, 1])) # 72 mm high and 40 mm wide: now the rows part
    assert all(len(row.unique()) == 1 for row in kmeans(thin, 2, place=100.).data[0][:2])


def test_wrong_knobs_are_refused():
    image = Volume(np.random.default_rng(0).normal(size=(1, 5, 5)))
    for o, said in ((dict(k=1), 'k=1 groups'), (dict(k=2.5), 'k=2.5'), (dict(k=256), '2 to 255'),
                    (dict(sigma=-1), 'sigma=-1'), (dict(place=np.nan), 'place=nan'),
                    (dict(sigma=np.inf), "sigma=inf"), (dict(starts=0), "starts=0"),
                    (dict(batch=-5), "batch=-5")):
        with pytest.raises(ValueError, match=said): kmeans(image, **o)


def test_nothing_finite_is_lost_or_used():
    image = np.random.default_rng(0).normal(np.repeat([0, 8], 50).reshape(10, 10), 1)[None]
    holes = image.copy()
    holes[0, 3, 3], holes[0, :, 9], holes[0, 7, 1] = np.inf, np.nan, -np.inf
    groups = kmeans(Volume(holes), 2, sigma=.4).data[0].numpy()
    bad = ~np.isfinite(holes[0])
    assert not groups[bad].any() and (groups[~bad] == np.repeat([0, 1], 50).reshape(10, 10)[~bad]).all()


def test_totals_count_and_sum():
    n, total = totals(np.array([[1., 2], [3, 4], [5, 6]]), np.array([0, 2, 0]), 3)
    assert n.tolist() == [[2], [0], [1]] and total.tolist() == [[6, 8], [0, 0], [3, 4]]
