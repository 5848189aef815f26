"WCAG 2.2 A and AA: axe-core in the light and the dark theme, colors and pixels where axe does not look."
import hashlib
import io
from importlib.resources import files

import numpy as np
import pytest
from browser import lay, opened, until, unwanted
from PIL import Image
from scipy import ndimage

pytestmark = unwanted
axe = pytest.importorskip('axe_playwright_python', reason='axe-playwright-python carries axe-core')

cells = """import numpy as np
from medseg_nb.data.volume import Volume
from medseg_nb.view.viewer import Viewer
z, y, x = np.mgrid[-1:1:40j, -1:1:50j, -1:1:60j]
r = np.sqrt(x**2 + y**2 + z**2).transpose(2, 1, 0)
ct = Volume(np.where(r < .9, 40 + 200*(r < .3), -1000).astype('int16')[None], np.diag([-1.5, 1.5, 3, 1]))
cube = np.full((40, 40, 40), -1000, 'int16')
cube[:3, :3, :3] = 2000
black, white = (Volume(x[None], np.diag([-2., 2., 2., 1])) for x in (cube, 1000 - cube))
truth = ct.new((r < .6).astype('uint8') + (r < .3)[None])
pred = truth.new(np.roll(truth.numpy(), 3, 1))
a = Viewer(ct, truth, pred, heat=x.transpose(2, 1, 0).astype('float32'), layers={'third reader': r < .7})
a""", 'Viewer(black)', 'Viewer(white)'


@pytest.fixture(scope='module')
def page(lab, chromium):
    lay(lab, 'contrast.ipynb', *cells)
    page = opened(lab, chromium, 'contrast.ipynb')
    page.all = page.locator('.mnb-viewer:has(.mnb-tiles)')
    until(lambda: page.all.count() == 3, 120)
    page.all.nth(0).locator('summary').click()
    page.evaluate((files(axe)/'axe.min.js').read_text(encoding='utf-8'))
    yield page
    page.close()


@pytest.fixture(scope='module', params=['JupyterLab Light', 'JupyterLab Dark'])
def themed(page, request):
    def bright():
        paper = page.all.nth(0).evaluate('e => getComputedStyle(e).backgroundColor')
        return sum(int(x) for x in paper[4:-1].split(',')) > 382
    page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", request.param)
    until(lambda: bright() == ('Light' in request.param))
    return page


def test_axe_is_the_one_that_was_read():
    script = (files(axe)/'axe.min.js').read_bytes()
    known = '84494fec757e4710dc751c8d7a636e457f4532f08f85c86dc9070133fbff53bc' # axe-core 4.12.1
    assert hashlib.sha256(script).hexdigest() == known


def test_axe_finds_nothing(themed):
    found = themed.evaluate("""axe.run('.mnb-viewer',
        {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})""")
    where = lambda kind: [(r['id'], [n['html'][:90] for n in r['nodes']][:4]) for r in found[kind]]
    assert where('violations') == [] and where('incomplete') == []
    judged = {r['id']: len(r['nodes']) for r in found['passes']}
    assert judged['label'] > 10 and judged['button-name'] > 5 and judged['aria-input-field-name'] > 4


def luminance(rgb):
    "WCAG's relative luminance of colors (...,3), 0 to 255"
    c = np.asarray(rgb, float)/255
    return np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4)@[.2126, .7152, .0722]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + .05)/(low + .05)


def test_contrast_by_hand():
    assert contrast([0]*3, [255]*3) == pytest.approx(21)
    assert contrast([119]*3, [255]*3) == pytest.approx(4.48, abs=.01)


# Colors of lines and of what lies behind them, in whatever notation: drawn on a canvas, read back
OVER = """(nodes, name) => {
  const c = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
  const read = colors => {
    for (const x of colors) { c.fillStyle = x; c.fillRect(0, 0, 1, 1) }
    return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3)
  }
  return nodes.map(node => {
    const behind = []
    for (let n = name === 'color' ? node : node.parentElement; n; n = n.parentElement)
      behind.unshift(getComputedStyle(n).backgroundColor)
    return [node.outerHTML.slice(0, 80), read([...behind, getComputedStyle(node)[name]]), read(behind)]
  })
}"""


def test_every_word_is_read(themed):
    "axe looks at few of them in JupyterLab's scrolled panel"
    nodes = themed.all.nth(0).locator('css=*').filter(visible=True)
    own = "e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !e.closest(':disabled')"
    found = nodes.evaluate_all(f"(nodes, name) => ({OVER})(nodes.filter({own}), name)", 'color')
    weak = [(html, contrast(ink, paper)) for html, ink, paper in found if contrast(ink, paper) < 4.5]
    assert len(found) > 60 and weak == []


@pytest.mark.parametrize('what, color', [('button:enabled, select', 'borderTopColor'),
                                         ('input', 'accentColor')])
def test_controls_are_seen(themed, what, color):
    "Their edges, and what tells how they are set"
    found = themed.all.nth(0).locator(what).evaluate_all(OVER, color)
    weak = [(html, contrast(line, behind)) for html, line, behind in found if contrast(line, behind) < 3]
    assert len(found) > 5 and weak == []


def test_focus_is_seen(themed):
    "A ring of two pixels around every control and picture that the keyboard reaches"
    reached = 'input:enabled, button:enabled, select, summary, [tabindex="0"]'
    nodes, seen = themed.all.nth(0).locator(reached), 0
    themed.all.nth(0).locator('input').first.focus()
    themed.keyboard.press('Shift+Tab')
    for _ in range(nodes.count()):
        themed.keyboard.press('Tab')
        node = themed.locator('.mnb-viewer :focus')
        (html, ring, behind), = node.evaluate_all(OVER, 'outlineColor')
        assert contrast(ring, behind) >= 3, (html, contrast(ring, behind))
        line = node.evaluate('e => getComputedStyle(e).outlineStyle + getComputedStyle(e).outlineWidth')
        assert line == 'solid2px', html
        seen += 1
    assert seen > 20


@pytest.mark.parametrize('n', [1, 2], ids=['black image', 'white image'])
def test_letters_on_pictures_are_seen(page, n):
    "White letters with a dark rim: on black and on white, each letter is a bright island in darkness"
    viewer = page.all.nth(n)
    viewer.scroll_into_view_if_needed()
    for canvas in viewer.locator('.mnb-canvas').all():
        canvas.focus()
        page.keyboard.press('h')
        page.wait_for_timeout(200)
        pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert('RGB'))
        page.keyboard.press('h')
        light = luminance(pixels)
        h, w = light.shape
        boxes = [light[h//2 - 11:h//2 + 11, 1:26], light[h//2 - 11:h//2 + 11, w - 26:w - 1],
                 light[1:24, w//2 - 12:w//2 + 12], light[h - 24:h - 1, w//2 - 12:w//2 + 12]]
        for box in boxes:
            pieces, count = ndimage.label(box > .5)
            edge = set(np.r_[pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
            inner = [k for k in range(1, count + 1) if k not in edge and (pieces == k).sum() >= 8]
            assert inner, 'no letter stands out'
            rim = ndimage.binary_dilation(np.isin(pieces, inner), iterations=2) & ~np.isin(pieces, inner)
            assert (1 + .05)/(np.quantile(box[rim], .25) + .05) >= 4.5
