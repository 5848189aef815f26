"The store: what is read is what was stored, never half of it, never yesterday's, whoever else is at work."
import errno
import multiprocessing
import os
import resource
import signal
import time
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from medseg_nb.data import store as module
from medseg_nb.data.case import Case
from medseg_nb.data.files import save
from medseg_nb.data.loaders import normalize
from medseg_nb.data.phantom import phantom
from medseg_nb.data.sets import LazyCase, paired, read_pair
from medseg_nb.data.store import store
from medseg_nb.data.volume import Volume

quick = settings(max_examples=60, deadline=None)


def case(image, mask=None, name='a', affine=None):
    mask = None if mask is None else Volume(np.asarray(mask)[None], affine)
    return Case(name, Volume(np.asarray(image), affine), mask)


def noise(shape=(1, 6, 7, 8), seed=0): return np.random.default_rng(seed).normal(100, 30, shape)


def files(folder, n=1, size=12):
    "Cases as compressed files"
    for k in range(n):
        c = phantom('organs', k, 3, size)
        save(c.image, folder/f'i{k}.nii.gz'), save(c.mask, folder/f'm{k}.nii.gz')
    def patient(found): return dict(patient=f"p{found['k']}")
    return list(paired(folder, 'i{k}.nii.gz', 'm{k}.nii.gz', id='organs-{k}', meta=patient))


def lazy(name, images, mask=None):
    "A case of any files"
    return LazyCase(name, partial(read_pair, images, mask), {}, (*images, *filter(None, [mask])))


def names(folder): return sorted(p.name for p in folder.iterdir())


whole = {'uint8': (0, 255), 'int16': (-32768, 32767), 'uint16': (0, 65535), 'int32': (90_000, 150_000)}


@pytest.mark.parametrize('dtype', [*whole, 'float32', 'bool'])
def test_whole_numbers_come_back_exactly(tmp_path, dtype):
    low, high = whole.get(dtype, (0, 1) if dtype == 'bool' else (-1024, 3071))
    x = np.random.default_rng(0).integers(low, high, (2, 5, 6, 7), endpoint=True).astype(dtype)
    x[0, 0, 0, :2] = low, high
    back = store([case(x)], folder=tmp_path)[0].case().image.numpy()
    assert (back == x.astype('float32')).all()


@quick
@given(st.integers(0, 10**6), st.floats(1e-3, 1e4), st.floats(-1e3, 1e3))
def test_other_numbers_are_off_by_half_a_step(seed, scale, shift):
    x = np.random.default_rng(seed).normal(shift, scale, (1, 9, 10))
    codes, s, o = module._codes(x[0])
    step = np.ptp(x)/65535
    assert codes.dtype == np.int16 and abs(codes*s + o - x[0]).max() <= step*.5001 + 1e-9*abs(shift)


kinds = (lambda x: x, lambda x: x.astype('int16'), lambda x: x.astype('uint8'), lambda x: x*0 + 5,
         lambda x: np.where(np.arange(x.size).reshape(x.shape) == 7, 9., 0))


@pytest.mark.parametrize('make', kinds)
def test_brightness_is_that_of_normalize(tmp_path, make):
    x = make(noise((2, 9, 8, 7)))
    got = store([case(x)], folder=tmp_path)[0].read()[0]
    assert got.dtype == torch.float32 and (got - normalize(x)).abs().max() < 2e-4
    assert got.min() >= 0 and got.max() <= 1


def test_a_window_of_ones_own(tmp_path):
    x = noise().astype('int16')
    got = store([case(x)], folder=tmp_path)[0].read(window=(80, 120))[0].numpy()
    assert abs(got - ((x - 80)/40).clip(0, 1)).max() < 1e-6


shapes = st.tuples(*[st.integers(1, 7)]*3)


@quick
@given(shapes, st.tuples(*[st.integers(-9, 9)]*3), shapes)
def test_a_box_against_the_slow_way(tmp_path_factory, shape, corner, size):
    x = np.arange(np.prod(shape), dtype='int16').reshape(1, *shape)
    s, = store([case(x, x[0])], folder=tmp_path_factory.mktemp('s'))
    got, label = s.read(corner, size, window=(0, 1000))
    for at in np.ndindex(*size):
        place = tuple(np.add(corner, at))
        inside = all(0 <= p < n for p, n in zip(place, shape))
        assert label[at] == (x[(0, *place)] if inside else -1)
        assert abs(got[(0, *at)] - (x[(0, *place)]/1000 if inside else 0)) < 1e-6


