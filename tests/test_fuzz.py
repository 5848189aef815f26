"Every reader is given damaged, lying and hostile files: a Volume or a named error, nothing else, and soon."
import faulthandler
import gzip
import io
import json
import os
import re
import shutil
import signal
import stat
import struct
import tarfile
import time
import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import itk
from PIL import Image

from medseg_nb.core.fetch import unpack
from medseg_nb.data.files import load
from medseg_nb.data.nifti import read_nifti, write_nifti
from medseg_nb.data.nrrd import read_nrrd, read_segments, write_segments
from medseg_nb.data.picture import read_picture, write_picture
from medseg_nb.data.volume import Volume

resource = pytest.importorskip('resource')
TIMES = int(os.environ.get('MEDSEG_FUZZ', 1))  # how many times the usual count of random inputs
MEMORY, SECONDS = 1 << 30, 10  # a worker may take this much more address space, a file this long
GROWTH = 400e6                 # and this much memory really
counts = {}


# ---- the worker: a child process reads file after file and reports each; the parent survives it

def attempt(read, path):
    "'ok', a named error, or in words what is wrong with the answer"
    before = {p: p.stat().st_mtime_ns for p in path.parent.parent.rglob('*')}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            v = read(path)
        good = isinstance(v, Volume) and np.isfinite(v.affine).all()
        said = 'ok' if good else f'WRONG returned {type(v).__name__}'
    except (ValueError, OSError) as e:
        named = path.name in str(e) or getattr(e, 'filename', None)
        said = 'error' if named else f'WRONG unnamed {type(e).__name__}: {e}'
    except BaseException as e: said = f'WRONG {type(e).__name__}: {e}'
    after = {p: p.stat().st_mtime_ns for p in path.parent.parent.rglob('*')}
    return said if before == after else f'WRONG wrote {set(after.items()) ^ set(before.items())}'


def child(read, folder, inputs, start, pipe):
    faulthandler.disable()
    devnull = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2): os.dup2(devnull, fd)
    size, pages = 0, Path('/proc/self/statm')
    if pages.is_file(): size = int(pages.read_text().split()[0])*resource.getpagesize()
    if size: resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for i in range(start, len(inputs)):
        name, content = inputs[i]
        target = folder/'in'/name
        if callable(content): content(target)
        else: target.write_bytes(content)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # processor time; ends the process, even inside of C++
        signal.setitimer(signal.ITIMER_REAL, 6*SECONDS)
        had = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(pipe, f'{i} begins\n'.encode())
        said = attempt(read, target)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - had)*1024
        if grown > GROWTH: said = f'WRONG took {grown/1e6:.0f} MB'
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL): signal.setitimer(timer, 0)
        os.write(pipe, (re.sub(r'\s+', ' ', f'{i} {said}')[:600] + '\n').encode())
        if target.is_dir(): shutil.rmtree(target)
        else: target.unlink(missing_ok=True)
    os.write(pipe, b'done\n')


def run(read, folder, inputs):
    "What the reader says to each input; a crash or a hang is an answer, and a new child goes on"
    (folder/'in').mkdir(exist_ok=True)
    said, start = {}, 0
    while start < len(inputs):
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ours)
                child(read, folder, inputs, start, theirs)
            finally: os._exit(0)
        os.close(theirs)
        with os.fdopen(ours) as lines: report = lines.read().splitlines()
        _, status = os.waitpid(pid, 0)
        last = start
        for line in report:
            if line == 'done': continue
            i, word = line.split(' ', 1)
            last, said[int(i)] = int(i), word
        if report[-1:] == ['done']: break
        died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        why = ('hang' if died in (signal.SIGALRM, signal.SIGPROF) else
               signal.strsignal(died) if died else f'exit {status}')
        said[last] = f'WRONG the process ended: {why}'
        start = last + 1
        shutil.rmtree(folder/'out', ignore_errors=True)
    return [said[i] for i in range(len(inputs))]


