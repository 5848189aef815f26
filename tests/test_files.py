"Files, against nibabel and SimpleITK."
import errno
import gzip
import io
import json
import struct
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import affine_of, every_dtype, image, itk, often, volumes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medseg_nb.data.files import load, save
from medseg_nb.data.volume import Volume, grid_difference


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
