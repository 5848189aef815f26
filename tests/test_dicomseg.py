"DICOM SEG there and back, against bits unpacked by hand."
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from grids import tilt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medseg_nb.data.dicomseg import read_seg, segments, write_seg
from medseg_nb.data.volume import Volume

pytestmark = pytest.mark.filterwarnings('ignore:The string')
size, lps = (10, 8, 6), np.diag([-1., -1, 1, 1])


def place(rng):
    "An oblique right-handed grid with square pixels, as scanners make them"
    out = np.eye(4)
    out[:3, :3] = tilt(rng, 3)*(.7, .7, 2.5)
    if np.linalg.det(out[:3, :3]) < 0: out[:3, 2] *= -1
    out[:3, 3] = rng.uniform(-100, 100, 3)
    return out


def write_series(folder, affine, order=None):
    "An image series on a grid (columns, rows, slices) with an affine toward RAS; its files in any order"
    a, study, frame, uid = lps@affine, generate_uid(), generate_uid(), generate_uid()
    spacing = np.linalg.norm(a[:3, :3], axis=0)
    out = []
    for number, k in enumerate(order or range(size[2])):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, generate_uid(), 'CT'
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = 'Doe^Jane', '1', '', ''
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, uid, frame
        ds.StudyDate = ds.StudyTime = ds.StudyID = ds.AccessionNumber = ds.ReferringPhysicianName = ''
        ds.PositionReferenceIndicator, ds.InstanceNumber, ds.SeriesNumber = '', number + 1, 1
        ds.ImagePositionPatient = [f'{x:.12g}' for x in (a@[0, 0, k, 1])[:3]]
        ds.ImageOrientationPatient = [f'{x:.12g}' for x in (a[:3, :2]/spacing[:2]).T.ravel()]
        ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        ds.Columns, ds.Rows, ds.SamplesPerPixel, ds.PhotometricInterpretation = *size[:2], 1, 'MONOCHROME2'
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelData = np.zeros(size[1::-1], dtype=np.int16).tobytes()
        meta = ds.file_meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, ds.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder/f'{number}.dcm', enforce_file_format=True)
        out.append(folder/f'{number}.dcm')
    return out


def random_labels(rng, affine, n=3):
    data = rng.integers(0, n + 1, (1, *size)).astype(np.uint8)
    data[..., :2] = 0
    return Volume(data, affine)


names = {1: 'liver', 2: ('39607008', 'SCT', 'Lung structure'), 3: 'lesion'}


@pytest.mark.parametrize('seed', range(4))
def test_round_trip(tmp_path, seed):
    rng = np.random.default_rng(seed)
    mask = random_labels(rng, place(rng))
    files = write_series(tmp_path, mask.affine, rng.permutation(size[2]).tolist())
    path = write_seg(mask, tmp_path/'seg.dcm', files, names, algorithm='U-Net')
    back = read_seg(path, like=mask)
    assert (back.data == mask.data).all() and np.allclose(back.affine, mask.affine, atol=1e-4)
    other = mask.reorient(mask.axcodes[::-1])
    assert (read_seg(path, like=other).data == other.data).all()
    assert (read_seg(path, like=mask, numbers=[2]).numpy() == 2*(mask.numpy() == 2)).all()
    table = segments(path)
    assert table.label.tolist() == ['liver', 'Lung structure', 'lesion'] and set(table.made) == {'automatic'}


def test_its_own_grid_is_where_the_voxels_lie(tmp_path):
    rng = np.random.default_rng(7)
    mask = random_labels(rng, place(rng))
    path = write_seg(mask, tmp_path/'seg.dcm', write_series(tmp_path, mask.affine), names)
    own = read_seg(path)
    assert own.shape == (*size[:2], size[2] - 2)
    at = mask.to_voxel(own.to_world(np.argwhere(own.numpy()[0]))).round().astype(int)
    assert (mask.numpy()[0][tuple(at.T)] == own.numpy()[0][own.numpy()[0] > 0]).all()
    assert set(segments(path).made) == {'manual'}


def test_bits_by_hand(tmp_path):
    rng = np.random.default_rng(3)
    mask = random_labels(rng, place(rng))
    path = write_seg(mask, tmp_path/'seg.dcm', write_series(tmp_path, mask.affine), names)
    ds, out = pydicom.dcmread(path), np.zeros(size, dtype=np.uint8)
    bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder='little')
    bits = bits[:ds.NumberOfFrames*80].reshape(-1, 8, 10)
    for frame, group in zip(bits, ds.PerFrameFunctionalGroupsSequence):
        xyz = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)*(-1, -1, 1)
        k = round(mask.to_voxel(xyz)[2])
        out[:, :, k] += frame.T*group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    assert (out == mask.numpy()[0]).all()
    assert ds.PatientID == '1' and ds.Modality == 'SEG' and ds.SegmentationType == 'BINARY'


