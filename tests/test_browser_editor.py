"The editor in a real JupyterLab: strokes by pointer and by keys, late answers, a kernel that is killed."
import os
import signal

import nibabel as nib
import numpy as np
import pytest
from browser import asking, harmless, lay, opened, until, unwanted

pytestmark = unwanted

first = '''import os, time
import numpy as np
from medseg_nb.data.volume import Volume
from medseg_nb.view.brush import brush, flood, grow, polygon, between
from medseg_nb.view.editor import Editor
z, y, x = np.mgrid[-1:1:40j, -1:1:50j, -1:1:60j]
r = np.sqrt(x**2 + y**2 + z**2).transpose(2, 1, 0)
values = 1000*(r < .9) + 700*(r < .6) - 300 + 40*np.sin(20*r) + 90*z.transpose(2, 1, 0)
head = Volume(values.astype('int16')[None], np.diag([-1.5, 1.5, 3, 1]))
def slow(image, points, labels, boxes):
    time.sleep(1.5)
    return image.new(np.roll(r < .3, 5, 0)[None])
def broken(image, **prompts): raise ValueError('no idea')
def same(region): return bool((region.full(head.shape) == (e.edits.labels == e.label)).all())
told = []
e = Editor(head, path='m.nii.gz', classes={1: 'core', 2: 'rim'}, assist=dict(Slow=slow, Broken=broken))
e.on_change(lambda about: told.append(about['what']))
f = Editor(r[:, :, 20], classes={1: 'disk'})
display(e, f)'''


@pytest.fixture(scope='module')
def page(lab, chromium):
    "editor.ipynb, opened and run; `viewer` is its editor of a volume, `flat` that of a picture"
    lay(lab, 'editor.ipynb', first)
    page = opened(lab, chromium, 'editor.ipynb')
    page.viewer, page.flat = (page.locator('.mnb-viewer:has(.mnb-toolbar)').nth(n) for n in range(2))
    page.flat.wait_for(timeout=120_000)
    page.viewer.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    yield page
    page.close()


@pytest.fixture(scope='module')
def python(lab, page):
    "Asks the kernel of editor.ipynb"
    with asking(lab, page) as ask: yield ask


@pytest.fixture(autouse=True)
def clean(page, python):
    "No labels, the brush, no prompts"
    python('e.apply(np.ones(head.shape, bool), 0)')
    start = dict(tool='brush', label=1, size=9., solid=False, points=[], boxes=[])
    for name, value in start.items(): python(f'e.set_trait({name!r}, {value!r})')
    button = page.viewer.get_by_role('button', name='Brush B', exact=True)
    until(lambda: button.get_attribute('aria-pressed') == 'true')
    until(lambda: page.viewer.get_by_label('Size of the label').inner_text().startswith('0 voxels'))


def canvas(page, n=2): return page.viewer.locator('.mnb-canvas').nth(n)


def spot(page, dx=0, dy=0, n=2):
    "Pixels of the page, from the middle of a canvas"
    canvas(page, n).scroll_into_view_if_needed()
    box = canvas(page, n).bounding_box()
    return box['x'] + box['width']/2 + dx, box['y'] + box['height']/2 + dy


def voxel(page, dx=0, dy=0, n=2):
    "What the status line says is there"
    page.mouse.move(*spot(page, dx, dy, n))
    page.wait_for_timeout(60)
    item = page.viewer.locator('.mnb-voxel').first.inner_text()
    return eval(item[item.index('('):])


def drag(page, *places, n=2):
    "Press at the first place, move over the others, let go"
    page.mouse.move(*spot(page, *places[0], n))
    page.mouse.down()
    for place in places[1:]: page.mouse.move(*spot(page, *place, n))
    page.mouse.up()


def tool(page, name): page.viewer.get_by_role('button', name=name, exact=True).click()


def count(python): return python('int((e.edits.labels > 0).sum())')


def labels_of_page(page, tmp_path, editor=None):
    "The mask as the page has it: what it gives to download"
    with page.expect_download() as file:
        (editor or page.viewer).get_by_role('button', name='Download', exact=True).click()
    path = tmp_path/file.value.suggested_filename
    file.value.save_as(path)
    return path