def hold(kind, read, folder, inputs, errors=.2):
    "Run, count, and name every input that was answered wrongly"
    said = run(read, folder, inputs)
    wrong = [(i, inputs[i], s) for i, s in enumerate(said) if s.startswith('WRONG')]
    keep = os.environ.get('MEDSEG_FUZZ_KEEP')
    for i, (name, content), s in wrong if keep else ():
        if isinstance(content, bytes): (Path(keep)/f'{kind}-{i}-{name}').write_bytes(content)
    counts[kind] = len(inputs), said.count('ok'), said.count('error')
    assert not wrong, f'{len(wrong)} of {len(inputs)}: ' + '; '.join(
        f'{i} {n[0]}: {s}' for i, n, s in wrong[:5])
    assert said.count('error') >= errors*len(inputs), 'hardly any input was damaged enough to test anything'


# ---- damage that needs no knowledge of a format

def damaged(rng, raw, n):
    "Truncations, flipped bits, bytes set to extremes, pieces lost, doubled, swapped or filled with rubbish"
    def at():
        return int(rng.integers(len(raw)) if rng.random() < .4 else min(len(raw) - 1, rng.geometric(1/150)))
    for i in range(n):
        out = bytearray(raw)
        how, a, b = i % 7, at(), int(rng.integers(1, 40))
        if how == 0: out = out[:int(rng.integers(len(raw)))]
        elif how == 1:
            for _ in range(int(rng.integers(1, 9))): out[at()] ^= 1 << int(rng.integers(8))
        elif how == 2: out[a:a + b] = bytes([int(rng.choice([0, 255, 127, 128, 32]))])*b
        elif how == 3: del out[a:a + b]
        elif how == 4: out[a:a] = out[a:a + b]
        elif how == 5:
            out[a:a + 4] = struct.pack(rng.choice(['<I', '>I']),
                                       int(rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 10**9, 2**16])))
        else: out[a:a + b] = rng.bytes(b)
        yield bytes(out)


def text_damaged(rng, raw, n, values=('-1', '0', '999999999', '99999999999999999999', '1e30', 'nan', 'inf',
                                      '', 'x', '../x', '1 2 3')):
    "Numbers and words of a text header replaced by absurd ones"
    top = raw[:900]
    spots = [m.span() for m in re.finditer(rb'[\w.+-]+', top)]
    for _ in range(n):
        out = raw
        for _ in range(int(rng.integers(1, 3))):
            a, b = spots[int(rng.integers(len(spots)))]
            out = out[:a] + str(rng.choice(values)).encode() + out[b:]
        yield out


# ---- one small whole file of each kind

rng0 = np.random.default_rng(0)
array = np.add.outer(np.add.outer(np.arange(12), np.arange(10)*3), np.arange(8)*5).astype(np.int16)
grid = np.array([[-.9, .1, 0, 20], [.1, 1.1, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1.]])
scan = Volume(array[None], grid)
film = Volume(array[:, :, 0][None].astype(np.uint8).repeat(2, 1).repeat(2, 2), np.eye(3))
color = rng0.integers(0, 255, (24, 20, 3), dtype=np.uint8)


def made(path, write): return Path(write(path)).read_bytes()


def pillow(kind, img, **options):
    file = io.BytesIO()
    img.save(file, kind, **options)
    return file.getvalue()


def palette(a):
    img = Image.fromarray(a)
    img.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    return img


