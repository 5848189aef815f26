"Many items: every error stays with its item, workers may die, files may be cut anywhere."
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_nb.core import many as module
from medseg_nb.core.many import append, attempt, kept, many, mark, recall, told


def test_attempt():
    def stop(): raise KeyboardInterrupt
    assert attempt(divmod, 7, 2) == ((3, 1), None)
    assert attempt(divmod, 7, 0) == (None, 'ZeroDivisionError: integer division or modulo by zero')
    with pytest.raises(KeyboardInterrupt): attempt(stop)


@pytest.mark.parametrize('workers', [0, -1, 1.5, True, None, '2'])
def test_workers_is_a_number(workers):
    with pytest.raises(ValueError, match='wanted a whole number from 1 up'): list(many(str, [1], workers))


def test_one_worker_is_this_process():
    me = threading.get_ident(), os.getpid()
    out = list(many(lambda x: (threading.get_ident(), os.getpid()), [1, 2]))
    assert out == [(0, me, None), (1, me, None)]
    assert list(many(str, [], 2)) == list(many(str, [])) == []


def test_workers_are_other_processes():
    "Closures and lambdas of this function travel; a second round starts no process"
    a, shift = np.arange(3.), 5
    def f(x):
        if x == 2: raise ValueError('two')
        return os.getpid(), (a*x).sum() + shift
    out = {i: (r, e) for i, r, e in many(f, [0., 1., 2., 3.], 2)}
    assert out.pop(2) == (None, 'ValueError: two')
    assert {i: r[1] for i, (r, _) in out.items()} == {0: 5, 1: 8, 3: 14}
    pids = {r[0] for r, _ in out.values()}
    assert os.getpid() not in pids and len(pids) <= 2
    assert {r for _, r, _ in many(lambda x: os.getpid(), range(6), 2)} & pids


@pytest.mark.parametrize('cores, stated, workers, threads', [
    (8, '', 2, 4), (8, '', 3, 2), (2, '', 8, 1), (8, '1', 2, 1), (8, '64', 2, 4), (8, 'x', 2, 4)])
def test_workers_share_the_cores(monkeypatch, tmp_path, cores, stated, workers, threads):
    monkeypatch.setattr(module, 'cpu_count', lambda: cores)
    monkeypatch.setenv('OMP_NUM_THREADS', stated)
    before = torch.get_num_threads()
    module._pack(len, tmp_path/'f', workers)
    try:
        assert module._unpack(tmp_path/'f') is len and torch.get_num_threads() == threads
    finally: torch.set_num_threads(before)


def test_items_that_cannot_travel_are_errors_and_functions_are_refused():
    lock = threading.Lock()
    out = {i: (r, e) for i, r, e in many(lambda x: 1, ['a', lock, 'b'], 2)}
    assert out[0] == out[2] == (1, None) and "cannot pickle '_thread.lock'" in out[1][1]
    with pytest.raises(TypeError, match=r"cannot be sent to worker processes: .*lock.* Use workers=1"):
        list(many(lambda x: lock.locked(), [1], 2))


def test_a_dead_worker_costs_one_item(tmp_path):
    "Two culprits, one of them slow to die; everything else is done, and what was done is not done again"
    def f(x):
        if x in (3, 7): os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path/f'{x}-{time.time_ns()}').touch()
        return -x
    out = {i: (r, e) for i, r, e in many(f, list(range(10)), 2)}
    assert sorted(out) == list(range(10))
    for i in range(10):
        assert out[i] == ((None, module.DIED) if i in (3, 7) else (-i, None))
    runs = [p.name.split('-')[0] for p in tmp_path.iterdir()]
    assert len(runs) <= 8 + 2, 'only what was in hand is run twice'


