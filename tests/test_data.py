"Geometry, cases and files, against nibabel, SimpleITK and plain loops."
import errno
import gzip
import io
import json
import struct
import warnings
import zlib
from dataclasses import FrozenInstanceError
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.processing import resample_from_to
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medseg_nb.data.case import Case, split
from medseg_nb.data.files import load, save
from medseg_nb.data.volume import Volume, grid_difference, same_grid
from oracles import best_split, resample_by_loops

often = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
orders = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear}
ras_lps = {2: np.eye(2), 3: np.diag([-1., -1, 1])}


def tilt(rng, n, most=np.pi):
    "A rotation by up to `most` about a random axis"
    plane = np.linalg.qr(rng.standard_normal((n, n)))[0]
    turn, angle = np.eye(n), rng.uniform(-most, most)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return plane@turn@plane.T


def affine(rng, n, shape=None, center=None, most=np.pi):
    "Oblique, anisotropic, and left-handed as often as not; with its middle at `center` if that is given"
    out = np.eye(n + 1)
    ends = np.eye(n)[rng.permutation(n)]*rng.choice((-1, 1), n)
    out[:n, :n] = tilt(rng, n, most)@ends*rng.uniform(.4, 4, n)
    out[:n, n] = rng.uniform(-200, 200, n) if center is None else center - out[:n, :n]@(np.array(shape) - 1)/2
    return out


@st.composite
def volumes(draw, dims=(2, 3), least=1, most=np.pi):
    "Random voxels on a random grid, and the random numbers to go on with"
    rng, n = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dims))
    shape = tuple(rng.integers(least, 8, n).tolist())
    return Volume(rng.standard_normal((draw(st.integers(1, 2)), *shape)), affine(rng, n, most=most)), rng


def indices(v): return np.stack(np.meshgrid(*map(np.arange, v.shape), indexing='ij'), -1)


def atlas(v):
    "A volume whose voxels hold their own place"
    return v.new(np.moveaxis(v.to_world(indices(v)), -1, 0))


def astray(v): return abs(np.moveaxis(v.to_world(indices(v)), -1, 0) - v.numpy()).max()


def nifti(v): return nib.Nifti1Image(np.moveaxis(v.numpy(), 0, -1), v.affine)


def itk(v):
    n = v.ndim
    out = sitk.GetImageFromArray(np.ascontiguousarray(v.numpy()[0].T))
    out.SetSpacing(v.spacing)
    out.SetOrigin((ras_lps[n]@v.affine[:n, n]).tolist())
    out.SetDirection((ras_lps[n]@v.affine[:n, :n]/v.spacing).ravel().tolist())
    return out


def affine_of(img):
    n = img.GetDimension()
    out = np.eye(n + 1)
    out[:n, :n] = ras_lps[n]@np.reshape(img.GetDirection(), (n, n))*img.GetSpacing()
    out[:n, n] = ras_lps[n]@img.GetOrigin()
    return out


def some_slices(rng, shape):
    "A slice that is not empty for each axis, of any sign, step and spelling"
    out = []
    for size in shape:
        a, b = np.sort(rng.integers(0, size, 2)).tolist()
        step = int(rng.integers(1, 4))
        back = slice(b, a - 1 if a else None, -step)
        ways = slice(a, b + 1, step), back, slice(a - size, None), slice(None, None, -step)
        out.append(ways[rng.integers(4)])
    return tuple(out)


# Volume

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


every_dtype = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32,
               torch.int64, torch.uint64, torch.float32, torch.float64]


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


# Same grid or not

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


# Case

image = Volume(torch.rand(1, 6, 5, 4), np.diag([.9, .9, 3, 1]) + np.eye(4, k=3)*-20)
labels = torch.arange(120).reshape(1, 6, 5, 4)%3


