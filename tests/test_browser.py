"The viewer in a real JupyterLab: a server on loopback, headless Chromium, real keys and a real mouse."
import os
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from browser import asking, harmless, lay, opened, until, unwanted

pytestmark = unwanted
root = Path(__file__).parents[1]

first = '''import numpy as np
from medseg_nb.data.volume import Volume
from medseg_nb.view.viewer import Viewer
z, y, x = np.mgrid[-1:1:40j, -1:1:50j, -1:1:60j]
r = np.sqrt(x**2 + y**2 + z**2).transpose(2, 1, 0)
values = 1000*(r < .9) + 700*(r < .6) - 300 + 40*np.sin(20*r) + 90*z.transpose(2, 1, 0)
head = Volume(values.astype('int16')[None], np.diag([-1.5, 1.5, 3, 1]))
brain = head.new(((r < .6).astype('uint8') + (np.roll(r, 4, 2) < .3))[None])'''
second = '''pred = head.new(np.roll(brain.numpy(), 2, 1))
v = Viewer(head, brain, pred, classes=("background", "white matter", "core"))
v'''


# The cells of layers.ipynb: `a` with everything, `b` linked to it, `c` with channels, images that are odd, a
# Metric Lab
layers = """import numpy as np
from medseg_nb.data.volume import Volume
from medseg_nb.view.viewer import Viewer, link
z, y, x = np.mgrid[-1:1:40j, -1:1:50j, -1:1:60j]
r = np.sqrt(x**2 + y**2 + z**2).transpose(2, 1, 0)
ct = Volume(np.where(r < .9, 40 + 200*(r < .3), -1000).astype('int16')[None], np.diag([-1.5, 1.5, 3, 1]))
truth = ct.new((r < .6).astype('uint8')[None])
pred = truth.new(np.roll(truth.numpy(), 3, 1))
pred.data[..., 13] = 0
heat = (x.transpose(2, 1, 0)*(r < .8)).astype('float32')
heat[:, :25] = np.inf
a = Viewer(ct, truth, pred, heat=heat, layers={'third reader': r < .7}, classes={1: 'core'})
b = Viewer(ct[::2, ::2, ::2])
link(a, b)
places = []
a.on_click(places.append)
a""", 'b', """c = Viewer(np.stack([r, 3*r]))
c""", """odd = dict(constant=np.full((9, 9, 9), 7), nan=np.full((9, 9, 9), np.nan), one=np.ones((1, 1, 1)),
           thin=np.arange(1200.).reshape(1, 1, 40, 30), half=np.eye(9, dtype='float16'), bool=r > .5)
many = np.arange(729).reshape(9, 9, 9) % 301
d = [Viewer(x) for x in odd.values()] + [Viewer(odd['constant'], many, 0*many)]
for v in d: display(v)""", """from medseg_nb.data.case import Case
from medseg_nb.metrics.lab import MetricLab
broken = MetricLab(Case('core', ct, truth), tolerance=3.)
broken"""


names = ['viewer.ipynb', *os.environ.get('MEDSEG_NOTEBOOK', 'nbs/13_labs/01_first_look.ipynb').split()]


@pytest.fixture(scope='module', params=names, ids=[Path(n).stem for n in names])
def page(lab, chromium, request):
    "A notebook, opened and run; `viewer` is its first 3-D viewer"
    if request.param == names[0]: lay(lab, names[0], first, second)
    else: shutil.copy(root/request.param, lab['home']/'work')
    page = opened(lab, chromium, Path(request.param).name)
    page.viewer = page.locator('.mnb-viewer:has(.mnb-caption)').first
    page.viewer.wait_for(timeout=240_000)
    page.viewer.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    yield page
    page.close()


@pytest.fixture(scope='module')
def kernel(lab, page):
    "Asks for the value of an expression about `v`, the notebook's first 3-D Viewer"
    known = '__import__("ipywidgets").widgets.widget._instances.values()'
    solid = f'[o for o in {known} if type(o).__name__ == "Viewer" and len(o.index) == 3][0]'
    with asking(lab, page) as ask: yield lambda expression: ask(f'(lambda v: {expression})({solid})')


@pytest.fixture(scope='module')
def rich(lab, chromium):
    "layers.ipynb, opened and run; `all` are its viewers, `viewer` is `a`"
    lay(lab, 'layers.ipynb', *layers)
    page = opened(lab, chromium, 'layers.ipynb')
    page.all = page.locator('.mnb-viewer')

    def drawn():
        page.evaluate("document.querySelector('.jp-WindowedPanel-outer')?.scrollBy(0, 600)")
        return page.locator('.mnb-viewer .mnb-tiles').count() == 10
    until(drawn, 240)
    page.viewer = page.all.nth(0)
    page.viewer.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    yield page
    page.close()


