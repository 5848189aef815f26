"Body sets: points, a JSON, two grids and names, on tiny trees in the published layouts; real sets if there."
import json
import os
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st

from grids import affine, often, seeds
from medseg_nb.data import sets_body as s
from medseg_nb.data.files import save
from medseg_nb.data.sets import cases, entry
from medseg_nb.data.volume import Volume
from oracles import balls_by_loops

SHAPE = (6, 5, 4)
TASKS = ('Task01_BrainTumour', 'Task02_Heart', 'Task03_Liver', 'Task04_Hippocampus', 'Task05_Prostate',
         'Task06_Lung', 'Task07_Pancreas', 'Task08_HepaticVessel', 'Task09_Spleen', 'Task10_Colon')
MINE = ('luna16', *TASKS, 'hippocampus_msd', 'hecktor2021', 'hecktor2022', 'ibsi_sts_lite', 'lits',
        'kits19', 'kits23', 'segthor', 'prostate')
OWN = os.environ.get('MEDSEG_DATA')


def real(name):
    there = OWN and os.path.isdir(f'{OWN}/{name}')
    return pytest.mark.skipif(not there, reason=f'MEDSEG_DATA/{name}')


@pytest.fixture
def top(tmp_path, monkeypatch):
    "An empty MEDSEG_DATA"
    monkeypatch.setenv('MEDSEG_DATA', str(tmp_path))
    return tmp_path


def put(path, x, where=None):
    "A NIfTI file of an array (*S) or (C,*S)"
    x = np.asarray(x)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(Volume(x if x.ndim == 4 else x[None],
                       np.diag([2., 2, 3, 1]) if where is None else where), path)


def image(value=0., seed=0): return (value + np.random.default_rng(seed).random(SHAPE)).astype('float32')


def labels(values, seed=0): return np.random.default_rng(seed).choice(values, SHAPE).astype('uint8')


# points

@often
@given(seeds, st.integers(0, 4))
def test_balls_against_asking_every_voxel(seed, n):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, 3).tolist())
    like = Volume(torch.zeros(1, *shape), affine(rng, 3))
    centers = like.to_world(rng.uniform(-3, 11, (n, 3)))
    diameters = rng.uniform(.1, 12, n)
    assert (s.balls(like, centers, diameters).numpy()[0] == balls_by_loops(like, centers, diameters)).all()


