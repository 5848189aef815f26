"Hospital sets: pictures, outlines and masks find the slices and the series that they belong to."
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydicom import Dataset, Sequence, dcmread, uid

from medseg_nb.data import sets_dicom as s
from medseg_nb.data.dicom import read_series
from medseg_nb.data.files import save
from medseg_nb.data.sets import cases, entry
from medseg_nb.data.volume import Volume

SHAPE = (7, 6, 5)  # columns, rows, slices


@pytest.fixture
def top(tmp_path, monkeypatch):
    "An empty MEDSEG_DATA"
    monkeypatch.setenv('MEDSEG_DATA', str(tmp_path))
    return tmp_path


def dicom(path, d):
    d.file_meta = Dataset()
    d.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(path, enforce_file_format=True)


def slices(folder, x, names, series='1.2.840.1', modality='CT'):
    "A series; slice k of the array, counted upward, under name k"
    for k, name in enumerate(names):
        d, pixels = Dataset(), x[:, :, k].T.astype('<i2')
        (d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID,
         d.StudyInstanceUID) = uid.CTImageStorage, f'{series}.{k + 1}', series, '1.2'
        (d.FrameOfReferenceUID, d.Modality, d.InstanceNumber, d.PixelSpacing,
         d.SliceThickness) = '1.9', modality, k + 1, [2, 3], 4
        d.ImagePositionPatient, d.ImageOrientationPatient = [10, 20, 4*k], [1, 0, 0, 0, 1, 0]
        (d.Rows, d.Columns), d.SamplesPerPixel, d.PhotometricInterpretation = pixels.shape, 1, 'MONOCHROME2'
        d.BitsAllocated = d.BitsStored = 16
        (d.HighBit, d.PixelRepresentation, d.PixelData, d.RescaleSlope,
         d.RescaleIntercept) = 15, 1, pixels.tobytes(), 1, 0
        d.SeriesNumber, d.PatientID = 1, 'A-001'
        for tag in ('PatientName PatientBirthDate PatientSex StudyID StudyDate StudyTime AccessionNumber '
                    'ReferringPhysicianName').split(): setattr(d, tag, '')
        dicom(folder/name, d)


def pictures(folder, gray, names):
    folder.mkdir(parents=True)
    for k, name in enumerate(names): Image.fromarray(gray[:, :, k].T.astype(np.uint8)).save(folder/name)


def labels(n, seed=0): return np.random.default_rng(seed).integers(0, n, SHAPE)


@pytest.mark.parametrize('order', ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]))
def test_chaos_ct_pairs_by_name_and_places_by_header(top, order):
    x, m = labels(900), labels(2)
    home = top/'chaos'/'CT'/'19'
    slices(home/'DICOM_anon', x, [f'i{k:04},0000b.dcm' for k in order])
    pictures(home/'Ground', 255*m, [f'liver_GT_{k:03}.png' for k in order])
    (home/'Ground'/'._liver_GT_000.png').write_bytes(b'macOS')
    c, = cases('chaos')
    assert (c.id, c.patient, c.meta['modality'], c.meta['classes']) == (
        'CT_19', 'CT_19', 'CT', ('background', 'liver'))
    assert (c.image.numpy()[0] == x).all() and (c.mask.numpy()[0] == m).all()


@pytest.mark.parametrize('scan', ('T1DUAL', 'T2SPIR'))
def test_chaos_mr_has_four_grays(top, scan):
    gray = np.random.default_rng(0).choice(
        [0, 55, 63, 70, 110, 126, 135, 175, 189, 200, 240, 252, 255], SHAPE)
    ranges = [(gray > a) & (gray <= b) for a, b in ((54, 70), (109, 135), (174, 200), (239, 255))]
    home, names = top/'chaos'/'MR'/'1'/scan, [f'IMG-0004-{k + 1:05}' for k in range(5)]
    for i, phase in enumerate(('InPhase', 'OutPhase') if scan == 'T1DUAL' else ('',)):
        slices(home/'DICOM_anon'/phase, labels(900, i), [f'{n}.dcm' for n in names], f'1.2.840.{i + 1}', 'MR')
    pictures(home/'Ground', gray, [f'{n}.png' for n in names])
    c, = cases('chaos')
    assert c.id == f'MR_1_{scan}' and c.patient == 'MR_1' and c.meta['modality'] == scan
    assert (c.image.channels == 1 + (scan == 'T1DUAL')
            and (c.image.numpy()[-1] == labels(900, c.image.channels - 1)).all())
    assert (c.mask.numpy()[0] == np.select(ranges, [1, 2, 3, 4])).all()
    assert c.meta['classes'] == ('background', 'liver', 'right kidney', 'left kidney', 'spleen')


