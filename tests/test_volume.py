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

from medseg_nb.data.volume import Volume, same_grid


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