@pytest.fixture(scope='module')
def python(lab, rich):
    "Asks the kernel of layers.ipynb"
    with asking(lab, rich) as ask: yield ask


def picture(page, n=0):
    "The pixels of a canvas, once it has come to rest"
    shot = lambda: page.viewer.locator('.mnb-canvas').nth(n).evaluate('c => c.toDataURL()')
    page.wait_for_timeout(150)
    return shot()


def middle(page, n=0):
    "Where on the page the middle of a canvas lies"
    canvas = page.viewer.locator('.mnb-canvas').nth(n)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    return box['x'] + box['width']/2, box['y'] + box['height']/2


def told(page, name):
    "What the status line says under a name"
    item = page.viewer.locator('.mnb-item', has=page.get_by_text(name)).first
    return item.inner_text().removeprefix(item.locator('.mnb-label').inner_text()).strip()


def test_three_planes(page):
    captions = page.viewer.locator('.mnb-caption').all_inner_texts()
    assert [c.split()[0] for c in captions] == ['sagittal', 'coronal', 'axial']
    assert len({picture(page, n) for n in range(3)}) == 3


def test_key_moves_the_slice(page, kernel):
    script = "[...document.querySelectorAll('.jp-Cell')].map(cell => cell.matches('.jp-mod-active'))"
    active = lambda: page.evaluate(script)
    was, before = kernel('list(v.index)'), picture(page, 2)
    page.viewer.locator('.mnb-canvas').nth(2).focus()
    cells = active()
    page.keyboard.press('ArrowUp')
    until(lambda: kernel('list(v.index)') == [*was[:2], was[2] + 1])
    assert picture(page, 2) != before
    until(lambda: page.viewer.locator('.mnb-caption').nth(2).inner_text() == f'axial k = {was[2] + 1}')
    for key in ('PageDown', 'h', 'h', 'a'): page.keyboard.press(key)
    until(lambda: kernel('v.index[2]') == was[2] - 9)
    assert active() == cells and any(cells)


def test_click_moves_all_planes(page, kernel):
    x, y = middle(page, 2)
    was, before = kernel('list(v.index)'), [picture(page, n) for n in range(3)]
    page.mouse.click(x + 31, y - 17)
    now = until(lambda: (i := kernel('list(v.index)')) != was and i)
    assert now[0] != was[0] and now[1] != was[1] and now[2] == was[2]
    assert all(picture(page, n) != b for n, b in enumerate(before))


def test_wheel_only_after_a_click(page, kernel):
    page.evaluate('document.activeElement.blur()')
    x, y = middle(page, 1)
    page.mouse.move(x, y)
    was = kernel('list(v.index)')
    page.mouse.wheel(0, 120)
    page.wait_for_timeout(400)
    assert kernel('list(v.index)') == was
    page.viewer.locator('.mnb-canvas').nth(1).focus()
    page.mouse.move(*middle(page, 1))
    page.mouse.wheel(0, -120)
    until(lambda: kernel('v.index[1]') == was[1] + 1)


def test_drag_changes_the_window(page, kernel):
    low, high = kernel('list(v.window)')
    before, (x, y) = picture(page), middle(page)
    page.mouse.move(x, y)
    page.mouse.down(button='right')
    page.mouse.move(x + 40, y, steps=4)
    page.mouse.up(button='right')
    wider = until(lambda: (w := kernel('list(v.window)')) != [low, high] and w)
    assert wider[1] - wider[0] > high - low and sum(wider) == pytest.approx(low + high)
    assert picture(page) != before
    page.keyboard.down('Shift')
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 30, steps=3)
    page.mouse.up()
    page.keyboard.up('Shift')
    until(lambda: sum(kernel('list(v.window)')) < sum(wider) - 1)
    page.mouse.dblclick(x, y)
    until(lambda: kernel('list(v.window)') == [low, high])


def test_readout_is_the_voxel_under_the_pointer(page, kernel):
    x, y = middle(page, 2)
    page.mouse.move(x - 23, y + 12)
    page.wait_for_timeout(200)
    index = eval(told(page, 'i, j, k'))
    assert list(index) != kernel('list(v.index)')
    world = [float(w) for w in told(page, 'R, A, S').replace('\u2212', '-').strip('() m').split(',')]
    assert kernel(f'v.image.to_world({index}).tolist()') == pytest.approx(world, abs=.051)
    value = kernel(f'v.image.data[(0, *{index})].item()')
    assert float(told(page, 'value')) == pytest.approx(value, rel=1e-4)
    label = kernel(f'v.mask.data[(0, *{index})].item()')
    assert told(page, 'mask') == (kernel(f'v.classes[{label}]') if label else '\u2013')


