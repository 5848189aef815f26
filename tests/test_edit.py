"Editing: undo, redo and the journal against whole copies; files cut anywhere, kernels killed, disks full."
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import medseg_nb.view.edit as edit
from medseg_nb.data.files import load
from medseg_nb.data.files import save as write
from medseg_nb.data.volume import Volume
from medseg_nb.view.brush import brush
from medseg_nb.view.edit import Edits, narrow, pack, unpack

seeds = st.integers(0, 2**32 - 1)
some = settings(max_examples=30, deadline=None)
affine = np.diag([-.7, .7, 3, 1.])
affine[:3, 3] = 5, -7, 11
image = Volume(torch.arange(210, dtype=torch.int16).reshape(1, 7, 6, 5), affine)


def random_deed(rng, e):
    "One step, undo or redo; True where something was done"
    deed = rng.integers(5)
    if deed == 0: return bool(e.undo())
    if deed == 1: return bool(e.redo())
    stroke = brush(image, rng.uniform(0, 5, (2, 3)), rng.uniform(0, 6))
    if deed == 2: return bool(e.apply(stroke, int(rng.integers(4))))
    if deed == 3: return bool(e.apply(rng.random(image.shape) < .1, int(rng.choice([-1, 1, 300]))))
    a = rng.integers((0, 0, 0), image.shape)
    b = rng.integers(a, np.array(image.shape) + 1)
    return bool(e.put(tuple(map(slice, a.tolist(), b.tolist())), rng.integers(0, 3, b - a)))


def ball(at, label=1): return brush(image, at, 2), label
def state(e): return e.labels.tolist(), e.count, e.undone, e.changed


@some
@given(seeds, st.integers(1, 25))
def test_history_is_a_list_of_copies(seed, n):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 3, image.shape)
    e, copies = Edits(image, start), [start]
    for _ in range(n):
        label = int(rng.choice([0, 1, 255, 256, 70_000, -1]))
        region = rng.random(image.shape) < .05
        want = np.where(region, label, copies[-1])
        e.apply(region, label)
        np.testing.assert_array_equal(e.labels, want)
        if (want != copies[-1]).any(): copies.append(want)
    for want in copies[-2::-1]:
        e.undo()
        np.testing.assert_array_equal(e.labels, want)
    assert e.undo() is None and (e.count, e.undone) == (0, len(copies) - 1)
    for want in copies[1:]:
        e.redo()
        np.testing.assert_array_equal(e.labels, want)
    assert e.redo() is None


def test_a_new_step_ends_what_was_undone():
    e = Edits(image)
    for k in (1, 2, 3): e.apply(*ball((k, k, k), k))
    e.undo(), e.undo(), e.apply(*ball((5, 5, 4), 4))
    assert (e.count, e.undone, e.redo()) == (2, 0, None)


@some
@given(seeds, st.integers(1, 25))
def test_answers_keep_a_page_up_to_date(seed, n):
    rng, e = np.random.default_rng(seed), Edits(image)
    page = e.labels.astype(int)
    for _ in range(n):
        before = page.copy()
        stroke = rng.random(image.shape) < .05, int(rng.integers(3))
        answer = [e.undo, e.redo, lambda: e.apply(*stroke)][rng.integers(3)]()
        if answer:
            box, labels = answer
            page[box] = labels
            changed = np.argwhere(page != before)
            assert [(b.start, b.stop) for b in box] == list(zip(changed.min(0), changed.max(0) + 1))
        np.testing.assert_array_equal(page, e.labels)


@some
@given(seeds, st.integers(0, 25))
def test_journal_is_the_live_mask(seed, n):
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as d:
        e = Edits(image, path=f'{d}/m.nii')
        for k in range(n):
            random_deed(rng, e)
            if rng.random() < .1: e.save()
            if rng.random() < .2:
                again = Edits(image, path=f'{d}/m.nii')
                assert again.labels.tolist() == e.labels.tolist() and again.changed == e.changed
                e = again
        again = Edits(image, path=f'{d}/m.nii')
        assert again.labels.tolist() == e.labels.tolist()
        while e.undo(): again.undo if False else None
        assert Edits(image, path=f'{d}/m.nii').labels.tolist() == e.labels.tolist()