def wholes(folder):
    gray, note = Image.fromarray(film.numpy()[0]), Image.Exif()
    note[0x0112] = 6
    two = dict(save_all=True, append_images=[Image.fromarray(film.numpy()[0][::-1])])
    big = lambda img: img.resize((64, 64))
    labels = Volume((array[None] % 4).astype(np.uint8), grid)
    def save_itk(name, packed):
        sitk.WriteImage(itk(scan), str(folder/name), packed)
        return (folder/name).read_bytes()
    return {
        'nii': [made(folder/'a.nii', partial(write_nifti, scan)), nib.Nifti2Image(array, grid).to_bytes(),
                nib.Nifti1Image(np.stack([array]*2, -1).astype('>f4'), grid).to_bytes()],
        'nii.gz': [made(folder/'a.nii.gz', partial(write_nifti, scan)),
                   gzip.compress(nib.Nifti1Image(array, grid).to_bytes(), 9)],
        'png': [made(folder/'a.png', partial(write_picture, film)),
                pillow('PNG', palette(film.numpy()[0] % 4)),
                pillow('PNG', Image.fromarray(array[:, :, 0].astype(np.uint16))),
                pillow('PNG', Image.fromarray(color), exif=note)],
        'jpg': [pillow('JPEG', big(gray), exif=note),
                pillow('JPEG', big(Image.fromarray(color)), progressive=True)],
        'tif': [made(folder/'a.tif', partial(write_picture, film)), pillow('TIFF', gray, **two),
                pillow('TIFF', Image.fromarray(color)),
                pillow('TIFF', gray, compression='tiff_lzw'),
                pillow('TIFF', palette(film.numpy()[0] % 4), compression='packbits')],
        'gif': [pillow('GIF', palette(film.numpy()[0] % 4)), pillow('GIF', gray, **two)],
        'bmp': [pillow('BMP', gray), pillow('BMP', Image.fromarray(color))],
        'ppm': [pillow('PPM', Image.fromarray(color)), b'P2 3 2 255\n1 2 3\n4 5 6\n'],
        'nrrd': [save_itk('a.nrrd', False), save_itk('b.nrrd', True)],
        'mha': [save_itk('a.mha', False), save_itk('b.mha', True)],
        'seg.nrrd': [made(folder/'a.seg.nrrd', lambda p: write_segments(labels, p,
                                                                        {1: 'a', 2: 'b', 3: 'c'}))]}


READERS = dict.fromkeys(('png', 'jpg', 'tif', 'gif', 'bmp', 'ppm'),
                        read_picture) | dict.fromkeys(('nrrd', 'mha'), read_nrrd)
READERS |= {'nii': read_nifti, 'nii.gz': read_nifti, 'seg.nrrd': read_segments}
TEXTS = {'nrrd', 'mha', 'seg.nrrd', 'ppm'}


