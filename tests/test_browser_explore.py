"The explorer in a real JupyterLab: keys, clicks, errors, a slow function dragged over, no empty frame."
import pytest
from browser import asking, harmless, lay, opened, until, unwanted

pytestmark = unwanted

first = '''import time
import numpy as np
import pandas as pd
from medseg_nb.core.explore import explore
from medseg_nb.core.control import Point
seen = []
def f(blue=100, at=None, kind="plain", on=False):
    if on: raise ValueError("on is <b>off</b>")
    picture = np.zeros((40, 60, 3), "uint8")
    picture[..., 2], picture[at] = blue, (255, 0, 0)
    return picture, pd.DataFrame([dict(blue=blue, kind=kind)])
a = explore(f, blue=(0, 255), at=Point(3, 4), kind=["plain", "striped"], on=False)
a'''
second = '''def slow(n=0):
    seen.append(n)
    time.sleep(.4)
    return np.full((200, 300), n/100)
b = explore(slow, n=(0, 100))
b'''


@pytest.fixture(scope='module')
def page(lab, chromium):
    "explore.ipynb, opened and run; `all` are its explorers"
    lay(lab, 'explore.ipynb', first, second)
    page = opened(lab, chromium, 'explore.ipynb')
    page.all = page.locator('.mnx')
    until(lambda: page.locator('.mnx[data-drawn]').count() == 2, 240)
    page.a, page.b = page.all.nth(0), page.all.nth(1)
    yield page
    page.close()


@pytest.fixture(scope='module')
def python(lab, page):
    "Asks the kernel of explore.ipynb"
    with asking(lab, page) as ask: yield ask


colors = '''i => {
    const c = document.createElement('canvas'), d = c.getContext('2d')
    c.width = i.naturalWidth; c.height = i.naturalHeight; d.drawImage(i, 0, 0)
    return [...d.getImageData(%d, %d, 1, 1).data].slice(0, 3) }'''


def color(box, row, column): return box.locator('img').evaluate(colors % (column, row))


def test_arrow_keys_move_a_slider_and_no_cell(page, python):
    page.a.get_by_label('blue').focus()
    script = "[...document.querySelectorAll('.jp-Cell')].map(cell => cell.matches('.jp-mod-active'))"
    cells = page.evaluate(script)
    for _ in range(5): page.keyboard.press('ArrowRight')
    until(lambda: python('a.values["blue"]') == 105 and color(page.a, 20, 20) == [0, 0, 105])
    assert page.a.locator('output').first.inner_text() == '105' and page.evaluate(script) == cells
    until(lambda: '105' in page.a.locator('table').inner_text())
    page.keyboard.type('ax')
    assert len(page.evaluate(script)) == len(cells)


def test_python_moves_the_slider(page, python):
    python('a.set_trait("values", dict(blue=7, kind="striped"))')
    until(lambda: page.a.get_by_label('blue').input_value() == '7' and color(page.a, 20, 20) == [0, 0, 7])
    assert page.a.get_by_label('kind').evaluate('e => e.selectedOptions[0].text') == 'striped'
    assert page.a.locator('img').get_attribute('alt') == f'Picture for {python("a.said")}'


def test_menu(page, python):
    page.a.get_by_label('kind').select_option('plain')
    until(lambda: python('a.values["kind"]') == 'plain')


def test_click_and_arrows_choose_the_place(page, python):
    frame, box = page.a.locator('.mnx-frame'), page.a.locator('img').bounding_box()
    page.mouse.click(box['x'] + box['width']*(30.5/60), box['y'] + box['height']*(10.5/40))
    until(lambda: python('tuple(a.values["at"])') == (10, 30) and color(page.a, 10, 30) == [255, 0, 0])
    mark = page.a.locator('.mnx-mark').bounding_box()
    assert abs(mark['x'] + mark['width']/2 - box['x'] - box['width']*30.5/60) < 1.5
    frame.focus()
    for key in ('ArrowDown', 'ArrowLeft', 'ArrowLeft', 'Shift+ArrowRight'): page.keyboard.press(key)
    until(lambda: python('tuple(a.values["at"])') == (11, 38))
    for _ in range(6): page.keyboard.press('Shift+ArrowUp')
    until(lambda: python('tuple(a.values["at"])') == (0, 38) and color(page.a, 0, 38) == [255, 0, 0])
    assert 'row 0, column 38' in page.a.inner_text()


