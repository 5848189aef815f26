"The geometry of volumes, against nibabel, SimpleITK and plain loops."
from dataclasses import FrozenInstanceError

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import (
    affine,
    affine_of,
    astray,
    atlas,
    every_dtype,
    indices,
    itk,
    nifti,
    often,
    orders,
    ras_lps,
    seeds,
    some_slices,
    volumes,
)
from hypothesis import given
from hypothesis import strategies as st
from nibabel.processing import resample_from_to
from oracles import resample_by_loops

from medseg_nb.data.grid import same_grid
from medseg_nb.data.volume import Volume


@often
@given(volumes())
def test_place_survives_every_method(case):
    v, rng = case
    v = atlas(v)
    key, order = some_slices(rng, v.shape), rng.permutation(v.ndim)
    pairs = np.array(['LR', 'PA', 'IS'] if v.ndim == 3 else ['rR', 'cC'])[order]
    codes, axis = ''.join(rng.choice(list(pair)) for pair in pairs), int(rng.integers(-v.ndim, v.ndim))
    for moved in (v[key], v.flip(axis), v.reorient(codes), v[key].reorient(codes).flip(0)):
        assert astray(moved) < 1e-9
    assert v.reorient(codes).axcodes == codes
    np.testing.assert_allclose(v.to_voxel(v.to_world(indices(v))), indices(v), atol=1e-9)