@pytest.mark.parametrize('kind', READERS)
def test_damaged_files(tmp_path, kind):
    rng, inputs, per = np.random.default_rng(len(kind)), [], 240*TIMES
    made_of = wholes(tmp_path)[kind]
    for raw in made_of:
        inputs += [(f'f.{kind}', x) for x in damaged(rng, raw, per//len(made_of))]
        if kind in TEXTS: inputs += [(f'f.{kind}', x) for x in text_damaged(rng, raw, per//len(made_of))]
    if kind == 'nii.gz':  # damage inside, packed again
        inputs += [(f'f.{kind}', gzip.compress(x, 1)) for x in damaged(rng, gzip.decompress(made_of[0]), per)]
    hold(kind, READERS[kind], tmp_path, inputs)


@pytest.mark.parametrize('kind', sorted(READERS))
def test_truncated_files(tmp_path, kind):
    "At many places, and what comes back is the whole image or nothing"
    truth = {}
    def read(path):
        v = READERS[kind](path)
        if not torch.equal(v.data, truth['v'].data): raise RuntimeError('other voxels than in the whole file')
        return v
    for k, raw in enumerate(wholes(tmp_path)[kind]):
        (tmp_path/f'w.{kind}').write_bytes(raw)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: truth['v'] = READERS[kind](tmp_path/f'w.{kind}')
            except ValueError: continue
        step = max(1, len(raw)//(40*TIMES))
        hold(f'{kind}, cut {k}', read, tmp_path, [(f'f.{kind}', raw[:n]) for n in range(0, len(raw), step)])


# ---- headers that lie, format by format

def nifti_lies(raw):
    lies = [dict(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), dict(dim=[7]*8),
            dict(dim=[4, 1000, 1000, 1000, 1, 1, 1, 1]),
            dict(dim=[3, -1, 10, 8, 1, 1, 1, 1]), dict(dim=[3, 0, 0, 0, 0, 0, 0, 0]), dict(dim=[0]*8),
            dict(dim=[-3, 12, 10, 8, 1, 1, 1, 1]),
            dict(vox_offset=1e30), dict(vox_offset=-1e9), dict(vox_offset=np.nan), dict(vox_offset=np.inf),
            dict(vox_offset=3),
            dict(srow_x=np.nan), dict(srow_y=np.inf), dict(srow_x=0, srow_y=0, srow_z=0), dict(srow_x=3e38),
            dict(sform_code=0, qform_code=1, quatern_b=9), dict(sform_code=0, qform_code=1, quatern_b=np.nan),
            dict(sform_code=0, qform_code=1, pixdim=0), dict(sform_code=0, qform_code=0, pixdim=np.nan),
            dict(pixdim=-np.inf),
            dict(scl_slope=np.nan), dict(scl_slope=np.inf), dict(scl_slope=1e38, scl_inter=1e38),
            dict(datatype=0), dict(datatype=1),
            dict(datatype=1536), dict(datatype=2048), dict(datatype=128), dict(xyzt_units=255),
            dict(magic=b'ni1\0')]
    for lie in lies:
        header = nib.Nifti1Header(raw[:348])
        for name, value in lie.items(): header[name] = value
        yield header.binaryblock + raw[348:]


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png_lies():
    text = chunk(b'zTXt', b'medseg_nb.affine\0\0' + zlib.compress(b'[[1,' + b' '*10**7 + b'0]]'))
    rest = chunk(b'IDAT', zlib.compress(bytes(10**5))) + chunk(b'IEND', b'')
    for size in ((10**9, 10**9), (2**31 - 1, 1), (1, 2**31 - 1), (0, 5), (5, 0), (30000, 2900),
                 (2**32 - 1, 2**32 - 1)):
        for bits, code in ((1, 0), (8, 0), (16, 0), (16, 2), (8, 3), (8, 6), (3, 0), (8, 7)):
            head = chunk(b'IHDR', struct.pack('>IIBBBBB', *size, bits, code, 0, 0, 0))
            for extra in (b'', text): yield b'\x89PNG\r\n\x1a\n' + head + extra + rest
    for text in ('[]', '{}', '1', 'null', '[[1e999]]', '[[1,0,0],[0,1,0],[0,0,NaN]]', '['*10**5,
                 '[[' + '9'*5000 + ']]'):
        yield pillow('PNG', Image.fromarray(color), pnginfo=_note(text))


def _note(text):
    from PIL.PngImagePlugin import PngInfo
    info = PngInfo()
    info.add_text('medseg_nb.affine', text)
    return info


def tiff(tags, data=b''):
    "A TIFF by hand: one directory of (tag, type, count, value)"
    body = b'II*\0' + struct.pack('<I', 8 + len(data)) + data
    return body + struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *t)
                                                          for t in tags) + struct.pack('<I', 0)


def tiff_lies():
    for width, height in ((10**9, 10**9), (30000, 2900), (2**32 - 1, 1), (0, 0), (8, 8)):
        for packing in (1, 5, 8, 32773, 7):
            for bits, form in ((8, 1), (16, 1), (32, 3), (64, 3), (1, 1)):
                for offset, size in ((8, 64), (2**32 - 1, 64), (8, 2**32 - 1)):
                    yield tiff([(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits),
                                (259, 3, 1, packing), (262, 3, 1, 1),
                                (273, 4, 1, offset), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, size),
                                (339, 3, 1, form)], bytes(64))
    page = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 64)]
    one = tiff(page, bytes(64))
    yield one[:-4] + struct.pack('<I', 72)     # a directory that names itself as the next
    many, at = one[:72], 72
    for k in range(5000):                    # more pages than any stack, all with the same voxels
        many += one[72:-4] + struct.pack('<I', (k < 4999)*(at + 78))
        at += 78
    yield many