@pytest.mark.parametrize('n, axis', [(0, 0), (1, 1), (2, 2)])
def test_stroke_is_the_brush_of_python(page, python, n, axis):
    a, b = voxel(page, -30, -22, n), voxel(page, 24, 9, n)
    assert a != b and a[axis] == b[axis]
    drag(page, (-30, -22), (24, 9), n=n)
    until(lambda: count(python))
    assert python(f'same(brush(head, {[a, b]}, 4.5, {axis}))')
    shown = until(lambda: page.viewer.get_by_label('Size of the label').inner_text())
    wanted = python('[int((e.edits.labels == 1).sum()), float((e.edits.labels == 1).sum())*6.75/1000]')
    assert shown == f'{wanted[0]:,} voxels · {wanted[1]:.2f}'.rstrip('0').rstrip('.') + ' ml'


def test_stroke_in_space_and_thinner_than_a_voxel(page, python):
    a, b = voxel(page, -20, 3), voxel(page, 27, 20)
    canvas(page).focus()
    page.keyboard.press('d')
    until(lambda: python('e.solid'))
    drag(page, (-20, 3), (27, 20))
    until(lambda: count(python))
    assert python(f'same(brush(head, {[a, b]}, 4.5))')
    python('e.apply(np.ones(head.shape, bool), 0)')
    python('e.set_trait("size", 0.)')
    drag(page, (-20, 3), (27, 20))
    until(lambda: count(python))
    assert python(f'same(brush(head, {[a, b]}, .75))')


def test_page_and_python_hold_the_same(page, python, lab, tmp_path):
    drag(page, (-30, -22), (24, 9), (10, 30))
    page.keyboard.press('2')
    until(lambda: python('e.label') == 2)
    drag(page, (-12, 20), (14, -19), n=0)
    tool(page, 'Eraser E')
    drag(page, (-5, 0), (5, 0))
    until(lambda: python('e.edits.count') >= 3 and not python('bool(e.edits.labels[30, 25, 20])'))
    python('np.save("now.npy", e.edits.labels)')
    ours = nib.load(labels_of_page(page, tmp_path))
    assert (np.asarray(ours.dataobj) == np.load(lab['home']/'work'/'now.npy')).all()
    assert set(np.unique(ours.dataobj)) == {0, 1, 2} and ours.get_data_dtype() == np.uint8
    assert (ours.affine == np.diag([-1.5, 1.5, 3, 1])).all()


def test_undo_and_redo_by_keys(page, python):
    counts = []
    for y in (-20, 20):
        drag(page, (-20, y), (20, y))
        counts.append(until(lambda: count(python) not in counts + [0] and count(python)))
    page.keyboard.press('Control+z')
    until(lambda: count(python) == counts[0])
    until(lambda: page.viewer.get_by_label('Size of the label').inner_text().startswith(f'{counts[0]} '))
    page.keyboard.press('Control+Shift+z')
    until(lambda: count(python) == counts[1])
    for _ in range(2): page.keyboard.press('Control+z')
    until(lambda: count(python) == 0)
    page.viewer.get_by_role('button', name='Redo').click()
    until(lambda: count(python) == counts[0])


def test_polygon_by_enter_and_by_double_click(page, python):
    places = [(-30, -20), (25, -14), (3, 28)]
    corners = [voxel(page, *p) for p in places]
    tool(page, 'Polygon P')
    for p in places: page.mouse.click(*spot(page, *p))
    page.keyboard.press('Escape')
    for p in places: page.mouse.click(*spot(page, *p))
    page.keyboard.press('Enter')
    until(lambda: count(python))
    assert python(f'same(polygon(head, {corners}, 2))')
    python('e.undo()')
    for p in places[:2]: page.mouse.click(*spot(page, *p))
    page.mouse.dblclick(*spot(page, *places[2]))
    until(lambda: count(python))
    assert python(f'same(polygon(head, {corners}, 2))') and python('tuple(e.window) == e.windows[0]')