def test_cut_anywhere_gives_a_prefix(tmp_path):
    e, states, sizes, rng = Edits(image, path=tmp_path/'m.nii.gz'), [], [], np.random.default_rng(1)
    states.append(state(e))
    while len(states) < 9:
        if random_deed(rng, e):
            states.append(state(e))
            sizes.append(e.journal.stat().st_size)
    data = e.journal.read_bytes()
    for n in range(len(data)):
        e.journal.write_bytes(data[:n])
        done = sum(s <= n for s in sizes)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter('always')
            again = Edits(image, path=tmp_path/'m.nii.gz')
        assert state(again) == states[done]
        assert bool(heard) == (n not in (0, len(e._head()), *sizes)), n
        if n % 40 == 0:
            again.apply(np.ones(image.shape, bool), 77)
            assert state(Edits(image, path=tmp_path/'m.nii.gz')) == state(again)
    assert f'of its {n} bytes' in str(heard[-1].message)


def test_flipped_bit_ends_the_journal(tmp_path):
    e = Edits(image, path=tmp_path/'m.nii')
    e.apply(*ball((3, 3, 2)))
    whole, one = e.journal.stat().st_size, state(e)
    e.apply(*ball((1, 1, 1), 2))
    data = bytearray(e.journal.read_bytes())
    data[whole + 12] ^= 1
    e.journal.write_bytes(data)
    with pytest.warns(UserWarning, match='The 1 steps before them are there'):
        assert state(Edits(image, path=tmp_path/'m.nii')) == one


def test_strangers_are_refused_and_left_alone(tmp_path):
    e = Edits(image, path=tmp_path/'m.nii')
    e.apply(*ball((3, 3, 2)))
    data, moved = e.journal.read_bytes(), affine.copy()
    moved[0, 3] += .01
    for other, mask, word in ((image.new(image.data + 1), None, 'another image'),
                              (Volume(image.data, moved), None, 'another image'),
                              (image.new(image.data.int()), None, 'another image'),
                              (image, np.ones(image.shape, int), 'another mask')):
        with pytest.raises(ValueError, match=f'm.nii.edits belongs to {word}. It is left alone'):
            Edits(other, mask, tmp_path/'m.nii')
    e.journal.write_bytes(b'Dear diary,')
    with pytest.raises(ValueError, match='is not a journal of edits'): Edits(image, path=tmp_path/'m.nii')
    assert e.journal.read_bytes() == b'Dear diary,'
    e.journal.write_bytes(data)
    assert state(Edits(image, path=tmp_path/'m.nii')) == state(e)


def test_save_keeps_geometry_and_removes_the_journal(tmp_path):
    e = Edits(image, path=tmp_path/'m.nii.gz')
    e.apply(*ball((3, 3, 2), 3))
    assert e.save() == tmp_path/'m.nii.gz' and e.changed == 0 and not e.journal.exists()
    v = load(tmp_path/'m.nii.gz')
    assert v.data.dtype == torch.uint8 and v.numpy()[0].tolist() == e.labels.tolist()
    np.testing.assert_allclose(v.affine, affine, atol=1e-5)
    e.undo()
    assert e.changed == 1 and not e.labels.any()
    again = Edits(image, path=tmp_path/'m.nii.gz')
    assert not again.labels.any() and again.undone == 1
    again.redo()
    assert again.labels.tolist() == v.numpy()[0].tolist()


def test_dying_between_file_and_journal_loses_nothing(tmp_path, monkeypatch):
    e = Edits(image, path=tmp_path/'m.nii')
    e.apply(*ball((3, 3, 2)))
    monkeypatch.setattr(Path, 'unlink', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt): e.save()
    monkeypatch.undo()
    assert e.path.exists() and e.journal.exists()
    again = Edits(image, path=tmp_path/'m.nii')
    assert again.labels.tolist() == e.labels.tolist() and again.changed == 0
    again.apply(*ball((1, 1, 1), 2))
    assert state(Edits(image, path=tmp_path/'m.nii')) == state(again)