def test_chaos_counts_pictures(top):
    home, names = top/'chaos'/'CT'/'1', [f'i{k:04},0000b.dcm' for k in range(5)]
    slices(home/'DICOM_anon', labels(9), names)
    pictures(home/'Ground', labels(2), ['a.png', 'b.png', 'c.png', 'd.png'])
    with pytest.raises(ValueError, match='4 pictures for 5 slices'): cases('chaos')[0].mask
    for p in (home/'Ground').iterdir(): p.unlink()
    (home/'Ground').rmdir()
    with pytest.raises(FileNotFoundError, match='Ground'): cases('chaos')


def struct(path, on, outlines):
    "An RTSTRUCT with a square for each name: (corner, corner) in voxels of slice 2"
    d = Dataset()
    (d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID,
     d.Modality) = uid.RTStructureSetStorage, '1.5.1', '1.5', 'RTSTRUCT'
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, study.RTReferencedSeriesSequence = on, Sequence([series])
    frame.RTReferencedStudySequence, frame.FrameOfReferenceUID = Sequence([study]), '1.9'
    d.ReferencedFrameOfReferenceSequence = Sequence([frame])
    d.StructureSetROISequence, d.ROIContourSequence = Sequence(), Sequence()
    for number, (name, (low, high)) in enumerate(outlines.items(), 1):
        roi, drawn, contour = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        square = [(low, low), (high, low), (high, high), (low, high)]
        contour.ContourGeometricType, contour.NumberOfContourPoints = 'CLOSED_PLANAR', 4
        contour.ContourData = [v for i, j in square for v in (10 + 3*i, 20 + 2*j, 8.)]
        drawn.ReferencedROINumber, drawn.ContourSequence = number, Sequence([contour])
        d.StructureSetROISequence.append(roi)
        d.ROIContourSequence.append(drawn)
    dicom(path, d)


def tcia_tree(top, outlines, on='1.2.840.1', twice=False):
    "Two CT series and an RTSTRUCT"
    home, study = top/'tcia', 'NSCLC/LUNG1-001/09-18-2008-StudyID-NA-69331'
    rows = [('1.2.840.1', 'CT', '0.000000-NA-82046'), ('1.2.840.7', 'CT', '2.000000-NA-82047'),
            ('1.5', 'RTSTRUCT', '3.000000-NA-78236')]
    slices(home/study/rows[0][2], labels(9), [f'1-{k + 1:03}.dcm' for k in range(5)])
    slices(home/study/rows[1][2], labels(9, 1), [f'1-{k + 1:03}.dcm' for k in range(5)], '1.2.840.7')
    struct(home/study/rows[2][2]/'1-1.dcm', on, outlines)
    table = pd.DataFrame([{
        'Series UID': u, 'Collection': 'NSCLC', 'Subject ID': 'LUNG1-001', 'Series Description': 'NA',
        'Manufacturer': 'SIEMENS', 'Modality': m,
        'File Location': f'.\\{study}\\{p}'.replace('/', '\\') if twice else f'./{study}/{p}'}
        for u, m, p in rows])
    table.to_csv(home/'metadata.csv', index=False)
    return home/study


@pytest.mark.parametrize('windows', (False, True))
@pytest.mark.parametrize('on, seed', [('1.2.840.1', 0), ('1.2.840.7', 1)])
def test_tcia_outlines_go_to_the_series_they_name(top, on, seed, windows):
    tcia_tree(top, {'Lung': (-.5, 4.5), 'GTV-1': (.5, 2.5)}, on, windows)
    c, = cases('tcia')
    assert (c.patient == 'LUNG1-001'
            and (c.meta['vendor'], c.meta['site'], c.meta['modality']) == ('SIEMENS', 'NSCLC', 'CT'))
    assert ((c.image.numpy()[0] == labels(9, seed)).all()
            and c.meta['classes'] == ('background', 'GTV-1', 'Lung'))
    wanted = np.zeros(SHAPE)
    wanted[:5, :5, 2] = 2
    wanted[1:3, 1:3, 2] = 1
    assert (c.mask.numpy()[0] == wanted).all()


def test_tcia_two_raters_of_one_image(top):
    study = tcia_tree(top, {'Lung': (-.5, 4.5)})
    struct(study/'4.000000-NA-5'/'1-1.dcm', '1.2.840.1', {'GTV-1': (.5, 2.5)})
    table = pd.read_csv(top/'tcia'/'metadata.csv', dtype=str)
    second = table.iloc[2].to_dict() | {
        'Series UID': '1.6', 'File Location': str(study.relative_to(top/'tcia')/'4.000000-NA-5')}
    table = pd.concat([table, pd.DataFrame([second])])
    table['Series Description'] = ['CT', 'CT', 'Smith', 'Jones']
    table['Manufacturer'] = ['SIEMENS', 'SIEMENS', 'a workstation', 'another']
    table.to_csv(top/'tcia'/'metadata.csv', index=False)
    a, b = cases('tcia')
    assert a.patient == b.patient == 'LUNG1-001' and a.id != b.id
    assert (a.meta['rater'], b.meta['rater']) == ('Smith', 'Jones') and b.meta['vendor'] == 'SIEMENS'
    assert a.meta['classes'] == b.meta['classes'] == ('background', 'GTV-1', 'Lung')
    assert a.mask.data.unique().tolist() == [0, 2] and b.mask.data.unique().tolist() == [0, 1]