def test_python_moves_the_page(page, kernel):
    was = kernel('list(v.index)')
    kernel(f'v.set_trait("index", {[was[0], was[1], was[2] - 3]})')
    until(lambda: page.viewer.locator('.mnb-caption').nth(2).inner_text() == f'axial k = {was[2] - 3}')
    before = picture(page, 2)
    kernel('v.set_trait("opacity", .9)')
    until(lambda: picture(page, 2) != before)


def test_layers_can_be_hidden(page):
    full = picture(page, 2)
    for name in ('Mask', 'Fill'):
        box = page.viewer.locator('.mnb-check', has_text=name).locator('input')
        box.uncheck()
        assert picture(page, 2) != full
        box.check()
        assert picture(page, 2) == full


def test_narrow_page_stacks_the_planes(page):
    page.viewer.evaluate('e => { e.style.width = "420px" }')
    until(lambda: page.viewer.locator('.mnb-stacked').count() == 1)
    page.viewer.evaluate('e => { e.style.width = "" }')
    until(lambda: page.viewer.locator('.mnb-stacked').count() == 0)


def test_theme_is_followed(page, lab):
    paper = lambda: page.viewer.evaluate('e => getComputedStyle(e).backgroundColor')
    change = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
    theme = lambda name: page.evaluate(change, name)
    light = paper()
    page.viewer.screenshot(path=lab['home']/f'{page.name}-light.png')
    theme('JupyterLab Dark')
    until(lambda: paper() != light)
    page.viewer.screenshot(path=lab['home']/f'{page.name}-dark.png')
    theme('JupyterLab Light')
    until(lambda: paper() == light)


def test_saved_notebook_keeps_the_picture(page, lab):
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    path = lab['home']/'work'/page.name
    live = 'application/vnd.jupyter.widget-view+json'
    outputs = lambda: [o.get('data', {}) for c in nbformat.read(path, 4).cells for o in c.get('outputs', [])]
    assert 'image/png' in until(lambda: [data for data in outputs() if live in data])[0]


def test_console_is_quiet(page):
    assert [words for words in page.said if words not in harmless] == []


# ---------------------------------------------------------------- layers.ipynb: all that `a` can do

def dot(page, index):
    "The color of the axial picture of `a` where the cross stands, which leaves a gap there"
    page.wait_for_timeout(200)
    script = """(c, [x, y]) =>
        [...c.getContext('2d').getImageData(x*c.width, y*c.height, 1, 1).data].slice(0, 3)"""
    x, y = (index[0] + .5)/60, .5 + (.5 - (index[1] + .5)/50)*75/120 # its 75 mm lie amid 120
    return page.viewer.locator('.mnb-canvas').nth(2).evaluate(script, [x, y])


def near(color, wanted, by=3): return max(abs(a - b) for a, b in zip(color, wanted)) <= by


def test_worst_slice_by_key_and_strip(rich, python):
    assert python('a.dice[1][0]') == 13
    rich.viewer.locator('.mnb-canvas').nth(2).focus()
    rich.keyboard.press('w')
    until(lambda: python('a.index[2]') == 13)
    strip = rich.viewer.locator('.mnb-dice')
    strip.focus()
    rich.keyboard.press('ArrowRight')
    until(lambda: python('a.index[2]') == 14)
    box = strip.bounding_box()
    rich.mouse.click(box['x'] + box['width']*(20.5/40), box['y'] + 5)
    until(lambda: python('a.index[2]') == 20)
    dice = python('float(a.dice[0][20])')
    until(lambda: strip.get_attribute('aria-valuetext') == f'k = 20, Dice {dice:.2f}')
    rich.viewer.get_by_role('button', name='Worst slice').click()
    until(lambda: python('a.index[2]') == 13)


def test_errors_have_their_colors(rich, python):
    python('a.set_trait("hidden", ["Mask", "Prediction", "third reader", "Heat"])')
    python('a.set_trait("opacities", dict(Errors=1.))')
    python('a.set_trait("fill", True)')
    box = lambda name: rich.viewer.locator('.mnb-check', has_text=name).locator('input')
    until(lambda: box('Errors').is_checked() and not box('Heat').is_checked())
    for index, color in (((30, 25, 20), (0x56, 0xB4, 0xE9)), ((13, 25, 20), (0xF0, 0xE4, 0x42)),
                         ((49, 25, 20), (0xD5, 0x5E, 0x00))):
        python(f'a.set_trait("index", {list(index)})')
        until(lambda: near(dot(rich, index), color))
        word = {0x56: 'correct', 0xF0: 'missed', 0xD5: 'false alarm'}[color[0]]
        assert told(rich, 'errors') == word
        assert rich.viewer.locator('.mnb-legend', has_text=word).count() == 1