def other_lies():
    jpeg = pillow('JPEG', Image.fromarray(color).resize((64, 64)))
    at = jpeg.index(b'\xff\xc0') + 5
    for size in (b'\xff\xff\xff\xff', b'\0\0\0\0', b'\x80\0\x80\0', b'\x2e\xe0\x1d\x4c'):
        yield 'f.jpg', jpeg[:at] + size + jpeg[at + 4:]
    for head in (b'P5 100000 100000 255\n', b'P6 9000 9000 255\n', b'P5 -3 5 255\n', b'P5 3 5 0\n',
                 b'P5 3 5 99999\n', b'P4 99999999 8\n',
                 b'P5 ' + b'9'*5000 + b' 1 255\n', b'P2 3 3 255\n' + b'9 '*8, b'P5 # ' + b'x'*10**6):
        yield 'f.pgm', head
    gif = pillow('GIF', palette(film.numpy()[0] % 4))
    for size in (b'\xff\xff\xff\xff', b'\0\0\0\0'): yield 'f.gif', gif[:6] + size + gif[10:]
    bmp = pillow('BMP', Image.fromarray(color))
    for size in ((2**31 - 1, 2**31 - 1), (-5, 5), (9000, 9000), (0, 1), (20, -2**31)):
        yield 'f.bmp', bmp[:18] + struct.pack('<ii', *size) + bmp[26:]


def nrrd_lies():
    head = (b'NRRD0004\ntype: %s\ndimension: %d\nspace: %s\nsizes: %s\n'
            b'space directions: %s\nencoding: %s\n%s\n')
    unit = b'(1,0,0) (0,1,0) (0,0,1)'
    for what in ((b'short', 3, b'LPS', b'99999 99999 99999', unit, b'raw', b''),
                 (b'short', 3, b'LPS', b'1000 1000 1000', unit, b'gzip', b''),
                 (b'uchar', 16, b'LPS', b'1 '*16, unit, b'raw', b''),
                 (b'uchar', 99999, b'LPS', b'2 2 2', unit, b'raw', b''),
                 (b'uchar', 3, b'LPS', b'2 2 2', b'(nan,0,0) (0,1,0) (0,0,1)', b'raw', b''),
                 (b'uchar', 3, b'LPS', b'2 2 2', b'(inf,0,0) (0,1,0) (0,0,1)', b'raw', b''),
                 (b'uchar', 3, b'LPS', b'2 2 2', b'(0,0,0) (0,0,0) (0,0,0)', b'raw', b''),
                 (b'uchar', 3, b'LPS', b'2 2 2', b'none none none', b'raw', b''),
                 (b'uchar', 3, b'', b'2 2 2', unit, b'raw', b''),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'raw', b'byte skip: 999999999\n'),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'raw', b'byte skip: -1\n'),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'raw', b'byte skip: -99\n'),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'raw', b'line skip: 999999999\n'),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'gzip', b'byte skip: 5\n'),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'hex', b''),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'raw', b'data file: /etc/passwd\n'),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'raw', b'data file: ../canary\n'),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'raw', b'data file: f.nrrd\n'),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'raw', b'content: ' + b'x'*10**6 + b'\n'),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'raw', b'space: RAS\n'),
                 (b'uchar', 3, b'LPS', b'2 2 2', unit, b'raw', b'kinds: ' + b'domain '*50 + b'\n')):
        yield 'f.nrrd', head % what + bytes(64)
    meta = (b'NDims = %s\nTransformMatrix = %s\nElementSpacing = 1 1 1\nDimSize = %s\n%s'
            b'ElementType = MET_UCHAR\nElementDataFile = %s\n')
    eye = b'1 0 0 0 1 0 0 0 1'
    for what in ((b'3', eye, b'99999 99999 999', b'', b'LOCAL'),
                 (b'3', eye, b'1000 1000 1000', b'CompressedData = True\n', b'LOCAL'),
                 (b'99', eye, b'2 2 2', b'', b'LOCAL'), (b'-3', eye, b'2 2 2', b'', b'LOCAL'),
                 (b'3', eye, b'2 2', b'', b'LOCAL'),
                 (b'2', eye, b'2 2 2', b'', b'LOCAL'), (b'3', b'0 0 0 0 0 0 0 0 0', b'2 2 2', b'', b'LOCAL'),
                 (b'3', b'nan 0 0 0 1 0 0 0 1', b'2 2 2', b'', b'LOCAL'),
                 (b'3', b'1 0', b'2 2 2', b'', b'LOCAL'),
                 (b'3', eye, b'2 2 2', b'ElementNumberOfChannels = 999999999\n', b'LOCAL'),
                 (b'3', eye, b'2 2 2', b'ElementNumberOfChannels = -1\n', b'LOCAL'),
                 (b'3', eye, b'2 2 2', b'HeaderSize = 999999999\n', b'LOCAL'),
                 (b'3', eye, b'2 2 2', b'HeaderSize = -1\n', b'LOCAL'),
                 (b'3', eye, b'2 2 2', b'CompressedDataSize = 99999999999\nCompressedData = True\n',
                  b'LOCAL'),
                 (b'3', eye, b'2 2 2', b'CompressedDataSize = -5\nCompressedData = True\n', b'LOCAL'),
                 (b'3', eye, b'2 2 2', b'', b'/etc/passwd'), (b'3', eye, b'2 2 2', b'', b'../canary'),
                 (b'3', eye, b'2 2 2', b'', b'f.mha'),
                 (b'3', eye, b'2 2 2', b'', b'LIST'), (b'3', eye, b'2 2 2', b'', b'x%s%n%d.raw 1 3 1'),
                 (b'3', eye, b'2 2 2', b'Comment = ' + b'x'*10**6 + b'\n', b'LOCAL')):
        yield 'f.mha', meta % what + bytes(64)