def test_failed_save_keeps_the_journal(tmp_path, monkeypatch):
    e = Edits(image, path=tmp_path/'m.nii')
    e.apply(*ball((3, 3, 2)))
    monkeypatch.setattr(edit, 'write', lambda *a: (_ for _ in ()).throw(OSError('No space left on device')))
    with pytest.raises(OSError): e.save()
    e.apply(*ball((1, 1, 1), 2))
    again = Edits(image, path=tmp_path/'m.nii')
    assert again.labels.tolist() == e.labels.tolist() and again.count == 2


def test_full_disk_leaves_mask_and_journal_whole(tmp_path, monkeypatch):
    e = Edits(image, path=tmp_path/'m.nii')
    e.apply(*ball((3, 3, 2)))
    before = state(e)
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', lambda f: (_ for _ in ()).throw(OSError('No space left on device')))
        with pytest.raises(OSError): e.apply(*ball((1, 1, 1), 2))
    assert state(e) == before
    e.apply(*ball((5, 5, 4), 3))
    assert state(Edits(image, path=tmp_path/'m.nii')) == state(e)


def test_two_editors_on_one_file(tmp_path):
    a, b = (Edits(image, path=tmp_path/'m.nii') for _ in range(2))
    a.apply(*ball((3, 3, 2)))
    before = state(b)
    for deed in (lambda: b.apply(*ball((1, 1, 1), 2)), b.save):
        with pytest.raises(RuntimeError, match='another editor'): deed()
    assert state(b) == before and not b.path.exists()
    a.apply(*ball((1, 1, 1), 2))
    assert state(Edits(image, path=tmp_path/'m.nii')) == state(a)


def test_the_file_wins_over_the_mask(tmp_path):
    corrected = np.full(image.shape, 2, np.uint8)
    write(Volume(torch.from_numpy(corrected[None]), affine), tmp_path/'m.nii')
    with pytest.warns(UserWarning, match='is what is edited'):
        e = Edits(image, np.ones(image.shape, int), tmp_path/'m.nii')
    assert (e.labels == 2).all()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Edits(image, corrected, tmp_path/'m.nii')


def test_a_name_for_later_and_a_copy(tmp_path):
    e = Edits(image)
    e.apply(*ball((3, 3, 2)))
    with pytest.raises(ValueError, match='no name'): e.save()
    (tmp_path/'b.nii.edits').write_bytes(b'of somebody')
    with pytest.raises(ValueError, match='another mask'): e.save(tmp_path/'b.nii')
    assert e.path is None and not (tmp_path/'b.nii').exists()
    e.save(tmp_path/'a.nii')
    e.apply(*ball((1, 1, 1), 2))
    e.save(tmp_path/'copy.nii.gz')
    assert e.changed == 1 and e.path.name == 'a.nii' and e.journal.exists()
    assert load(tmp_path/'copy.nii.gz').numpy()[0].tolist() == e.labels.tolist()
    assert state(Edits(image, path=tmp_path/'a.nii'))[0] == e.labels.tolist()


@pytest.mark.parametrize('label', [1, 300, 40_000])
@pytest.mark.parametrize('name', ['m.png', 'm.tif'])
def test_flat_images_are_edited_too(tmp_path, name, label):
    film = Volume(torch.rand(1, 9, 8), np.diag([.5, .25, 1]))
    e = Edits(film, path=tmp_path/name)
    e.apply(brush(film, (4, 4), 1), label)
    assert Edits(film, path=tmp_path/name).labels.tolist() == e.labels.tolist()
    e.save()
    again = Edits(film, path=tmp_path/name)
    again.undo()
    assert again.labels.tolist() == e.labels.tolist() and load(tmp_path/name).spacing == (.5, .25)
    with pytest.raises(ValueError, match='in .png or .tif'): Edits(film, path=tmp_path/'m.nii')


def test_memory_is_bounded_and_the_journal_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(edit, 'LIMIT', 2000)
    rng, e = np.random.default_rng(0), Edits(image, path=tmp_path/'m.nii')
    for k in range(40): e.apply(rng.random(image.shape) < .5, k + 1)
    assert 0 < e.count < 40 and sum(s.size for s in e._undo) <= 2000
    assert state(Edits(image, path=tmp_path/'m.nii')) == state(e)
    while e.undo(): pass
    again = Edits(image, path=tmp_path/'m.nii')
    assert again.labels.tolist() == e.labels.tolist() and again.labels.any()


