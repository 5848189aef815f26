"Two grids: the same or not, and how they differ."

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from grids import affine, image, often, tilt, volumes
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_nb.data.grid import _border, _orders, check_pair, grid_difference, same_grid
from medseg_nb.data.sets import cases
from medseg_nb.data.volume import Volume


@often
@given(volumes(least=2), st.integers(0, 5))
def test_difference_is_named(case, kind):
    v, rng = case
    n, step = v.ndim, np.eye(v.ndim + 1)
    axis = int(rng.integers(n))
    if kind == 0:
        other, word = v.flip(axis), 'flip'
    elif kind == 1:
        step[axis, n] = rng.choice((-1, 1))*rng.uniform(.01, 20)/v.spacing[axis]
        other, word = Volume(v.data, v.affine@step), 'shift'
    elif kind == 2:
        step[axis, axis] = rng.choice((.8, 1.01, 2))
        other, word = Volume(v.data, v.affine@step), 'spacing'
    elif kind == 3:
        step[:n, :n] = tilt(rng, n, .3)
        if np.linalg.norm(step - np.eye(n + 1)) < .01: return
        other, word = Volume(v.data, step@v.affine), 'rotation'
    elif kind == 4:
        other, word = v[tuple(slice(int(i == axis), None) for i in range(n))], 'shape'
    else:
        other, word = Volume(v.data), 'header only'
    assert word in grid_difference(v, other) and word in grid_difference(other, v)
    assert not same_grid(v, other)
    if kind in (0, 2): assert not any(w in grid_difference(v, other) for w in ('shift', 'rotation'))
    if kind == 1: assert grid_difference(v, other).startswith('shift')
    if kind == 5: assert grid_difference(v, other).startswith('header only')


@often
@given(volumes())
def test_a_micrometer_is_none(case):
    v, rng = case
    way = rng.standard_normal(v.ndim)
    way /= np.linalg.norm(way)
    for mm, same in ((9e-4, True), (1.1e-3, False)):
        moved = v.affine.copy()
        moved[:-1, -1] += way*mm
        assert same_grid(v, Volume(v.data, moved)) == same
        assert bool(grid_difference(v, Volume(v.data, moved))) != same
    assert grid_difference(v, Volume(v.data, v.affine.astype(np.float32))) == ''


@often
@given(volumes())
def test_many_small_differences_are_not_nothing(case):
    v, rng = case
    noise = np.zeros_like(v.affine)
    noise[:-1] = rng.standard_normal(noise[:-1].shape)/[*v.shape, 1]
    far = np.array(list(np.ndindex(*(2,)*v.ndim)))*v.shape - .5
    most = np.linalg.norm(far@noise[:-1, :-1].T + noise[:-1, -1], axis=1).max()
    for mm, same in ((.95e-3, True), (1.05e-3, False)):
        other = Volume(v.data, v.affine + noise*mm/most)
        assert same_grid(v, other) == same and (grid_difference(v, other) == '') == same


def test_a_shorter_volume_is_another_grid():
    shorter = image[:, :, :-1]
    assert not same_grid(image, shorter) and grid_difference(image, shorter).startswith('shape')


def test_dimensions_differ():
    assert grid_difference(Volume(torch.zeros(1, 2, 3)), Volume(torch.zeros(1, 2, 3, 4))).startswith('shape')


def disks(dims, seed, size=None):
    "An image with bright, dark and middling blobs of its own on a ramp, and their labels; nothing symmetric"
    rng = np.random.default_rng(seed)
    size = size or {2: (70, 60), 3: (40, 34, 30)}[dims]
    at = np.stack(np.meshgrid(*map(np.arange, size), indexing='ij'), -1)
    labels = np.zeros(size, int)
    for k, (place, radius) in enumerate(((.3, .2), (.62, .16), (.4, .1)), 1):
        center = np.array(size)*np.roll(np.full(dims, place) + np.arange(dims)*.13, k)
        labels[np.linalg.norm(at - center, axis=-1) < radius*min(size)] = k
    gray = np.array([100, 160, 40, 130])[labels] + at.sum(-1)*.1 + rng.normal(0, 8, size)
    return Volume(gray[None], affine(rng, dims)), labels


kinds_of_damage = ['none', 'reversed', 'exchanged', 'moved', 'header reversed', 'header moved',
                   'header spacing',
                   'bare', 'stored reversed', 'rotated header', 'cut out']


