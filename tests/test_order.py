"A notebook imports only from notebooks with a smaller (folder, number); nothing imports labs."
import ast
import re
from pathlib import Path

import nbformat
import pytest

root = Path(__file__).resolve().parents[1]
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
free = ('13_labs',)


def place(path): return (path.parent.name[:2], path.name[:2])


def module(path):
    "medseg_nb.cnn.unet for nbs/06_cnn/04_unet.ipynb"
    return f'medseg_nb.{path.parent.name[3:]}.{path.stem[3:]}'


def code(path):
    "Source of all code cells, without magics"
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
    return '\n'.join(line for s in cells for line in s.splitlines() if not re.match(r'\s*[%!]', line))


def imports(path):
    "Modules of this package that a notebook imports, in exported cells and lessons alike"
    out = set()
    for node in ast.walk(ast.parse(code(path))):
        if isinstance(node, ast.ImportFrom) and node.module: out.add(node.module)
        if isinstance(node, ast.Import): out |= {a.name for a in node.names}
    return {m for m in out if m.split('.')[0] == 'medseg_nb'}


numbered = [p for p in notebooks if re.match(r'\d\d_', p.name)]
where = {module(p): place(p) for p in numbered if p.parent.name not in free}


@pytest.mark.parametrize('path', [p for p in numbered if p.parent.name not in free], ids=lambda p: p.stem)
def test_imports_come_from_earlier_notebooks(path):
    late = {m for m in imports(path) if m not in where or where[m] >= place(path)}
    assert not late, f'{path.name} uses {sorted(late)} before the reader has met it'


def test_every_module_has_a_notebook_and_the_other_way_round():
    files = {'medseg_nb.' + '.'.join(p.relative_to(root/'medseg_nb').with_suffix('').parts)
             for p in (root/'medseg_nb').rglob('*.py')
             if p.name not in ('__init__.py', '_modidx.py', 'all.py')}
    assert files == set(where)


def test_the_check_sees_a_wrong_order():
    early = root/'nbs/05_train/01_loss.ipynb'
    assert 'medseg_nb.metrics.overlap' in imports(early)
    assert where['medseg_nb.metrics.overlap'] < place(early) < where['medseg_nb.cnn.unet']