def test_fill_grow_and_range_brush(page, python):
    seed = voxel(page, 0, 0)
    tool(page, 'Grow G')
    page.viewer.get_by_role('spinbutton', name='Tolerance').fill('150')
    page.keyboard.press('Tab')
    until(lambda: python('e.tolerance') == 150)
    page.mouse.click(*spot(page))
    until(lambda: count(python))
    assert python(f'same(grow(head, {seed}, 150., axis=2))')
    page.keyboard.press('2')
    until(lambda: python('e.label') == 2)
    tool(page, 'Fill L')
    page.mouse.click(*spot(page))
    until(lambda: python('int((e.edits.labels == 1).sum())') == 0)
    assert python(f'same(grow(head, {seed}, 150., axis=2))')
    python('e.apply(np.ones(head.shape, bool), 0)')
    python('e.set_trait("values", [500., 1100.])')
    tool(page, 'Range brush T')
    a, b = voxel(page, -95, 0), voxel(page, 45, 4)
    drag(page, (-95, 0), (45, 4))
    until(lambda: count(python))
    stroke = f'brush(head, {[a, b]}, 4.5, 2)'
    assert python(f'same(between(head, {stroke}, 500, 1100))') and not python(f'same({stroke})')


def test_points_and_boxes(page, python):
    a, b, c = voxel(page, 5, 5), voxel(page, 60, 10), voxel(page, -30, 20)
    tool(page, '+ Point M')
    page.mouse.click(*spot(page, 5, 5))
    page.keyboard.press('n')
    until(lambda: python('e.tool') == 'minus')
    page.mouse.click(*spot(page, 60, 10))
    until(lambda: python('e.points') == [[*a, 1], [*b, 0]])
    page.keyboard.press('r')
    until(lambda: count(python))
    assert python(f'bool(e.edits.labels[{a}] and not e.edits.labels[{b}])')
    page.mouse.click(*spot(page, 60, 10))
    until(lambda: python('e.points') == [[*a, 1]])
    page.keyboard.press('x')
    until(lambda: python('e.tool') == 'box')
    drag(page, (5, 5), (-30, 20))
    until(lambda: python('e.boxes') == [[*map(min, a, c), *map(max, a, c)]])
    page.viewer.get_by_role('button', name='Clear prompts').click()
    until(lambda: python('e.points + e.boxes') == [])


def test_assist_is_one_step_and_its_late_answer_wipes_no_newer_stroke(page, python, lab, tmp_path):
    python('e.set_trait("points", [[30, 25, 20, 1]])')
    a, b = voxel(page, -25, 0), voxel(page, 25, 2)
    before = python('e.edits.count')
    page.viewer.get_by_role('button', name='Slow').click()
    page.keyboard.press('2')
    drag(page, (-25, 0), (25, 2))
    until(lambda: python('e.edits.count') == before + 2)
    assert python('told[-2:]') == ['assist', 'brush']
    assert python(f'same(brush(head, {[a, b]}, 4.5, 2))')
    python('np.save("now.npy", e.edits.labels)')
    page.wait_for_timeout(200)
    ours = np.asarray(nib.load(labels_of_page(page, tmp_path)).dataobj)
    assert (ours == np.load(lab['home']/'work'/'now.npy')).all() and {*np.unique(ours)} == {0, 1, 2}
    canvas(page).focus()
    for _ in range(2): page.keyboard.press('Control+z')
    until(lambda: count(python) == 0)
    page.viewer.get_by_role('button', name='Broken').click()
    until(lambda: page.viewer.locator('.mnb-problem').inner_text() == 'no idea')


def test_labels_are_added_named_colored_and_hidden(page, python):
    page.viewer.get_by_role('button', name='New label').click()
    page.keyboard.type('core of it')
    page.keyboard.press('Enter')
    until(lambda: [c['name'] for c in python('e.palette')] == ['core', 'rim', 'core of it'])
    assert python('e.label') == 3
    page.viewer.get_by_label('Color of the label').fill('#123456')
    until(lambda: python('e.palette[2]["color"]') == '#123456')
    page.viewer.get_by_label('Show core', exact=True).uncheck()
    until(lambda: python('[c["shown"] for c in e.palette]') == [False, True, True])
    python('e.set_trait("palette", [dict(c, shown=True) for c in e.palette[:2]])')
    page.viewer.get_by_label('Name of the label').fill('b')
    page.keyboard.press('Escape')
    assert python('e.tool') == 'brush'


