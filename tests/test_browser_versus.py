"Segmenters side by side in a real JupyterLab: real keys, a real mouse, pixels and traits checked."
import pytest
from browser import asking, harmless, lay, opened, until, unwanted

pytestmark = unwanted

cells = """import numpy as np
from medseg_nb.data.case import Case
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.versus import compare
z, y, x = np.mgrid[-1:1:40j, -1:1:50j, -1:1:60j]
r = np.sqrt(x**2 + y**2 + z**2).transpose(2, 1, 0)
head = Volume((1000*(r < .9) + 700*(r < .6) - 300).astype('int16')[None], np.diag([-1.5, 1.5, 3, 1]))
truth = head.new((r < .6).astype('uint8')[None])
def moved(image):
    out = truth.new(np.roll(truth.numpy(), 3, 1))
    out.data[..., 13] = 0
    return out
def broken(image): raise RuntimeError('no <weights> here')
v = compare(Case('ball', head, truth), dict(level=lambda image: image.new((image.data > 900).byte()),
                                            moved=moved, broken=broken,
                                            empty=lambda image: image.new(0*image.data)))
v""", """w = compare(head, dict(a=truth, b=moved(head), c=truth.new(np.roll(truth.numpy(), -5, 2))))
w"""


@pytest.fixture(scope='module')
def page(lab, chromium):
    "A notebook with two comparisons, opened and run; `one` has a truth, `two` has none"
    lay(lab, 'versus.ipynb', cells[0], cells[1])
    page = opened(lab, chromium, 'versus.ipynb')
    page.one, page.two = (page.locator('.mnb-versus').nth(n) for n in (0, 1))
    page.one.locator('.mnb-pane').first.wait_for(timeout=120_000)
    page.one.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    yield page
    page.close()


@pytest.fixture(scope='module')
def python(lab, page):
    "Asks the kernel of the notebook"
    with asking(lab, page) as ask: yield ask


def shots(page, root=None):
    "A number for the pixels of each pane, at rest; the last row, of which a screen shows a part, left out"
    page.wait_for_timeout(250)
    script = """all => all.map(c => c.getContext('2d').getImageData(0, 0, c.width - 1, c.height - 1).data
        .reduce((h, x) => (31*h + x) | 0, 7))"""
    return (root or page.one).locator('.mnb-pane .mnb-canvas').evaluate_all(script)


def here(page): return page.one.locator('.mnb-here').all_inner_texts()
def wanted(python): return python("[f'{d:.3f}' for d in v.table['Dice, this slice'][:3]]")


def test_a_pane_for_each_answer_and_a_row_for_each_fault(page):
    names = page.one.locator('.mnb-name').all_inner_texts()
    assert names == ['level', 'moved', 'empty'] and len(set(shots(page))) == 3
    assert 'failed: RuntimeError: no <weights> here' in page.one.locator('.mnb-table').inner_text()


def test_a_key_in_one_pane_moves_all_and_the_table(page, python):
    was, before, said = python('list(v.index)'), shots(page), here(page)
    page.one.locator('.mnb-canvas').nth(1).focus()
    for _ in range(4): page.keyboard.press('ArrowUp')
    until(lambda: python('list(v.index)') == [*was[:2], was[2] + 4])
    assert all(a != b for a, b in zip(shots(page)[:2], before[:2]))
    until(lambda: here(page) == wanted(python))
    assert here(page) != said and f'k = {was[2] + 4}' in page.one.locator('thead').inner_text()
    python('v.set_trait("index", [30, 25, 20])')
    until(lambda: 'k = 20' in page.one.locator('thead').inner_text() and here(page) == wanted(python))


def test_click_and_wheel_in_any_pane(page, python):
    boxes = [c.bounding_box() for c in page.one.locator('.mnb-canvas').all()]
    page.mouse.click(boxes[2]['x'] + 40, boxes[2]['y'] + 60)
    index = until(lambda: (i := python('list(v.index)')) != [30, 25, 20] and i)
    page.mouse.move(boxes[0]['x'] + 70, boxes[0]['y'] + 70)
    page.mouse.wheel(0, 120)
    until(lambda: python('v.index[2]') == index[2] - 1)
    until(lambda: here(page) == wanted(python))
    words = page.one.locator('.mnb-pane .mnb-status').all_inner_texts()
    assert len(words) == 3 and all('prediction' in x and 'errors' in x for x in words)
    assert 'truth' in page.one.locator('.mnb-team-status').inner_text()