def test_masks_of_every_kind(tmp_path):
    for top in (1, 200, 300, 40_000):
        y = np.zeros((6, 7, 8), 'int32')
        y[2, 3, 4], y[0, 0, 0] = top, -1
        s, = store([case(noise(), y)], folder=tmp_path)
        assert (s.read()[1].numpy() == y).all() and s.labels == [top]
        assert np.unravel_index(int(s.tensors[f'at.{top}'][0]), s.shape) == (2, 3, 4)
        assert [s.tensors[f'any.{axis}'].nonzero().flatten().tolist() for axis in range(3)] == [[2], [3], [4]]
        assert (s.case().mask.numpy()[0] == y).all()
    none, = store([case(noise())], folder=tmp_path)
    assert (none.read()[1] == -1).all() and none.labels == [] and none.case().mask is None
    empty, = store([case(noise(), np.zeros((6, 7, 8), 'uint8'))], folder=tmp_path)
    assert (empty.read()[1] == 0).all() and empty.labels == [] and not empty.tensors['any.0'].any()


def test_addresses_are_a_fair_sample(monkeypatch):
    monkeypatch.setattr(module, 'CAP', 50)
    y = np.zeros((20, 20, 20), 'uint8')
    y[:10], y[15, 15, :5] = 1, 2
    at = module._addresses(y)
    assert len(at[1]) == 50 == len(set(at[1])) and len(at[2]) == 5
    for k, v in at.items(): assert (y.reshape(-1)[v] == k).all()
    assert np.unravel_index(at[1], y.shape)[0].std() > 1
    assert all((a == b).all() for a, b in zip(at.values(), module._addresses(y).values()))


def test_spacing_and_axes(tmp_path):
    c = phantom('organs', 0, 3, (20, 18, 10), spacing=(1, 1, 2))
    c = Case(c.id, c.image.flip(0), c.mask.flip(0))
    s, = store([c], spacing=2, axes='RAS', folder=tmp_path)
    want = c.image.reorient('RAS').resample(2.), c.mask.reorient('RAS').resample(2., order=0)
    got = s.case()
    assert np.allclose(got.image.affine, want[0].affine) and s.shape == want[0].shape
    assert abs(got.image.numpy() - want[0].numpy()).max() < 1e-4
    assert (got.mask.numpy() == want[1].numpy()).all()


def test_two_dimensions(tmp_path):
    c = phantom('organs', 1, size=(20, 30))
    x, y = store([c], folder=tmp_path)[0].read((15, 25), (10, 10))
    assert x.shape == (1, 10, 10) and (y[:5, :5] == c.mask.data[0, 15:, 25:]).all() and (y[5:] == -1).all()


def test_from_files_as_from_memory(tmp_path):
    a, = files(tmp_path)
    one, two = store([a], folder=tmp_path/'s')[0], store([a.read()], folder=tmp_path/'s')[0]
    assert one.path != two.path and one.patient == two.patient == 'p0'
    assert all(torch.equal(p, q) for p, q in zip(one.read(), two.read()))


def test_modalities(tmp_path):
    a, b = files(tmp_path, 2)
    (image, mask), (other, _) = a.files, b.files
    both, = store([lazy('ab', (image, other), mask)], folder=tmp_path/'s')
    alone, = store([b], folder=tmp_path/'s')
    assert both.channels == 2 and torch.equal(both.read()[0][1], alone.read()[0][0])
    with pytest.raises(FileNotFoundError, match="Case 'x' lacks t2.nii.gz, no.nii"):
        store([lazy('x', (image, tmp_path/'t2.nii.gz'), tmp_path/'no.nii')], folder=tmp_path/'s')
    save(a.image.flip(0), tmp_path/'flip.nii.gz')
    with pytest.raises(ValueError, match="Case 'x': .*flip.nii.gz and .*i0.nii.gz differ: flip"):
        lazy('x', (image, tmp_path/'flip.nii.gz')).read()


def test_the_name_follows_the_content(tmp_path):
    x, y = noise().astype('int16'), np.zeros((6, 7, 8), 'uint8')
    def name(*args, spacing=None, axes=None, **more): return module._name(case(*args, **more), spacing, axes)
    base = name(x, y)
    assert name(x.copy(), y.copy(), name='b') == base
    x2, y2, shift = x.copy(), y.copy(), np.eye(4)
    x2[0, 5, 6, 7] += 1
    y2[5, 6, 7] = 1
    shift[0, 3] = 1e-3
    others = [name(x2, y), name(x, y2), name(x), name(x.astype('int32'), y), name(x, y, affine=shift),
              name(x, y, spacing=[1.]), name(x, y, axes='RAS'), name(np.concatenate([x, x]), y)]
    assert len({base, *others}) == 9


def test_a_changed_file_is_seen(tmp_path):
    a, = files(tmp_path)
    old, = store([a], folder=tmp_path/'s')
    path = a.files[0]
    v = nib.load(path)
    stamp = os.stat(path)
    nib.save(nib.Nifti1Image(np.asanyarray(v.dataobj)*2 + 1, v.affine), path)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    new, = store([a], folder=tmp_path/'s')
    assert new.path != old.path and new.case().image.data.max() > old.case().image.data.max()