def mhd(path, v):
    "MetaImage with the first axis to the left and the second to the back"
    v = v.reorient('LPS')
    img = sitk.GetImageFromArray(v.numpy()[0].T)
    img.SetSpacing(v.spacing)
    img.SetOrigin((v.affine[:3, 3]*(-1, -1, 1)).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(img, path)


def luna_tree(top, lungs):
    where = np.diag([2., 2, 2.5, 1])
    where[:3, 3] = -20, -30, -50
    ct = Volume(torch.randint(-1000, 400, (1, 20, 24, 16), dtype=torch.int16), where)
    rows = [('1.3.6.1', 8.5, 12.25, -30., 9.), ('1.3.6.1', -7., -5., -24., 4.), ('1.3.6.2', 0., 0., -30., 7.)]
    names = ['seriesuid', 'coordX', 'coordY', 'coordZ', 'diameter_mm']
    for k, patient in ((0, '1.3.6.1'), (0, '1.3.6.3'), (9, '1.3.6.2')):
        mhd(top/'luna16'/f'subset{k}'/f'{patient}.mhd', ct)
    pd.DataFrame(rows, columns=names).to_csv(top/'luna16'/'annotations.csv', index=False)
    seg = ct.new(torch.randint(0, 6, ct.data.shape, dtype=torch.uint8))
    if lungs:
        for patient in ('1.3.6.1', '1.3.6.2', '1.3.6.3'):
            mhd(top/'luna16'/'seg-lungs-LUNA16'/f'{patient}.mhd', seg)
    return ct, seg


@pytest.mark.parametrize('lungs', (False, True))
def test_luna16_points_count_to_the_left_and_the_back(top, lungs):
    ct, seg = luna_tree(top, lungs)
    found = cases('luna16')
    assert ([c.patient for c in found] == ['1.3.6.1', '1.3.6.3', '1.3.6.2']
            and found[2].meta['split'] == 'subset9')
    c = found[0]
    truth = balls_by_loops(ct, [(-8.5, -12.25, -30), (7, 5, -24)], [9, 4])
    mask = c.mask.resample(like=ct, order=0).numpy()[0]
    assert (c.image.resample(like=ct, order=0).data == ct.data).all() and truth.sum() > 30
    assert ((mask == 1) == (truth == 1)).all()
    lung = np.isin(seg.numpy()[0], (3, 4)) & (truth == 0)
    assert ((mask == 2) == (lung if lungs else False)).all()
    assert c.meta['classes'] == ('background', 'nodule', 'lung')[:2 + lungs]
    assert (found[1].mask.data == 1).sum() == 0
    ball = s.points(top/'luna16'/'annotations.csv', '1.3.6.2')
    assert ball[0].tolist() == [[0, 0, -30]] and ball[1].tolist() == [7]


# one JSON

OLD = dict(modality={'0': 'T2', '1': 'ADC'}, labels={'0': 'background', '1': 'PZ', '2': 'TZ'})


def msd_tree(home, facts):
    x, m = np.stack([image(), image(5)]), labels((0, 1, 2))
    put(home/'imagesTr'/'prostate_16.nii.gz', x)
    put(home/'labelsTr'/'prostate_16.nii.gz', m)
    put(home/'imagesTs'/'prostate_08.nii.gz', x)
    for folder in ('imagesTr', 'labelsTr', 'imagesTs'):
        (home/folder/'._prostate_16.nii.gz').write_bytes(b'macOS')
    (home/'dataset.json').write_text(json.dumps(facts))
    return x, m


@pytest.mark.parametrize('name', TASKS)
def test_msd_reads_its_json(top, name):
    x, m = msd_tree(top/name, OLD)
    train, test = cases(name)
    assert (train.patient, train.meta['split'], test.patient, test.meta['split']) == (
        'prostate_16', 'training', 'prostate_08', 'test')
    assert (train.image.numpy() == x).all() and (train.mask.numpy()[0] == m).all() and test.mask is None
    assert train.meta['modality'] == ('T2', 'ADC') and train.meta['classes'] == ('background', 'PZ', 'TZ')


@pytest.mark.parametrize('facts', (
    OLD, dict(channel_names=OLD['modality'], labels=dict(background=0, PZ=1, TZ=2)),
    dict(channel_names=OLD['modality'], labels=dict(TZ=2, PZ=1, background=0), file_ending='.nii.gz')))
def test_msd_reads_the_files_of_nnunet(top, facts):
    home, x, m = top/'mine', np.stack([image(), image(5)]), labels((0, 1, 2))
    for c in (0, 1): put(home/'imagesTr'/f'p_1_{c:04}.nii.gz', x[c])
    put(home/'labelsTr'/'p_1.nii.gz', m)
    (home/'dataset.json').write_text(json.dumps(facts))
    c, = s.msd(home)
    assert (c.image.numpy() == x).all() and (c.mask.numpy()[0] == m).all() and c.patient == 'p_1'
    assert c.meta['classes'] == ('background', 'PZ', 'TZ')


def test_msd_reads_the_ending_that_its_json_names(top):
    home = top/'mine'
    put(home/'imagesTr'/'p_1_0000.nii', image())
    put(home/'labelsTr'/'p_1.nii', labels((0, 1)))
    (home/'dataset.json').write_text(json.dumps(dict(
        channel_names={'0': 'CT'}, labels=dict(background=0, liver=1), file_ending='.nii')))
    c, = s.msd(home)
    assert c.patient == 'p_1' and (c.mask.numpy()[0] == labels((0, 1))).all()


def test_msd_closes_gaps_and_refuses_what_is_not_listed(top):
    home = top/'mine'
    msd_tree(home, OLD | dict(labels={'0': 'background', '1': 'a', '4': 'b'}))
    put(home/'labelsTr'/'prostate_16.nii.gz', labels((0, 1, 4)))
    train, _ = s.msd(home)
    assert ((train.mask.numpy()[0] == 2) == (labels((0, 1, 4)) == 4)).all()
    put(home/'labelsTr'/'prostate_16.nii.gz', labels((0, 1, 3)))
    with pytest.raises(ValueError, match='3'): next(iter(s.msd(home))).mask
    (home/'dataset.json').write_text(json.dumps(OLD | dict(labels=dict(background=0, whole=[1, 2], core=2))))
    with pytest.raises(ValueError, match='whole number'): list(s.msd(home))


def test_msd_names_a_missing_label(top):
    msd_tree(top/'Task05_Prostate', OLD)
    (top/'Task05_Prostate'/'labelsTr'/'prostate_16.nii.gz').unlink()
    with pytest.raises(FileNotFoundError, match='labelsTr/prostate_16.nii.gz'): cases('Task05_Prostate')
    (top/'Task05_Prostate'/'dataset.json').unlink()
    with pytest.raises(FileNotFoundError, match='dataset.json'): cases('Task05_Prostate')


@real('hippocampus_msd')
def test_the_real_hippocampi():
    found = cases('hippocampus_msd')
    assert len(found) == 260 == len({c.patient for c in found})
    for c in found[::20]:
        assert c.mask.data.unique().tolist() == [0, 1, 2] and c.image.spacing == (1, 1, 1)
        assert all(a <= n <= b for n, a, b in zip(c.image.shape, (31, 40, 24), (43, 59, 47)))


# two grids

@pytest.mark.parametrize('name, files, site', [
    ('hecktor2021', ('hecktor_nii/CHGJ007_ct', 'hecktor_nii/CHGJ007_pt', 'hecktor_nii/CHGJ007_gtvt'), 'CHGJ'),
    ('hecktor2022', ('imagesTr/MDA-101__CT', 'imagesTr/MDA-101__PT', 'labelsTr/MDA-101'), 'MDA')])
def test_hecktor_lays_the_pet_on_the_ct(top, name, files, site):
    coarse = np.diag([3., 4, 5, 1])
    coarse[:3, 3] = -2, -3, -4
    pet = Volume(np.random.default_rng(0).random((1, 9, 8, 7), np.float32), coarse)
    x, m = image(), labels((0, 1))
    for file, y, where in zip(files, (x, pet.numpy(), m), (None, coarse, None)):
        put(top/name/f'{file}.nii.gz', y, where)
    c, = cases(name)
    assert (c.meta['site'] == site and c.meta['modality'] == ('CT', 'PET')
            and c.patient == files[0].split('/')[1].split('_')[0])
    assert (c.image.numpy()[0] == x).all() and (c.mask.numpy()[0] == m).all()
    like = Volume(x[None], np.diag([2., 2, 3, 1]))
    torch.testing.assert_close(c.image.data[1], pet.resample(like=like).data[0])


def test_ibsi_divides_the_pet(top):
    home = top/'ibsi_sts_lite'
    for name, value in (('ct', -100), ('pet_x500', 1500), ('mr', 7)):
        put(home/'STS_001'/f'{name}.nii.gz', np.full(SHAPE, value, 'int16'))
    put(home/'STS_001'/'mask.nii.gz', labels((0, 1)))
    (home/'manifest_scanners.csv').write_text('patient,modality,manufacturer\n'
                                              'STS_001,CT,GE\nSTS_001,MR_T1,SIEMENS\n')
    c, = cases('ibsi_sts_lite')
    assert c.image.data[:, 0, 0, 0].tolist() == [-100, 3, 7] and c.meta['vendor'] == 'SIEMENS'


@real('ibsi_sts_lite')
def test_the_real_sarcomas():
    found = cases('ibsi_sts_lite')
    assert len(found) == 32 == len({c.patient for c in found})
    assert sorted(Counter(c.meta['vendor'].split()[0].upper()[:2] for c in found).values()) == [2, 8, 8, 14]
    table = pd.read_csv(f'{OWN}/ibsi_sts_lite/lite_manifest.csv').set_index('patient')
    for c in found[::8]:
        tumor = c.mask.numpy()[0] == 1
        assert tumor.sum() == table.loc[c.patient, 'mask_vox']
        assert c.image.numpy()[1].max() == pytest.approx(table.loc[c.patient, 'suvmax'], abs=.06)
        assert tumor.sum()*np.prod(c.mask.spacing)/1000 == pytest.approx(
            table.loc[c.patient, 'tumour_ml'], rel=.01)


# names

@pytest.mark.parametrize('suffix', ('nii', 'nii.gz'))
def test_lits_tells_who_is_in_an_older_set(top, suffix):
    for n in (0, 27, 28, 44, 45, 46, 48, 49):
        put(top/'lits'/f'volume-{n}.{suffix}', image(n))
        put(top/'lits'/f'segmentation-{n}.{suffix}', labels((0, 1, 2), n))
    found = {int(c.meta['number']): c for c in cases('lits')}
    assert {n for n, c in found.items() if 'group' in c.meta} == {28, 44, 46, 48}
    assert all((c.mask.numpy()[0] == labels((0, 1, 2), n)).all() and c.image.data.min() >= n
               for n, c in found.items())
    (top/'lits'/f'segmentation-27.{suffix}').unlink()
    with pytest.raises(FileNotFoundError, match='segmentation-27'): cases('lits')


@pytest.mark.parametrize('name, table, top_label', [('kits19', 'kits.json', 2),
                                                    ('kits23', 'kits23.json', 3)])
def test_kits_of_two_years(top, name, table, top_label):
    put(top/name/'case_00000'/'imaging.nii.gz', image())
    put(top/name/'case_00000'/'segmentation.nii.gz', labels(range(top_label + 1)))
    put(top/name/'case_00210'/'imaging.nii.gz', image())
    (top/name/table).write_text(json.dumps([dict(case_id='case_00000', gender='male',
                                                 age_at_nephrectomy=49)]))
    a, b = cases(name)
    assert (a.mask.numpy()[0] == labels(range(top_label + 1))).all() and b.mask is None
    assert ((a.meta['sex'], a.meta['age']) == ('male', 49) and 'sex' not in b.meta
            and len(a.meta['classes']) == top_label + 1)
    (top/name/table).unlink()
    with pytest.raises(FileNotFoundError, match=table): cases(name)


def test_kits19_has_no_cysts(top):
    put(top/'kits19'/'case_00000'/'imaging.nii.gz', image())
    put(top/'kits19'/'case_00000'/'segmentation.nii.gz', labels(range(4)))
    (top/'kits19'/'kits.json').write_text('[]')
    with pytest.raises(ValueError, match='label 3'): cases('kits19')[0].mask


def test_segthor_calls_every_mask_gt(top):
    for n in (1, 2):
        put(top/'segthor'/f'Patient_{n:02}'/f'Patient_{n:02}.nii.gz', image(n))
        put(top/'segthor'/f'Patient_{n:02}'/'GT.nii.gz', labels(range(5), n))
    a, b = cases('segthor')
    assert ((b.patient, b.image.data.min() >= 2) == ('Patient_02', True)
            and (b.mask.numpy()[0] == labels(range(5), 2)).all())


def test_prostate_of_six_sites(top):
    for i, (site, word) in enumerate(zip(s._SITES, ('segmentation', 'Segmentation')*3)):
        put(top/'prostate'/site/'Case00.nii.gz', image(i))
        put(top/'prostate'/site/f'Case00_{word}.nii.gz', labels((0, 1, 2), i))
    found = {c.meta['site']: c for c in cases('prostate')}
    assert (set(found) == {'RUNMC', 'BMC', 'I2CVB', 'UCL', 'BIDMC', 'HK'}
            and len({c.patient for c in found.values()}) == 6)
    assert (found['BMC'].meta['vendor'], found['BIDMC'].meta['vendor'], found['HK'].meta['vendor']) == (
        'Philips', 'GE', 'Siemens')
    for i, site in enumerate(s._SITES):
        assert ((found[site].mask.numpy()[0] == (labels((0, 1, 2), i) > 0)).all()
                and found[site].image.data.min() >= i)
    (top/'prostate'/'BMC'/'Case00_Segmentation.nii.gz').unlink()
    with pytest.raises(FileNotFoundError, match='BMC/Case00_segmentation.nii.gz'): cases('prostate')


@pytest.mark.parametrize('name', MINE)
def test_a_set_that_is_not_there_says_how_to_bring_it(top, name):
    e = entry(name)
    with pytest.raises(FileNotFoundError) as error: cases(name)
    for words in (e.how, e.layout, e.license, str(top/name)): assert words in str(error.value)
    assert e.count > 0 and 'doi:' in e.citation