@pytest.mark.parametrize('mask,word', [
    (image.new(labels).flip(0), 'flip'), (image.new(labels)[1:], 'shape'), (Volume(labels), 'header only'),
    (Volume(labels, image.affine + np.eye(4, k=3)*2), 'shift'),
    (Volume(labels, image.affine@np.diag([1, 1, 1.1, 1])), 'spacing'),
    (image.new(labels*.5), 'order=0'), (image.new(labels + float('nan')), 'not whole'),
    (image.new(labels + float('inf')), 'not whole'),
    (image.new(labels - 2), 'label -2'), (image.new(labels + 1), 'label 3 in the mask; 3 classes end at 2'),
    (image.new(labels.repeat(2, 1, 1, 1)), '2 channels'), (image.new(labels.to(torch.complex64)), 'complex')])
def test_bad_mask(mask, word):
    with pytest.raises(ValueError, match=word) as e: Case('anna', image, mask, dict(classes=('a', 'b', 'c')))
    assert "'anna'" in str(e.value)


@pytest.mark.parametrize('dtype', every_dtype + [torch.bool, torch.float16], ids=str)
def test_good_mask(dtype):
    case = Case('anna', image, image.new((labels%2).to(dtype)), dict(classes=2))
    assert not case.mask.data.is_floating_point() and case.mask.data.dtype != torch.bool
    assert torch.equal(case.mask.data.long(), labels%2)


def test_case():
    meta = dict(patient='p')
    case = Case('anna', image, image.new(labels - 1), meta)
    meta['patient'] = 'q'
    assert case.patient == 'p' and Case('anna', image).patient == 'anna' and case.mask.data.min() == -1
    with pytest.raises(FrozenInstanceError): case.image = image
    with pytest.raises(TypeError, match='Tensor; wanted a Volume'): Case('anna', image.data)
    with pytest.raises(TypeError, match='mask is a Tensor'): Case('anna', image, labels)


def album(counts):
    return [Case(f'{p}/{i}', image, meta=dict(patient=p)) for p, n in enumerate(counts) for i in range(n)]


@often
@given(st.lists(st.integers(1, 30), min_size=3, max_size=40),
       st.sampled_from([(.6, .2, .2), (.8, .2), (.5, .3, .2), (1.,)]), seeds)
def test_split(counts, fractions, seed):
    cases = album(counts)
    parts = split(cases, fractions, seed)
    assert [len(parts), all(parts)] == [len(fractions), True]
    assert sorted(c.id for p in parts for c in p) == sorted(c.id for c in cases)
    assert sum(len({c.patient for c in p}) for p in parts) == len(counts)
    ids = [[c.id for c in p] for p in parts]
    assert [[c.id for c in p][::-1] for p in split(cases[::-1], fractions, seed)] == ids
    off = abs(np.array([len(p) for p in parts]) - np.array(fractions)*len(cases))
    assert off.max() <= max(counts)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=7), seeds)
def test_split_is_near_the_best(counts, seed):
    parts = split(album(counts), seed=seed)
    off = abs(np.array([len(p) for p in parts]) - np.array([.6, .2, .2])*sum(counts)).sum()
    assert off <= best_split(counts, (.6, .2, .2)) + .15*sum(counts)


def test_split_of_equals_is_exact_and_seeded():
    cases = album([6]*20)
    assert [len(p) for p in split(cases)] == [72, 24, 24]
    assert len({tuple(c.id for c in split(cases, seed=s)[2]) for s in range(10)}) == 10
    assert len({c.patient for s in range(10) for c in split(album([9] + [1]*30), seed=s)[2]}) > 20


@pytest.mark.parametrize('fractions', [(.5, .2), (1.2, -.2), (.5, .5, 0), (np.nan, 1)])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match='sum to 1'): split(album([1]*9), fractions)


def test_too_few_patients():
    with pytest.raises(ValueError, match='2 patients cannot fill 3'): split(album([50, 50]))


