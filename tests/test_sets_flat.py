"Flat sets: tiny trees in the published layouts and names; the real ones where MEDSEG_DATA has them."
import gzip
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from medseg_nb.data import sets as s
from medseg_nb.data.case import split
from medseg_nb.data.sets_flat import rle_decode, rle_encode

FLAT = ('kvasir_seg', 'ph2', 'fuseg', 'siim_pneumothorax', 'idrid', 'chase_db1', 'drive', 'stare', 'jsrt',
        'glas', 'dsb2018', 'endovis_parts', 'endovis_types')


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setenv('MEDSEG_DATA', str(tmp_path))
    return tmp_path


def rgb(seed=0, shape=(6, 8)): return np.random.default_rng(seed).integers(0, 255, (*shape, 3), 'uint8')


def box(value=255, shape=(6, 8), rows=slice(1, 3), cols=slice(2, 6)):
    "A mask with one box"
    out = np.zeros(shape, 'uint8')
    out[rows, cols] = value
    return out


def picture(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def masks(name): return {c.id: c.mask.numpy()[0] for c in s.cases(name)}
def clean(name): return set(s.inspect(name).state) == {'found'}


@pytest.mark.parametrize('name', FLAT)
def test_facts(name):
    e = s.entry(name)
    assert e.count > 9 and e.archive is None and e.origin.startswith('http')
    assert any(x in e.citation for x in ('doi:', 'arXiv:')) and e.license and e.how.endswith('.') and e.layout


def test_kvasir(disk):
    for k in 'ab': picture(disk/f'kvasir_seg/Kvasir-SEG/images/{k}.jpg', rgb(shape=(32, 32)))
    soft = box(255, (32, 32), slice(10, 23), slice(10, 23))
    for k in 'ab': picture(disk/f'kvasir_seg/Kvasir-SEG/masks/{k}.jpg', np.repeat(soft[..., None], 3, 2),
                           quality=60)
    stored = Image.open(disk/'kvasir_seg/Kvasir-SEG/masks/a.jpg')
    assert len(np.unique(stored)) > 2, 'JPEG was expected to blur'
    assert {k: (m == soft//255).all() for k, m in masks('kvasir_seg').items()} == dict(a=True, b=True)
    assert clean('kvasir_seg')


@pytest.mark.parametrize('kind', ['1', 'L', 'RGB'])
def test_ph2(disk, kind):
    top = disk/'ph2/PH2 Dataset images/IMD002'
    picture(top/'IMD002_Dermoscopic_Image/IMD002.bmp', rgb())
    (top/'IMD002_lesion').mkdir()
    Image.fromarray(box()).convert(kind).save(top/'IMD002_lesion/IMD002_lesion.bmp')
    picture(top/'IMD002_roi/IMD002_R1_Label3.bmp', box())
    case, = s.cases('ph2')
    assert (case.mask.numpy()[0] == box(1)).all() and (case.image.numpy() == rgb().transpose(2, 0, 1)).all()
    table = s.inspect('ph2')
    left, = table.file[table.state == 'unclaimed']
    assert left == 'PH2 Dataset images/IMD002/IMD002_roi/IMD002_R1_Label3.bmp'


def test_fuseg(disk):
    top = disk/'fuseg/Foot Ulcer Segmentation Challenge'
    for part, n in (('train', '0011'), ('validation', '0012'), ('test', '0013')):
        picture(top/f'{part}/images/{n}.png', rgb())
        if part != 'test': picture(top/f'{part}/labels/{n}.png', box())
    out = s.cases('fuseg')
    assert {c.id: (c.meta['split'], c.mask is None) for c in out} == {
        '0011': ('train', False), '0012': ('validation', False), '0013': ('test', True)}


binary = arrays('uint8', array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 1))


@given(binary)
def test_rle_both_ways(mask):
    code = rle_encode(mask)
    assert (rle_decode(code, mask.shape) == mask).all() and (code == '-1') == (not mask.any())


@given(binary)
def test_rle_against_a_walk_pixel_by_pixel(mask):
    "Count the pixels down each column: a gap of zeros, a run of ones"
    walk, numbers, gap, run = mask.T.ravel().tolist() + [0], [], 0, 0
    for x in walk:
        if x: run += 1
        else:
            if run: numbers, gap, run = numbers + [gap, run], 0, 0
            gap += 1
    assert rle_encode(mask) == (' '.join(map(str, numbers)) or '-1')


def test_rle_by_hand():
    assert rle_decode('1 2 2 1', (3, 2)).tolist() == [[0, 0], [1, 0], [1, 1]]
    assert rle_decode(' -1', (2, 3)).tolist() == [[0]*3]*2
    for bad in ('1', '1 2 3', '5 2', '-2 3', '1 0', 'a b'):
        with pytest.raises(ValueError): rle_decode(bad, (3, 2))


def film(path, shape, uid):
    "A tiny DICOM film"
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
    d, d.file_meta = Dataset(), FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    d.PatientID, d.Modality = uid, 'CR'
    d.SeriesInstanceUID, d.StudyInstanceUID = generate_uid(), generate_uid()
    d.Rows, d.Columns = shape
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation, d.SamplesPerPixel = 8, 8, 7, 0, 1
    d.PhotometricInterpretation, d.PixelSpacing = 'MONOCHROME2', [.2, .2]
    d.PixelData = np.arange(shape[0]*shape[1], dtype='uint8').tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(path, enforce_file_format=True)


def test_siim(disk):
    top, shape = disk/'siim_pneumothorax', (4, 6)
    one, two = box(1, shape, slice(0, 2), slice(0, 2)), box(1, shape, slice(1, 4), slice(1, 3))
    names = dict(empty='1.2.3', two='1.2.4', new='1.2.5', test='1.2.6')
    for k, n in names.items():
        film(top/f"dicom-images-{'test' if k == 'test' else 'train'}/{n}.1/{n}.2/{n}.dcm", shape, n)
    rows = ['ImageId, EncodedPixels', '1.2.3, -1', f'1.2.4, {rle_encode(one)}', f'1.2.4, {rle_encode(two)}']
    (top/'train-rle.csv').write_text('\n'.join(rows))
    out = {c.id: c for c in s.cases('siim_pneumothorax')}
    assert len(out) == 4 and out['1.2.6'].meta['split'] == 'test' and out['1.2.3'].meta['split'] == 'train'
    assert not out['1.2.3'].mask.numpy().any() and (out['1.2.4'].mask.numpy()[0] == one | two).all()
    assert out['1.2.5'].mask is None and out['1.2.6'].mask is None
    assert out['1.2.4'].image.shape == shape


def test_idrid(disk):
    top = disk/'idrid/A. Segmentation'
    truth = top/'2. All Segmentation Groundtruths'
    picture(top/'1. Original Images/a. Training Set/IDRiD_01.jpg', rgb())
    picture(top/'1. Original Images/b. Testing Set/IDRiD_55.jpg', rgb())
    red = Image.fromarray(box(1, cols=slice(0, 4)))
    red.putpalette([0, 0, 0, 255, 0, 0])
    for k, name, img in ((1, '1. Microaneurysms/IDRiD_01_MA', Image.fromarray(box(76, cols=slice(2, 6)))),
                         (3, '3. Hard Exudates/IDRiD_01_EX', red),
                         (5, '5. Optic Disc/IDRiD_01_OD', Image.fromarray(box(76, rows=slice(0, 6),
                                                                              cols=slice(1, 7))))):
        path = truth/f'a. Training Set/{name}.tif'
        path.parent.mkdir(parents=True, exist_ok=True)
        img.save(path, dpi=(96, 96))
    train, test = s.cases('idrid')
    want = box(5, rows=slice(0, 6), cols=slice(1, 7))
    want[1:3, 0:4] = 3
    want[1:3, 2:6] = 1
    assert (train.mask.numpy()[0] == want).all() and train.meta['classes'][5] == 'optic disc'
    assert (train.meta['split'], test.meta['split']) == ('train', 'test') and not test.mask.numpy().any()
    assert clean('idrid')


def eyes(top, sub=('', '', '')):
    for n in ('01L', '01R', '02L'):
        picture(top/f'{sub[0]}Image_{n}.jpg', rgb())
        picture(top/f'{sub[1]}Image_{n}_1stHO.png', box() > 0)
        picture(top/f'{sub[2]}Image_{n}_2ndHO.png', box(cols=slice(2, 5)) > 0)


@pytest.mark.parametrize('sub', [('', '', ''), ('images/', 'labels1/', 'labels2/')])
def test_chase(disk, sub):
    eyes(disk/'chase_db1', sub)
    out = s.cases('chase_db1')
    assert [(c.id, c.patient, c.meta['eye']) for c in out] == [
        ('Image_01L', '01', 'L'), ('Image_01R', '01', 'R'), ('Image_02L', '02', 'L')]
    both = s.raters(out[0])
    assert list(both) == ['first', 'second'] and clean('chase_db1')
    assert (out[0].mask.numpy()[0] == box(1)).all() and both['second'].numpy().sum() == 6


def test_drive(disk):
    top = disk/'drive'
    per_cm = dict(resolution_unit=3, x_resolution=100., y_resolution=100.)
    picture(top/'training/images/21_training.tif', rgb(), **per_cm)
    picture(top/'training/1st_manual/21_manual1.gif', box())
    for n in ('01', '02'): picture(top/f'test/images/{n}_test.tif', rgb())
    picture(top/'test/1st_manual/01_manual1.gif', box())
    picture(top/'test/2nd_manual/01_manual2.gif', box(cols=slice(2, 4)))
    out = {c.id: c for c in s.cases('drive')}
    assert {k: list(c.raters) for k, c in out.items()} == {
        '01_test': ['1st', '2nd'], '02_test': [], '21_training': ['1st']}
    assert out['21_training'].mask.spacing == out['21_training'].image.spacing == pytest.approx((.1, .1))
    assert out['02_test'].mask is None and (out['21_training'].mask.numpy()[0] == box(1)).all()
    assert s.raters(out['01_test'])['2nd'].numpy().sum() == 4 and out['01_test'].meta['split'] == 'test'
    assert s.raters(out['02_test']) == {}


def squeezed(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PPM')
    path.write_bytes(gzip.compress(file.getvalue()))


def test_stare(disk):
    squeezed(disk/'stare/stare-images/im0001.ppm.gz', rgb())
    for k, cols in (('ah', slice(2, 6)), ('vk', slice(1, 7))):
        squeezed(disk/f'stare/labels-{k}/im0001.{k}.ppm.gz', box(cols=cols))
    case, = s.cases('stare')
    assert (case.image.numpy() == rgb().transpose(2, 0, 1)).all() and (case.mask.numpy()[0] == box(1)).all()
    assert [int(m.numpy().sum()) for m in s.raters(case).values()] == [8, 12] and clean('stare')


def test_jsrt(disk):
    top = disk/'jsrt'
    raw = np.arange(2048**2, dtype='>u2').reshape(2048, 2048) % 4096
    (top/'All247images').mkdir(parents=True)
    for name, fold in (('JPCLN001', 1), ('JPCNN002', 2)):
        raw.astype('>u2').tofile(top/f'All247images/{name}.IMG')
        for i, organ in enumerate(('left lung', 'right lung', 'heart', 'left clavicle', 'right clavicle')):
            mask = box(255, (1024, 1024), slice(10*i, 10*i + 15), slice(0, 1024))
            picture(top/f'scratch/fold{fold}/masks/{organ}/{name}.gif', mask)
    one, two = s.cases('jsrt')
    assert (one.image.numpy()[0] == raw).all() and one.image.spacing == pytest.approx((.175, .175))
    m = one.mask.numpy()[0]
    assert m[[0, 19, 20, 39, 40, 80, 109, 110], 7].tolist() == [1, 1, 2, 2, 3, 5, 5, 0]
    assert (one.meta['nodule'], two.meta['nodule'], two.meta['fold']) == (True, False, 2) and clean('jsrt')
    (top/'All247images/JPCLN001.IMG').write_bytes(b'123456')
    s._recent.kept.clear()
    with pytest.raises(ValueError, match='has 3 pixels'): s.cases('jsrt')[0].image


def test_glas(disk):
    top = disk/'glas/Warwick QU Dataset (Released 2016_07_08)'
    glands = box(1) + box(2, rows=slice(4, 6))
    for n in ('train_1', 'testA_1', 'testB_20'):
        picture(top/f'{n}.bmp', rgb())
        picture(top/f'{n}_anno.bmp', glands)
    (top/'Grade.csv').write_text('name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)\n'
                                 'testA_1,4, benign, adenomatous\ntestB_20,7, malignant, x\n'
                                 'train_1,4, benign, healthy\n')
    out = s.cases('glas')
    assert [(c.id, c.patient, c.meta['grade']) for c in out] == [
        ('testA_1', '4', 'benign'), ('testB_20', '7', 'malignant'), ('train_1', '4', 'benign')]
    assert (out[0].mask.numpy()[0] == glands).all()


def test_dsb2018_as_published(disk):
    top = disk/'dsb2018/stage1_train/abc'
    picture(top/'images/abc.png', np.dstack([rgb(), np.full((6, 8), 255, 'uint8')]))
    for name, cols in (('m1', slice(0, 3)), ('m2', slice(3, 5)), ('m3', slice(4, 8))):
        picture(top/f'masks/{name}.png', box(cols=cols))
    case, = s.cases('dsb2018')
    assert case.image.channels == 3 and clean('dsb2018')
    assert case.mask.numpy()[0, 1].tolist() == [1, 1, 1, 2, 2, 3, 3, 3] and case.mask.numpy()[0, 0].max() == 0


def test_dsb2018_merged(disk):
    top = disk/'dsb2018'
    picture(top/'images/abc.png', rgb())
    picture(top/'labels/abc.png', box(1).astype('uint16')*300)
    (top/'manifest.csv').write_text('id,kind_heuristic\nabc,purple\n')
    case, = s.cases('dsb2018')
    assert case.mask.numpy().max() == 300 and case.meta['kind'] == 'purple'


def endovis(disk, name, frame=rgb()):
    top = disk/name/'instrument_1_4_training/instrument_dataset_1'
    picture(top/'left_frames/frame000.png', frame)
    shape = frame.shape[:2]
    tool = box(10, shape) + box(20, shape, rows=slice(3, 4)) + box(30, shape, rows=slice(4, 5))
    picture(top/'ground_truth/Left_Prograsp_Forceps_labels/frame000.png', tool)
    picture(top/'ground_truth/Maryland_Bipolar_Forceps_labels/frame000.png', box(10, shape, cols=slice(7, 8)))
    picture(top/'ground_truth/Other_labels/frame000.png', box(40, shape, cols=slice(0, 1)))
    return s.cases(name)


def test_endovis(disk):
    case, = endovis(disk, 'endovis_parts')
    assert case.patient == 'instrument_dataset_1' and case.meta['frame'] == 'frame000'
    assert clean('endovis_parts')
    assert case.mask.numpy()[0, :, 2].tolist() == [0, 1, 1, 2, 3, 0] and case.mask.numpy()[0,
        1].tolist() == [4, 0, 1, 1, 1, 1, 0, 1]
    case, = endovis(disk, 'endovis_types')
    assert case.mask.numpy()[0, 1].tolist() == [7, 0, 2, 2, 2, 2, 0,
                                                1] and case.meta['classes'][2] == 'prograsp forceps'
    truth = disk/'endovis_types/instrument_1_4_training/instrument_dataset_1/ground_truth'
    picture(truth/'Spoon_labels/frame000.png', box(10))
    with pytest.raises(ValueError, match='Spoon_labels'): s.cases('endovis_types')[0].mask


def test_endovis_without_its_border(disk):
    frame = np.zeros((1080, 1920, 3), 'uint8')
    frame[28:1052, 320:1600] = 9
    case, = endovis(disk, 'endovis_parts', frame)
    assert case.image.shape == (1024, 1280) and case.image.numpy().min() == 9
    assert case.image.to_world((0, 0)).tolist() == [28, 320]


real = Path(os.environ.get('MEDSEG_DATA', ''))
def needs(name): return pytest.mark.skipif(not (real/name).is_dir() or not os.environ.get('MEDSEG_DATA'),
                                           reason=f'needs {name}')


@needs('chase_db1')
def test_real_chase():
    out = s.cases('chase_db1')
    assert len(out) == s.entry('chase_db1').count == 28 and len({c.patient for c in out}) == 14
    assert set(s.inspect('chase_db1').state) == {'found', 'unclaimed'}
    first, second = s.raters(out[0]).values()
    a, b = first.numpy() > 0, second.numpy() > 0
    assert out[0].image.data.shape == (3, 960, 999) and .7 < 2*(a & b).sum()/(a.sum() + b.sum()) < .95
    train, test = split(out, (.7, .3))
    assert not {c.patient for c in train} & {c.patient for c in test}


@needs('dsb2018')
def test_real_dsb2018():
    import csv
    rows = {r['id']: r for r in csv.DictReader(open(real/'dsb2018'/'manifest.csv'))}
    out = s.cases('dsb2018')
    assert len(out) == 400 and 'missing' not in set(s.inspect('dsb2018').state)
    for c in out[::40]:
        r, labels = rows[c.id], np.unique(c.mask.numpy())
        assert c.image.shape == (int(r['height']), int(r['width'])) and len(labels) - 1 == int(r['n_nuclei'])
        assert c.image.channels == (1 if r['gray'] == 'True' else 3)
