"The scene in a real JupyterLab: headless Chromium with WebGL in software, real keys, a real mouse."
import shutil
from base64 import b64decode
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
from browser import asking, harmless, lay, opened, until, unwanted

pytestmark = unwanted
quiet = ('--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync',
         '--no-first-run')
webgl = ('--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist')

cells = """import numpy as np
from medseg_nb.data.volume import Volume
from medseg_nb.view.scene import scene, frame
from medseg_nb.view.rays import rays
ijk = np.moveaxis(np.indices((48, 40, 24)), 0, -1)
a, c = np.radians(20), np.eye(4)
c[:3, :3] = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])*(-1, 1, 2)
xyz = (ijk - (23.5, 19.5, 11.5))@c[:3, :3].T
r = np.linalg.norm(xyz/(20, 16, 20), axis=-1)
image = Volume((100*(r < 1) + 5*ijk[..., 0]).astype('int16')[None], c)
mask = (r < .9)*1 + (np.linalg.norm(xyz - (6, 9, 5), axis=-1) < 7)
s = scene(image, mask, classes=('background', 'ball', 'knob'))
s""", "t = scene(image, level=60)\nt"


@pytest.fixture(scope='module')
def page(lab, chromium):
    "scene.ipynb, opened and run; `box` is the first scene"
    browser = chromium.browser_type.launch(executable_path=shutil.which('chromium'),
                                           args=[*quiet, *webgl])
    lay(lab, 'scene.ipynb', *cells)
    page = opened(lab, browser, 'scene.ipynb')
    page.box = page.locator('.mnb-scene').first
    page.canvas = page.box.locator('canvas')
    page.canvas.wait_for(timeout=240_000)
    page.box.scroll_into_view_if_needed()
    rest(page)
    yield page
    browser.close()


@pytest.fixture(scope='module')
def python(lab, page):
    "Asks the kernel"
    with asking(lab, page) as ask: yield ask


@pytest.fixture(autouse=True)
def fresh(page):
    page.box.get_by_role('button', name='Reset').click()
    rest(page)


def rest(page):
    "Wait until the fine picture is drawn"
    page.wait_for_timeout(200)
    until(lambda: page.canvas.get_attribute('data-state') == 'still', 90)


def picture(page):
    rest(page)
    return plt.imread(BytesIO(b64decode(page.canvas.evaluate('c => c.toDataURL()').split(',')[1])))[..., :3]


def changed(a, b): return np.abs(a - b).max(-1) > .06


def middle(page):
    b = page.canvas.bounding_box()
    return b['x'] + b['width']/2, b['y'] + b['height']/2


def shown(python, **traits):
    for name, value in traits.items(): python(f's.set_trait({name!r}, {value!r})')


sights = dict(default=dict(), turned=dict(angles=[-60., -35.], zoom=1.3, pan=[8., -4.]),
              knob=dict(hidden=['image', 'ball']),
              cut=dict(clip=[[0, 1], [0, .6], [.2, 1]], hidden=['image']),
              corner=dict(clip=[[.4, 1], [0, .6], [0, 1]], corner=True, slices=True))


@pytest.mark.parametrize('traits', sights.values(), ids=sights)
def test_page_and_python_cast_the_same(page, python, traits):
    shown(python, **traits)
    here = picture(page)
    h, w = here.shape[:2]
    python('globals().update(drawn=s.picture((%d, %d))[0])' % (w, h))
    there = np.array(python('(255*drawn[::2, ::2]).astype(int).tolist()'))/255
    shown(python, hidden=['image', 'ball', 'knob'], slices=False)
    bare = picture(page)
    here, bare = here[::2, ::2], bare[::2, ::2]
    there = there[..., :3] + (1 - there[..., 3:])*bare
    a, b = changed(here, bare), changed(there, bare)
    assert a.sum() > 500 and 2*(a & b).sum()/(a.sum() + b.sum()) > .97
    assert np.abs(here - there)[a].mean() < .03


def test_letters_where_python_puts_them(page, python):
    page.evaluate("""() => { window.words = []
        const old = CanvasRenderingContext2D.prototype.fillText
        const spy = function (...a) { words.push(a); return old.apply(this, a) }
        CanvasRenderingContext2D.prototype.fillText = spy }""")
    shown(python, angles=[-40., 30.])
    rest(page)
    said = {w: (x, y) for w, x, y in page.evaluate('words')}
    size = page.canvas.evaluate('c => [c.clientWidth, c.clientHeight]')
    found = python(f'frame(s.solid, rays(s.solid, s.angles, {size}), {size})[1]')
    assert {w for w, _, _ in found} == set('LRAPSI')
    assert all(np.hypot(*np.subtract(said[w], np.add(at, .5))) < 1 for w, at, _ in found)


def test_drag_and_keys_turn(page, python):
    before = picture(page)
    x, y = middle(page)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 30, steps=4)
    page.mouse.up()
    until(lambda: python('s.angles[0] < 20 and s.angles[1] > 25'))
    assert changed(picture(page), before).mean() > .03
    for n, angles in enumerate([(0, 0), (180, 0), (-90, 0), (90, 0), (0, 90), (0, -90)], 1):
        page.keyboard.press(str(n))
        until(lambda: python('tuple(s.angles)') == angles)
    page.keyboard.press('ArrowUp')
    page.keyboard.press('ArrowLeft')
    until(lambda: python('list(s.angles)') == [5, -90])
    page.box.get_by_role('button', name='Left', exact=True).click()
    until(lambda: python('list(s.angles)') == [90, 0])
    assert 'seen from the left' in page.box.locator('.mnb-status').inner_text()


