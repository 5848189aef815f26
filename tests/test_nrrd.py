"NRRD, MetaImage and the segments of 3D Slicer, against SimpleITK, nibabel and the makers' own files."
import gzip
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import affine_of, every_dtype, image, itk, often, volumes
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_nb.core.fetch import fetch
from medseg_nb.data.grid import same_grid
from medseg_nb.data.nrrd import SLICER, read_nrrd, read_segments, segments, write_nrrd, write_segments
from medseg_nb.data.picture import read_picture, write_picture
from medseg_nb.data.volume import Volume


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('nrrd')


@pytest.fixture(scope='module')
def slicer(): return fetch(SLICER)/'slicerio/data'


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@settings(max_examples=80, deadline=None, derandomize=True)
@given(volumes(), st.sampled_from(every_dtype), st.sampled_from(['.nrrd', '.mha']))
def test_round_trip(folder, case, dtype, suffix):
    v, rng = case
    v = v.new((v.data*20).to(torch.int64).to(dtype) if not dtype.is_floating_point else v.data.to(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        back = read_nrrd(write_nrrd(v, folder/f'a{suffix}'))
    assert back.data.dtype == dtype and torch.equal(back.data, v.data)
    assert same_grid(v, back, tol=1e-9)
    img = sitk.ReadImage(str(folder/f'a{suffix}'))
    array = np.atleast_3d(sitk.GetArrayFromImage(img)) if v.ndim == 2 else sitk.GetArrayFromImage(img)
    array = array.reshape(*v.shape[::-1] if v.ndim == 3 else v.shape, -1)
    ref = v.numpy().transpose(3, 2, 1, 0) if v.ndim == 3 else np.moveaxis(v.numpy(), 0, -1)
    np.testing.assert_array_equal(array, ref)
    if v.ndim == 3: np.testing.assert_allclose(affine_of(img), v.affine, atol=1e-9)


@often
@given(volumes(dims=(3,)), st.sampled_from(['a.nrrd', 'a.nhdr', 'a.mha', 'a.mhd']), st.booleans())
def test_reads_what_itk_writes(folder, case, name, packed):
    v, rng = case
    sitk.WriteImage(itk(v), str(folder/name), packed)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        back = read_nrrd(folder/name)
    assert same_grid(v, back, tol=1e-6)
    np.testing.assert_array_equal(back.numpy()[0], v.numpy()[0])


def header(space, directions, origin, sizes, extra='', voxels=b''):
    return (f'NRRD0004\ntype: uchar\ndimension: {len(sizes.split())}\n{space}sizes: {sizes}\n{directions}'
            f'{extra}encoding: raw\n{origin}\n').encode() + voxels


@pytest.mark.parametrize('space,sign', [('left-posterior-superior', (-1, -1, 1)), ('LPS', (-1, -1, 1)),
                                        ('right-anterior-superior', (1, 1, 1)), ('RAS', (1, 1, 1)),
                                        ('left-anterior-superior', (-1, 1, 1))])
def test_space(here, space, sign):
    voxels = bytes(range(24))
    Path('a.nrrd').write_bytes(header(f'space: {space}\n', 'space directions: (0,2,0) (1,0,0) (0,0,-3)\n',
                                      'space origin: (7,8,9)\n', '2 3 4', 'kinds: domain domain domain\n',
                                      voxels))
    v, s = read_nrrd('a.nrrd'), np.array(sign)
    np.testing.assert_allclose(v.affine[:3, 3], s*(7, 8, 9))
    np.testing.assert_allclose(v.affine[:3, :3], s[:, None]*np.array([[0, 1, 0], [2, 0, 0], [0, 0, -3]]))
    np.testing.assert_array_equal(v.numpy()[0], np.arange(24).reshape(2, 3, 4, order='F'))


def test_channels_first_and_last_in_the_file(here):
    voxels, directions = bytes(range(48)), '(1,0,0) (0,1,0) (0,0,1)'
    ends = dict(space='space: LPS\n', origin='space origin: (0,0,0)\n', voxels=voxels)
    Path('a.nrrd').write_bytes(header(directions=f'space directions: none {directions}\n', sizes='2 2 3 4',
                                      extra='kinds: list domain domain domain\n', **ends))
    Path('b.nrrd').write_bytes(header(directions=f'space directions: {directions} none\n', sizes='2 3 4 2',
                                      extra='kinds: domain domain domain list\n', **ends))
    raw = np.arange(48, dtype=np.uint8)
    np.testing.assert_array_equal(read_nrrd('a.nrrd').numpy(), raw.reshape(2, 2, 3, 4, order='F'))
    np.testing.assert_array_equal(read_nrrd('b.nrrd').numpy(),
                                  np.moveaxis(raw.reshape(2, 3, 4, 2, order='F'), -1, 0))


def test_no_space_is_a_guess(here):
    Path('a.nrrd').write_bytes(header('', 'spacings: 1 1 2\n', '', '2 3 4', '', bytes(24)))
    with pytest.warns(UserWarning, match='a.nrrd: its header names no space'): v = read_nrrd('a.nrrd')
    assert v.spacing == (1, 1, 2)
    Path('a.mhd').write_text('NDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\nElementDataFile = a.raw\n')
    Path('a.raw').write_bytes(bytes(range(24)))
    with pytest.warns(UserWarning, match='a.mhd: its header names no space'): v = read_nrrd('a.mhd')
    np.testing.assert_array_equal(v.numpy()[0], np.arange(24).reshape(2, 3, 4, order='F'))


def test_a_film_is_the_same_from_any_format(here):
    array = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    film = write_picture(Volume(array[None], [[.7, .1, -31.3], [-.1, .7, 4], [0, 0, 1]]), 'a.png')
    v = read_picture(film)
    for name in ('a.nrrd', 'a.mha'):
        back = read_nrrd(write_nrrd(v, name))
        assert torch.equal(back.data, v.data) and same_grid(back, v, tol=1e-9)
        sitk.WriteImage(sitk.ReadImage('a.png'), name)
        np.testing.assert_array_equal(read_nrrd(name).numpy(), v.numpy())


def test_luna16(here):
    "The layout of LUNA16: an .mhd and its .raw, and .zraw for the lungs"
    array = np.random.default_rng(0).integers(-1000, 400, (5, 6, 7)).astype(np.int16)
    (here/'1.3.6.1.raw').write_bytes(array.tobytes())
    Path('1.3.6.1.mhd').write_text('''ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = -198.100006 -195 -335.209991
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 0.76171899 0.76171899 2.5
DimSize = 7 6 5
ElementType = MET_SHORT
ElementDataFile = 1.3.6.1.raw
''')
    v = read_nrrd('1.3.6.1.mhd')
    np.testing.assert_array_equal(v.numpy()[0], array.T)
    np.testing.assert_allclose(v.affine, np.array([[-.76171899, 0, 0, 198.100006], [0, -.76171899, 0, 195],
                                                   [0, 0, 2.5, -335.209991], [0, 0, 0, 1]]))


def test_real_segments(slicer):
    table = segments(slicer/'SegmentationOverlapping.seg.nrrd')
    assert table.name.tolist() == ['ribs', 'cervical vertebral column', 'thoracic vertebral column',
                                   'lumbar vertebral column',
                                   'right lung', 'left lung', 'tissue', 'overlapping sphere']
    assert table.layer.tolist() == [0]*7 + [1] and table.label.tolist() == [1, 2, 3, 4, 5, 6, 7, 1]
    assert table.color[4] == (.0862745, .772549, .278431) and table.id[7].startswith('2.25.256')
    ct, layers = read_nrrd(slicer/'CTChest4.nrrd'), read_nrrd(slicer/'SegmentationOverlapping.seg.nrrd')
    assert same_grid(ct, layers) and ct.axcodes == 'RAS'
    for _, row in table.iterrows():
        one = read_segments(slicer/'SegmentationOverlapping.seg.nrrd', [row['name']])
        assert torch.equal(one.data[0] > 0, layers.data[row.layer] == row.label)
    most = int(((layers.data[1] == 1) & (layers.data[0] == 6)).sum())
    plain = read_segments(slicer/'Segmentation.seg.nrrd')
    assert torch.equal(plain.data, read_nrrd(slicer/'Segmentation.seg.nrrd').data)
    with pytest.raises(ValueError, match=f"'overlapping sphere' and 'left lung' share {most} voxels"):
        read_segments(slicer/'SegmentationOverlapping.seg.nrrd')
    right, left = (read_segments(slicer/'Segmentation.seg.nrrd', [n]) for n in ('right lung', 'left lung'))
    middle = [float(ct.to_world(m.data[0].nonzero().numpy())[:, 0].mean()) for m in (right, left)]
    assert middle[0] > 0 > middle[1]


def test_segments_written_as_their_makers_do(here, slicer):
    theirs = slicer/'Segmentation.seg.nrrd'
    names = dict(enumerate(segments(theirs).name, 1))
    write_segments(read_nrrd(theirs), 'ours.seg.nrrd', names)
    def text(path): return path.read_bytes().split(b'\n\n')[0].decode().splitlines()
    def fields(path): return {line.split(':', 1)[0] for line in text(path) if line[0] != '#'}
    assert fields(theirs) - fields(Path('ours.seg.nrrd')) <= {'Segmentation_ConversionParameters'}
    for line in ('Segment4_Name:=right lung', 'Segment4_LabelValue:=5', 'Segment4_Layer:=0',
                 'Segmentation_MasterRepresentation:=Binary labelmap', 'space: left-posterior-superior',
                 'kinds: domain domain domain', 'sizes: 128 128 34',
                 'Segmentation_ReferenceImageExtentOffset:=0 0 0'):
        assert line in text(Path('ours.seg.nrrd')) and line in text(theirs)
    tags = next(line for line in text(Path('ours.seg.nrrd')) if 'Segment0_Tags' in line)
    assert re.fullmatch(r'Segment0_Tags:=(\w[\w. ]*:[^|]*\|)+', tags)
    assert segments('ours.seg.nrrd').name.tolist() == list(names.values())
    assert torch.equal(read_segments('ours.seg.nrrd').data, read_nrrd(theirs).data)


@often
@given(volumes(dims=(3,)), st.lists(st.text(st.characters(exclude_categories=['Cs', 'Cc']), min_size=1),
                                    min_size=1,
                                    max_size=5, unique=True))
def test_any_names(folder, case, names):
    v, rng = case
    names = {3*i + 1: n.strip() or str(i) for i, n in enumerate(names)}
    if len(set(names.values())) < len(names): return
    v = v.new(torch.from_numpy(rng.choice([0, *names], (1, *v.shape)).astype(np.int64)))
    write_segments(v, folder/'a.seg.nrrd', names)
    table = segments(folder/'a.seg.nrrd')
    assert dict(zip(table.label, table.name)) == names
    back = read_segments(folder/'a.seg.nrrd')
    assert (back.data == sum((v.data == k)*i for i, k in enumerate(names, 1))).all() and same_grid(back, v,
                                                                                                   tol=1e-9)


def test_what_is_not_written(here):
    for name in ('a.mhd', 'a.nhdr', 'a.nii'):
        with pytest.raises(ValueError, match=f'{name} wants a name'): write_nrrd(image, name)
    with pytest.raises(ValueError, match='write_segments'): write_nrrd(image, 'a.seg.nrrd')
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match='have no'): write_nrrd(image.new(image.data.to(dtype)), 'a.mha')
    mask = Volume(torch.ones(1, 3, 4, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match='have no name'): write_segments(mask, 'a.seg.nrrd', {2: 'x'})
    with pytest.raises(ValueError, match='wanted 1 to 65535'):
        write_segments(mask, 'a.seg.nrrd', {0: 'x', 1: 'y'})
    with pytest.raises(ValueError, match='whole numbers'): write_segments(image, 'a.seg.nrrd', {1: 'x'})
    with pytest.raises(ValueError, match='ends in .seg.nrrd'): write_segments(mask, 'a.nrrd', {1: 'x'})
    assert not list(here.iterdir())


@pytest.mark.parametrize('name', ['a.nrrd', 'a.mha'])
def test_file_size_limit(here, name):
    resource = pytest.importorskip('resource')
    before = write_nrrd(image, name).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = Volume(torch.rand(1, 40, 40, 40), image.affine)
    for size in (20, 400, 5000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError): write_nrrd(big, name)
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in here.iterdir()] == [name] and Path(name).read_bytes() == before


good = header('space: LPS\n', 'space directions: (1,0,0) (0,1,0) (0,0,2)\n', 'space origin: (0,0,0)\n',
              '2 3 4', '', bytes(24))
meta = (b'NDims = 3\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 1 2\nDimSize = 2 3 4\n'
        b'ElementType = MET_UCHAR\n'
        b'ElementDataFile = ')
local = meta + b'LOCAL\n' + bytes(24)
detached = good.split(b'\n\n')[0]


def swap(old, new, content=good):
    assert old in content
    return content.replace(old, new)


bad_files = {
    'empty.nrrd': (b'', 'neither NRRD nor MetaImage'),
    'photo.nrrd': (b'\xff\xd8\xff\xe0JFIF', 'neither'),
    'head.nrrd': (good[:40], 'truncated'),
    'last.nrrd': (good[:-1], 'truncated'),
    'half.nrrd': (swap(b'raw', b'gzip', detached) + b'\n\n' + gzip.compress(bytes(24))[:15],
                  'cannot be read'),
    'huge.nrrd': (swap(b'2 3 4', b'99999 99999 99999'), 'truncated'),
    'zip.nrrd': (swap(b'2 3 4', b'1000 1000 1000', swap(b'raw', b'gzip')), 'truncated'),
    'zero.nrrd': (swap(b'2 3 4', b'2 0 4'), 'axes are'),
    'minus.nrrd': (swap(b'2 3 4', b'-2 -3 4'), 'axes are'),
    'words.nrrd': (swap(b'2 3 4', b'2 x 4'), 'cannot be read'),
    'count.nrrd': (swap(b'dimension: 3', b'dimension: 4'), 'axes'),
    'nan.nrrd': (swap(b'(1,0,0)', b'(nan,0,0)'), 'cannot be read'),
    'flat.nrrd': (swap(b'(1,0,0)', b'(0,0,0)'), 'cannot be read'),
    'skew.nrrd': (swap(b'(1,0,0)', b'(0,1,0)'), 'cannot be read'),
    'block.nrrd': (swap(b'uchar', b'block'), 'wanted whole or real'),
    'bzip.nrrd': (swap(b'raw', b'bzip2'), 'raw or gzip'),
    'text.nrrd': (swap(b'raw', b'ascii'), 'raw or gzip'),
    'out.nhdr': (detached + b'\ndata file: /etc/passwd\n', 'outside of its folder'),
    'up.nhdr': (detached + b'\ndata file: ../x.raw\n', 'outside of its folder'),
    'old.nhdr': (detached + b'\ndatafile: ../x.raw\n', 'outside of its folder'),
    'none.nhdr': (detached + b'\ndata file: x.raw\n', 'not in its folder'),
    'many.nhdr': (detached + b'\ndata file: x%03d.raw 1 4 1\n', 'several files'),
    'list.nhdr': (detached + b'\ndata file: LIST\n../x.raw\n', 'several files'),
    'last.mha': (local[:-1], 'truncated'),
    'head.mha': (local[:60], 'truncated'),
    'huge.mha': (swap(b'2 3 4', b'99999 99999 99999', local), 'truncated'),
    'zero.mha': (swap(b'2 3 4', b'2 0 4', local), 'axes are'),
    'nan.mha': (swap(b'1 1 2', b'nan 1 2', local), 'cannot be read'),
    'flat.mha': (swap(b'1 0 0 0 1 0 0 0 1', b'1 0 0 1 0 0 0 0 1', local), 'cannot be read'),
    'type.mha': (swap(b'MET_UCHAR', b'MET_STRING', local), 'wanted whole or real'),
    'text.mha': (swap(b'NDims = 3', b'NDims = 3\nBinaryData = False', local), 'save them as binary'),
    'out.mhd': (meta + b'/etc/passwd\n', 'outside of its folder'),
    'up.mhd': (meta + b'../x.raw\n', 'outside of its folder'),
    'none.mhd': (meta + b'x.raw\n', 'not in its folder'),
    'list.mhd': (meta + b'LIST\n../x.raw\n', 'several files'),
    'many.mhd': (meta + b'x%03d.raw 1 4 1\n', 'several files'),
    'four.mha': (swap(b'NDims = 3', b'NDims = 4', swap(b'2 3 4', b'2 3 2 2', swap(
        b'TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 1 2\n', b'', local))), '4 are told'),
    'five.mha': (swap(b'NDims = 3', b'NDims = 5', local), '3 are told'),
    'matrix.mha': (swap(b'1 0 0 0 1 0 0 0 1', b'1 0 0', local), 'wanted 9 numbers')}


@pytest.mark.parametrize('name', bad_files)
def test_bad_file(here, name):
    content, word = bad_files[name]
    here = here/'in'
    here.mkdir()
    (here.parent/'x.raw').write_bytes(bytes(24))
    (here/name).write_bytes(content)
    with pytest.raises(ValueError, match=word) as e: read_nrrd(here/name)
    assert name in str(e.value)


def test_the_good_ones_are_good(here):
    for name, content in (('a.nrrd', good), ('a.mha', local), ('b.nhdr', detached + b'\ndata file: x.raw\n'),
                          ('b.mhd', meta + b'x.raw\n'), ('c.nhdr', detached + b'\ndata file: ./x.raw\n')):
        Path(name).write_bytes(content)
        Path('x.raw').write_bytes(bytes(24))
        assert read_nrrd(name).shape == (2, 3, 4)


def test_links_out_of_the_folder(here):
    (here/'in').mkdir()
    (here/'x.raw').write_bytes(bytes(24))
    (here/'in/x.raw').symlink_to(here/'x.raw')
    (here/'in/a.mhd').write_bytes(meta + b'x.raw\n')
    with pytest.raises(ValueError, match='outside of its folder'): read_nrrd('in/a.mhd')


def test_two_fields_cannot_disagree(here):
    "The second of two fields must not be the one that ITK believes"
    for content in (swap(b'sizes: 2 3 4', b'sizes: 2 3 4\nsizes: 9999 9999 9999'),
                    swap(b'sizes: 2 3 4', b'sizes: 9999 9999 9999\nsizes: 2 3 4')):
        Path('a.nrrd').write_bytes(content)
        with pytest.raises(ValueError, match='twice'): read_nrrd('a.nrrd')
    Path('a.mha').write_bytes(swap(b'DimSize = 2 3 4', b'DimSize = 9999 9999 9999\nDimSize = 2 3 4', local))
    with pytest.raises(ValueError, match='twice'): read_nrrd('a.mha')
    Path('b.mhd').write_bytes(b'Comment = elementdatafile : ../x.raw\n' + meta + b'LOCAL\n' + bytes(24))
    with pytest.raises(ValueError, match='no proper line'): read_nrrd('b.mhd')


def test_missing_names(slicer, here):
    with pytest.raises(ValueError, match='CTChest4.nrrd cannot be read: it names no segments'):
        segments(slicer/'CTChest4.nrrd')
    with pytest.raises(ValueError, match="'heart' is there 0 times"):
        read_segments(slicer/'Segmentation.seg.nrrd', ['heart'])
    with pytest.raises(FileNotFoundError, match='missing'): segments('missing.seg.nrrd')
