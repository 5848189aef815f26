"The register and the running of things: names that clash, profiles, atomic files, receipts."
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from medseg_nb.core import run
from medseg_nb.core.system import _register, card, system, systems


@pytest.fixture
def register():
    "The register, put back afterwards"
    before = dict(_register)
    yield _register
    _register.clear()
    _register.update(before)


def from_module(name, module):
    "A function called `name` that says it lives in `module`"
    def f(c_in=1, c_out=2, dims=2): return type('Net', (), {})()
    f.__name__, f.__module__, f.__doc__ = name, module, 'An example'
    return f


def test_two_modules_may_not_share_a_name(register):
    system('tool', 2000, 'a')(from_module('twin', 'medseg_nb.a'))
    system('tool', 2000, 'a')(from_module('twin', '__main__'))
    system('tool', 2000, 'a')(from_module('twin', 'medseg_nb.a'))
    with pytest.raises(ValueError, match="medseg_nb.b registers 'twin', but medseg_nb.a already does"):
        system('tool', 2000, 'a')(from_module('twin', 'medseg_nb.b'))


def test_a_net_remembers_how_it_was_made(register):
    build = system('net', 2000, 'a')(from_module('small', '__main__'))
    assert build(3, dims=3).spec == {'system': 'small', 'args': {'c_in': 3, 'c_out': 2, 'dims': 3}}
    json.dumps(build().spec)


def test_unknown_kinds_and_names(register):
    for f in (lambda: system('network', 2000, 'a'), lambda: systems('network')):
        with pytest.raises(ValueError, match="kind='network'"): f()
    with pytest.raises(KeyError, match='near it: unet'): card('unett')
    assert '31,030,658' in card('unet')._repr_markdown_()


def test_seed_covers_all_generators():
    import random
    draw = lambda: (random.random(), np.random.rand(), torch.rand(1).item())
    run.seed(3)
    first = draw()
    run.seed(3)
    assert draw() == first
    run.seed(4)
    assert all(a != b for a, b in zip(draw(), first))


def test_profile(monkeypatch):
    monkeypatch.delenv('MEDSEG_PROFILE', raising=False)
    assert run.profile() == 'lesson' and run.pick(1, 2) == 2
    monkeypatch.setenv('MEDSEG_PROFILE', 'full')
    assert run.pick(1, 2) == 2 and run.pick(1, 2, 3) == 3
    monkeypatch.setenv('MEDSEG_PROFILE', 'huge')
    with pytest.raises(ValueError, match="MEDSEG_PROFILE='huge', wanted one of tiny"): run.profile()


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv('MEDSEG_CACHE', str(tmp_path))
    assert run.cache_dir() == tmp_path
    monkeypatch.delenv('MEDSEG_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert run.cache_dir() == tmp_path/'medseg_nb'


def test_atomic_is_whole_or_not_there(tmp_path):
    path = tmp_path/'new'/'a.nii.gz'
    with run.atomic(path) as tmp:
        assert tmp.parent == path.parent and tmp.name.endswith('a.nii.gz') and not path.exists()
        tmp.write_text('one')
    assert path.read_text() == 'one' and path.stat().st_mode & 0o777 == 0o666 & ~umask()
    with pytest.raises(KeyboardInterrupt):
        with run.atomic(path) as tmp:
            tmp.write_text('half')
            raise KeyboardInterrupt
    assert path.read_text() == 'one' and os.listdir(path.parent) == ['a.nii.gz']


def umask():
    "The mask of this process, read without changing it"
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_threads():
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match='threads=0'): run.threads(0)
    assert run.threads(1) == 1
    run.threads(before)


def test_receipt(tmp_path):
    seconds = {}
    for _ in range(2):
        with run.clock(seconds, 'wait'): pass
    facts = run.receipt(tmp_path/'r.json', seconds=seconds, seed=1)
    assert json.loads((tmp_path/'r.json').read_text()) == facts and facts['seconds'] == seconds
    assert facts['versions']['torch'] and {'profile', 'threads', 'python', 'when', 'device'} <= set(facts)


def test_waiting_threads_do_not_spin():
    env = {k: v for k, v in os.environ.items() if k != 'OMP_WAIT_POLICY'}
    code = ('import medseg_nb, os, sys; assert "torch" not in sys.modules; '
            'print(os.environ["OMP_WAIT_POLICY"], end="")')

    def ask(**more):
        done = subprocess.run([sys.executable, '-c', code], env=env | more, capture_output=True, text=True)
        return done.stdout
    assert ask() == 'PASSIVE' and ask(OMP_WAIT_POLICY='ACTIVE') == 'ACTIVE'