def test_tcia_names_what_was_not_downloaded(top):
    study = tcia_tree(top, {'Lung': (0, 3)}, '1.2.840.99')
    with pytest.raises(FileNotFoundError, match='1.2.840.99'): cases('tcia')
    (study/'3.000000-NA-78236'/'1-1.dcm').unlink()
    with pytest.raises(FileNotFoundError, match='3.000000-NA-78236'): cases('tcia')


def test_tcia_reads_a_seg_and_unites_segments_of_one_name(top):
    pytest.importorskip('highdicom')
    from medseg_nb.data.dicomseg import write_seg
    home, m = top/'tcia', labels(4)
    slices(home/'C'/'A-001'/'study'/'ct', labels(9), [f'1-{k + 1}.dcm' for k in range(5)])
    ct = read_series(home/'C'/'A-001'/'study'/'ct')
    (home/'C'/'A-001'/'study'/'seg').mkdir()
    path = write_seg(ct.new(torch.from_numpy(m[None].astype('uint8'))),
                     home/'C'/'A-001'/'study'/'seg'/'1-1.dcm',
                     sorted((home/'C'/'A-001'/'study'/'ct').glob('*.dcm')),
                     {1: 'Liver', 2: 'Kidney', 3: 'Kidney'})
    rows = [('1.2.840.1', 'CT', 'ct'), (dcmread(path).SeriesInstanceUID, 'SEG', 'seg')]
    pd.DataFrame([{'Series UID': u, 'Collection': 'C', 'Subject ID': 'A-001', 'Series Description': 'x',
                   'Manufacturer': 'GE', 'Modality': k, 'File Location': f'./C/A-001/study/{p}'}
                  for u, k, p in rows]).to_csv(home/'metadata.csv')
    c, = cases('tcia')
    assert c.meta['classes'] == ('background', 'Kidney', 'Liver')
    assert (c.mask.numpy()[0] == np.array([0, 2, 1, 1])[m]).all()


def test_the_small_one_stays_on_top():
    like = Volume(torch.zeros(1, 4, 4, 4))
    big, small = torch.ones(1, 4, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    small[0, 0, 0, 0] = 1
    for masks in (dict(a=big, b=small), dict(b=small, a=big)):
        out = s.paint({k: like.new(v) for k, v in masks.items()}, ('background', 'a', 'b'), like)
        assert out.data[0, 0, 0, 0] == 2 and (out.data == 1).sum() == 63


def test_totalsegmentator_numbers_names_alike_in_all(top):
    x = labels(4)
    for who, names in (('s0001', {1: 'liver', 2: 'aorta', 3: 'spleen'}), ('s0002', {1: 'liver'})):
        home = top/'totalsegmentator'/who
        (home/'segmentations').mkdir(parents=True)
        save(Volume(x[None].astype('int16')), home/'ct.nii.gz')
        for k, name in names.items():
            save(Volume((x == k)[None].astype('uint8'), np.eye(4)), home/'segmentations'/f'{name}.nii.gz')
        (home/'segmentations'/'._liver.nii.gz').write_bytes(b'macOS')
    (top/'totalsegmentator'/'meta.csv').write_text('\ufeffimage_id;age;gender;institute;study_type;split\n'
                                                   's0001;57;f;C;ct abdomen;train\ns0002;;m;B;ct;test\n')
    a, b = cases('totalsegmentator')
    assert a.meta['classes'] == b.meta['classes'] == ('background', 'aorta', 'liver', 'spleen')
    assert (a.mask.numpy()[0] == np.array([0, 2, 1, 3])[x]).all() and (b.mask.numpy()[0] == 2*(x == 1)).all()
    assert (a.meta['age'], a.meta['sex'], a.meta['site'], a.meta['split']) == (57, 'f', 'C', 'train')
    assert 'age' not in b.meta and b.meta['sex'] == 'm'


@pytest.mark.parametrize('name', ('chaos', 'tcia', 'totalsegmentator'))
def test_a_set_that_is_not_there_says_how_to_bring_it(top, name):
    e = entry(name)
    with pytest.raises(FileNotFoundError) as error: cases(name)
    for words in (e.how, e.layout, e.license, str(top/name)): assert words in str(error.value)
