"One load and one save: the content decides, the name agrees, other libraries see the same."
import gzip
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from grids import image, volumes
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.testing import data_path
from PIL import Image
from pydicom.data import get_testdata_file

from medseg_nb.data.files import kind, load, save
from medseg_nb.data.grid import same_grid
from medseg_nb.data.nrrd import write_segments
from medseg_nb.data.volume import Volume

flat = Volume(np.add.outer(np.arange(60), np.arange(50)*2).astype(np.uint8)[None],
              [[.7, .1, -31], [-.1, .7, 4], [0, 0, 1]])
deep = Volume((image.data*100).to(torch.uint8), image.affine)
kinds = {'a.nii': 'NIfTI', 'a.nii.gz': 'NIfTI', 'a.nrrd': 'NRRD', 'a.mha': 'MetaImage', 'a.png': 'PNG',
         'a.tif': 'TIFF', 'a.jpg': 'JPEG'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('files')


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def proper(name): return flat if name[1:] in ('.png', '.tif', '.jpg') else deep


def written(name):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return save(proper(name), name)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(volumes(), st.sampled_from(['.nii', '.nii.gz', '.nrrd', '.mha', '.png', '.tif']))
def test_load_returns_what_was_saved(folder, case, suffix):
    v, rng = case
    dims = 2 if suffix in ('.png', '.tif') else 3
    if v.ndim != dims: return
    v = v.new(rng.integers(0, 256, v.data.shape).astype(np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        back = load(save(v, folder/f'a{suffix}'), dims=dims)
    assert back.data.dtype == v.data.dtype and torch.equal(back.data, v.data)
    assert same_grid(back, v, tol=1e-4)


def test_other_libraries_see_the_same(here):
    itk = lambda p: sitk.GetArrayFromImage(sitk.ReadImage(p)).T
    readers = {'a.nii': (lambda p: np.asanyarray(nib.load(p).dataobj), itk),
               'a.nii.gz': (lambda p: np.asanyarray(nib.load(p).dataobj), itk),
               'a.nrrd': (itk,), 'a.mha': (itk,), 'a.png': (lambda p: np.array(Image.open(p)),
                                                            lambda p: itk(p).T),
               'a.tif': (tifffile.imread, lambda p: np.array(Image.open(p)), lambda p: itk(p).T)}
    for name, them in readers.items():
        save(proper(name), name)
        for read in them: np.testing.assert_array_equal(read(name), proper(name).numpy()[0])


@pytest.mark.parametrize('name', kinds)
def test_the_content_tells(here, name):
    assert kind(written(name)) == kinds[name]
    for other in [*kinds, 'a.dcm', 'a.bmp', 'a.gif', 'a.hdr', 'a', 'a.5']:
        shutil.copy(name, f'x{other[1:]}')
        if kinds.get(other) == kinds[name]: continue
        with pytest.raises(ValueError, match=f'x{other[1:]} is {kinds[name]} by its content; end its name'):
            load(f'x{other[1:]}')


def test_gzip_against_its_suffix(here):
    save(deep, 'a.nii.gz')
    shutil.copy('a.nii.gz', 'b.nii')
    with pytest.raises(ValueError, match='end its name in .nii.gz'): load('b.nii')
    Path('c.nii.gz').write_bytes(gzip.decompress(Path('a.nii.gz').read_bytes()))
    with pytest.raises(ValueError, match='c.nii.gz cannot be read: it is damaged'): load('c.nii.gz')
    Path('d.png').write_bytes(gzip.compress(b'hello'))
    with pytest.raises(ValueError, match='d.png cannot be read: it is not a PNG'): load('d.png')
    Path('e.gz').write_bytes(gzip.compress(b'hello'))
    with pytest.raises(ValueError, match='e.gz is of an unknown kind'): load('e.gz')


def test_dicom_whatever_its_name(here):
    pytest.importorskip('medseg_nb.data.dicom')
    ct = get_testdata_file('CT_small.dcm')
    for name in ('a.dcm', 'A.DCM', 'a', '1.2.840.5', 'IM0001.IMA'):
        shutil.copy(ct, name)
        assert kind(name) == 'DICOM'
        assert load(name).shape == load('a.dcm').shape
    shutil.copy(ct, 'a.tif')
    with pytest.raises(ValueError, match='a.tif is DICOM by its content; end its name in .dcm'): load('a.tif')


def test_contours_need_an_image():
    with pytest.raises(ValueError, match='rtstruct.dcm holds contours: read_rtstruct.path, like=image'):
        load(get_testdata_file('rtstruct.dcm'))


def test_segments_load_as_numbers(here):
    write_segments(deep, 'a.seg.nrrd', {int(k): f'organ {k}' for k in deep.data.unique() if k})
    assert torch.equal(load('a.seg.nrrd').data, deep.data)


def test_wrong_place_or_kind(here):
    save(flat, 'flat.png')
    save(deep, 'deep.nii')
    with pytest.raises(ValueError, match='flat.png has 2 axes of space, and 3'): load('flat.png', dims=3)
    with pytest.raises(ValueError, match='deep.nii has 3 axes of space, and 2'): load('deep.nii', dims=2)
    with pytest.raises(FileNotFoundError, match='missing.nii'): load('missing.nii')
    for name in ('a.dcm', 'a.gz', 'nii', 'a.nii.bz2', 'a.webp', 'a.bmp', 'a.hdr'):
        with pytest.raises(ValueError, match=f'{name} cannot be written; wanted .nii'):
            save(deep, name)
    Path('a.xyz').write_text('hello')
    with pytest.raises(ValueError, match='a.xyz is of an unknown kind; wanted a folder'): load('a.xyz')
    assert load(save(deep, 'UPPER.NII.GZ')).shape == deep.shape
    with pytest.raises(ValueError, match='3 axes of space'): save(deep, 'a.png')
    with pytest.raises(ValueError, match='NIfTI wants 3'): save(flat, 'a.nii')
    with pytest.raises(TypeError, match='save.volume, path'): save('a.nii', deep)
    assert sorted(p.name for p in here.iterdir()) == ['UPPER.NII.GZ', 'a.xyz', 'deep.nii', 'flat.png']


@pytest.mark.parametrize('path', sorted(p for p in data_path.glob('*.nii*')), ids=lambda p: p.name)
def test_real_nifti(path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: v = load(path)
        except ValueError as e: assert path.name in str(e) and 'row_major' in path.name
        else: assert v.data[..., 0].numel() and same_grid(v, Volume(v.data, nib.load(path).affine))