def test_interrupt_ends_it_and_keeps_the_file(tmp_path):
    script = f'''
import signal, sys, time
from medseg_nb.core.many import append, many
signal.signal(signal.SIGINT, signal.default_int_handler)
def f(x):
    time.sleep(.05 if x < 3 else 30)
    return x
try:
    for i, r, e in many(f, range(8), int(sys.argv[1])):
        append({str(tmp_path/"kept.jsonl")!r}, dict(id=i), r)
        print(i, flush=True)
except KeyboardInterrupt: sys.exit(7)
'''
    for workers in '12':
        (tmp_path/'kept.jsonl').unlink(missing_ok=True)
        p = subprocess.Popen([sys.executable, '-c', script, workers], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        for _ in range(3): p.stdout.readline()
        os.killpg(p.pid, signal.SIGINT)
        assert p.wait(30) == 7
        assert sorted(r['result'] for r in kept(tmp_path/'kept.jsonl')) == [0, 1, 2]


# the file

def test_every_cut_loses_one_record_at_most(tmp_path):
    path, cut = tmp_path/'deep'/'a.jsonl', tmp_path/'b.jsonl'
    for i in range(3): append(path, dict(id=f'ü{i}'), [i, float('nan'), float('inf')])
    text = path.read_bytes()
    ends = [k + 1 for k, c in enumerate(text) if c == 10]
    for n in range(len(text) + 1):
        cut.write_bytes(text[:n])
        whole = sum(e - 1 <= n for e in ends[1:])
        assert [r['note']['id'] for r in kept(cut)] == [f'ü{i}' for i in range(whole)]
        append(cut, dict(id='new'), 1)
        assert [r['note']['id'] for r in kept(cut)] == [*(f'ü{i}' for i in range(whole)), 'new']
    assert np.isnan(kept(path)[0]['result'][1]) and kept(path)[0]['result'][2] == np.inf


@pytest.mark.parametrize('text', [b'a', b'case,dice\n', b'{"what": "else"}\n', b'\n', b'\x00\x01',
                                  module.FIRST[:-3] + b'\n', module.FIRST + b'x\n'])
def test_other_files_are_left_alone(tmp_path, text):
    path = tmp_path/'thesis.tex'
    path.write_bytes(text)
    for call in (lambda: kept(path), lambda: append(path, {}, 1), lambda: recall(path, [])):
        with pytest.raises(ValueError, match='thesis.tex is not a file of finished items'): call()
    assert path.read_bytes() == text


def test_strange_records_are_passed_over(tmp_path):
    path = tmp_path/'a.jsonl'
    append(path, dict(id='a'), 1)
    with path.open('a') as f: f.write('[1]\n{"note": 3, "result": 1}\n{"note": {"id": "b"}}\n\n12\n')
    assert [r['result'] for r in kept(path)] == [1]


def test_what_json_cannot_hold_writes_nothing(tmp_path):
    path = tmp_path/'a.jsonl'
    append(path, dict(id='a'), 1)
    before = path.read_bytes()
    with pytest.raises(TypeError): append(path, dict(id='b'), object())
    assert path.read_bytes() == before


def test_recall(tmp_path):
    path, note = tmp_path/'a.jsonl', lambda i, m='x': dict(id=i, model=m)
    append(path, note('a'), 1)
    append(path, note('a', 'y'), 2)
    append(path, note('b'), 3)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert recall(path, [note('a'), note('c'), note('b')]) == {0: 1, 2: 3}
        assert recall(path, [note('a', 'y')]) == {0: 2}
        assert recall(tmp_path/'none', [note('a')]) == {}
    with pytest.warns(UserWarning, match=r'of other model \(2 of 3\)'):
        assert recall(path, [note('a', 'z'), note('b', 'z'), note('c')]) == {}
    append(path, note('b'), 4)
    assert recall(path, [note('b')]) == {0: 4}


# what a thing is

class Box:
    def __init__(self, **facts): vars(self).update(facts)
    def f(self, x): return x


def above(limit): return lambda x: x > limit
def plain(x, k=1): return x + k


def net(seed, width=3, stride=1):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(1, width, 3, stride), torch.nn.BatchNorm2d(width))


def things():
    "Pairs that differ in one respect each"
    a = np.arange(6.)
    t = torch.arange(6.)
    other = net(0)
    with torch.no_grad(): other[0].bias[0] += 1e-6
    stats = net(0)
    stats[1].running_mean[0] += 1
    wide = torch.tensor([1.])
    return [
        (above(1), above(2)), (above(a), above(a + 1e-12)), (plain, above), (partial(plain, k=1), plain),
        (partial(plain, k=1), partial(plain, k=2)), (partial(plain, 1), partial(plain, k=1)),
        (Box(a=1), Box(a=2)), (Box(a=1), Box(b=1)), (Box(a=1).f, Box(a=2).f),
        (Box(net=net(0)), Box(net=net(1))),
        (net(0), net(1)), (net(0), other), (net(0), stats),
        (net(0), net(0, stride=2)), (net(0), net(0, width=4)),
        (a, a.reshape(2, 3)), (a, a.astype('f4')), (a, t), (t, t.double()), (1, 1.), ('1', 1), (True, 1),
        ([1, [2]], [[1], 2]), ({1, 2}, {1, 3}), ({'a': 1}, {'b': 1}), (b'a', b'b'), (Path('a'), Path('b')),
        (wide.bfloat16(), wide.bfloat16() + .01), (np.sum, np.mean), (len, max), (None, 0),
        (np.int8(1), np.int16(1)),
        (lambda x: x + 1, lambda x: x + 2), (Box, dict), (np, torch)]


def test_mark_tells_apart_and_repeats():
    for (a, b), (a2, b2) in zip(things(), things()):
        assert mark(a) != mark(b), (a, b)
        assert mark(a) == mark(a2) and mark(b) == mark(b2), (a, b)
    assert len(mark(1)) == 16


def test_told_of_things_that_hold_themselves():
    x = [1]
    x.append(x)
    def f(n): return n and f(n - 1)
    box = Box()
    box.me = box
    assert all(mark(t) == mark(t) for t in (x, f, box))


SCRIPT = '''
import sys
from functools import partial
from medseg_nb.core.many import mark
limit = {limit}
names = {{'b', 'a', 'c', 'd'}}
class S:
    def __init__(self): self.k = 1
    def __call__(self, x): return x {sign} 1
def inner(x): return x*limit
def f(x, k={{'a': 1}}): return inner(x), names, S
print(mark(f), mark(S()), mark(partial(f, k=2)))
'''


def test_mark_in_a_notebook_sees_what_a_function_uses(tmp_path):
    "The same in another process with another hash seed; another after an edit anywhere in reach"
    def run(seed='1', limit=1, sign='+'):
        (tmp_path/'s.py').write_text(SCRIPT.format(limit=limit, sign=sign))
        env = os.environ | {'PYTHONHASHSEED': seed, 'PYTHONPATH': str(Path(__file__).parents[1])}
        call = [sys.executable, tmp_path/'s.py']
        return subprocess.run(call, env=env, capture_output=True, text=True, check=True).stdout.split()
    first = run()
    assert run(seed='2') == first and len(set(first)) == 3
    changed = run(limit=2)
    assert changed[0] != first[0] and changed[1] == first[1] and changed[2] != first[2]
    changed = run(sign='-')
    assert changed[0] != first[0] and changed[1] != first[1]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                    lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8))
@settings(max_examples=30, deadline=None)
def test_anything_can_be_told(x):
    assert mark(x) == mark(x) and isinstance(told(x), list)