def test_what_is_handed_out_does_not_change():
    e = Edits(image, mask := np.zeros(image.shape, np.uint8))
    v = e.mask
    e.apply(*ball((3, 3, 2)))
    assert not v.data.any() and not mask.any() and e.mask.data.any() and e.labels.any()
    with pytest.raises(ValueError): e.labels[0] = 1


def test_no_change_is_no_step(tmp_path):
    e = Edits(image, path=tmp_path/'m.nii')
    nothing = [e.apply(*ball((3, 3, 2), 0)), e.apply(np.zeros(image.shape, bool), 5),
               e.apply(brush(image, (-4, -4, -4), 0), 5)]
    assert nothing == [None]*3 and not e.journal.exists() and e.changed == 0


@some
@given(seeds)
def test_pack_and_narrow_keep_labels(seed):
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.integers(-2**rng.integers(1, 40), 2**rng.integers(1, 40), 2).tolist())
    x = rng.integers(low, high + 1, rng.integers(1, 6, 3))
    small = narrow(x)
    assert (small == x).all() and (unpack(pack(small), tuple(slice(4, 4 + n) for n in x.shape)) == x).all()


bad = {'slices': lambda e: e.put((slice(0, 9),)*3, np.zeros((9, 9, 9), int)),
       'wanted integers': lambda e: e.put((slice(0, 1),)*3, np.zeros((1, 1, 1))),
       'wanted (1, 1, 1)': lambda e: e.apply(((slice(0, 1),)*3, np.ones((2, 2, 2), bool)), 1),
       'Label -2': lambda e: e.apply(*ball((1, 1, 1), -2)),
       'Label 1.5': lambda e: e.apply(*ball((1, 1, 1), 1.5)),
       'in .nii or .nii.gz': lambda e: e.save('mask.png')}


@pytest.mark.parametrize('word', bad)
def test_refused(word):
    e = Edits(image)
    with pytest.raises(ValueError) as error: bad[word](e)
    assert word in str(error.value) or word == 'slices' and 'does not lie in' in str(error.value)
    assert not e.labels.any() and e.count == 0


def test_mask_of_another_grid_is_refused(tmp_path):
    with pytest.raises(ValueError, match='not on the grid'): Edits(image, Volume(image.data, np.eye(4)))
    with pytest.raises(ValueError, match='not whole'): Edits(image, torch.rand(image.shape))
    write(Volume(torch.zeros(1, 7, 6, 5, dtype=torch.uint8)), tmp_path/'m.nii')
    with pytest.raises(ValueError, match='not on the grid'): Edits(image, path=tmp_path/'m.nii')


PAINTER = '''
import sys, numpy as np, torch
from medseg_nb.data.volume import Volume
from medseg_nb.view.edit import Edits
e, rng = Edits(Volume(torch.zeros(1, 40, 40, 40)), path=sys.argv[1]), np.random.default_rng(0)
while True:
    a = rng.integers(0, 30, 3).tolist()
    e.put(tuple(slice(i, i + 9) for i in a), rng.integers(0, 200, (9, 9, 9)))
    print(e.changed, int(e.labels.sum(dtype=int)), flush=True)
'''


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='this system cannot kill like that')
def test_killed_kernel_loses_no_finished_step(tmp_path):
    run = [sys.executable, '-c', PAINTER, tmp_path/'m.nii']
    child = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
    told = [child.stdout.readline() for _ in range(30)]
    child.kill()
    told += child.communicate()[0].splitlines(keepends=True)
    told = [tuple(map(int, line.split())) for line in told if line.endswith('\n')]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter('always')
        e = Edits(Volume(torch.zeros(1, 40, 40, 40)), path=tmp_path/'m.nii')
    assert e.changed in (len(told), len(told) + 1) and len(told) >= 30
    if e.changed > len(told): e.undo()
    assert int(e.labels.sum(dtype=int)) == told[-1][1]
