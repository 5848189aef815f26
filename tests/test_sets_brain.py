"Brain sets: tiny trees in the published layouts come back as the right channels, labels and patients."
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_nb.data import sets_brain as s
from medseg_nb.data.files import save
from medseg_nb.data.sets import cases, entry
from medseg_nb.data.volume import Volume

SHAPE = (5, 6, 4)
MINE = ('brats2018', 'brats2019', 'brats2020', 'brats2021', 'brats2023', 'isles2022', 'isles2015', 'oasis',
        'oasis1')


@pytest.fixture
def top(tmp_path, monkeypatch):
    "An empty MEDSEG_DATA"
    monkeypatch.setenv('MEDSEG_DATA', str(tmp_path))
    return tmp_path


def put(path, value, affine=None, shape=SHAPE):
    "A NIfTI file of one value, or of an array"
    x = np.broadcast_to(np.asarray(value), shape)
    v = Volume(x[None].astype('float32' if x.dtype.kind == 'f' else 'uint8'),
               np.eye(4) if affine is None else affine)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(v, path)


def labels(values, seed=0): return np.random.default_rng(seed).choice(values, SHAPE)


def brats_tree(home, suffix='nii.gz', seg='{}_seg', values=(0, 1, 2, 4)):
    for i, sequence in enumerate(('flair', 't1', 't1ce', 't2')):
        put(home/f'{home.name}_{sequence}.{suffix}', 10.*i + 1)
    x = labels(values)
    put(home/f'{seg.format(home.name)}.{suffix}', x)
    return x


@pytest.mark.parametrize('name, case, suffix', [
    ('brats2018', 'HGG/Brats18_2013_10_1', 'nii.gz'), ('brats2019', 'LGG/BraTS19_TCIA10_103_1', 'nii.gz'),
    ('brats2020', 'BraTS20_Training_001', 'nii.gz'), ('brats2020', 'BraTS20_Training_001', 'nii'),
    ('brats2021', 'BraTS2021_00000', 'nii.gz')])
def test_brats_by_year(top, name, case, suffix):
    x = brats_tree(top/name/case, suffix)
    c, = cases(name)
    assert c.id == c.patient == Path(case).name
    assert (c.image.data[:, 0, 0, 0].tolist() == [1, 11, 21, 31]
            and c.meta['modality'] == ('flair', 't1', 't1ce', 't2'))
    assert (c.mask.numpy()[0] == np.select([x == 4], [3], x)).all()
    assert (c.meta['classes'][3] == 'enhancing tumor'
            and c.meta.get('grade') == (case[:3] if '/' in case else None))


@pytest.mark.parametrize('renamed', (False, True))
def test_labels_of_patient_355(top, renamed):
    home = top/'brats2020'
    brats_tree(home/'BraTS20_Training_354', 'nii')
    x = brats_tree(home/'BraTS20_Training_355', 'nii', '{}_seg' if renamed else 'W39_1998.09.19_Segm')
    brats_tree(home/'BraTS20_Training_356', 'nii')
    found = cases('brats2020')
    assert [c.id[-3:] for c in found] == ['354', '355', '356']
    assert ((found[1].mask.numpy()[0] > 0) == (x > 0)).all()


def test_brats_refuses_what_it_does_not_know(top):
    brats_tree(top/'brats2021'/'BraTS2021_00000', values=(0, 1, 2, 3))
    with pytest.raises(ValueError, match='3'): cases('brats2021')[0].mask
    (top/'brats2021'/'BraTS2021_00000'/'BraTS2021_00000_t2.nii.gz').unlink()
    with pytest.raises(FileNotFoundError, match='BraTS2021_00000_t2.nii.gz'): cases('brats2021')


def test_brats_without_labels_is_an_error(top):
    brats_tree(top/'brats2021'/'BraTS2021_00000')
    (top/'brats2021'/'BraTS2021_00000'/'BraTS2021_00000_seg.nii.gz').unlink()
    with pytest.raises(FileNotFoundError, match='_seg.nii.gz'): cases('brats2021')


