"Labs, whole, by papermill as `make demo` runs them, at the tiny profile; what they leave, by value."
import base64
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

import lab
from medseg_nb.data.sets import cases
from medseg_nb.metrics.overlap import dice
from medseg_nb.train.predict import Predictor


@pytest.fixture(scope='module')
def first_look(tmp_path_factory):
    "Lab 01, run once with another seed than its own"
    out = tmp_path_factory.mktemp('first_look')
    nb = lab.run(lab.root/'nbs/13_labs/01_first_look.ipynb', out, number=7)
    return nb, out


def test_first_look_leaves_everything(first_look):
    _, out = first_look
    assert {p.name for p in out.iterdir()} == {'01_first_look.ipynb', '01_first_look.html',
                                               'table.csv', 'summary.csv', 'unet.safetensors', 'receipt.json'}


def test_first_look_parameters_work(first_look):
    nb, out = first_look
    assert json.loads((out/'receipt.json').read_text())['seed'] == 7
    assert any('injected-parameters' in c.metadata.get('tags', []) for c in nb.cells)


def test_first_look_table_is_tidy_and_true(first_look):
    _, out = first_look
    table, paper = pd.read_csv(out/'table.csv'), json.loads((out/'receipt.json').read_text())
    assert list(table) == ['case', 'patient', 'class', 'metric', 'value']
    assert set(table.metric) == {'dice', 'iou', 'sensitivity', 'precision'}
    assert set(table['class']) == {'lung'}
    assert sorted(set(table.case)) == sorted(paper['split']['test'])
    d = table[table.metric == 'dice']
    assert d.value.mean() == pytest.approx(paper['mean_dice']) and d.value.mean() > .5
    i = table[table.metric == 'iou'].set_index('case').value
    np.testing.assert_allclose(i, (d.set_index('case').value/(2 - d.set_index('case').value))[i.index])
    saved, films = Predictor.load(out/'unet.safetensors'), {c.id: c for c in cases('chest')}
    for _, row in d.head(3).iterrows():
        c = films[row.case]
        assert dice(saved(c.image), c.mask)[0] == pytest.approx(row.value, abs=1e-6)


def test_first_look_split_is_by_patient(first_look):
    piles = json.loads((first_look[1]/'receipt.json').read_text())['split']
    of = {c.id: c.patient for c in cases('chest')}
    patients = [{of[i] for i in piles[name]} for name in ('train', 'valid', 'test')]
    assert sum(map(len, patients)) == len(set.union(*patients))


def test_first_look_receipt(first_look):
    paper = json.loads((first_look[1]/'receipt.json').read_text())
    assert {'seed', 'split', 'sets', 'cases_sha256', 'versions',
            'seconds', 'mean_dice', 'profile'} <= set(paper)
    assert all(re.fullmatch('[0-9a-f]{64}', h) for h in [paper['cases_sha256'], *paper['sets'].values()])
    assert paper['versions']['torch'] == torch.__version__.split('+')[0]
    assert paper['seconds']['train'] > 0


def test_first_look_page_holds_every_picture_and_needs_no_network(first_look):
    nb, out = first_look
    html = (out/'01_first_look.html').read_text()
    outputs = [o for c in nb.cells for o in c.get('outputs', [])]
    pictures = [o.data['image/png'] for o in outputs if 'image/png' in o.get('data', {})]
    assert len(pictures) >= 5
    for p in pictures: assert re.sub(r'\s', '', p)[:400] in re.sub(r'\s', '', html)
    assert not re.findall(r'<script|<link[^>]+https?:|(?:src|import|url)\s*[=(]\s*["\']?https?:', html)


def test_viewer_leaves_a_picture_and_no_widget(first_look):
    nb, out = first_look
    viewers = [c for c in nb.cells if 'Viewer(' in c.source]
    kept = [o.data for c in viewers for o in c.get('outputs', []) if o.output_type != 'stream']
    assert len(kept) == 2
    for data in kept:
        assert base64.b64decode(data['image/png']).startswith(b'\x89PNG')
        assert 'application/vnd.jupyter.widget-view+json' not in data
    assert (out/'01_first_look.ipynb').stat().st_size < 2_500_000


def test_failing_lab_leaves_the_executed_notebook(tmp_path):
    import papermill
    kernel = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
    cells = [nbformat.v4.new_code_cell("out = ''", metadata={'tags': ['parameters']}),
             nbformat.v4.new_code_cell('1/0')]
    nb = nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': kernel})
    nbformat.write(nb, tmp_path/'bad.ipynb')
    with pytest.raises(papermill.exceptions.PapermillExecutionError, match='ZeroDivisionError'):
        lab.run(tmp_path/'bad.ipynb', tmp_path/'out')
    assert 'ZeroDivisionError' in (tmp_path/'out/bad.ipynb').read_text()
