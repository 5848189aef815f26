"A wheel built from the checkout holds everything, and imports where no checkout is."
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]


def run(*command, **more):
    "What a command printed; an error when it failed"
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
    "The wheel's content, in a folder of its own"
    out = tmp_path_factory.mktemp('wheel')
    source = out/'source'
    listed = run('git', 'ls-files', '-co', '--exclude-standard', cwd=root)
    wanted = ('medseg_nb/', 'setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE')
    for name in filter(lambda n: n.startswith(wanted), listed.splitlines()):
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        (source/name).write_bytes((root/name).read_bytes())
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', out, source)
    wheel, = out.glob('medseg_nb-*.whl')
    with zipfile.ZipFile(wheel) as z: z.extractall(out/'site')
    return out/'site'


def test_wheel_holds_every_module_and_the_static_files(unpacked):
    here = {p.relative_to(root) for p in (root/'medseg_nb').rglob('*')
            if p.suffix in ('.py', '.js', '.css', '.csv') and p.name != '_modidx.py'}
    assert here == {p.relative_to(unpacked) for p in (unpacked/'medseg_nb').rglob('*') if p.is_file()}
    assert any(p.suffix == '.js' for p in here)


def test_wheel_imports_outside_the_checkout(unpacked, tmp_path):
    code = 'import medseg_nb.all as m, sys; print(m.__file__); print([s.name for s in m.systems("net")])'
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'PYTHONPATH': str(unpacked)}
    where, nets = run(sys.executable, '-c', code, cwd=tmp_path, env=env).splitlines()
    assert where.startswith(str(unpacked)) and 'unet' in nets


def test_wheel_states_its_requirements(unpacked):
    meta = next(unpacked.glob('*.dist-info/METADATA')).read_text()
    for need in ('torch', 'fastai', 'nibabel', 'anywidget'):
        assert re.search(rf'^Requires-Dist: {need}\b', meta, flags=re.M)
    assert 'Apache-2.0' in meta and 'License-File: LICENSE' in meta


def test_help_lists_every_target():
    makefile = (root/'Makefile').read_text()
    targets = set(re.findall(r'^([a-z]+):', makefile, flags=re.M))
    listed = run('make', 'help', cwd=root)
    assert {'demo', 'test', 'lab', 'docs', 'help'} <= targets
    assert all(f'make {t} ' in listed for t in targets)
