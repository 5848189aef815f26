"Pictures, against Pillow, tifffile, imageio and SimpleITK; what would change in silence is refused by name."
import errno
import io
import json
import struct
import warnings
import zlib
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from grids import often, volumes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from medseg_nb.data.picture import read_picture, write_picture
from medseg_nb.data.volume import Volume

rng0 = np.random.default_rng(0)
plain = rng0.integers(0, 255, (40, 30), dtype=np.uint8)
color = rng0.integers(0, 255, (40, 30, 3), dtype=np.uint8)
photo = np.add.outer(np.arange(64.), np.arange(48)*2).astype(np.uint8)
labels = np.digitize(photo, (40, 70, 120)).astype(np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('picture')


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def filled(v, rng, dtype, channels):
    if dtype is np.float32: return v.new(rng.standard_normal((channels, *v.shape)).astype(dtype))
    top = 1 if dtype is bool else np.iinfo(dtype).max
    return v.new(rng.integers(0, top + 1, (channels, *v.shape)).astype(dtype))


png_kinds = [(np.uint8, 1), (np.uint8, 2), (np.uint8, 3), (np.uint8, 4), (np.uint16, 1), (bool, 1)]


@often
@given(volumes(dims=(2,)), st.sampled_from(png_kinds))
def test_png_round_trip(folder, case, kind):
    v, rng = case
    v = filled(v, rng, *kind)
    back = read_picture(write_picture(v, folder/'a.png'))
    assert back.data.dtype == v.data.dtype and torch.equal(back.data, v.data)
    assert (back.affine == v.affine).all()
    ref = np.atleast_3d(Image.open(folder/'a.png'))
    np.testing.assert_array_equal(np.moveaxis(ref, -1, 0), v.numpy())
    if kind[0] is not bool and kind[1] in (1, 3):
        ref = sitk.GetArrayFromImage(sitk.ReadImage(str(folder/'a.png')))
        np.testing.assert_array_equal(np.moveaxis(np.atleast_3d(ref), -1, 0), v.numpy())


@often
@given(volumes(dims=(2,)), st.sampled_from(png_kinds + [(np.float32, 1)]))
def test_tiff_round_trip(folder, case, kind):
    v, rng = case
    v = filled(v, rng, *kind)
    back = read_picture(write_picture(v, folder/'a.tif'))
    assert back.data.dtype == v.data.dtype and torch.equal(back.data, v.data)
    assert (back.affine == v.affine).all()
    with tifffile.TiffFile(folder/'a.tif') as t:
        ref, tags = t.asarray(), t.pages[0].tags
        np.testing.assert_array_equal(np.moveaxis(ref.reshape(*v.shape, -1), -1, 0), v.numpy())
        per_cm = [a/b for a, b in (tags['YResolution'].value, tags['XResolution'].value)]
        assert tags['ResolutionUnit'].value == 3
        np.testing.assert_allclose(10/np.array(per_cm), v.spacing, rtol=1e-5)


@often
@given(volumes(dims=(2,)), st.sampled_from([1, 3]))
def test_jpeg_keeps_the_affine(folder, case, channels):
    v, rng = case
    v = Volume(np.stack([photo]*channels), v.affine)
    with pytest.warns(UserWarning, match='JPEG changes pixels'): write_picture(v, folder/'a.jpg')
    back = read_picture(folder/'a.jpg')
    assert (back.affine == v.affine).all() and back.data.shape == v.data.shape
    assert (back.data.int() - v.data.int()).abs().max() < 16


def test_jpeg_refuses_what_it_would_spoil(here):
    for data in (labels, labels > 0, photo.astype(np.uint16), np.stack([photo]*2), photo.astype(np.float32)):
        v = Volume(data if data.ndim == 3 else data[None])
        with pytest.raises(ValueError, match='JPEG (would|cannot)'): write_picture(v, 'a.jpg')
    assert not list(here.iterdir())


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif'])
def test_orientation(here, orientation, suffix):
    note = Image.Exif()
    note[0x0112] = orientation
    Image.fromarray(photo).save(f'a.{suffix}', exif=note, **({'quality': 100} if suffix == 'jpg' else {}))
    turned = {1: photo, 2: photo[:, ::-1], 3: photo[::-1, ::-1], 4: photo[::-1], 5: photo.T, 6: photo[::-1].T,
              7: photo[::-1, ::-1].T, 8: photo.T[::-1]}[orientation]
    v = read_picture(f'a.{suffix}')
    assert v.shape == turned.shape
    assert abs(v.numpy()[0].astype(int) - turned).max() <= (4 if suffix == 'jpg' else 0)
    if suffix != 'tif':
        np.testing.assert_array_equal(v.numpy()[0], ImageOps.exif_transpose(Image.open(f'a.{suffix}')))


voc = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


@pytest.mark.parametrize('suffix', ['png', 'gif', 'tif', 'bmp'])
def test_colored_palettes_are_labels(here, suffix):
    img = Image.fromarray(labels)
    img.putpalette(voc)
    img.save(f'a.{suffix}')
    assert read_picture(f'a.{suffix}').data.dtype == torch.uint8
    np.testing.assert_array_equal(read_picture(f'a.{suffix}').numpy()[0], labels)


@pytest.mark.parametrize('suffix', ['png', 'gif', 'tif', 'bmp'])
def test_gray_palettes_are_brightness(here, suffix):
    img = Image.fromarray(labels)
    img.putpalette([v for g in (0, 90, 200, 255) for v in (g, g, g)])
    img.save(f'a.{suffix}')
    np.testing.assert_array_equal(read_picture(f'a.{suffix}').numpy()[0], np.array([0, 90, 200, 255])[labels])


def test_gif_masks_of_black_and_white(here):
    for mask in (Image.fromarray((labels > 1).astype(np.uint8)*255), Image.fromarray(labels > 1)):
        mask.save('a.gif')
        np.testing.assert_array_equal(read_picture('a.gif').numpy()[0] > 0, labels > 1)
        assert set(np.unique(read_picture('a.gif').numpy())) == {0, 255}


def test_palette_of_a_photograph_is_refused(here):
    Image.fromarray(color).quantize(200).save('a.gif')
    with pytest.raises(ValueError, match="a.gif.*too many to be labels.*convert.'RGB'"): read_picture('a.gif')


def test_transparent_palette(here):
    img = Image.fromarray(labels)
    img.putpalette(voc)
    img.save('a.png', transparency=0)
    np.testing.assert_array_equal(read_picture('a.png').numpy()[0], labels)


@pytest.mark.parametrize('dtype', ['u1', '<u2', '>u2', '<i2', '>i2', '<u4', '>u4', '<i4', '<f4', '>f4',
                                   'bool'])
@pytest.mark.parametrize('compression', [None, 'zlib'])
def test_tiff_of_tifffile(here, dtype, compression):
    dtype = np.dtype(dtype)
    top = {'b': 2, 'f': 9}.get(dtype.kind, 2**(8*dtype.itemsize - (dtype.kind == 'i')) - 1)
    array = (rng0.random((20, 30))*top).astype(dtype)
    tifffile.imwrite('a.tif', array, compression=compression, byteorder='>' if dtype.str[0] == '>' else '<',
                     photometric='minisblack')
    if dtype.str == '>u4' or (compression and dtype.str in ('>i2', '>f4')):
        with pytest.raises(ValueError, match='Pillow cannot|would change'): read_picture('a.tif')
        return
    v = read_picture('a.tif')
    assert v.data.dtype == torch.from_numpy(array.astype(dtype.newbyteorder('='))).dtype
    np.testing.assert_array_equal(v.numpy()[0], array)
    np.testing.assert_array_equal(v.numpy()[0], tifffile.imread('a.tif'))


@pytest.mark.parametrize('array,options', [
    (np.zeros((9, 8)), {}), (np.zeros((9, 8), np.int8), {}), (np.zeros((9, 8), np.float16), {}),
    (np.zeros((9, 8, 3), np.uint16), dict(photometric='rgb')), (np.zeros((9, 8), np.complex64), {}),
    (np.zeros((9, 8), np.uint16), dict(photometric='miniswhite')),
    (np.zeros((9, 8, 4), np.uint8), dict(photometric='separated')),
    (np.zeros((9, 8), np.uint64), {}), (np.zeros((9, 8), bool), dict(photometric='miniswhite'))])
def test_tiff_that_would_change(here, array, options):
    tifffile.imwrite('a.tif', array, **options)
    with pytest.raises(ValueError, match='a.tif cannot be read'): read_picture('a.tif')


def test_stacks(here):
    stack = rng0.integers(0, 60000, (5, 20, 30), dtype=np.uint16)
    tifffile.imwrite('a.tif', stack, photometric='minisblack')
    v = read_picture('a.tif')
    assert v.shape == (20, 30, 5) and v.spacing == (1, 1, 1)
    np.testing.assert_array_equal(np.moveaxis(v.numpy()[0], -1, 0), stack)
    tifffile.imwrite('b.tif', stack, imagej=True, resolution=(4., 2.),
                     metadata=dict(unit='um', spacing=3., axes='ZYX'))
    np.testing.assert_allclose(read_picture('b.tif').spacing, (.0005, .00025, .003))
    with pytest.raises(ValueError, match='TIFF is flat'): write_picture(v, 'c.tif')


def test_resolution_is_believed_by_the_centimeter_only(here):
    img = Image.fromarray(plain)
    for unit, wanted in (('cm', (.7, .5)), ('inch', (1, 1)), (None, (1, 1))):
        options = dict(resolution_unit=unit) if unit else {}
        img.save('a.tif', x_resolution=20, y_resolution=10/.7, **options)
        np.testing.assert_allclose(read_picture('a.tif').spacing, wanted, rtol=1e-5)
    img.save('a.png', dpi=(72, 72))
    img.save('a.jpg', dpi=(300, 300))
    assert read_picture('a.png').spacing == read_picture('a.jpg').spacing == (1, 1)


@pytest.mark.parametrize('name', ['a.bmp', 'a.ppm', 'a.pgm', 'a.gif'])
def test_others_are_read(here, name):
    array = color if name in ('a.bmp', 'a.ppm') else plain
    Image.fromarray(array).save(name)
    np.testing.assert_array_equal(np.moveaxis(read_picture(name).numpy(), 0, -1).squeeze(), array)
    ref = imageio.imread(name)
    np.testing.assert_array_equal(ref.squeeze() if ref.size == array.size else ref.squeeze()[..., 0], array)
    with pytest.raises(ValueError, match='is read, not written'): write_picture(Volume(plain[None]), name)


def test_pgm_of_16_bits(here):
    deep = rng0.integers(0, 65535, (9, 8)).astype('>u2')
    Path('a.pgm').write_bytes(b'P5 8 9 65535\n' + deep.tobytes())
    try: np.testing.assert_array_equal(read_picture('a.pgm').numpy()[0], deep)
    except ValueError as e: assert 'would change' in str(e)


def png(array, text=None, **options):
    info, file = PngInfo(), io.BytesIO()
    if text is not None: info.add_text('medseg_nb.affine', text)
    Image.fromarray(array, **options).save(file, 'PNG', pnginfo=info)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def bare_png(width, height, bits, kind, data=b''):
    "A PNG by hand"
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0))
    return png(plain)[:8] + head + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