# Files

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('files')


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@settings(max_examples=60, deadline=None, derandomize=True)
@given(volumes(dims=(3,)), st.sampled_from(every_dtype), st.sampled_from(['.nii', '.nii.gz']))
def test_nifti_round_trip(folder, case, dtype, suffix):
    v, rng = case
    v = v.new((v.data*20).to(torch.int64).to(dtype) if not dtype.is_floating_point else v.data.to(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        back = load(save(v, folder/f'a{suffix}'))
        again = load(save(back, folder/f'b{suffix}'))
    assert back.data.dtype == dtype and torch.equal(back.data, v.data)
    assert (back.affine == v.affine.astype(np.float32)).all() and (again.affine == back.affine).all()
    assert grid_difference(v, back) == ''
    ref = nib.load(folder/f'a{suffix}')
    last = v.numpy()[0] if v.channels == 1 else np.moveaxis(v.numpy(), 0, -1)
    np.testing.assert_array_equal(np.asanyarray(ref.dataobj), last)
    assert ref.get_data_dtype() == v.numpy().dtype and (ref.affine == back.affine).all()


@often
@given(volumes(dims=(3,)), st.sampled_from(['plain.nii', 'packed.nii.gz']))
def test_itk_reads_the_same(folder, case, name):
    v, rng = case
    img = sitk.ReadImage(str(save(v, folder/name)))
    if v.channels > 1:
        assert sitk.GetArrayFromImage(img).shape == (v.channels, *v.shape[::-1])
        img = img[..., 0]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(img).T, v.numpy()[0])
    np.testing.assert_allclose(affine_of(img), v.affine, atol=2e-4)


@often
@given(volumes(dims=(3,)))
def test_reads_what_itk_writes(folder, case):
    v, rng = case
    sitk.WriteImage(itk(v), str(folder/'theirs.nii.gz'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        back = load(folder/'theirs.nii.gz')
    assert grid_difference(v, back, tol=.01) == ''
    np.testing.assert_array_equal(back.numpy()[0], v.numpy()[0])


@often
@given(volumes(dims=(2,)), st.sampled_from([(np.uint8, 1), (np.uint8, 2), (np.uint8, 3), (np.uint8, 4),
                                            (np.uint16, 1), (bool, 1)]))
def test_png_round_trip(folder, case, kind):
    v, rng = case
    dtype, channels = kind
    top = 1 if dtype is bool else np.iinfo(dtype).max
    v = v.new(rng.integers(0, top + 1, (channels, *v.shape)).astype(dtype))
    back = load(save(v, folder/'a.png'), dims=2)
    assert back.data.dtype == v.data.dtype and torch.equal(back.data, v.data)
    assert (back.affine == v.affine).all()
    ref = np.atleast_3d(Image.open(folder/'a.png'))
    np.testing.assert_array_equal(np.moveaxis(ref, -1, 0), v.numpy())
    if dtype is not bool and channels in (1, 3):
        ref = sitk.GetArrayFromImage(sitk.ReadImage(str(folder/'a.png')))
        np.testing.assert_array_equal(np.moveaxis(np.atleast_3d(ref), -1, 0), v.numpy())


def test_bool_becomes_uint8_in_nifti(here):
    v = Volume(torch.rand(1, 3, 4, 5) > .5)
    back = load(save(v, 'a.nii'))
    assert back.data.dtype == torch.uint8 and torch.equal(back.data.bool(), v.data)


def test_same_volume_same_bytes(here, monkeypatch):
    first = [save(image, name).read_bytes() for name in ('a.nii', 'a.nii.gz')]
    monkeypatch.setattr('time.time', lambda: 1e9)
    assert [save(image, name).read_bytes() for name in ('a.nii', 'a.nii.gz')] == first


def test_other_kinds_of_nifti(here):
    array = np.arange(24, dtype='>i2').reshape(2, 3, 4)
    one, two = nib.Nifti1Image, nib.Nifti2Image
    for kind, unit, factor in ((one, 'micron', 1e-3), (two, 'meter', 1e3), (one, 'unknown', 1)):
        img = kind(array, np.diag([2., 2, 3, 1]))
        img.header.set_xyzt_units(unit)
        nib.save(img, 'a.nii')
        v = load('a.nii')
        np.testing.assert_allclose(v.spacing, np.array([2, 2, 3])*factor)
        assert v.data.dtype == torch.int16 and (v.numpy()[0] == array).all()
    img.header.set_slope_inter(.5, -1024)
    nib.save(nib.Nifti1Image(array*.5 - 1024, np.eye(4), img.header), 'b.nii')
    assert load('b.nii').data.dtype == torch.float32
    np.testing.assert_allclose(load('b.nii').numpy()[0], array*.5 - 1024)
    nib.save(nib.Nifti1Image(np.zeros((3, 4), np.uint8), np.eye(4)), 'flat.nii')
    assert load('flat.nii').shape == (3, 4, 1)


def with_fields(img, **fields):
    raw = img.to_bytes()
    header = nib.Nifti1Header(raw[:348])
    for name, value in fields.items(): header[name] = value
    return header.binaryblock + raw[348:]


def test_forms_that_disagree_are_reported(here):
    img = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([1., 2, 3, 1]))
    img.header.set_qform(np.diag([-1., 2, 3, 1]), code=1)
    Path('a.nii').write_bytes(img.to_bytes())
    with pytest.warns(UserWarning, match='disagree .flip'): v = load('a.nii')
    assert (v.affine == np.diag([1., 2, 3, 1])).all()
    img.header.set_qform(np.diag([1., 2, 3, 1]), code=1)
    Path('b.nii').write_bytes(img.to_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load('b.nii')
    Path('c.nii').write_bytes(with_fields(img, sform_code=0, qform_code=0))
    with pytest.warns(UserWarning, match='neither'): load('c.nii')


good = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([1., 2, 3, 1]))
raw = good.to_bytes()
zipped = gzip.compress(raw)
plain = np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)


def png(array, text=None, **options):
    info, file = PngInfo(), io.BytesIO()
    if text is not None: info.add_text('medseg_nb.affine', text)
    Image.fromarray(array, **options).save(file, 'PNG', pnginfo=info)
    return file.getvalue()


def deep_color():
    "A PNG of one pixel with three channels of 16 bits"
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 16, 2, 0, 0, 0))
    return png(plain)[:8] + head + chunk(b'IDAT', zlib.compress(b'\0' + b'\x12\x34'*3)) + chunk(b'IEND', b'')