def damaged(image, labels, kind, rng):
    "The mask with one thing wrong, what should be said of it, and what may come back"
    n, mask, step = image.ndim, image.new(torch.from_numpy(labels)[None]), np.eye(image.ndim + 1)
    axis = int(rng.integers(n))
    if kind == 'none': return mask, 'ok'
    if kind == 'reversed': return image.new(mask.data.flip(axis + 1)), 'flip'
    if kind == 'exchanged':
        return Volume(mask.data.transpose(-1, -2).contiguous(), image.affine), 'flip'
    if kind == 'moved': return image.new(mask.data.roll(int(rng.choice((-5, 5))), axis + 1)), 'shift'
    if kind == 'header reversed': return Volume(mask.data, mask.flip(axis).affine), 'flip'
    if kind == 'stored reversed': return mask.flip(axis), 'flip'
    if kind == 'bare': return Volume(mask.data), 'header only'
    if kind == 'cut out': return mask[3:, 2:-1], 'resampled'
    if kind == 'header moved': step[axis, n] = rng.choice((-6, 6))
    if kind == 'header spacing': step[axis, axis] = 1.4
    if kind == 'rotated header':
        step[:n, :n] = turned(n, .3)
        return Volume(mask.data, step@mask.affine), 'rotation'
    return Volume(mask.data, mask.affine@step), kind.split()[1].replace('moved', 'shift')


def turned(n, angle):
    out = np.eye(n)
    out[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return out


@pytest.mark.parametrize('dims', [2, 3])
@pytest.mark.parametrize('kind', kinds_of_damage)
def test_phantoms_are_diagnosed_and_repaired(dims, kind):
    for seed in range(3):
        image, labels = disks(dims, seed)
        broken, word = damaged(image, labels, kind, np.random.default_rng(seed))
        before = broken.data.clone()
        got = check_pair(image, broken)
        assert word in (got.kind,
                        grid_difference(image, broken).split(':')[0]) and got.kind != 'unsure', got.words
        assert same_grid(got.mask, image) and torch.equal(broken.data, before)
        a, b = got.mask.data[0].numpy(), labels
        inner = tuple(slice(6, -6) for _ in range(dims))
        assert (a == b)[inner].mean() > (.93 if kind in ('cut out', 'moved') else .995), got.words


@pytest.mark.parametrize('kind', ['reversed', 'moved', 'none'])
def test_a_word_is_the_kind(kind):
    image, labels = disks(2, 5)
    broken, word = damaged(image, labels, kind, np.random.default_rng(5))
    assert check_pair(image, broken).kind == word


def test_half_a_voxel_is_presumed():
    image, labels = disks(2, 1)
    for by in ((.5, .5), (1, 0), (.5, 0)):
        step = np.eye(3)
        step[:2, 2] = by
        got = check_pair(image, Volume(labels[None], image.affine@step))
        assert got.kind == 'shift' and torch.equal(got.mask.data[0], torch.from_numpy(labels))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]))
def test_noise_accuses_nobody(seed, dims):
    rng = np.random.default_rng(seed)
    size = (24, 20, 14)[:dims]
    _, labels = disks(dims, seed, size)
    image = Volume(rng.normal(0, 1, (1, *size)), affine(rng, dims))
    mask = image.new(torch.from_numpy(labels)[None])
    assert check_pair(image, mask).kind == 'ok'
    other = check_pair(image, mask.flip(0))
    assert other.kind in ('unsure', 'flip') and (other.mask is None) == (other.kind == 'unsure')


@pytest.mark.parametrize('gray',
                         [np.zeros, np.ones, lambda s: np.full(s, np.nan), lambda s: np.full(s, np.inf)])
def test_an_image_without_edges_decides_nothing(gray):
    labels = np.zeros((1, 12, 10), np.uint8)
    labels[0, 2:5, 3:9] = 1
    image = Volume(gray((1, 12, 10)))
    assert check_pair(image, Volume(labels)).kind == 'ok'
    assert 'neither confirm' in check_pair(image, Volume(labels)).words
    got = check_pair(image, Volume(labels, np.diag([1, 2, 1])))
    assert got.kind == 'unsure' and got.mask is None and got.words.startswith('spacing')


@pytest.mark.parametrize('labels', [np.zeros((1, 9, 8, 7)), np.ones((1, 9, 8, 7)), np.full((1, 9, 8, 7), -1)])
def test_a_mask_without_a_border(labels):
    image = Volume(np.random.default_rng(0).random((1, 9, 8, 7)))
    assert check_pair(image, Volume(labels.astype(int))).kind == 'ok'
    assert check_pair(image, Volume(labels.astype(int), np.diag([1, 1, 3, 1]))).kind == 'unsure'


