"The viewer in a real JupyterLab: a server on loopback, headless Chromium, real keys and a real mouse."
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from jupyter_client import BlockingKernelClient

root = Path(__file__).parents[1]
unwanted = os.environ.get('MEDSEG_NO_BROWSER') == '1'
pytestmark = pytest.mark.skipif(unwanted, reason='MEDSEG_NO_BROWSER=1 asks for no browser')

flags = ('--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--no-first-run')

# Words of the console that are no fault of ours: exact patterns, each with its reason
harmless = ()

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


names = ['viewer.ipynb', *os.environ.get('MEDSEG_NOTEBOOK', 'nbs/13_labs/01_first_look.ipynb').split()]


def notebooks(folder):
    "Lay out what is opened: a tiny notebook with one viewer, and lab 01 or whatever MEDSEG_NOTEBOOK names"
    cells = [nbformat.v4.new_code_cell(c) for c in (first, second)]
    spec = dict(kernelspec=dict(name='python3', display_name='python3'))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), folder/names[0])
    for name in names[1:]: shutil.copy(root/name, folder)


def settings(folder):
    "No news, no questions"
    where = folder/'settings'/'@jupyterlab'/'apputils-extension'
    where.mkdir(parents=True)
    (where/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
    return folder/'settings'


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "Address, token and folder of a JupyterLab that knows nothing of this user"
    from medseg_nb.core.run import cache_dir
    home = tmp_path_factory.mktemp('lab')
    work = home/'work'
    work.mkdir()
    notebooks(work)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    env = {k: v for k, v in os.environ.items() if not k.startswith('JUPYTER')}
    env |= {f'JUPYTER_{d.upper()}_DIR': str(home/d) for d in ('config', 'data', 'runtime')}
    env |= dict(HOME=str(home), IPYTHONDIR=str(home/'ipython'), JUPYTER_TOKEN=token,
                MEDSEG_CACHE=str(cache_dir()), MEDSEG_PROFILE='tiny', PYTHONPATH=str(root))
    log = open(home/'server.log', 'w')
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root',
        '--ServerApp.ip=127.0.0.1', f'--ServerApp.port={port}', '--ServerApp.port_retries=0',
        f'--ServerApp.root_dir={work}', '--LabApp.expose_app_in_browser=True',
        f'--LabApp.user_settings_dir={settings(home)}', f'--LabApp.workspaces_dir={home/"workspaces"}'],
        env=env, stdout=log, stderr=log)
    address, until = f'http://127.0.0.1:{port}', time.time() + 60
    while True:
        try: urllib.request.urlopen(f'{address}/api?token={token}', timeout=2); break
        except OSError:
            if server.poll() is not None or time.time() > until:
                raise RuntimeError((home/'server.log').read_text()) from None
            time.sleep(.2)
    yield dict(address=address, token=token, home=home)
    server.terminate()
    server.wait(20)
    log.close()


@pytest.fixture(scope='module')
def chromium():
    "Debian's Chromium under Playwright"
    from playwright.sync_api import sync_playwright
    path = shutil.which('chromium')
    if not path: pytest.fail('No chromium here: apt-get install chromium (or MEDSEG_NO_BROWSER=1 to skip).')
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope='module', params=names, ids=[Path(n).stem for n in names])
def page(lab, chromium, request):
    "A notebook, opened and run; `viewer` is its first 3-D viewer, `said` holds the errors of the console"
    page = chromium.new_page(viewport=dict(width=1280, height=900))
    page.said, page.name = [], Path(request.param).name
    page.on('pageerror', lambda e: page.said.append(f'{e}'))
    page.on('console', lambda m: page.said.append(m.text) if m.type == 'error' else None)
    page.goto(f'{lab["address"]}/lab/tree/{page.name}?token={lab["token"]}&reset')
    page.get_by_text('| Idle').wait_for(timeout=90_000)
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    page.viewer = page.locator('.mnb-viewer:has(.mnb-caption)').first
    page.viewer.wait_for(timeout=240_000)
    page.viewer.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    yield page
    page.close()


@pytest.fixture(scope='module')
def kernel(lab, page):
    "Asks the notebook's kernel for the value of an expression about `v`, its first 3-D Viewer"
    with urllib.request.urlopen(f'{lab["address"]}/api/sessions?token={lab["token"]}') as reply:
        sessions = json.load(reply)
    number, = (s['kernel']['id'] for s in sessions if s['path'] == page.name)
    client = BlockingKernelClient(connection_file=str(lab['home']/'runtime'/f'kernel-{number}.json'))
    client.load_connection_file()
    client.start_channels()
    client.wait_for_ready(60)
    known = '__import__("ipywidgets").widgets.widget._instances.values()'
    solid = f'[o for o in {known} if type(o).__name__ == "Viewer" and len(o.index) == 3][0]'

    def ask(expression):
        reply = client.execute('', store_history=False, allow_stdin=False, reply=True, timeout=60,
                               user_expressions=dict(it=f'(lambda v: {expression})({solid})'))
        return eval(reply['content']['user_expressions']['it']['data']['text/plain'])
    yield ask
    client.stop_channels()


def until(check, seconds=15):
    "The first true value of `check()`"
    end = time.time() + seconds
    while not (value := check()):
        if time.time() > end: raise AssertionError(f'Nothing in {seconds} s')
        time.sleep(.1)
    return value


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