def gzip_lies(raw):
    "Bombs: behind the header, instead of it, promised by it"
    zeros = bytes(30_000_000)
    for content in (raw + zeros, zeros, nib.Nifti1Header(raw[:348]).binaryblock[:344] + b'ni1\0' + zeros):
        yield gzip.compress(content, 6)
    header = nib.Nifti1Header(raw[:348])
    header['dim'] = [3, 2000, 2000, 1000, 1, 1, 1, 1]
    yield gzip.compress(header.binaryblock + raw[348:] + zeros, 6)
    yield gzip.compress(gzip.compress(raw))
    yield b''.join(gzip.compress(b'') for _ in range(20_000)) + gzip.compress(raw)


def test_lying_headers(tmp_path):
    (tmp_path/'canary').write_bytes(bytes(64))
    raw = made(tmp_path/'a.nii', partial(write_nifti, scan))
    lies = {'f.nii': nifti_lies(raw), 'f.nii.gz': map(gzip.compress, nifti_lies(raw)), 'f.png': png_lies(),
            'f.tif': tiff_lies()}
    inputs = [(name, x) for name, some in lies.items() for x in some]
    inputs += [('f.nii.gz', x) for x in gzip_lies(raw)]
    inputs += list(other_lies()) + list(nrrd_lies())
    hold('headers that lie', load, tmp_path, inputs, errors=.6)
    assert (tmp_path/'canary').read_bytes() == bytes(64)


def test_one_kind_under_the_name_of_another(tmp_path):
    every = wholes(tmp_path)
    inputs = [(f'f.{name}', raw) for name in every for raws in every.values() for raw in raws]
    hold('false names', load, tmp_path, inputs)