def test_one_zoom_one_window_one_choice_of_layers(page, python):
    python('v.set_trait("index", [30, 25, 20])')
    until(lambda: 'k = 20' in page.one.locator('.mnb-team-under').inner_text())
    page.one.locator('.mnb-canvas').nth(1).focus()
    before = shots(page)
    page.keyboard.press('+')
    assert all(a != b for a, b in zip(shots(page), before)) and '150 %' in page.one.inner_text()
    page.keyboard.press('0')
    assert shots(page) == before
    python('v.set_trait("window", [-300, 5000])')
    until(lambda: all(a != b for a, b in zip(shots(page), before)))
    page.one.get_by_role('button', name='Reset').click()
    until(lambda: shots(page) == before)
    errors = page.one.locator('.mnb-check', has_text='Errors').locator('input')
    errors.uncheck()
    assert all(a != b for a, b in zip(shots(page), before))
    until(lambda: 'Errors' in python('v.hidden'))
    errors.check()
    until(lambda: shots(page) == before)


def test_where_they_differ_most_by_button_and_key(page, python):
    order = python('v.rivals.disputes(2)[1]')
    python('v.set_trait("index", [30, 25, 5])')
    page.one.get_by_role('button', name='Where they differ most').click()
    until(lambda: python('v.index[2]') == order[0])
    page.one.locator('.mnb-canvas').first.focus()
    page.keyboard.press('d')
    until(lambda: python('v.index[2]') == order[1])
    assert f'{python("v.rivals.disputes(2)[0][v.index[2]]"):,} voxels in dispute' in page.one.inner_text()
    assert page.locator('.jp-Cell').count() == 2


def test_letters_typed_on_any_control_do_not_delete_cells(page):
    page.one.locator('.mnb-check input').first.focus()
    for _ in range(2): page.keyboard.press('d')
    page.one.locator('.mnb-table').focus()
    for _ in range(2): page.keyboard.press('d')
    page.wait_for_timeout(300)
    assert page.locator('.jp-Cell').count() == 2


def test_another_plane(page, python):
    before = page.one.locator('.mnb-canvas').first.bounding_box()
    page.one.get_by_label('Plane').select_option('sagittal')
    until(lambda: python('v.plane') == 'sagittal')
    until(lambda: 'sagittal i = ' in page.one.locator('.mnb-team-under').inner_text())
    assert page.one.locator('.mnb-canvas').first.bounding_box()['height'] != before['height']
    until(lambda: here(page) == wanted(python))
    python('v.set_trait("plane", "axial")')
    until(lambda: page.one.get_by_label('Plane').input_value() == 'axial')
    assert page.one.locator('.mnb-pane').count() == 3


def test_without_truth_the_votes_are_shown(page):
    page.two.scroll_into_view_if_needed()
    until(lambda: page.two.locator('.mnb-pane').count() == 4)
    legend = page.two.locator('.mnb-pane').last.inner_text()
    assert all(f'{k} of 3' in legend for k in (1, 2, 3)) and len(set(shots(page, page.two))) == 4
    assert 'Dice with c' in page.two.locator('thead').inner_text()


def test_a_narrow_page_wraps(page):
    columns = "e => new Set([...e.querySelectorAll('.mnb-pane')].map(p => p.offsetLeft)).size"
    assert page.one.evaluate(columns) == 3
    page.one.evaluate('e => { e.style.width = "320px" }')
    until(lambda: page.one.evaluate(columns) == 1)
    assert max(c.bounding_box()['width'] for c in page.one.locator('canvas').all()) <= 300
    page.one.evaluate('e => { e.style.width = "" }')
    until(lambda: page.one.evaluate(columns) == 3)


def test_every_control_has_a_name_and_enough_contrast(page, lab):
    names = page.one.evaluate("""e => [...e.querySelectorAll('input, button, select, summary, [tabindex]')]
        .filter(x => !x.disabled)
        .map(x => x.getAttribute('aria-label') || x.labels?.[0]?.textContent || x.textContent)""")
    assert len(names) > 12 and all(names)
    script = """e => { const rgb = s => s.match(/[\\d.]+/g).slice(0, 3).map(x => x/255)
        .map(x => x <= .04045 ? x/12.92 : ((x + .055)/1.055)**2.4)
        const light = s => { const [r, g, b] = rgb(s); return .2126*r + .7152*g + .0722*b }
        const paper = light(getComputedStyle(e).backgroundColor)
        const words = [...e.querySelectorAll('.mnb-table th, .mnb-table td, .mnb-name, .mnb-label')]
        const inks = words.map(x => light(getComputedStyle(x).color))
        return Math.min(...inks.map(x => (Math.max(x, paper) + .05)/(Math.min(x, paper) + .05))) }"""
    change = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
    for theme in ('JupyterLab Dark', 'JupyterLab Light'):
        page.evaluate(change, theme)
        page.wait_for_timeout(700)
        assert page.one.evaluate(script) >= 4.5, theme


def test_console_is_quiet(page):
    assert [words for words in page.said if words not in harmless] == []