def test_a_crop_of_the_slices_is_written_and_read(tmp_path):
    rng = np.random.default_rng(5)
    mask = random_labels(rng, place(rng))
    files = write_series(tmp_path, mask.affine)
    part = mask[:, :, 2:5]
    path = write_seg(part, tmp_path/'seg.dcm', files, names)
    assert (read_seg(path, like=mask).numpy()[..., 2:5] == part.numpy()).all()
    with pytest.raises(ValueError, match='lie outside the image'): read_seg(path, like=mask[:, :, :3])
    shifted = Volume(mask.data, mask.affine + .3*np.eye(4, k=3))
    with pytest.raises(ValueError, match='another grid'): read_seg(path, like=shifted)
    with pytest.raises(ValueError, match='another grid'): read_seg(path, like=mask.resample(spacing=1.))
    wider = Volume(mask.data, mask.affine@np.diag([1.2, 1, 1, 1]))
    with pytest.raises(ValueError, match='another grid'): read_seg(path, like=wider)


def test_overlap_is_refused_and_named(tmp_path):
    import highdicom as hd
    rng = np.random.default_rng(1)
    mask = random_labels(rng, place(rng), n=1)
    sources = [pydicom.dcmread(p) for p in write_series(tmp_path, mask.affine)]
    tissue = hd.sr.CodedConcept('85756007', 'SCT', 'Tissue')
    described = [hd.seg.SegmentDescription(n, str(n), tissue, tissue, 'MANUAL') for n in (1, 2)]
    both = np.stack([mask.numpy()[0].transpose(2, 1, 0)]*2, -1)
    def made(kind, array):
        v = hd.Volume(array, (lps@mask.affine)[:, [2, 1, 0, 3]], 'PATIENT',
                      frame_of_reference_uid=sources[0].FrameOfReferenceUID,
                      channels={'SegmentNumber': [1, 2]} if array.ndim == 4 else None)
        seg = hd.seg.Segmentation(sources, v, kind, described,
            series_instance_uid=hd.UID(), series_number=9, sop_instance_uid=hd.UID(), instance_number=1,
            manufacturer='a', manufacturer_model_name='b', software_versions='1', device_serial_number='0',
            max_fractional_value=200)
        seg.save_as(tmp_path/'made.dcm')
        return tmp_path/'made.dcm'
    path, count = made('BINARY', both), int(mask.data.sum())
    with pytest.raises(ValueError, match=f'segments 1 and 2 share {count} voxels.*numbers='): read_seg(path)
    assert (read_seg(path, like=mask, numbers=[2]).numpy() == 2*mask.numpy()).all()
    with pytest.raises(ValueError, match=r'no segment 5; it has \[1, 2\]'): read_seg(path, numbers=[5])
    part = read_seg(made('FRACTIONAL', both*np.array([.5, .25])), like=mask)
    share = np.array([.5, .25])[:, None, None, None]
    assert part.channels == 2 and np.allclose(part.numpy(), mask.numpy()*share)
    labelmap = read_seg(made('LABELMAP', 2*mask.numpy()[0].transpose(2, 1, 0)), like=mask)
    assert (labelmap.numpy() == 2*mask.numpy()).all()


def test_what_is_not_written(tmp_path):
    rng = np.random.default_rng(2)
    mask = random_labels(rng, place(rng))
    files, out = write_series(tmp_path, mask.affine), tmp_path/'out'/'seg.dcm'
    out.parent.mkdir()
    def refused(words, mask=mask, files=files, names=names):
        with pytest.raises(ValueError, match=words): write_seg(mask, out, files, names)
        assert not list(out.parent.iterdir())
    half = np.eye(4)
    half[2, 3] = .5
    refused('6 slices have no image', Volume(mask.data, mask.affine@half))
    half[2, 3], half[0, 3] = 0, 1
    refused('6 slices have no image', Volume(mask.data, mask.affine@half))
    refused('not on the grid', mask[:-1])
    refused('wanted a name for each', names={1: 'a', 2: 'b'})
    refused('wanted a name for each', names={1: 'a', 3: 'b', 2: 'c', 5: 'd'})
    refused('wanted one channel of integers', mask.new(mask.data.float()))
    refused('wanted one channel of integers', mask.new(mask.data.int() - 1))
    refused('0 files of 0 series', files=[])
    (tmp_path/'x').mkdir()
    refused('12 files of 2 series', files=files + write_series(tmp_path/'x', mask.affine))


def test_bad_files(tmp_path):
    rng = np.random.default_rng(2)
    mask = random_labels(rng, place(rng))
    files = write_series(tmp_path, mask.affine)
    with pytest.raises(FileNotFoundError): read_seg(tmp_path/'none.dcm')
    with pytest.raises(ValueError, match='0.dcm cannot be read: '): read_seg(files[0])
    (tmp_path/'text.dcm').write_text('not DICOM')
    with pytest.raises(ValueError, match='text.dcm cannot be read: '): segments(tmp_path/'text.dcm')
    whole = write_seg(mask, tmp_path/'seg.dcm', files, names).read_bytes()
    for n in range(0, len(whole) - 1, 251):
        (tmp_path/'cut.dcm').write_bytes(whole[:n])
        with pytest.raises(ValueError, match='cut.dcm'): read_seg(Path(tmp_path/'cut.dcm'))


def test_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'highdicom', None)
    with pytest.raises(ImportError, match=r'medseg_nb\[dicom\]'): segments(tmp_path/'a.dcm')