def test_heat_is_drawn_where_it_is_finite(rich, python):
    python('a.set_trait("hidden", ["Mask", "Prediction", "third reader", "Errors", "Heat"])')
    points = dict(negative=[10, 30, 20], infinite=[10, 20, 20], none=[30, 30, 20])
    bare = {}
    for name, index in points.items():
        python(f'a.set_trait("index", {index})')
        bare[name] = until(lambda: (d := dot(rich, index)) and d)
    rich.viewer.locator('.mnb-check', has_text='Heat').locator('input').check()
    until(lambda: 'Heat' not in python('a.hidden'))
    for name, index in points.items():
        python(f'a.set_trait("index", {index})')
        rich.wait_for_timeout(300)
        assert (not near(dot(rich, index), bare[name], 20)) == (name == 'negative'), name
        assert (told(rich, 'heat') == 'not finite') == (name == 'infinite')
    fader = rich.viewer.get_by_label('Opacity of Heat')
    fader.focus()
    was = fader.input_value()
    rich.keyboard.press('ArrowRight')
    until(lambda: python('a.opacities.get("Heat")') == pytest.approx(float(was) + .05))
    assert 'Heat' in rich.viewer.locator('.mnb-scale').inner_text()
    assert 'labels' in rich.viewer.locator('.mnb-check', has_text='third reader').inner_text()


def test_windows_for_ct(rich, python):
    window = rich.viewer.get_by_label('Window for CT')
    window.select_option(label='lung (W 1500, L -600)')
    until(lambda: python('list(a.window)') == [-1350, 150])
    rich.viewer.get_by_role('button', name='Reset').click()
    until(lambda: python('tuple(a.window) == a.windows[0]'))
    until(lambda: window.input_value() == 'auto')
    python('a.set_trait("window", [0, 7])')
    until(lambda: window.input_value() == 'own')
    rich.mouse.dblclick(*middle(rich, 2))
    until(lambda: python('tuple(a.window) == a.windows[0]'))
    assert rich.all.nth(2).get_by_label('Window for CT').count() == 0


def test_zoom_keeps_the_voxel_under_the_pointer(rich, python):
    x, y = middle(rich, 2)
    rich.mouse.click(x, y)
    before = picture(rich, 2)
    rich.mouse.move(x + 40, y - 30)
    rich.wait_for_timeout(200)
    voxel = eval(told(rich, 'i, j, k'))
    rich.keyboard.down('Control')
    rich.mouse.wheel(0, -240)
    rich.keyboard.up('Control')
    rich.wait_for_timeout(300)
    zoomed = picture(rich, 2)
    assert zoomed != before and '200 %' in rich.viewer.inner_text()
    rich.mouse.move(x + 41, y - 30)
    rich.wait_for_timeout(200)
    assert max(abs(a - b) for a, b in zip(eval(told(rich, 'i, j, k')), voxel)) <= 1
    rich.keyboard.press('Shift+ArrowLeft')
    moved = picture(rich, 2)
    assert moved != zoomed
    rich.mouse.down(button='middle')
    rich.mouse.move(x + 11, y - 30, steps=3)
    rich.mouse.up(button='middle')
    assert picture(rich, 2) not in (moved, zoomed)
    rich.keyboard.press('0')
    rich.mouse.move(x, y)
    assert picture(rich, 2) == before
    rich.keyboard.press('+')
    assert picture(rich, 2) != before
    rich.keyboard.press('-')
    assert picture(rich, 2) == before


def test_zoom_draws_what_lies_in_view_and_nothing_else(rich, python):
    python('a.set_trait("hidden", ["Heat", "Errors"])')
    index = [30, 25, 20]
    python('a.set_trait("index", [30, 25, 20])')
    rich.viewer.locator('.mnb-canvas').nth(2).focus()
    color = until(lambda: dot(rich, index))
    for _ in range(4): rich.keyboard.press('+')
    until(lambda: '506 %' in rich.viewer.inner_text())
    assert near(dot(rich, [29.5, 24.5]), color)
    rich.keyboard.press('0')