def test_a_worker_sees_what_is_wrong(tmp_path):
    "The test of the test: each kind of misbehavior is caught, and the inputs behind it are still tried"
    def read(path):
        what = path.read_text()
        if what == 'crash': os.kill(os.getpid(), signal.SIGSEGV)
        if what == 'hang': signal.setitimer(signal.ITIMER_REAL, .3), time.sleep(5)
        if what == 'memory': np.ones(2 << 30, np.uint8)
        if what == 'really': np.ones(500_000_000, np.uint8)
        if what == 'write': (path.parent.parent/'evil').write_text('x')
        if what == 'other': raise KeyError(path.name)
        if what == 'unnamed': raise ValueError('no name')
        return scan
    words = ['fine', 'crash', 'hang', 'memory', 'really', 'write', 'other', 'unnamed', 'fine']
    said = run(read, tmp_path, [('f.x', w.encode()) for w in words])
    for word, s in zip(words, said):
        assert s == 'ok' if word == 'fine' else s.startswith('WRONG'), (word, s)
    assert 'hang' in said[2] and 'MB' in said[4] and 'evil' in said[5]


# ---- DICOM

@pytest.fixture(scope='module')
def dicom():
    return pytest.importorskip('medseg_nb.data.dicom')


def slices(n=4):
    "A few slices of one series, as bytes, from a real one"
    from pydicom import dcmread
    from pydicom.data import get_testdata_file
    ds = dcmread(get_testdata_file('CT_small.dcm'))
    for k in range(n):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f'1.2.3.{k}'
        ds.InstanceNumber = k + 1
        ds.ImagePositionPatient = [-158.135803, -179.035797, -75.699997 + 5*k]
        file = io.BytesIO()
        ds.save_as(file)
        yield file.getvalue()


def test_damaged_dicom_file(tmp_path, dicom):
    from pydicom.data import get_testdata_file
    rng, inputs = np.random.default_rng(1), []
    names = ('CT_small.dcm', 'MR_small_RLE.dcm', 'SC_rgb_jpeg_dcmtk.dcm', 'MR_small_bigendian.dcm')
    for name in names:
        inputs += [('f.dcm', x) for x in damaged(rng, Path(get_testdata_file(name)).read_bytes(), 60*TIMES)]
    hold('DICOM file', dicom.read_image, tmp_path, inputs, errors=.05)


def test_damaged_dicom_series(tmp_path, dicom):
    rng, whole, inputs = np.random.default_rng(2), list(slices()), []
    def folder(files, path):
        path.mkdir(exist_ok=True)
        for k, raw in enumerate(files): (path/f'{k}.dcm').write_bytes(raw)
    for bad in damaged(rng, whole[1], 60*TIMES):
        inputs.append(('series', partial(folder, [whole[0], bad, *whole[2:]])))
    hold('DICOM series', dicom.read_series, tmp_path, inputs, errors=.02)


# ---- archives

def zipped(members, **options):
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as z:
        warnings.simplefilter('ignore')
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            z.writestr(info, content)
    return file.getvalue()


def tarred(members, mode='w:gz'):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as t:
        for name, content, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.devmajor = kind, link, 1
            info.size = len(content)*(kind == tarfile.REGTYPE)
            t.addfile(info, io.BytesIO(content))
    return file.getvalue()


