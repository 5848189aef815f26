"Heart sets: frames, vendors and contours, on tiny trees in the published layouts; real Sunnybrook if there."
import os
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from matplotlib.path import Path as Outline
from PIL import Image
from pydicom import Dataset, uid

from medseg_nb.data import sets_heart as s
from medseg_nb.data.case import split
from medseg_nb.data.files import save
from medseg_nb.data.sets import cases, entry
from medseg_nb.data.volume import Volume

SHAPE = (5, 6, 3)
MINE = ('acdc', 'mms', 'mmwhs', 'sunnybrook', 'sunnybrook_cmr')
OWN = os.environ.get('MEDSEG_DATA')


@pytest.fixture
def top(tmp_path, monkeypatch):
    "An empty MEDSEG_DATA"
    monkeypatch.setenv('MEDSEG_DATA', str(tmp_path))
    return tmp_path


def put(path, x):
    "A NIfTI file; the times of a movie come first"
    x = np.asarray(x)
    x = x if x.ndim == 4 else x[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(Volume(x, np.diag([1.4, 1.4, 8, 1])), path)


def labels(values, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).choice(values, shape).astype('int16')


def acdc_tree(top, part, patient, ed, es, group='DCM'):
    home, x = top/'acdc'/part/patient, labels((0, 1, 2, 3))
    for frame in (ed, es):
        put(home/f'{patient}_frame{frame:02}.nii.gz', np.full(SHAPE, frame, 'int16'))
        put(home/f'{patient}_frame{frame:02}_gt.nii.gz', x)
    put(home/f'{patient}_4d.nii.gz', np.zeros((4, *SHAPE), 'int16'))
    (home/'Info.cfg').write_text(f'ED: {ed}\nES: {es}\nGroup: {group}\n'
                                 'Height: 184.0\nNbFrame: 30\nWeight: 95.0\n')
    (home/'MANDATORY_CITATION.md').write_text('')
    return x


def test_acdc_turns_the_chambers_around(top):
    acdc_tree(top, 'testing', 'patient101', 1, 14, 'NOR')
    x = acdc_tree(top, 'training', 'patient001', 1, 12)
    found = cases('acdc')
    assert [c.id for c in found] == ['patient101_frame01', 'patient101_frame14',
                                     'patient001_frame01', 'patient001_frame12']
    assert [c.meta['phase'] for c in found] == ['ED', 'ES']*2 and found[0].meta['group'] == 'NOR'
    c = found[3]
    assert (c.patient, c.meta['split'], c.meta['group']) == ('patient001', 'training', 'DCM')
    assert c.image.data.unique().tolist() == [12]
    for file, ours, name in ((1, 3, 'right ventricle'), (2, 2, 'myocardium'), (3, 1, 'left ventricle')):
        assert ((x == file) == (c.mask.numpy()[0] == ours)).all() and c.meta['classes'][ours] == name
    a, b = split(found, (.5, .5))
    assert {c.patient for c in a} & {c.patient for c in b} == set()


def test_acdc_wants_its_info(top):
    acdc_tree(top, 'training', 'patient001', 1, 12)
    (top/'acdc'/'training'/'patient001'/'Info.cfg').unlink()
    with pytest.raises(FileNotFoundError, match='Info.cfg'): cases('acdc')


def mms_tree(top, rows):
    table = []
    for part, code, vendor, centre, ed, es in rows:
        home, x = top/'mms'/part/code, np.zeros((6, *SHAPE), 'int16')
        put(home/f'{code}_sa.nii.gz', np.arange(6, dtype='int16')[:, None, None, None] + x)
        if part != 'Training/Unlabeled': x[ed], x[es] = 1, labels((0, 1, 2, 3))
        put(home/f'{code}_sa_gt.nii.gz', x)
        table.append({'External code': code, 'VendorName': vendor, 'Vendor': 'A', 'Centre': centre, 'ED': ed,
                      'ES': es, 'Age': 61, 'Pathology': 'HCM', 'Sex': 'F', 'Height': '', 'Weight': ''})
    pd.DataFrame(table).to_csv(top/'mms'/'211230_M&Ms_Dataset_information_diagnosis_opendataset.csv')


def test_mms_counts_frames_from_zero(top):
    mms_tree(top, [
        ('Training/Labeled', 'A0S9V9', 'Siemens', 1, 0, 4), ('Validation', 'A5C2D2', 'GE', 4, 5, 2),
        ('Training/Unlabeled', 'B1E8Q2', 'GE', 4, 0, 0), ('Testing', 'A1K2P5', 'Canon', 5, 1, 3)])
    found = {c.id: c for c in cases('mms')}
    assert set(found) == {'A0S9V9_ED', 'A0S9V9_ES', 'A5C2D2_ED', 'A5C2D2_ES',
                          'B1E8Q2_ED', 'A1K2P5_ED', 'A1K2P5_ES'}
    assert {i: c.image.data.unique().tolist() for i, c in found.items()} == dict(
        A0S9V9_ED=[0], A0S9V9_ES=[4], A5C2D2_ED=[5], A5C2D2_ES=[2], B1E8Q2_ED=[0], A1K2P5_ED=[1],
        A1K2P5_ES=[3])
    es = found['A0S9V9_ES']
    assert (es.mask.numpy()[0] == labels((0, 1, 2, 3))).all() and es.image.data.shape == (1, *SHAPE)
    assert (es.patient, es.meta['vendor'], es.meta['site'], es.meta['split'], es.meta['phase'],
            es.meta['age']) == ('A0S9V9', 'Siemens', '1', 'training', 'ES', 61)
    assert found['B1E8Q2_ED'].mask is None and found['A5C2D2_ED'].meta['split'] == 'validation'


def test_a_frame_that_is_not_there(top):
    movie = put(top/'a_sa.nii.gz', np.zeros((3, *SHAPE), 'int16'))
    with pytest.raises(ValueError, match='frame 3 asked for; it has 3, counted from 0'):
        s.read_frame((movie,), None, 3)
    with pytest.raises(ValueError, match='frame -1'): s.read_frame((movie,), None, -1)
    image, mask = s.read_frame((movie,), None, 2)
    assert image.channels == 1 and mask is None


def test_mmwhs_names_its_seven_structures(top):
    x = labels((0, 205, 420, 421, 500, 550, 600, 820, 850))
    for kind in ('ct', 'mr'):
        put(top/'mmwhs'/f'{kind}_train'/f'{kind}_train_1010_image.nii.gz', np.zeros(SHAPE, 'int16'))
        put(top/'mmwhs'/f'{kind}_train'/f'{kind}_train_1010_label.nii.gz', x)
    put(top/'mmwhs'/'ct_test'/'ct_test_2001_image.nii.gz', np.zeros(SHAPE, 'int16'))
    a, b = cases('mmwhs')
    assert (a.patient, a.meta['modality'], b.patient, b.meta['modality']) == (
        'ct_train_1010', 'CT', 'mr_train_1010', 'MR')
    names = {500: 'left ventricle', 205: 'myocardium', 600: 'right ventricle', 420: 'left atrium',
             421: 'left atrium', 550: 'right atrium', 820: 'ascending aorta', 850: 'pulmonary artery',
             0: 'background'}
    assert all(a.meta['classes'][k] == names[v] for k, v in zip(a.mask.numpy().ravel(), x.ravel()))
    put(top/'mmwhs'/'ct_train'/'ct_train_1010_label.nii.gz', x + (x == 850))
    with pytest.raises(ValueError, match='851'): cases('mmwhs')[0].mask


def dicom_slice(path, pixels, spacing=1.25):
    d = Dataset()
    d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = uid.MRImageStorage, uid.generate_uid(), '1.2.3'
    d.Modality, d.PixelSpacing, d.SliceThickness = 'MR', [spacing]*2, 8
    d.ImagePositionPatient, d.ImageOrientationPatient = [7, -3, 12], [0, 1, 0, 0, 0, -1]
    d.Rows, d.Columns = pixels.shape
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, 'MONOCHROME2'
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.PixelRepresentation, d.PixelData = 15, 0, pixels.astype('<u2').tobytes()
    d.file_meta = Dataset()
    d.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(path, enforce_file_format=True)


def scd_tree(top, scan='SCD0000101', original='SC-HF-I-1', number='0048'):
    "One slice, its inner contour, and its pixels"
    home, rng = top/'sunnybrook', np.random.default_rng(0)
    kind, n = original.rsplit('-', 1)
    drawn = home/'SCD_ManualContours'/f'{kind}-{int(n):02}'/'contours-manual'/'IRCCI-expert'
    pixels = rng.integers(0, 900, (40, 50))
    dicom_slice(home/'SCD_IMAGES_01'/scan/'CINESAX_300'/f'IM-0003-{number}.dcm', pixels)
    dicom_slice(home/'SCD_IMAGES_01'/scan/'CINELAX_301'/f'IM-0004-{number}.dcm', pixels + 1)
    turn = np.linspace(0, 2*np.pi, 60, endpoint=False)
    drawn.mkdir(parents=True)
    radius = 9 + 2*np.cos(5*turn)
    star = 30.3 + radius*np.cos(turn), 14.2 + radius*np.sin(turn)
    np.savetxt(drawn/f'IM-0001-{number}-icontour-manual.txt', np.stack(star, -1), fmt='%.2f')
    (home/'scd_patientdata.csv').write_text(
        f'PatientID,OriginalID,Gender,Age,Pathology\n{scan},{original},Male,59,Heart failure with infarct\n')
    return pixels, np.loadtxt(drawn/f'IM-0001-{number}-icontour-manual.txt'), drawn


def test_sunnybrook_polygons_are_columns_and_rows(top):
    pixels, corners, drawn = scd_tree(top)
    c, = cases('sunnybrook')
    assert (c.id, c.patient, c.meta['vendor'], c.meta['sex']) == (
        'SC-HF-I-01-0048', 'SC-HF-I-01', 'GE', 'Male')
    assert c.image.shape == (50, 40, 1) and c.image.spacing == (1.25, 1.25, 8)
    assert (c.image.numpy()[0, :, :, 0] == pixels.T).all()
    columns_rows = np.stack(np.meshgrid(np.arange(50), np.arange(40), indexing='ij'), -1).reshape(-1, 2)
    inside = Outline(corners).contains_points(columns_rows).reshape(50, 40)
    assert 150 < inside.sum() < 400 and (c.mask.numpy()[0, :, :, 0] == inside).all()


def test_sunnybrook_outer_contour_is_muscle_around_blood(top):
    _, corners, drawn = scd_tree(top)
    np.savetxt(drawn/'IM-0001-0048-ocontour-manual.txt', (corners - (30.3, 14.2))*1.3 + (30.3, 14.2))
    c, = cases('sunnybrook')
    counts = np.bincount(c.mask.numpy().ravel())
    assert len(c.files) == 3 and counts[2]/counts[1] == pytest.approx(1.3**2 - 1, abs=.1)


def test_a_contour_without_its_slice_is_told(top):
    _, _, drawn = scd_tree(top)
    (drawn/'IM-0001-0068-icontour-manual.txt').write_text('1 1\n2 1\n2 2\n')
    with pytest.warns(UserWarning, match='0068.*left out'): assert len(cases('sunnybrook')) == 1


def test_sunnybrook_as_pictures(top):
    rng = np.random.default_rng(0)
    x, m = rng.integers(0, 255, (8, 8), np.uint8), rng.choice([0, 255], (8, 8)).astype('uint8')
    for part, name in (('Train/{}/Sunnybrook_Part2', 'SC-HF-NI-01'), ('Test/{}/Sunnybrook_Part3', 'SC-N-09')):
        for kind, y in (('Images', x), ('Labels', m)):
            home = top/'sunnybrook_cmr'/part.format(kind)
            home.mkdir(parents=True)
            Image.fromarray(np.stack([y]*3, -1)).save(home/f'{name}-IM-0001-0048.dcm.png')
    a, b = cases('sunnybrook_cmr')
    assert (a.id, a.meta['group'], a.meta['split']) == ('SC-N-09-0048', 'N', 'Test')
    assert (b.patient, b.meta['group'], b.meta['spacing']) == ('SC-HF-NI-01', 'HF-NI', 'unknown')
    assert (b.image.numpy() == x).all() and (b.mask.numpy() == (m > 0)).all() and b.image.channels == 1


@pytest.mark.skipif(not OWN or not os.path.isdir(f'{OWN}/sunnybrook_cmr'),
                    reason='MEDSEG_DATA/sunnybrook_cmr')
def test_the_real_sunnybrook_slices():
    found = cases('sunnybrook_cmr')
    assert len(found) == 805 and len({c.patient for c in found}) == 45
    assert Counter(c.meta['split'] for c in found) == dict(Train=526, Test=279)
    assert len({c.patient for c in found if c.meta['split'] == 'Train'}) == 30
    assert Counter(len({c.patient for c in found if c.meta['group'] == g})
                   for g in ('HF-I', 'HF-NI', 'HYP', 'N')) == {12: 3, 9: 1}
    for c in found[::40]:
        assert c.image.data.shape == (1, 256, 256) and c.mask.data.unique().tolist() == [0, 1]
    assert len({c.id for c in found}) == 805


@pytest.mark.parametrize('name', MINE)
def test_a_set_that_is_not_there_says_how_to_bring_it(top, name):
    e = entry(name)
    with pytest.raises(FileNotFoundError) as error: cases(name)
    for words in (e.how, e.layout, e.license, str(top/name)): assert words in str(error.value)


def test_all_hearts_agree_on_the_first_structures(top):
    acdc_tree(top, 'training', 'patient001', 1, 12)
    mms_tree(top, [('Training/Labeled', 'A0S9V9', 'Siemens', 1, 0, 4)])
    scd_tree(top)
    for name in ('acdc', 'mms', 'sunnybrook'):
        classes = cases(name)[0].meta['classes']
        assert classes == s.HEART[:len(classes)]
