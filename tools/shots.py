"""Pictures of the widgets for the documents, out of a real JupyterLab: docs/images/*.png

    python tools/shots.py            all of them
    python tools/shots.py viewer     one

A row of SHOTS: the file, the code cells, which element of the page (the first that fits), the theme, and
the keys pressed on the last picture in it.
"""
import io
import sys
import tempfile
from pathlib import Path

from live import chromium, jupyter, lay, opened, root, until, webgl
from PIL import Image

BRAIN = """from medseg_nb.data.sets import cases
from medseg_nb.view.viewer import Viewer, link
brain = cases('mni152')[0]"""
GUESS = """import numpy as np
from scipy import ndimage
values, inside = (v.numpy()[0] for v in (brain.image, brain.mask))
smooth = ndimage.gaussian_filter(values.astype('float32'), 1.)
cut = (smooth[inside == 1].mean() + smooth[inside == 2].mean())/2
guess = ndimage.shift(np.where(inside > 0, 1 + (smooth > cut), 0), (1, 2, 1), order=0).astype('uint8')"""
WRONG = """v = Viewer(brain, pred=guess)
v.hidden, v.opacity = ['Mask', 'Prediction'], .6
v"""

EDIT = """from medseg_nb.view.editor import Editor
Editor(brain.image, brain.mask.new((brain.mask.data == 2).byte()), classes={1: 'white matter'})"""
SCENE = """from medseg_nb.view.scene import scene
tumor = cases('lungct')[0]
scene(tumor)"""
VERSUS = """from functools import partial
from medseg_nb.classic.kmeans import kmeans
from medseg_nb.classic.threshold import multi_otsu
from medseg_nb.metrics.versus import compare
tissue = lambda f: lambda v: (lambda g: g.new((g.data.int() - 1).clamp(min=0).byte()))(f(v, k=4))
part = brain.image[:, :, 60:120:2]
compare(part, {'multi-Otsu': tissue(multi_otsu), 'k-means, smoothed': tissue(partial(kmeans, sigma=1.))},
        truth=brain.mask[:, :, 60:120:2])"""

SHOTS = {
    'viewer': ((BRAIN, 'Viewer(brain)'), '.jp-Cell:has(.mnb-viewer)', 'Light', ('ArrowUp',)),
    'errors': ((BRAIN, GUESS, WRONG), '.mnb-viewer', 'Light', ()),
    'linked': ((BRAIN, 'a, b = Viewer(brain), Viewer(brain.image[::3, ::3, ::3])\nlink(a, b)\ndisplay(a, b)'),
               '.jp-Cell:has(.mnb-viewer) .jp-OutputArea', 'Light', ('ArrowUp',)),
    'editor': ((BRAIN, EDIT), '.mnb-viewer', 'Light', ()),
    'scene': ((BRAIN, SCENE), '.mnb-scene', 'Light', ()),
    'versus': ((BRAIN, VERSUS), '.jp-OutputArea-output:has(canvas)', 'Light', ()),
}
# No tools and bars of the notebook around the cell, no ring around what took the keys
BARE = '.jp-cell-toolbar, .jp-Collapser { display: none !important } :focus { outline: none !important }'


def smaller(png):
    "The same picture in 256 colors: a third of the size"
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert('RGB').quantize(256, dither=Image.Dither.NONE)
    picture.save(out, 'PNG', optimize=True)
    return out.getvalue()


def shoot(lab, browser, name):
    cells, selector, theme, keys = SHOTS[name]
    lay(lab, f'{name}.ipynb', *cells)
    page = opened(lab, browser, f'{name}.ipynb', viewport=dict(width=1180, height=1500),
                  device_scale_factor=1.5)
    change = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
    page.evaluate(change, f'JupyterLab {theme}')
    page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    page.add_style_tag(content=BARE)
    target = page.locator(selector).first
    target.wait_for(timeout=120_000)
    until(lambda: not page.locator('.mnb-note').count(), 120) # the voxels are there
    target.scroll_into_view_if_needed()
    page.wait_for_timeout(8000 if name == 'scene' else 1500)
    if keys: target.locator('canvas[tabindex="0"]').last.focus()
    for key in keys: page.keyboard.press(key)
    page.mouse.move(1, 1)
    page.wait_for_timeout(500)
    (root/'docs'/'images'/f'{name}.png').write_bytes(smaller(target.screenshot()))
    page.close()


def main(names):
    with tempfile.TemporaryDirectory() as folder, jupyter(Path(folder)) as lab, chromium(*webgl) as browser:
        for name in names: shoot(lab, browser, name)


if __name__ == '__main__': main(sys.argv[1:] or SHOTS)
