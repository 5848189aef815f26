"Every notebook that shows a widget, run in a real JupyterLab: no error, no blank picture, a quiet console."
import io
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from browser import harmless, until, unwanted, visited
from PIL import Image

pytestmark = unwanted
nbs = Path(__file__).parents[1]/'nbs'
rooms = ('core.explore', 'view.viewer', 'view.editor', 'view.scene', 'metrics.lab', 'metrics.versus',
         'cnn.inside')
room, names = '|'.join(map(re.escape, rooms)), r'\b(Viewer|Editor|MetricLab|compare|explore|inside|scene)\b'
live = re.compile(rf'^from medseg_nb\.({room}) import .*{names}|^#\| default_exp ({room})$|^Viewer\(', re.M)
stall = 'GPU stall due to ReadPixels' # A hint of the renderer in software; a graphics card has none
view = 'application/vnd.jupyter.widget-view+json'


def code(path):
    return '\n'.join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code')


notebooks = [p for p in sorted(nbs.rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]
shown = {p.relative_to(nbs).with_suffix('').as_posix(): p for p in notebooks if live.search(code(p))}


def test_the_rooms_of_the_widgets_are_among_them():
    own = {found[1] for p in shown.values() if (found := re.search(r'default_exp ([\w.]+)', code(p)))}
    assert not {*rooms} - own and '13_labs/01_first_look' in shown


def drawn(picture):
    "Does it have more than eight colors?"
    pixels = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert('RGB'))
    return len(np.unique(pixels.reshape(-1, 3), axis=0)) > 8


@pytest.mark.parametrize('name', shown)
def test_runs_and_draws(name, lab, chromium):
    file, nb = f'nbs/{name}.ipynb', nbformat.read(shown[name], 4)
    work = lab['home']/'work'
    shutil.copytree(nbs.parent/'docs/images', work/'docs/images', dirs_exist_ok=True)
    (work/file).parent.mkdir(parents=True, exist_ok=True)
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs, cell.execution_count = [], None
    nbformat.write(nb, work/file)
    page = visited(lab, chromium, file, levels=('error', 'warning'))
    page.set_default_timeout(60_000)
    page.evaluate("""async () => {
        const book = jupyterapp.shell.currentWidget.content
        book.notebookConfig = {...book.notebookConfig, windowingMode: 'none'}
        await jupyterapp.commands.execute('notebook:run-all-cells') }""")
    cells = page.evaluate("""jupyterapp.shell.currentWidget.content.widgets.map(cell =>
        (cell.model.sharedModel.toJSON().outputs ?? [])
            .map(o => [o.evalue ?? '', Object.keys(o.data ?? {})]))""")
    assert not [wrong for outputs in cells for wrong, _ in outputs if wrong]
    widgets = [n for n, outputs in enumerate(cells) if any(view in kinds for _, kinds in outputs)]
    assert widgets, 'the notebook of a widget shows none'
    for n in widgets:
        cell = page.locator('.jp-Notebook .jp-Cell').nth(n)
        cell.scroll_into_view_if_needed()
        pictures = cell.locator('.jp-OutputArea-output').locator('canvas, img')
        notes = cell.locator('.mnb-note')
        until(lambda: pictures.count() and not any('WebGL' not in t for t in notes.all_inner_texts()), 60)
        boxes = [(p, p.bounding_box()) for p in pictures.all()]
        seen = [p for p, box in boxes if box and min(box['width'], box['height']) > 20]
        assert seen, f'no picture in cell {n}'
        for picture in seen: until(lambda: drawn(picture))
    assert [w for w in page.said if w not in harmless and stall not in w] == []
    page.close()