def test_wheel_zooms_only_after_a_click_and_shift_drag_moves(page, python):
    page.evaluate('document.activeElement.blur()')
    page.mouse.move(*middle(page))
    page.mouse.wheel(0, -240)
    page.wait_for_timeout(400)
    assert python('s.zoom') == 1
    page.canvas.focus()
    page.canvas.scroll_into_view_if_needed()
    x, y = middle(page)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -240)
    until(lambda: python('s.zoom') == pytest.approx(2**.5))
    page.keyboard.down('Shift')
    page.mouse.down()
    page.mouse.move(x + 50, y, steps=3)
    page.mouse.up()
    page.keyboard.up('Shift')
    wide, high = page.canvas.evaluate('c => [c.clientWidth, c.clientHeight]')
    mm = python('.9*s.solid.diagonal/s.zoom')/min(wide, high)
    until(lambda: python('s.pan[0]') == pytest.approx(50*mm, rel=.03))
    page.keyboard.press('0')
    until(lambda: python('(s.zoom, list(s.pan), list(s.angles))') == (1, [0, 0], [35, 20]))


def test_labels_opacity_cuts_and_slices_by_keyboard(page, python):
    before = picture(page)
    page.box.get_by_label('image ≥').uncheck()
    page.box.get_by_label('ball', exact=True).uncheck()
    until(lambda: python('s.hidden') == ['image', 'ball'])
    knob = picture(page)
    assert changed(knob, before).mean() > .03
    page.box.get_by_label('ball', exact=True).check()
    fader = page.box.get_by_label('Opacity of ball')
    fader.focus()
    for _ in range(10): page.keyboard.press('ArrowLeft')
    until(lambda: python('s.opacities.get("ball")') == pytest.approx(.5))
    assert changed(picture(page), knob).mean() > .03
    page.box.get_by_label('Keep back to front, to').focus()
    for _ in range(30): page.keyboard.press('ArrowLeft')
    until(lambda: python('[list(c) for c in s.clip]') == [[0, 1], [0, .7], [0, 1]])
    whole = picture(page)
    page.box.get_by_label('axial, k').focus()
    page.keyboard.press('ArrowRight')
    until(lambda: python('s.slices and s.index[2]') == 13)
    assert changed(picture(page), whole).mean() > .01
    page.canvas.focus()
    page.keyboard.press('c')
    page.keyboard.press('s')
    until(lambda: python('(s.corner, s.slices)') == (True, False))


def test_python_moves_the_page(page, python):
    before = picture(page)
    shown(python, angles=[120., 10.])
    assert changed(picture(page), before).mean() > .03
    assert '120°' in page.box.locator('.mnb-status').inner_text()


def test_every_control_has_a_name_and_the_keyboard_reaches_it(page):
    found = page.box.evaluate("""e => [...e.querySelectorAll('input, button, select, summary, [tabindex]')]
        .filter(x => x.tabIndex >= 0)
        .map(x => x.getAttribute('aria-label') || x.labels?.[0]?.textContent || x.textContent)""")
    assert len(found) > 24 and all(found)
    page.box.locator('button').first.focus()
    for n in range(1, len(found)):
        page.keyboard.press('Tab')
        assert page.box.evaluate('e => e.contains(document.activeElement)'), found[n]
        assert page.evaluate('getComputedStyle(document.activeElement).outlineWidth') == '2px'


def test_picture_can_be_saved(page, tmp_path):
    with page.expect_download() as file: page.box.get_by_role('button', name='Save PNG').click()
    file.value.save_as(tmp_path/'scene.png')
    assert file.value.suggested_filename == 'scene.png' and plt.imread(tmp_path/'scene.png').std() > .05


def test_lost_context_comes_back(page, python):
    before = picture(page)
    page.evaluate("""() => { const { gl } = globalThis[Symbol.for('medseg_nb.caster')]
        const ext = gl.getExtension('WEBGL_lose_context')
        ext.loseContext(); setTimeout(() => ext.restoreContext(), 300) }""")
    page.wait_for_timeout(800)
    shown(python, angles=[34., 20.])
    shown(python, angles=[35., 20.])
    # A busy machine casts fewer rays a pixel, so edges may differ; of a lost picture nothing is left
    until(lambda: changed(picture(page), before).mean() < .03, 60)


def test_console_is_quiet(page):
    assert [words for words in page.said if words not in harmless] == []


def test_still_picture_where_webgl_is_missing(lab, chromium):
    browser = chromium.browser_type.launch(executable_path=shutil.which('chromium'),
                                           args=[*quiet, '--disable-gpu', '--disable-3d-apis'])
    lay(lab, 'nogl.ipynb', cells[0])
    page = opened(lab, browser, 'nogl.ipynb')
    note = page.locator('.mnb-scene .mnb-note')
    note.wait_for(timeout=120_000)
    until(lambda: 'WebGL2' in note.inner_text(), 60)
    until(lambda: page.locator('.mnb-scene img').evaluate('i => i.naturalWidth') > 300)
    assert [words for words in page.said if words not in harmless] == []
    browser.close()
