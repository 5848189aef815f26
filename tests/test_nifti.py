"NIfTI, against nibabel and SimpleITK; what cannot be trusted is refused by name."
import errno
import gzip
import tracemalloc
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import affine_of, every_dtype, image, itk, often, volumes
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.testing import data_path

from medseg_nb.data import nifti
from medseg_nb.data.grid import grid_difference
from medseg_nb.data.nifti import read_nifti, write_nifti
from medseg_nb.data.volume import Volume


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('nifti')


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@settings(max_examples=60, deadline=None, derandomize=True)
@given(volumes(dims=(3,)), st.sampled_from(every_dtype), st.sampled_from(['.nii', '.nii.gz']))
def test_round_trip(folder, case, dtype, suffix):
    v, rng = case
    v = v.new((v.data*20).to(torch.int64).to(dtype) if not dtype.is_floating_point else v.data.to(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        back = read_nifti(write_nifti(v, folder/f'a{suffix}'))
        again = read_nifti(write_nifti(back, folder/f'b{suffix}'))
    assert back.data.dtype == dtype and torch.equal(back.data, v.data) and back.data.is_contiguous()
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
    img = sitk.ReadImage(str(write_nifti(v, folder/name)))
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
        back = read_nifti(folder/'theirs.nii.gz')
    assert grid_difference(v, back, tol=.01) == ''
    np.testing.assert_array_equal(back.numpy()[0], v.numpy()[0])


@pytest.mark.parametrize('name', ['example4d.nii.gz', 'anatomical.nii', 'functional.nii', 'standard.nii.gz',
                                  'example_nifti2.nii.gz', 'reoriented_anat_moved.nii'])
def test_real_files_as_nibabel(name):
    ref = nib.load(data_path/name)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        v = read_nifti(data_path/name)
    array = np.asanyarray(ref.dataobj)
    array = array if array.ndim == 4 else array[..., None]
    np.testing.assert_allclose(np.moveaxis(v.numpy(), 0, -1), array, rtol=1e-6)
    np.testing.assert_array_equal(v.affine, ref.affine)


def test_bool_becomes_uint8(here):
    v = Volume(torch.rand(1, 3, 4, 5) > .5)
    back = read_nifti(write_nifti(v, 'a.nii'))
    assert back.data.dtype == torch.uint8 and torch.equal(back.data.bool(), v.data)


def test_same_volume_same_bytes(here, monkeypatch):
    first = [write_nifti(image, name).read_bytes() for name in ('a.nii', 'a.nii.gz')]
    monkeypatch.setattr('time.time', lambda: 1e9)
    assert [write_nifti(image, name).read_bytes() for name in ('a.nii', 'a.nii.gz')] == first


def test_units_scaling_and_byte_order(here):
    array = np.arange(24, dtype='>i2').reshape(2, 3, 4)
    one, two = nib.Nifti1Image, nib.Nifti2Image
    for kind, unit, factor in ((one, 'micron', 1e-3), (two, 'meter', 1e3), (one, 'unknown', 1)):
        img = kind(array, np.diag([2., 2, 3, 1]))
        img.header.set_xyzt_units(unit)
        nib.save(img, 'a.nii')
        v = read_nifti('a.nii')
        np.testing.assert_allclose(v.spacing, np.array([2, 2, 3])*factor)
        assert v.data.dtype == torch.int16 and (v.numpy()[0] == array).all()
    img.header.set_slope_inter(.5, -1024)
    nib.save(nib.Nifti1Image(array*.5 - 1024, np.eye(4), img.header), 'b.nii')
    assert read_nifti('b.nii').data.dtype == torch.float32
    np.testing.assert_allclose(read_nifti('b.nii').numpy()[0], array*.5 - 1024)


@pytest.mark.parametrize('shape,wanted', [((3, 4), (1, 3, 4, 1)), ((3, 4, 5), (1, 3, 4, 5)),
                                          ((3, 4, 5, 2), (2, 3, 4, 5)),
                                          ((3, 4, 5, 1), (1, 3, 4, 5)), ((3, 4, 5, 1, 2), (2, 3, 4, 5)),
                                          ((3, 4, 5, 2, 1), (2, 3, 4, 5)), ((3, 4, 5, 1, 1, 2), (2, 3, 4, 5)),
                                          ((7,), (1, 7, 1, 1))])
def test_axes(here, shape, wanted):
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    nib.save(nib.Nifti1Image(array, np.eye(4)), 'a.nii.gz')
    v = read_nifti('a.nii.gz')
    assert tuple(v.data.shape) == wanted
    last = array.reshape(*(shape[:3] + (1, 1))[:3], -1)
    np.testing.assert_array_equal(np.moveaxis(v.numpy(), 0, -1), last)


def test_vectors_of_itk(here):
    "ITK stores vectors behind a time axis of one"
    array = np.random.default_rng(0).standard_normal((5, 4, 3, 3)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), 'v.nii.gz')
    assert nib.load('v.nii.gz').shape == (3, 4, 5, 1, 3)
    np.testing.assert_array_equal(read_nifti('v.nii.gz').numpy(), array.T)


def with_fields(img, **fields):
    raw = img.to_bytes()
    header = nib.Nifti1Header(raw[:348])
    for name, value in fields.items(): header[name] = value
    return header.binaryblock + raw[348:]


def test_forms_that_disagree_are_reported(here):
    img = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([1., 2, 3, 1]))
    img.header.set_qform(np.diag([-1., 2, 3, 1]), code=1)
    Path('a.nii').write_bytes(img.to_bytes())
    with pytest.warns(UserWarning, match='a.nii: .*disagree .flip'): v = read_nifti('a.nii')
    assert (v.affine == np.diag([1., 2, 3, 1])).all()
    img.header.set_qform(np.diag([1., 2, 3, 1]), code=1)
    Path('b.nii').write_bytes(img.to_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_nifti('b.nii')
    Path('c.nii').write_bytes(with_fields(img, sform_code=0, qform_code=0))
    with pytest.warns(UserWarning, match='neither'): read_nifti('c.nii')
    Path('d.nii').write_bytes(with_fields(img, qform_code=0, pixdim=[1, 1, 2, 5, 1, 1, 1, 1]))
    with pytest.warns(UserWarning, match='pixdim says'): read_nifti('d.nii')


def test_members_and_padding(here):
    for content in (gzip.compress(raw[:100]) + gzip.compress(raw[100:]), gzip.compress(raw) + bytes(1000),
                    gzip.compress(b'') + gzip.compress(raw), gzip.compress(raw + bytes(999))):
        Path('a.nii.gz').write_bytes(content)
        assert torch.equal(read_nifti('a.nii.gz').data[0], torch.from_numpy(np.asarray(good.dataobj)))
    Path('a.nii.gz').write_bytes(gzip.compress(raw) + b'garbage behind')
    with pytest.raises(ValueError, match='damaged'): read_nifti('a.nii.gz')


def test_bombs_take_no_memory(here):
    bombs = {'behind.nii.gz': (raw + bytes(60_000_000), 'far more'),
             'zeros.nii.gz': (bytes(60_000_000), 'not NIfTI'),
             'pair.nii.gz': (with_fields(good, magic=b'ni1\0') + bytes(60_000_000), 'half of a pair')}
    for name, (content, word) in bombs.items():
        with open(name, 'wb') as f:
            f.write(gzip.compress(content, compresslevel=6))
        tracemalloc.start()
        with pytest.raises(ValueError, match=word): read_nifti(name)
        assert tracemalloc.get_traced_memory()[1] < 8e6
        tracemalloc.stop()


def test_honest_zeros_are_no_bomb(here):
    v = Volume(torch.zeros(1, 300, 300, 100, dtype=torch.uint8))
    assert write_nifti(v, 'a.nii.gz').stat().st_size < 50_000
    Path('b.nii.gz').write_bytes(gzip.compress(gzip.decompress(Path('a.nii.gz').read_bytes()),
                                               compresslevel=9))
    assert torch.equal(read_nifti('b.nii.gz').data, v.data)


def test_no_more_than_the_memory(here, monkeypatch):
    write_nifti(image, 'a.nii')
    monkeypatch.setattr(nifti.os, 'sysconf', lambda name: 16)
    with pytest.raises(ValueError, match='a.nii cannot be read: it unpacks to'): read_nifti('a.nii')


def test_long_axes(here):
    v = Volume(torch.arange(2*33000, dtype=torch.int32).reshape(1, 33000, 2, 1))
    assert torch.equal(read_nifti(write_nifti(v, 'a.nii.gz')).data, v.data)
    assert isinstance(nib.load('a.nii.gz'), nib.Nifti2Image)


def test_pairs_are_refused(here):
    img = nib.Nifti1Pair(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    nib.save(img, 'a.hdr')
    for path in (Path('a.hdr'), data_path/'nifti2.hdr', data_path/'analyze.hdr'):
        with pytest.raises(ValueError, match='half of a pair'): read_nifti(path)


@often
@given(volumes(dims=(3,)), st.integers(1, 40), st.sampled_from(['<i2', '>i2', '>f8']))
def test_copy_in_blocks(case, side, dtype):
    v, rng = case
    shape = tuple(rng.integers(1, 40, 3).tolist())
    array = rng.integers(0, 99, (2, *shape)).astype(dtype)
    out = nifti._c_order(np.asfortranarray(array), side)
    assert out.flags.c_contiguous and out.dtype.isnative and (out == array).all()


good = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([1., 2, 3, 1]))
raw = good.to_bytes()
zipped = gzip.compress(raw)
rgb = np.zeros((2, 3, 4), [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
bad_files = {
    'empty.nii': (b'', 'not NIfTI'),
    'text.nii': (b'hello'*200, 'not NIfTI'),
    'zipped.nii': (zipped, 'end its name in .nii.gz'),
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
    'huge.nii.gz': (gzip.compress(with_fields(good, dim=[3, 1000, 1000, 1000, 1, 1, 1, 1])), 'truncated'),
    'far.nii': (with_fields(good, vox_offset=1e30), 'truncated'),
    'long.nii': (raw + bytes(2_000_000), 'far more'),
    'none.nii': (with_fields(good, dim=[3, 0, 4, 5, 1, 1, 1, 1]), 'axes are'),
    'minus.nii': (with_fields(good, dim=[3, -3, -4, 5, 1, 1, 1, 1]), 'axes are'),
    'five.nii': (with_fields(good, dim=[5, 3, 2, 1, 2, 5, 1, 1]), '5-D'),
    'code.nii': (with_fields(good, datatype=77), 'cannot be read'),
    'rgb.nii': (nib.Nifti1Image(rgb, np.eye(4)).to_bytes(), 'wanted numbers'),
    'nan.nii': (with_fields(good, srow_x=[np.nan, 0, 0, 0]), 'NaN'),
    'inf.nii': (with_fields(good, srow_y=[0, np.inf, 0, 0]), 'infinity'),
    'zeros.nii': (with_fields(good, srow_x=0, srow_y=0, srow_z=0), 'singular'),
    'flat.nii': (with_fields(good, srow_z=[0, 0, 0, 9]), 'singular'),
    'twice.nii.gz': (gzip.compress(with_fields(good, srow_y=[1, 0, 0, 0])), 'singular')}


@pytest.mark.parametrize('name', bad_files)
def test_bad_file(here, name):
    content, word = bad_files[name]
    Path(name).write_bytes(content)
    with pytest.raises(ValueError, match=word) as e: read_nifti(name)
    assert name in str(e.value)


def test_truncated_anywhere(here):
    for name, whole in (('a.nii', raw), ('a.nii.gz', zipped)):
        Path(name).write_bytes(whole)
        read_nifti(name)
        for size in range(len(whole)):
            Path(name).write_bytes(whole[:size])
            with pytest.raises(ValueError, match=name): read_nifti(name)


def test_what_is_not_written(here):
    with pytest.raises(ValueError, match='NIfTI wants 3'): write_nifti(Volume(torch.zeros(1, 3, 4)), 'a.nii')
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match='NIfTI has no'):
            write_nifti(image.new(image.data.to(dtype)), 'a.nii')
    with pytest.raises(ValueError, match='a.hdr wants a name'): write_nifti(image, 'a.hdr')
    assert not list(here.iterdir())
    with pytest.raises(FileNotFoundError, match='missing.nii'): read_nifti('missing.nii')


targets = pytest.mark.parametrize('name', ['a.nii', 'a.nii.gz'])


@targets
def test_disk_full(here, monkeypatch, name):
    before = write_nifti(image, name).read_bytes()
    whole = Path.write_bytes
    def full(path, data):
        whole(path, data[:len(data)//2])
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    for target in (name, f'new-{name}'):
        with pytest.raises(OSError, match='No space left'): write_nifti(image.flip(0), target)
    assert [p.name for p in here.iterdir()] == [name] and Path(name).read_bytes() == before


@targets
def test_file_size_limit(here, name):
    resource = pytest.importorskip('resource')
    before = write_nifti(image, name).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(OSError): write_nifti(image.flip(0), name)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in here.iterdir()] == [name] and Path(name).read_bytes() == before