def file_of(kind, array, **options):
    file = io.BytesIO()
    img = Image.fromarray(array)
    (img.convert(options.pop('mode')) if 'mode' in options else img).save(file, kind, **options)
    return file.getvalue()


two = dict(save_all=True, append_images=[Image.fromarray(plain[::-1])])
bad_files = {
    'empty.png': (b'', 'not a PNG'),
    'photo.png': (file_of('JPEG', plain), 'it is a JPEG: end its name in .jpg'),
    'head.png': (b'\xff\xd8\xff\xe0JFIF', 'cannot be read'),
    'half.png': (png(plain)[:600], 'truncated'),
    'last.png': (png(plain)[:-8], 'truncated'),
    'hole.png': (png(plain)[:300] + png(plain)[400:], 'cannot be read'),
    'deep.png': (bare_png(1, 1, 16, 2, b'\0' + b'\x12\x34'*3), 'would change'),
    'four.png': (bare_png(4, 1, 4, 0, b'\0\x12\x34'), 'would change'),
    'bomb.png': (bare_png(30_000, 30_000, 8, 0, b'\0'), 'bomb'),
    'wide.png': (bare_png(2**31 - 1, 1, 8, 0, b'\0'), 'bomb'),
    'text.png': (png(plain, 'no json'), 'cannot be read'),
    'nan.png': (png(plain, json.dumps(np.full((3, 3), np.nan).tolist())), 'NaN'),
    'shape.png': (png(plain, '[[1, 0], [0, 1]]'), 'affine is'),
    'flat.png': (png(plain, json.dumps([[1, 0, 0], [0, 0, 0], [0, 0, 1]])), 'singular'),
    'moving.png': (file_of('PNG', plain, **two), 'movie'),
    'ink.jpg': (file_of('JPEG', plain, mode='CMYK'), 'would change'),
    'half.jpg': (file_of('JPEG', color)[:900], 'truncated'),
    'moving.gif': (file_of('GIF', plain, **two), 'movie'),
    'half.gif': (file_of('GIF', plain)[:1200], 'cannot be read'),
    'half.bmp': (file_of('BMP', plain)[:1200], 'truncated'),
    'bomb.pgm': (b'P5 100000 100000 255\n', 'bomb'),
    'half.ppm': (b'P6 10 10 255\n' + bytes(100), 'truncated'),
    'half.tif': (file_of('TIFF', plain)[:700], 'cannot be read'),
    'lab.tif': (file_of('TIFF', color, mode='YCbCr'), 'would change'),
    'page.tif': (b'<html>', 'not a TIFF')}