def hostile():
    "Archives that want to write elsewhere, or everywhere"
    plain, link = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
    ways = ['../evil.txt', '/tmp/evil-medseg.txt', 'a/../../evil.txt', '..\\evil.txt', 'C:\\evil.txt',
            'a//evil.txt', './../evil.txt', 'a/./b.txt',
            '\0evil.txt', 'a\nb.txt', 'nul.txt:stream', '~/evil.txt', 'a'*300 + '.txt', 'x/'*200 + 'a.txt',
            '\u202etxt.exe', '']
    for name in ways:
        yield 'f.zip', zipped([('good.txt', b'x', plain), (name, b'evil', plain)])
        if '\0' not in name:
            yield 'f.tar.gz', tarred([('good.txt', b'x', tarfile.REGTYPE, ''),
                                      (name, b'evil', tarfile.REGTYPE, '')])
    for target in ('/etc/passwd', '../canary', '../../canary', 'good.txt', '.', '..'):
        yield 'f.zip', zipped([('good.txt', b'x', plain), ('l.txt', target.encode(), link),
                               ('l.txt/evil.txt', b'evil', plain)])
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            yield 'f.tar.gz', tarred([('good.txt', b'x', tarfile.REGTYPE, ''), ('l.txt', b'', kind, target),
                                      ('l.txt', b'evil', tarfile.REGTYPE, '')])
            yield 'f.tar.gz', tarred([('l', b'', kind, target), ('l/evil.txt', b'evil', tarfile.REGTYPE, '')])
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b'9'):
        yield 'f.tar.gz', tarred([('dev.txt', b'', kind, '')])
    for pair in (('a.txt', 'a.txt'), ('a.txt', 'A.TXT'), ('a.txt', 'a.txt/b.txt'), ('a/b.txt', 'a'),
                 ('\u00e9.txt', 'e\u0301.txt'), ('\ufb01.txt', 'fi.txt')):
        yield 'f.zip', zipped([(n, b'x', plain) for n in pair])
        yield 'f.tar.gz', tarred([(n, b'x', tarfile.REGTYPE, '') for n in pair])
    yield 'f.zip', zipped([('a.txt', bytes(30_000_000), plain)])
    yield 'f.tar.gz', tarred([('a.txt', bytes(30_000_000), tarfile.REGTYPE, '')])
    yield 'f.tar.gz', gzip.compress(bytes(60_000_000), 6)
    yield 'f.zip', zipped([(f'{k}.txt', b'', plain) for k in range(500)])
    lie = bytearray(zipped([('a.txt', bytes(5_000_000), plain)]))
    for at in (lie.index(b'PK\1\2') + 24, 22):
        lie[at:at + 4] = struct.pack('<I', 10)  # 5 MB that say they are 10 bytes
    yield 'f.zip', bytes(lie)


def unpacks(path):
    "Unpack into a folder beside `in`, look at what is there, and remove it"
    out = path.parent.parent/'out'
    try:
        unpack(path, ('*.txt',), out)
        bad = [p for p in out.rglob('*') if p.is_symlink() or not (p.is_file() or p.is_dir())]
        if bad: raise RuntimeError(f'{bad} is no plain file')
        if sum(p.stat().st_size for p in out.rglob('*') if p.is_file()) > 64*path.stat().st_size:
            raise RuntimeError('a bomb went off')
    except ValueError:
        if out.exists(): raise RuntimeError('a folder was left behind')
        raise
    finally: shutil.rmtree(out, ignore_errors=True)
    return scan


def test_archives(tmp_path):
    rng, plain = np.random.default_rng(3), stat.S_IFREG | 0o644
    (tmp_path/'canary').write_bytes(b'untouched')
    inputs, names = list(hostile()), [f'd/{k}.txt' for k in range(5)]
    whole = {'f.zip': zipped([(n, n.encode()*50, plain) for n in names]),
             'f.tar.gz': tarred([(n, n.encode()*50, tarfile.REGTYPE, '') for n in names]),
             'f.tar': tarred([(n, n.encode()*50, tarfile.REGTYPE, '') for n in names], 'w:')}
    for name, raw in whole.items(): inputs += [(name, x) for x in damaged(rng, raw, 120*TIMES)]
    for x in damaged(rng, whole['f.tar'], 60*TIMES): inputs.append(('f.tar.gz', gzip.compress(x)))
    hold('archives', unpacks, tmp_path, inputs)
    assert (tmp_path/'canary').read_bytes() == b'untouched' and not Path('/tmp/evil-medseg.txt').exists()


def test_counts(capsys):
    "Last: how much was tried, for the record"
    with capsys.disabled():
        tried = [sum(c) for c in zip(*counts.values())] or [0, 0, 0]
        print(f'\nfuzz: {tried[0]} inputs in {len(counts)} groups; '
              f'{tried[1]} read, {tried[2]} refused by name')
        if TIMES > 1: print(json.dumps(counts))