def test_click_moves_linked_viewers_and_tells_python(rich, python):
    x, y = middle(rich, 2)
    count = python('len(places)')
    rich.mouse.click(x - 33, y + 22)
    until(lambda: python('len(places)') == count + 1)
    assert python('places[-1]["index"] == a.index')
    assert python('places[-1]["label"] == a.mask.data[(0, *a.index)].item()')
    apart = 'float(abs(np.subtract(a.point, b.point)).max())'
    until(lambda: python(apart) <= 3)
    caption = rich.all.nth(1).locator('.mnb-caption').nth(2)
    until(lambda: caption.inner_text() == f'axial k = {python("b.index[2]")}')
    rich.mouse.down()
    rich.mouse.move(x, y, steps=4)
    rich.mouse.up()
    until(lambda: python(apart) <= 3 and python('abs(a.index[0] - 30) <= 1'))
    assert python('len(places)') == count + 1
    rich.keyboard.press('Enter')
    until(lambda: python('len(places)') == count + 2)


def test_channel_slider(rich, python):
    third = rich.all.nth(2)
    third.scroll_into_view_if_needed()
    shot = lambda: third.locator('.mnb-canvas').nth(2).evaluate('c => c.toDataURL()')
    before = shot()
    third.get_by_label('Channel').focus()
    rich.keyboard.press('ArrowRight')
    until(lambda: python('c.channel') == 1 and shot() != before)
    python('c.set_trait("channel", 0)')
    until(lambda: shot() == before)


def test_odd_images_are_never_blank(rich):
    script = """e => Math.max(...[...e.querySelectorAll('.mnb-canvas')].map(c => {
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data
        let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i] + d[i + 1] + d[i + 2] > 60
        return n/(c.width*c.height) }))"""
    for n in range(3, 10):
        rich.all.nth(n).scroll_into_view_if_needed()
        rich.wait_for_timeout(150)
        assert rich.all.nth(n).evaluate(script) > .02, n
    last = rich.all.nth(9)
    assert last.locator('.mnb-legend li').count() == 301 and 'Prediction: empty' in last.inner_text()
    assert last.locator('.mnb-legend').bounding_box()['height'] < 100


def test_every_control_has_a_name_and_the_keyboard_reaches_it(rich):
    rich.viewer.scroll_into_view_if_needed()
    found = rich.viewer.evaluate("""e => [...e.querySelectorAll('input, button, select, summary, [tabindex]')]
        .filter(x => !x.disabled && x.tabIndex >= 0)
        .map(x => x.getAttribute('aria-label') || x.labels?.[0]?.textContent || x.textContent)""")
    assert len(found) > 20 and all(found)
    rich.viewer.locator('input').first.focus()
    seen = 1
    while seen < len(found):
        rich.keyboard.press('Tab')
        if not rich.viewer.evaluate('e => e.contains(document.activeElement)'): break
        ring = rich.evaluate('getComputedStyle(document.activeElement).outlineWidth')
        assert ring == '2px'
        seen += 1
    assert seen == len(found)


def test_picture_can_be_saved_and_fill_the_screen(rich, tmp_path):
    with rich.expect_download() as file: rich.viewer.get_by_role('button', name='Save PNG').click()
    file.value.save_as(tmp_path/'slices.png')
    image = plt.imread(tmp_path/'slices.png')
    assert file.value.suggested_filename == 'slices.png' and image.shape[1] > 600 and image.std() > .1
    full = lambda: rich.evaluate('document.fullscreenElement?.className ?? null')
    tall = lambda: rich.viewer.locator('.mnb-canvas').first.bounding_box()['height']
    was = tall()
    rich.viewer.locator('.mnb-canvas').first.focus()
    rich.keyboard.press('f')
    until(lambda: full() == 'mnb-viewer' and tall() > was)
    rich.keyboard.press('f')
    until(lambda: full() is None and tall() == was)


def test_metric_lab_by_keys(rich, python):
    box = rich.locator('.jp-OutputArea-output', has=rich.locator('.widget-slider')).last
    box.scroll_into_view_if_needed()
    image, table = box.locator('img'), box.locator('table')
    until(lambda: table.inner_text().count('1.000') > 10)
    was = image.get_attribute('src')
    box.locator('.noUi-handle').nth(1).focus()
    for _ in range(8): rich.keyboard.press('ArrowRight')
    until(lambda: python('broken.ways["hole"]') > 4)
    until(lambda: image.get_attribute('src') != was)
    until(lambda: f'{python("float(broken.table.value[0])"):.3f}' in table.inner_text())
    assert python('float(broken.table.value[0])') < 1
    box.get_by_role('button', name='Mend it').click()
    until(lambda: not any(python('list(broken.ways.values())')))
    until(lambda: table.inner_text().count('1.000') > 10)
    rich.viewer.scroll_into_view_if_needed()


def test_console_is_quiet_with_layers(rich):
    assert [words for words in rich.said if words not in harmless] == []