@pytest.mark.parametrize('name', bad_files)
def test_bad_file(here, name):
    content, word = bad_files[name]
    Path(name).write_bytes(content)
    with pytest.raises(ValueError, match=word) as e: read_picture(name)
    assert name in str(e.value)


def test_truncated_anywhere(here):
    "Never other pixels than those of the whole file; one is allowed to miss what lies behind the last pixel"
    v, small = Volume(plain[None]), plain[:9, :7]
    wholes = {'a.png': png(small), 'a.tif': write_picture(v[:9, :7], 'x.tif').read_bytes(),
              'a.gif': file_of('GIF', small),
              'a.bmp': file_of('BMP', small), 'a.pgm': file_of('PPM', small), 'a.jpg': file_of('JPEG', small)}
    for name, whole in wholes.items():
        Path(name).write_bytes(whole)
        truth = read_picture(name).data
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for size in range(0, len(whole), 3):
                Path(name).write_bytes(whole[:size])
                try: assert torch.equal(read_picture(name).data, truth) and size > .9*len(whole), (name, size)
                except ValueError as e: assert name in str(e)


def test_what_is_not_written(here):
    for channels, dtype in ((1, torch.float32), (5, torch.uint8), (3, torch.uint16), (1, torch.int64)):
        with pytest.raises(ValueError, match='PNG cannot hold'):
            write_picture(Volume(torch.zeros(channels, 3, 4, dtype=dtype)), 'a.png')
    with pytest.raises(ValueError, match='TIFF cannot hold'):
        write_picture(Volume(torch.zeros(1, 3, 4).double()), 'a.tif')
    with pytest.raises(ValueError, match='PNG is flat'):
        write_picture(Volume(torch.zeros(1, 3, 4, 5)), 'a.png')
    with pytest.raises(ValueError, match='a.webp wants a name'): write_picture(Volume(plain[None]), 'a.webp')
    assert not list(here.iterdir())


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_disk_full(here, monkeypatch, name):
    v = Volume(plain[None])
    before, whole = write_picture(v, name).read_bytes(), Path.write_bytes
    def full(path, data):
        whole(path, data[:len(data)//2])
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    for target in (name, f'new-{name}'):
        with pytest.raises(OSError, match='No space left'): write_picture(v.flip(0), target)
    assert [p.name for p in here.iterdir()] == [name] and Path(name).read_bytes() == before