@often
@given(volumes(least=4))
def test_place_survives_resampling(case):
    v, rng = case
    v = atlas(v)
    fine = v.resample(tuple(np.array(v.spacing)*rng.uniform(.4, .9, v.ndim)))
    inner = fine[tuple(slice(3, -3) if size > 7 else slice(size//2, size//2 + 1) for size in fine.shape)]
    assert astray(inner) < 1e-9
    middle = v.to_world((np.array(v.shape) - 1)/2)
    tiny = affine(rng, v.ndim, (3,)*v.ndim, middle)
    tiny[:-1, :-1] *= .1
    tiny[:-1, -1] = middle - tiny[:-1, :-1].sum(1)
    assert astray(v.resample(like=Volume(np.zeros((1,) + (3,)*v.ndim), tiny))) < 1e-9


@often
@given(volumes(dims=(3,)))
def test_slices_like_nibabel(case):
    v, rng = case
    picks = [range(n)[k] for n, k in zip(v.shape, some_slices(rng, v.shape))]
    key = tuple(slice(r.start, r.stop if r.stop >= 0 else None, r.step) for r in picks)  # its issue 1533
    ref = nifti(v).slicer[key]
    np.testing.assert_allclose(v[key].affine, ref.affine, atol=1e-9)
    np.testing.assert_array_equal(np.moveaxis(v[key].numpy(), 0, -1), ref.dataobj)


@often
@given(volumes(dims=(3,)))
def test_reorient_like_nibabel(case):
    v, rng = case
    ref = nib.as_closest_canonical(nifti(v))
    np.testing.assert_allclose(v.reorient('RAS').affine, ref.affine, atol=1e-9)
    np.testing.assert_array_equal(np.moveaxis(v.reorient('RAS').numpy(), 0, -1), ref.dataobj)
    assert v.axcodes == ''.join(nib.aff2axcodes(v.affine))


@often
@given(volumes(dims=(3,), most=.5), st.permutations(['LR', 'PA', 'IS']), st.tuples(*[st.integers(0, 1)]*3))
def test_reorient_like_itk(case, pairs, ends):
    v, codes = case[0], ''.join(p[i] for p, i in zip(pairs, ends))
    ref, got = sitk.DICOMOrient(itk(v), codes), v.reorient(codes)
    np.testing.assert_allclose(got.affine, affine_of(ref), atol=1e-9)
    np.testing.assert_array_equal(got.numpy()[0], sitk.GetArrayFromImage(ref).T)


@often
@given(volumes(), seeds)
def test_world_like_itk(case, seed):
    v, rng = case
    img = itk(v)
    at = rng.uniform(-5, 12, v.ndim)
    world = ras_lps[v.ndim]@img.TransformContinuousIndexToPhysicalPoint(at.tolist())
    np.testing.assert_allclose(v.to_world(at), world, atol=1e-9)
    np.testing.assert_allclose(v.to_voxel(world), at, atol=1e-9)


def target_for(v, rng):
    "Another grid over the same place, some of it outside"
    shape = tuple(rng.integers(1, 9, v.ndim).tolist())
    center = v.to_world((np.array(v.shape) - 1)/2 + rng.uniform(-1, 1, v.ndim))
    return Volume(np.zeros((1, *shape)), affine(rng, v.ndim, shape, center))


def undecided(v, target, order):
    "Voxels of the target that lie, to rounding, on the edge of the box, or half-way between two voxels"
    at = v.to_voxel(target.to_world(indices(target)))
    edge = (abs(at + .5) < 1e-6) | (abs(at - np.array(v.shape) + .5) < 1e-6)
    tie = abs(at - np.floor(at) - .5) < 1e-6
    return (edge | tie if order == 0 else edge).any(-1)


@often
@given(volumes(), st.sampled_from([0, 1]))
def test_resample_like_itk(case, order):
    v, rng = case
    target = target_for(v, rng)
    ref = sitk.GetArrayFromImage(sitk.Resample(itk(v), itk(target), sitk.Transform(), orders[order], 0.)).T
    got, sure = v.resample(like=target, order=order), ~undecided(v, target, order)
    assert same_grid(got, target) and got.channels == v.channels
    np.testing.assert_allclose(got.numpy()[0][sure], ref[sure], atol=1e-6)


@often
@given(volumes(), st.sampled_from([0, 1]))
def test_resample_like_loops(case, order):
    v, rng = case
    target = target_for(v, rng)
    sheared = target.affine.copy()
    sheared[:, 0] += rng.choice((0, .3))*sheared[:, 1]
    target = Volume(target.data, sheared)
    got, sure = v.resample(like=target, order=order), ~undecided(v, target, order)
    np.testing.assert_allclose(got.numpy()[:, sure], resample_by_loops(v, target, order)[:, sure], atol=1e-9)


@often
@given(volumes(dims=(3,), least=2), st.sampled_from([0, 1, 3]))
def test_resample_like_nibabel(case, order):
    v, rng = case
    target = target_for(v, rng)
    img = nib.Nifti1Image(v.numpy()[0], v.affine)
    ref = resample_from_to(img, (target.shape, target.affine), order=order, mode='nearest')
    at = v.to_voxel(target.to_world(indices(target)))
    within = ((at > -.499) & (at < np.array(v.shape) - .501)).all(-1) & ~undecided(v, target, order)
    got = v.resample(like=target, order=order).numpy()[0]
    np.testing.assert_allclose(got[within], np.asanyarray(ref.dataobj)[within], atol=1e-6)


@often
@given(volumes(), st.floats(.3, 3))
def test_spacing_keeps_the_edge(case, ratio):
    v, rng = case
    new = tuple((np.array(v.spacing)*ratio).tolist())
    if any(round(n/ratio) == 0 for n in v.shape): return
    out, edge = v.new(np.ones_like(v.data)).resample(new), np.full(v.ndim, -.5)
    np.testing.assert_allclose(out.spacing, new, rtol=1e-12)
    np.testing.assert_allclose(out.to_world(edge), v.to_world(edge), atol=1e-9)
    assert (abs(np.array(out.shape)*new - np.array(v.shape)*v.spacing) <= np.array(new)/2 + 1e-9).all()
    np.testing.assert_allclose(out.numpy(), 1, atol=1e-9)


def test_there_and_back_is_the_same_grid():
    v = Volume(torch.rand(1, 8, 12, 4), np.diag([.9, -.7, 3, 1]))
    assert same_grid(v.resample((1.8, 2.1, .5)).resample(v.spacing), v)



@pytest.mark.parametrize('dtype', every_dtype + [torch.bool, torch.float16, torch.bfloat16], ids=str)
def test_voxels_keep_their_type(dtype):
    v = Volume((torch.arange(24).reshape(1, 2, 3, 4)%2).to(dtype), np.diag([1, 2, 3, 1]))
    for out in (v[::-1, 1:], v.flip(2), v.reorient('SRA'), v.resample(like=v[::-1], order=0).flip(0)):
        assert out.data.dtype == dtype
    assert torch.equal(v.resample(like=v, order=0).data, v.data)
    assert v.resample(1.).data.dtype == (dtype if dtype.is_floating_point else torch.float32)


def test_arrays_are_copied_and_tensors_are_not():
    array, tensor = np.zeros((1, 2, 3)), torch.zeros(1, 2, 3)
    a, t = Volume(array), Volume(tensor)
    array[:] = 1
    assert not a.data.any() and t.data is tensor
    assert Volume(np.arange(6, dtype='>i4').reshape(1, 2, 3)[:, ::-1]).data.dtype == torch.int32


def test_frozen():
    v = Volume(torch.zeros(1, 2, 3))
    for name in ('data', 'affine'):
        with pytest.raises(FrozenInstanceError): setattr(v, name, None)
    with pytest.raises(ValueError, match='read-only'): v.affine[0, 0] = 2
    assert repr(v) == 'Volume 1×2×3 float32, 1×1 mm, RC'


@pytest.mark.parametrize('matrix,word', [
    (np.full((4, 4), np.nan), 'NaN'), (np.diag([1, np.inf, 1, 1]), 'infinity'),
    (np.zeros((4, 4)), 'singular'), (np.diag([1, 0, 1, 1]), 'singular'),
    ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], 'singular'),
    (np.ones((4, 5)), r'\(4, 5\)'), (np.eye(5), '4 axes'), (np.eye(3), '2 axes of space'),
    (np.diag([1, 1, 1, 2]), 'last row')])
def test_bad_affine(matrix, word):
    with pytest.raises(ValueError, match=word): Volume(torch.zeros(1, 2, 3, 4), matrix)


def test_small_voxels_are_not_singular():
    assert Volume(torch.zeros(1, 2, 3, 4), np.diag([1e-4, 1e-4, 1e-4, 1])).spacing == (1e-4,)*3


@pytest.mark.parametrize('shape,matrix,word', [
    ((2, 3, 4), np.eye(4), r'data\[None\]'), ((3, 4), np.eye(3), r'data\[None\]'),
    ((3, 4), None, r'data\[None\]'),
    ((1, 2, 3, 4, 5), None, '4 axes'), ((1, 1, 2, 3, 4), np.eye(4), 'channels and 3 axes'),
    ((1, 0, 4), None, 'empty'), ((0, 3, 4), None, 'empty')])
def test_bad_voxels(shape, matrix, word):
    with pytest.raises(ValueError, match=word): Volume(torch.zeros(shape), matrix)


def test_refusals():
    v = Volume(torch.zeros(1, 4, 5, 6))
    with pytest.raises(TypeError, match='list'): Volume([[[1]]])
    for key in (3, (slice(None), 3), ..., None):
        with pytest.raises(TypeError, match='3:4'): v[key]
    with pytest.raises(TypeError): list(v)
    with pytest.raises(IndexError, match='no voxel'): v[2:2]
    with pytest.raises(IndexError, match='4 slices'): v[:, :, :, :]
    with pytest.raises(IndexError): v.flip(3)
    for codes in ('RAX', 'RA', 'RAL', 'RASS', 'ras'):
        with pytest.raises(ValueError, match='LR PA IS'): v.reorient(codes)
    with pytest.raises(ValueError, match='one of the two'): v.resample()
    with pytest.raises(ValueError, match='one of the two'): v.resample(1., like=v)
    with pytest.raises(ValueError, match='Order 2'): v.resample(1., order=2)
    for spacing in (0, -1., np.nan, (1, 0, 1)):
        with pytest.raises(ValueError, match='above zero'): v.resample(spacing)
    with pytest.raises(ValueError, match='too coarse'): v.resample(9.)
    with pytest.raises(ValueError, match='resampled like 2'): v.resample(like=Volume(torch.zeros(1, 2, 3)))
    with pytest.raises(ValueError, match='slice, flip or resample'): v.new(torch.zeros(1, 4, 5, 3))
    with pytest.raises(ValueError, match=r'data\[None\]'): v.new(torch.zeros(4, 5, 6))


@often
@given(volumes(least=2), st.floats(0, 4))
def test_crop_like_a_loop_over_voxels(case, margin):
    v, rng = case
    mask = v.new(torch.from_numpy(rng.random((1, *v.shape)) < .15))
    if not mask.data.any(): mask.data[(0,)*(v.ndim + 1)] = True
    got, at = atlas(v).crop_to(mask, margin), np.argwhere(mask.numpy()[0])
    extra = margin/np.array(v.spacing)
    keep = [[k for k in range(size)
             if any(k + .5 > i - .5 - e + 1e-6 and k - .5 < i + .5 + e - 1e-6 for i in near)]
            for size, near, e in zip(v.shape, at.T, extra)]
    keep = [range(min(k), max(k) + 1) for k in keep]
    np.testing.assert_array_equal(got.numpy(), atlas(v).numpy()[(slice(None), *np.ix_(*keep))])
    assert astray(got) < 1e-9


@often
@given(volumes(dims=(2, 3), least=3), volumes(dims=(2, 3), least=2))
def test_crop_by_a_mask_on_another_grid_is_the_smallest_box(case, other):
    v, rng = case
    n = v.ndim
    shape = tuple(rng.integers(1, 6, n).tolist())
    grid = affine(rng, n, shape, v.to_world((np.array(v.shape) - 1)/2))
    mask = Volume(torch.from_numpy(rng.random((1, *shape)) < .4), grid)
    if not mask.data.any(): return
    corners = np.array(list(np.ndindex(*(2,)*n))) - .5
    every = v.to_voxel(mask.to_world((np.argwhere(mask.numpy()[0])[:, None] + corners).reshape(-1, n)))
    start = np.floor(every.min(0) + .5 + 1e-6).clip(0).astype(int)
    stop = np.ceil(every.max(0) + .5 - 1e-6).clip(max=v.shape).astype(int)
    if (stop <= start).any():
        with pytest.raises(ValueError, match='lies outside'): v.crop_to(mask)
        return
    want = v[tuple(map(slice, start.tolist(), stop.tolist()))]
    assert same_grid(v.crop_to(mask), want) and torch.equal(v.crop_to(mask).data, want.data)


def test_crop_margin_is_in_millimeters_and_ends_with_the_image():
    v = Volume(torch.arange(2*20*20*20.).reshape(2, 20, 20, 20), np.diag([1, 2, 5, 1]))
    mask = v.new(torch.zeros(1, 20, 20, 20, dtype=torch.int8))
    mask.data[0, 9:11, 9:11, 9:11] = 1
    assert v.crop_to(mask).shape == (2, 2, 2) and v.crop_to(mask, 10).shape == (20, 12, 6)
    assert v.crop_to(mask, (3, 0, 5.1)).shape == (8, 2, 6) and v.crop_to(mask, 3).shape == (8, 6, 4)
    assert same_grid(v.crop_to(mask, 1000), v) and v.crop_to(mask).channels == 2
    mask.data[0, 0, 0, 0] = -1
    assert v.crop_to(mask).shape == (2, 2, 2), 'nobody looked is not foreground'


def test_crop_refusals():
    v = Volume(torch.zeros(1, 4, 5, 6))
    full = v.new(torch.ones(1, 4, 5, 6))
    for empty in (v, v.new(v.data - 1)):
        with pytest.raises(ValueError, match='empty'): v.crop_to(empty)
    for margin in (-1, np.nan, np.inf, (0, 0, -2)):
        with pytest.raises(ValueError, match='0 or more'): v.crop_to(full, margin)
    away = Volume(full.data, np.eye(4) + np.eye(4, k=3)*50)
    with pytest.raises(ValueError, match='lies outside'): v.crop_to(away)
    with pytest.raises(ValueError, match='2 axes cannot crop 3'): v.crop_to(Volume(torch.ones(1, 4, 5)))
    with pytest.raises(ValueError): v.crop_to(full, (1, 2))


@often
@given(volumes(), seeds)
def test_pad_keeps_places_and_sits_in_the_middle(case, seed):
    v, rng = case
    v = atlas(v)
    more = rng.integers(0, 5, v.ndim)
    out = v.pad_to(tuple((more + v.shape).tolist()), -7)
    ref = np.pad(v.numpy(), [(0, 0), *((k//2, k - k//2) for k in more)], constant_values=-7)
    np.testing.assert_array_equal(out.numpy(), ref)
    np.testing.assert_allclose(out.to_world(more//2), v.to_world(np.zeros(v.ndim)), atol=1e-9)
    assert same_grid(out.crop_to(v.new(torch.ones_like(v.data[:1]))), v)


@pytest.mark.parametrize('dtype', every_dtype + [torch.bool, torch.float16, torch.bfloat16], ids=str)
def test_pad_keeps_the_type(dtype):
    v = Volume((torch.arange(24).reshape(1, 2, 3, 4)%2).to(dtype))
    out = v.pad_to((4, 3, 7), 1)
    assert out.data.dtype == dtype and out.shape == (4, 3, 7) and bool(out.data[0, 0, 0, 0] == 1)
    assert torch.equal(out[1:3, :, 1:5].data, v.data)


def test_pad_refusals():
    v = Volume(torch.zeros(1, 4, 5, 6, dtype=torch.uint8))
    assert v.pad_to(8).shape == (8, 8, 8)
    with pytest.raises(ValueError,
                       match='axis 1 has 5, more than 4, axis 2 has 6, more than 4. Crop'): v.pad_to(4)
    for value in (-1, 256, .5, np.nan):
        with pytest.raises(ValueError, match='does not fit into torch.uint8'): v.pad_to(8, value)
    assert v.new(v.data.half()).pad_to(8, .1).data[0, 0, 0, 0] == torch.tensor(.1).half()
    assert v.new(v.data.float()).pad_to(8, np.nan).data.isnan().any()
    with pytest.raises(TypeError, match='whole numbers'): v.pad_to(8.)
    with pytest.raises(ValueError): v.pad_to((8, 8))
    empty = v.pad_to(8)
    empty.data[:] = 1
    assert not v.data.any(), 'a padded volume shares no memory'