def test_another_release_builds_anew(tmp_path, monkeypatch):
    a, = files(tmp_path)
    first = store([a], folder=tmp_path/'s')[0].path
    monkeypatch.setattr(module, 'version', lambda _: '99')
    assert store([a], folder=tmp_path/'s')[0].path != first
    monkeypatch.setattr(module, 'FORMAT', 2)
    assert len({store([a], folder=tmp_path/'s')[0].path, *(tmp_path/'s').iterdir()}) == 3


def test_built_once(tmp_path, monkeypatch):
    a, = files(tmp_path)
    store([a], folder=tmp_path/'s')
    def never(*args): raise AssertionError('unpacked again')
    monkeypatch.setattr(LazyCase, 'read', never)
    assert store([a], folder=tmp_path/'s')[0].shape == (12, 12, 12)


@quick
@given(st.data())
def test_no_damage_to_the_header_is_served(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('d')
    c = phantom('organs', 3, 3, 10)
    s, = store([c], folder=folder)
    want, raw = s.read(), bytearray(s.path.read_bytes())
    head = 8 + int.from_bytes(raw[:8], 'little')
    if data.draw(st.booleans()): raw = raw[:data.draw(st.integers(0, len(raw) - 1))]
    else: raw[data.draw(st.integers(0, head - 1))] ^= 1 << data.draw(st.integers(0, 7))
    s.path.unlink()
    s.path.write_bytes(raw)
    got = store([c], folder=folder)[0]
    assert all(torch.equal(a, b) for a, b in zip(got.read(), want))
    assert got.labels == s.labels and got.note == s.note and names(folder) == [s.path.name]


def test_writing_into_what_was_read_changes_no_file(tmp_path):
    c = phantom('organs', 3, 3, 10)
    s, = store([c], folder=tmp_path)
    before = s.path.read_bytes()
    s.read()[0].fill_(7), s.tensors['codes'].fill_(7)
    assert s.path.read_bytes() == before and (store([c], folder=tmp_path)[0].tensors['codes'] != 7).any()


def test_outliers_and_broken_images_are_refused_by_name(tmp_path):
    x = noise()
    x[0, 0, 0, 0] = 1e9
    with pytest.raises(ValueError, match="Case 'a': .*Clip the outliers"): store([case(x)], folder=tmp_path)
    for bad in (np.nan, np.inf, -np.inf):
        x[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match="'a': the image holds NaN"): store([case(x)], folder=tmp_path)
    assert not tmp_path.exists() or names(tmp_path) == []


def test_a_generator_is_read_one_by_one(tmp_path):
    alive = []
    def one_by_one():
        for k in range(4):
            alive.append(k)
            yield phantom('organs', k, 3, 8)
            assert len(list(tmp_path.glob('*.safetensors'))) == k + 1
    assert [s.id for s in store(one_by_one(), folder=tmp_path)] == [f'organs-{k}' for k in range(4)]


fork = multiprocessing.get_context('fork')
three = [phantom('organs', k, 3, 24) for k in range(3)]


def build(folder, wait):
    "Store three cases; each file is cut short for `wait` seconds before it is finished"
    def slowly(tensors, path, note):
        save_file(tensors, path, note)
        if wait:
            with open(path, 'r+b') as f: f.truncate(1000)
            time.sleep(wait)
            save_file(tensors, path, note)
    module.save_file = slowly
    store(three, folder=folder)


def until(found, seconds=30):
    end = time.time() + seconds
    while not found() and time.time() < end: time.sleep(.01)
    return found()


def test_killed_in_the_middle(tmp_path):
    p = fork.Process(target=build, args=(tmp_path, 60))
    p.start()
    assert until(lambda: any(f.stat().st_size == 1000 for f in tmp_path.glob('.part-*')))
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    left, = names(tmp_path)
    for c, s in zip(three, store(three, folder=tmp_path)): assert (s.read()[1] == c.mask.data[0]).all()
    old = time.time() - 4000
    os.utime(tmp_path/left, (old, old))
    store([phantom('organs', 9, 3, 24)], folder=tmp_path)
    assert left not in names(tmp_path) and len(names(tmp_path)) == 4


def test_two_at_once(tmp_path):
    both = [fork.Process(target=build, args=(tmp_path, .3)) for _ in range(2)]
    for p in both: p.start()
    assert until(lambda: len(list(tmp_path.glob('.part-*'))) == 2)
    for p in both: p.join(60)
    assert [p.exitcode for p in both] == [0, 0]
    before = {p: p.stat().st_ino for p in tmp_path.iterdir()}
    for c, s in zip(three, store(three, folder=tmp_path)): assert (s.read()[1] == c.mask.data[0]).all()
    assert len(before) == 3 and before == {p: p.stat().st_ino for p in tmp_path.iterdir()}


def test_no_space_left(tmp_path, monkeypatch):
    good, = store([phantom('organs', 0, 3, 10)], folder=tmp_path)
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(module, 'save_file', full)
        with pytest.raises(OSError, match="Case 'organs-1' cannot be stored .*No space left.*MEDSEG_CACHE"):
            store([phantom('organs', 1, 3, 10)], folder=tmp_path)
    monkeypatch.setattr(module, 'SPARE', 1e18)
    with pytest.raises(OSError, match='are free and .* of them stays so'):
        store([phantom('organs', 1, 3, 10)], folder=tmp_path)
    assert names(tmp_path) == [good.path.name] and good.read()[1].max() == 3


def test_a_file_that_may_not_grow(tmp_path):
    def small(said):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try: store(three, folder=tmp_path)
        except OSError as e: said.put(str(e))
    said = fork.SimpleQueue()
    p = fork.Process(target=small, args=(said,))
    p.start()
    p.join(60)
    assert 'cannot be stored' in said.get() and names(tmp_path) == []


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    c, new = phantom('organs', 0, 3, 10), phantom('organs', 1, 3, 10)
    s, = store([c], folder=tmp_path)
    def denied(*args, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(module.os, 'utime', denied)
    monkeypatch.setattr(module, 'atomic', denied)
    assert torch.equal(store([c], folder=tmp_path)[0].read()[0], s.read()[0])
    with pytest.raises(OSError, match='organs-1.* cannot be stored.*Perm'): store([new], folder=tmp_path)
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='cannot be stored'): store([new], folder=tmp_path/'file')


def test_the_limit_drops_the_oldest_first(tmp_path):
    cases = [phantom('organs', k, 3, 16) for k in range(4)]
    paths = [s.path for s in store(cases[:3], folder=tmp_path)]
    size = paths[0].stat().st_size
    for age, p in zip((30, 20, 10), paths): os.utime(p, (time.time() - age,)*2)
    store(cases[:1], folder=tmp_path)
    kept, = store(cases[3:], folder=tmp_path, limit=3.5*size/1e9)
    assert set(tmp_path.iterdir()) == {paths[0], paths[2], kept.path}
    with pytest.raises(OSError, match='higher limit'): store(cases, folder=tmp_path, limit=2.5*size/1e9)
    assert kept.read()[1].max() == 3


def test_it_goes_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MEDSEG_CACHE', str(tmp_path))
    s, = store([phantom(dims=3, size=8)])
    assert s.path.parent == tmp_path/'store' and s.path.is_file()


def test_lazy_cases_are_named_by_files_and_reader(tmp_path):
    a, = files(tmp_path)
    image, mask = a.files
    def double(x): return x*2
    def name(load, *paths): return module._name(LazyCase('x', load, {}, paths or (image, mask)), None, None)
    base = name(partial(read_pair, (image,), mask))
    assert base == module._name(a, None, None)
    copy = tmp_path/'elsewhere'
    copy.mkdir()
    for p in (image, mask): (copy/p.name).write_bytes(p.read_bytes())
    moved = copy/image.name, copy/mask.name
    assert name(partial(read_pair, moved[:1], moved[1]), *moved) == base
    others = [name(partial(read_pair, (image,), None), image),
              name(partial(read_pair, (image,), mask, relabel={0: 0, 1: 1})),
              name(partial(read_pair, (image, image), mask))]
    assert len({base, *others}) == 4
    class Reader:
        def __init__(self, relabel=None): self.relabel = relabel
        def pair(self): return read_pair((image,), mask, relabel=self.relabel)
        __call__ = pair
    by_voxels = [(name(lambda: read_pair((image,), mask)),
                  name(lambda: read_pair((image,), mask, relabel=double))),
                 (name(Reader()), name(Reader(double))), (name(Reader().pair), name(Reader(double).pair))]
    assert len({base, *by_voxels[0]}) == 3 and len({*by_voxels}) == 1


def test_a_folder_of_slices_is_named_by_all_its_files(tmp_path):
    a, = files(tmp_path)
    folder = tmp_path/'slices'
    folder.mkdir()
    for k in range(2): (folder/f'{k}.dcm').write_bytes(bytes([k]))
    case = LazyCase('x', partial(read_pair, (folder,), None), {}, (folder,))
    def name(): return module._name(case, None, None)
    first = name()
    (folder/'1.dcm').write_bytes(b'2')
    second = name()
    (folder/'1.dcm').rename(folder/'3.dcm')
    assert len({first, second, name()}) == 3