def test_where_nobody_looked_is_no_border():
    image, labels = disks(2, 2)
    labels[:, :30] = -1
    assert check_pair(image, image.new(torch.from_numpy(labels)[None])).kind == 'ok'
    low, high, _ = _border(image.new(torch.from_numpy(labels)[None]))
    assert labels[tuple(low.T)].min() >= 0 and (labels[tuple(low.T)] < labels[tuple(high.T)]).all()


def test_thin_small_and_colored_pairs():
    for shape in ((1, 1, 1), (5, 4, 1), (1, 9, 2), (2, 2, 2)):
        v = Volume(np.random.default_rng(0).random((1, *shape)))
        assert check_pair(v, v.new(v.data > .5)).kind == 'ok'
    image, labels = disks(2, 4)
    color = image.new(image.data*torch.tensor([1., -1, 0])[:, None, None])
    assert check_pair(color, image.new(torch.from_numpy(labels)[None].flip(1))).kind == 'flip'
    with pytest.raises(ValueError, match='3 channels'): check_pair(image, color)
    with pytest.raises(ValueError, match='same axes'): check_pair(image, Volume(torch.zeros(1, 2, 2, 2)))


def test_orders_are_all_the_ways_and_lay_the_box_into_itself():
    for old, new, count in (((3, 4, 5), (3, 4, 5), 8), ((4, 4, 5), (4, 4, 5), 16), ((4, 4, 4), (4, 4, 4), 48),
                            ((3, 4, 5), (5, 4, 3), 8), ((3, 4), (3, 5), 0)):
        ways = dict(_orders(old, new))
        assert len(ways) == count == len({w.tobytes() for w in ways.values()})
        ends = np.array([*np.ndindex(*(2,)*len(old))])*(np.array(old) - 1)
        for way in ways.values():
            at = ends@way[:-1, :-1].T + way[:-1, -1]
            assert (at.min(0) == 0).all() and (at.max(0) == np.array(new) - 1).all()


def film_rows(n):
    "Films that the bars were not set on"
    return [c for i, c in enumerate(cases('chest')) if i%5][::240//n][:n]


def overlap(a, b): return float(2*((a > 0) & (b > 0)).sum()/((a > 0).sum() + (b > 0).sum()))


def test_chest_films():
    named, right = [], []
    for k, c in enumerate(film_rows(6)):
        axis = k%2
        moved = np.eye(3)
        moved[axis, 2] = 6*(-1)**k
        for mask, kind in ((c.mask, 'ok'), (c.mask.new(c.mask.data.flip(axis + 1)), 'flip'),
                           (c.mask.new(c.mask.data.roll(8*(-1)**k, 1)), 'shift'),
                           (Volume(c.mask.data, c.mask.flip(axis).affine), 'flip'),
                           (c.mask.flip(axis), 'flip'), (Volume(c.mask.data, c.mask.affine@moved), 'shift'),
                           (Volume(c.mask.data, np.diag([1.25, 1, 1])), 'spacing')):
            got = check_pair(c.image, mask)
            named.append(got.kind == kind)
            right.append(got.mask is not None and overlap(got.mask.data, c.mask.data) > .9)
            if kind == 'ok': assert named[-1], got.words
    assert np.mean(named) > .95 and np.mean(right) > .97, (np.mean(named), np.mean(right))


def test_a_symmetric_brain_is_unsure_about_sides_only():
    c, = cases('mni152')
    image, mask = c.image[::3, ::3, ::3], c.mask[::3, ::3, ::3]
    assert check_pair(image, mask).kind == 'ok'
    got = check_pair(image, mask.new(mask.data.flip(2)))
    assert got.kind == 'unsure' and got.words.count('axis 1 reversed') >= 2
    up = np.diag([1, 1, 1.3, 1])
    assert check_pair(image, Volume(mask.data, image.affine@up)).kind == 'spacing'


@pytest.mark.skipif('MEDSEG_DATA' not in os.environ, reason='needs MEDSEG_DATA')
def test_hippocampi():
    folder = Path(os.environ['MEDSEG_DATA'])/'hippocampus_msd'
    wrong = alarms = 0
    paths = sorted((folder/'images').glob('*.nii*'))[70::40]
    for k, path in enumerate(paths):
        image, labels = (np.asanyarray(nib.load(p).dataobj)[None] for p in (path, folder/'labels'/path.name))
        image, mask = Volume(image), Volume(labels.astype(np.uint8))
        alarms += check_pair(image, mask).kind != 'ok'
        wrong += check_pair(image, Volume(mask.data, mask.flip(k%3).affine)).kind != 'flip'
        got = check_pair(image, mask.flip(k%3)).mask
        wrong += got is None or not torch.equal(got.data, mask.data)
    assert alarms == 0 and wrong <= 2, (alarms, wrong, len(paths))