def test_save_writes_the_geometry(page, python, lab):
    drag(page, (-20, 3), (27, 20))
    n = until(lambda: count(python))
    page.keyboard.press('s')
    until(lambda: 'no changes since' in page.viewer.inner_text() and 'Saved' in page.viewer.inner_text())
    file = nib.load(lab['home']/'work'/'m.nii.gz')
    assert (np.asarray(file.dataobj) > 0).sum() == n and (file.affine == np.diag([-1.5, 1.5, 3, 1])).all()
    assert not (lab['home']/'work'/'m.nii.gz.edits').exists()


def test_keyboard_alone_paints(page, python):
    python('e.set_trait("index", [30, 25, 20])')
    canvas(page, 1).focus()
    page.keyboard.press('Tab')
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.getAttribute("aria-label")') == 'axial plane'
    page.wait_for_timeout(100)
    page.keyboard.down(' ')
    for _ in range(6): page.keyboard.press('ArrowRight')
    page.keyboard.up(' ')
    until(lambda: count(python))
    until(lambda: python('list(e.index)') == [36, 25, 20])
    assert python('same(brush(head, [[30, 25, 20], [36, 25, 20]], 4.5, 2))')
    page.keyboard.press('.')
    until(lambda: python('e.index[2]') == 21)
    page.keyboard.press('b')
    page.keyboard.press(']')
    until(lambda: python('e.size') > 9)


def test_picture_of_two_axes(page, python, lab, tmp_path):
    page.flat.scroll_into_view_if_needed()
    box = page.flat.locator('.mnb-canvas').bounding_box()
    at = lambda u, v: (box['x'] + u*box['width'], box['y'] + v*box['height'])
    page.mouse.move(*at(.4, .5))
    page.mouse.down()
    page.mouse.move(*at(.6, .55))
    page.mouse.up()
    n = until(lambda: python('int(f.edits.labels.sum())'))
    python('np.save("flat.npy", f.edits.labels)')
    ours = np.asarray(nib.load(labels_of_page(page, tmp_path, page.flat)).dataobj)
    assert ours.sum() == n and (ours == np.load(lab['home']/'work'/'flat.npy')).all()
    assert page.flat.get_by_role('button', name='Save S').is_disabled()


def test_every_control_has_a_name(page):
    found = page.viewer.evaluate("""e => [...e.querySelectorAll('input, button, select, summary, [tabindex]')]
        .filter(x => !x.disabled && x.tabIndex >= 0)
        .map(x => x.getAttribute('aria-label') || x.labels?.[0]?.textContent || x.textContent)""")
    assert len(found) > 30 and all(found)


def test_console_is_quiet(page):
    assert [words for words in page.said if words not in harmless] == []


def test_killed_kernel(page, python, lab, tmp_path):
    drag(page, (-25, -20), (25, -20))
    kept = until(lambda: count(python))
    os.kill(python('os.getpid()'), signal.SIGKILL)
    page.wait_for_timeout(500)
    okay = page.get_by_role('button', name='Ok', exact=True)
    okay.wait_for(timeout=30_000)
    okay.click()
    drag(page, (-25, 20), (25, 20))
    load = page.viewer.get_by_role('button', name='Download what I have')
    load.wait_for(timeout=20_000)
    with page.expect_download() as file: load.click()
    file.value.save_as(tmp_path/'mine.nii')
    mine = np.asarray(nib.load(tmp_path/'mine.nii').dataobj)
    assert (mine > 0).sum() > kept
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    until(lambda: load.count() == 0 or not load.is_visible(), 60)
    with asking(lab, page) as ask:
        until(lambda: ask('"e" in dir()'), 30)
        assert ask('int((e.edits.labels > 0).sum())') == kept
        ask('np.save("now.npy", e.edits.labels)')
    again = np.load(lab['home']/'work'/'now.npy')
    assert (mine[again > 0] == again[again > 0]).all()
