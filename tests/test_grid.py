"Two grids: the same or not, and how they differ."

import numpy as np
import torch
from grids import image, often, tilt, volumes
from hypothesis import given
from hypothesis import strategies as st

from medseg_nb.data.volume import Volume, grid_difference, same_grid


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