rgb = np.zeros((2, 3, 4), [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
bad_files = {
    'empty.nii': (b'', 'not NIfTI'),
    'text.nii': (b'hello'*200, 'not NIfTI'),
    'zipped.nii': (zipped, 'not NIfTI'),
    'empty.nii.gz': (b'', 'not NIfTI'),
    'page.nii.gz': (gzip.compress(b'<html>'*99), 'not NIfTI'),
    'plain.nii.gz': (raw, 'damaged'),
    'crc.nii.gz': (zipped[:-6] + bytes([zipped[-6] ^ 1]) + zipped[-5:], 'damaged'),
    'bits.nii.gz': (zipped[:40] + b'\xff'*20 + zipped[60:], 'damaged'),
    'header.nii': (raw[:349], 'truncated'),
    'half.nii': (raw[:400], 'truncated'),
    'last.nii': (raw[:-1], 'truncated'),
    'half.nii.gz': (zipped[:len(zipped)//2], 'truncated'),
    'last.nii.gz': (zipped[:-1], 'truncated'),
    'inner.nii.gz': (gzip.compress(raw[:-1]), 'truncated'),
    'huge.nii': (with_fields(good, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), 'truncated'),
    'none.nii': (with_fields(good, dim=[3, 0, 4, 5, 1, 1, 1, 1]), 'cannot be read'),
    'five.nii': (with_fields(good, dim=[5, 3, 4, 1, 1, 5, 1, 1]), '5-D'),
    'code.nii': (with_fields(good, datatype=77), 'cannot be read'),
    'rgb.nii': (nib.Nifti1Image(rgb, np.eye(4)).to_bytes(), 'wanted numbers'),
    'nan.nii': (with_fields(good, srow_x=[np.nan, 0, 0, 0]), 'NaN'),
    'inf.nii': (with_fields(good, srow_y=[0, np.inf, 0, 0]), 'infinity'),
    'zeros.nii': (with_fields(good, srow_x=0, srow_y=0, srow_z=0), 'singular'),
    'flat.nii': (with_fields(good, srow_z=[0, 0, 0, 9]), 'singular'),
    'twice.nii.gz': (gzip.compress(with_fields(good, srow_y=[1, 0, 0, 0])), 'singular'),
    'empty.png': (b'', 'not a PNG'),
    'photo.png': (b'\xff\xd8\xff\xe0JFIF', 'not a PNG'),
    'half.png': (png(plain)[:600], 'truncated'),
    'last.png': (png(plain)[:-8], 'truncated'),
    'hole.png': (png(plain)[:300] + png(plain)[400:], 'cannot be read'),
    'deep.png': (deep_color(), 'would change'),
    'text.png': (png(plain, 'no json'), 'cannot be read'),
    'nan.png': (png(plain, json.dumps(np.full((3, 3), np.nan).tolist())), 'NaN'),
    'flat.png': (png(plain, json.dumps([[1, 0, 0], [0, 0, 0], [0, 0, 1]])), 'singular')}


@pytest.mark.parametrize('name', bad_files)
def test_bad_file(here, name):
    content, word = bad_files[name]
    Path(name).write_bytes(content)
    with pytest.raises(ValueError, match=word) as e: load(name)
    assert name in str(e.value)


def test_truncated_anywhere(here):
    for name, whole in (('a.nii', raw), ('a.nii.gz', zipped), ('a.png', png(plain[:5, :5]))):
        Path(name).write_bytes(whole)
        load(name)
        for size in range(len(whole) if name != 'a.png' else len(whole) - 6):
            Path(name).write_bytes(whole[:size])
            with pytest.raises(ValueError, match=name): load(name)


def test_palette_is_refused(here):
    Image.fromarray(plain).convert('P').save('a.png')
    with pytest.raises(ValueError, match='would change'): load('a.png')


def test_wrong_place_or_kind(here):
    save(Volume(torch.zeros(1, 3, 4, dtype=torch.uint8)), 'flat.png')
    save(image, 'deep.nii')
    with pytest.raises(ValueError, match='flat.png has 2 axes of space, and 3'): load('flat.png', dims=3)
    with pytest.raises(ValueError, match='deep.nii has 3 axes of space, and 2'): load('deep.nii', dims=2)
    with pytest.raises(FileNotFoundError, match='missing.nii'): load('missing.nii')
    Path('folder.nii').mkdir()
    with pytest.raises(FileNotFoundError, match='folder.nii'): load('folder.nii')
    for name in ('a.mha', 'a.gz', 'nii', 'a.nii.bz2'):
        with pytest.raises(ValueError, match='.nii, .nii.gz or .png'): load(name)
        with pytest.raises(ValueError, match='.nii, .nii.gz or .png'): save(image, name)
    assert load(save(image, 'UPPER.NII.GZ')).shape == image.shape
    with pytest.raises(ValueError, match='3 axes of space'): save(image, 'a.png')
    with pytest.raises(ValueError, match='NIfTI wants 3'): save(load('flat.png'), 'a.nii')
    for channels, dtype in ((1, torch.float32), (5, torch.uint8), (3, torch.uint16), (1, torch.int64)):
        with pytest.raises(ValueError, match='PNG cannot hold'):
            save(Volume(torch.zeros(channels, 3, 4, dtype=dtype)), 'a.png')
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match='NIfTI has no'): save(image.new(image.data.to(dtype)), 'a.nii')
    with pytest.raises(TypeError, match='save.volume, path'): save('a.nii', image)
    assert sorted(p.name for p in here.iterdir()) == ['UPPER.NII.GZ', 'deep.nii', 'flat.png', 'folder.nii']


flat_image = Volume((torch.rand(1, 60, 50)*255).to(torch.uint8))
targets = pytest.mark.parametrize('v,name', [(image, 'a.nii'), (image, 'a.nii.gz'), (flat_image, 'a.png')],
                                  ids=['nii', 'nii.gz', 'png'])


@targets
def test_disk_full(here, monkeypatch, v, name):
    before = save(v, name).read_bytes()
    whole = Path.write_bytes
    def full(path, data):
        whole(path, data[:len(data)//2])
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    for target in (name, f'new-{name}'):
        with pytest.raises(OSError, match='No space left'): save(v.flip(0), target)
    assert [p.name for p in here.iterdir()] == [name] and Path(name).read_bytes() == before


@targets
def test_file_size_limit(here, v, name):
    resource = pytest.importorskip('resource')
    before = save(v, name).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(OSError): save(v.flip(0), name)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in here.iterdir()] == [name] and Path(name).read_bytes() == before