def test_brats_2023_joins_the_visits_of_a_patient(top):
    for visit in ('BraTS-GLI-00005-000', 'BraTS-GLI-00005-001'):
        home = top/'brats2023'/visit
        for i, sequence in enumerate(('t2f', 't1n', 't1c', 't2w')):
            put(home/f'{visit}-{sequence}.nii.gz', float(i))
        put(home/f'{visit}-seg.nii.gz', labels(range(5)))
    a, b = cases('brats2023')
    assert (a.patient == b.patient == 'BraTS-GLI-00005'
            and (a.meta['visit'], b.meta['visit']) == ('000', '001'))
    assert a.image.data[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert a.mask.data.max() == 4 and a.meta['classes'][3:] == ('enhancing tumor', 'resection cavity')


def isles_tree(top, flat):
    stem, at = 'sub-strokecase0001_ses-0001', 'sub-strokecase0001/ses-0001'
    paths = [f'rawdata/{at}/{stem}_{s}' for s in ('dwi', 'adc', 'flair')] if flat else [
        f'{at}/dwi/{stem}_dwi', f'{at}/dwi/{stem}_adc', f'{at}/anat/{stem}_FLAIR']
    other = np.diag([.7, .8, 1.5, 1])
    other[:3, 3] = -1
    flair = np.random.default_rng(1).random((11, 10, 5))
    put(top/'isles2022'/f'{paths[0]}.nii.gz', 3.)
    put(top/'isles2022'/f'{paths[1]}.nii.gz', 4.)
    put(top/'isles2022'/f'{paths[2]}.nii.gz', flair, other, flair.shape)
    x = labels((0, 1))
    put(top/'isles2022'/'derivatives'/at/f'{stem}_msk.nii.gz', x)
    return x, Volume(flair[None].astype('float32'), other)


@pytest.mark.parametrize('flat', (False, True))
def test_isles2022_in_both_layouts(top, flat):
    x, flair = isles_tree(top, flat)
    c, = cases('isles2022')
    assert c.patient == 'sub-strokecase0001' and c.image.channels == 3 and c.image.shape == SHAPE
    assert (c.image.data[0] == 3).all() and (c.image.data[1] == 4).all()
    moved = flair.resample(like=Volume(torch.zeros(1, *SHAPE), np.eye(4)))
    assert moved.data.std() > .05
    torch.testing.assert_close(c.image.data[2], moved.data[0])
    assert (c.mask.numpy()[0] == x).all()


def siss_tree(top, patient, number):
    for i, kind in enumerate(('.XX.O.MR_T2', '.XX.O.MR_T1', '.XX.O.MR_Flair', '.XX.O.MR_DWI',
                              '_3more.XX.XX.OT')):
        name = f'VSD.Brain{kind}.{number + i}'
        put(top/'isles2015'/patient/name/f'{name}.nii', labels((0, 1)) if 'OT' in kind else float(i))


def test_isles2015_pairs_by_patient(top):
    for patient, number in (('2', 70619), ('10', 70699), ('1', 70613)): siss_tree(top, patient, number)
    found = cases('isles2015')
    assert ([c.patient for c in found] == ['1', '2', '10']
            and [c.id for c in found] == ['siss_01', 'siss_02', 'siss_10'])
    assert found[2].image.data[:, 0, 0, 0].tolist() == [3, 2, 1, 0] and found[2].mask.data.max() == 1
    gone, = (top/'isles2015'/'2').glob('*Flair*/*.nii')
    gone.unlink()
    with pytest.raises(FileNotFoundError, match='patient 2 .*Flair'): cases('isles2015')


def test_oasis_reads_names_from_its_table(top):
    home = top/'oasis'
    home.mkdir()
    (home/'seg35_labels.txt').write_text('# a comment\n0 Unknown 0 0 0 0\n\n2 Left-Cortex 1 1 1 0\n'
                                         '  9  Right-Cortex 2 2 2 0\n')
    x = labels((0, 2, 9))
    for visit in ('MR1', 'MR2'):
        put(home/f'OASIS_OAS1_0001_{visit}'/'aligned_norm.nii.gz', .5)
        put(home/f'OASIS_OAS1_0001_{visit}'/'aligned_seg35.nii.gz', x)
    a, b = cases('oasis')
    assert a.patient == b.patient == 'OASIS_OAS1_0001' and a.id != b.id
    assert a.meta['classes'] == ('Unknown', 'Left-Cortex', 'Right-Cortex')
    assert (a.mask.numpy()[0] == np.searchsorted((0, 2, 9), x)).all()


def test_oasis1_is_analyze_of_either_byte_order(top):
    x = labels((0, 1, 2, 3))
    for name, order in (('OAS1_0001_MR1', '>i2'), ('OAS1_0002_MR1', '<i2')):
        home, stem = top/'oasis1'/'disc1'/name, f'{name}_mpr_n4_anon_111_t88_masked_gfc'
        for folder, file in (('PROCESSED/MPRAGE/T88_111', stem), ('FSL_SEG', f'{stem}_fseg')):
            (home/folder).mkdir(parents=True)
            header = nib.AnalyzeHeader(endianness='>' if order[0] == '>' else '<')
            img = nib.AnalyzeImage(x[..., None].astype(order), np.diag([-1, 1, 1, 1]), header)
            img.to_filename(home/folder/f'{file}.img')
    for c in cases('oasis1'):
        assert (c.mask.numpy()[0] == x).all() and c.image.axcodes == 'LAS' and c.meta['disc'] == 'disc1'


def test_leftovers_of_macos_are_not_cases(top):
    brats_tree(top/'brats2021'/'BraTS2021_00000')
    home = top/'brats2021'/'BraTS2021_00000'
    (home/'._BraTS2021_00000_flair.nii.gz').write_bytes(b'x')
    (top/'brats2021'/'._BraTS2021_00000').mkdir()
    assert len(cases('brats2021')) == 1


@pytest.mark.parametrize('name', MINE)
def test_a_set_that_is_not_there_says_how_to_bring_it(top, name):
    e = entry(name)
    with pytest.raises(FileNotFoundError) as error: cases(name)
    for words in (e.how, e.layout, e.license, str(top/name)): assert words in str(error.value)
    assert e.count > 0 and 'doi:' in e.citation + 'doi:'*('arXiv' in e.citation)


def test_read_onto_first_moves_images_and_never_the_mask(tmp_path):
    near = put(tmp_path/'a.nii.gz', 1.)
    shifted = np.eye(4)
    shifted[0, 3] = 1
    x = np.random.default_rng(0).random(SHAPE)
    far = put(tmp_path/'b.nii.gz', x, shifted)
    seg = put(tmp_path/'m.nii.gz', labels((0, 7)))
    image, mask = s.read_onto_first((near, far), seg, {0: 0, 7: 1})
    np.testing.assert_allclose(image.numpy()[1, 1:], x[:-1], atol=1e-6)
    assert (image.numpy()[1, 0] == 0).all() and (mask.numpy()[0] == labels((0, 7))/7).all()
    assert s.read_onto_first((near,))[1] is None