def test_an_error_is_words_and_the_picture_stays(page, python):
    before, box = color(page.a, 20, 20), page.a.get_by_label('on', exact=True)
    box.focus()
    page.keyboard.press('Space')
    alert = page.a.get_by_role('alert')
    until(lambda: alert.is_visible())
    assert alert.inner_text() == 'No new picture. ValueError: on is <b>off</b>'
    assert color(page.a, 20, 20) == before
    page.keyboard.press('Space')
    until(lambda: not alert.is_visible() and not python('a.error'))


def test_start_values(page, python):
    page.a.get_by_role('button', name='Start values').click()
    until(lambda: python('[*a.values.values()] == [100, (3, 4), "plain", False]'))


watch = '''e => { const i = e.querySelector('img'); window.frames_ = 0; window.gaps = 0
    const look = () => { window.frames_++
        if (!i.complete || !i.naturalWidth || !i.clientHeight) window.gaps++
        if (window.frames_ < 4000) requestAnimationFrame(look) }; look() }'''


def test_a_slow_function_is_dragged_over_without_a_queue_or_a_gap(page, python):
    slider = page.b.get_by_label('n', exact=True)
    slider.scroll_into_view_if_needed()
    page.b.evaluate(watch)
    slider.focus()
    for _ in range(60): page.keyboard.press('ArrowRight')
    assert slider.input_value() == '60'
    until(lambda: python('seen[-1]') == 60)
    seen = python('list(seen)')
    assert seen == sorted(set(seen)) and seen[0] == 0 and 2 <= len(seen) < 20
    until(lambda: color(page.b, 9, 9) == [153]*3)
    assert page.evaluate('window.frames_') > 5 and page.evaluate('window.gaps') == 0
    assert slider.input_value() == '60'


def test_every_control_has_a_name_and_the_keyboard_reaches_it(page):
    page.a.scroll_into_view_if_needed()
    found = page.a.evaluate("""e => [...e.querySelectorAll('input, button, select, [tabindex]')]
        .map(x => x.getAttribute('aria-label') || x.labels?.[0]?.textContent || x.textContent)""")
    assert len(found) == 5 and all(found)
    page.a.locator('.mnx-frame').focus()
    for n in range(5):
        assert page.evaluate('getComputedStyle(document.activeElement).outlineWidth') == '2px'
        assert page.a.evaluate('e => e.contains(document.activeElement)')
        page.keyboard.press('Tab')


ratios = '''e => {
    const rgb = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m }
    const part = v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4
    const light = ([r, g, b]) => .2126*part(r) + .7152*part(g) + .0722*part(b)
    const words = '.mnx-label, .mnx-value, .mnx-place, .mnx-help, .mnx-button, .mnx-menu, th, td'
    return [...e.querySelectorAll(words)].map(x => {
        let under = x, back
        do back = rgb(getComputedStyle(under).backgroundColor)
        while (back[3] < 1 && (under = under.parentElement))
        const ink = rgb(getComputedStyle(x).color)
        const mixed = ink.slice(0, 3).map((v, n) => v*ink[3] + back[n]*(1 - ink[3]))
        const [a, b] = [light(mixed), light(back)].sort((p, q) => q - p)
        return (a + .05)/(b + .05) }) }'''


def test_contrast_and_a_quiet_console_in_both_themes(page):
    for theme in ('light', 'dark'):
        if theme == 'dark':
            change = "'apputils:change-theme', {theme: 'JupyterLab Dark'}"
            page.evaluate(f'window.jupyterapp.commands.execute({change})')
            until(lambda: page.evaluate("document.body.dataset.jpThemeLight === 'false'"))
            page.wait_for_timeout(500)
        found = page.a.evaluate(ratios)
        assert len(found) > 8 and min(found) >= 4.5, theme
    assert [w for w in page.said if not any(h in w for h in harmless)] == []
