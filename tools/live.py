"A JupyterLab that knows nothing of this user, and notebooks in it under headless Chromium."
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
from jupyter_client import BlockingKernelClient

root = Path(__file__).resolve().parents[1]
flags = ('--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--no-first-run')
# WebGL without a graphics card, for the widgets that need it
webgl = ('--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist')


def settings(folder):
    "No news, no questions"
    where = folder/'settings'/'@jupyterlab'/'apputils-extension'
    where.mkdir(parents=True)
    (where/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
    return folder/'settings'


@contextmanager
def jupyter(home, app='jupyterlab', **env):
    "Address, token and folder of a server on loopback that shows `home`/work; `env` is for its kernels"
    work = home/'work'
    work.mkdir()
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    token, kept = secrets.token_hex(16), {k: v for k, v in os.environ.items() if not k.startswith('JUPYTER')}
    env = kept | {f'JUPYTER_{d.upper()}_DIR': str(home/d) for d in ('config', 'data', 'runtime')} | dict(
        HOME=str(home), IPYTHONDIR=str(home/'ipython'), JUPYTER_TOKEN=token, PYTHONPATH=str(root)) | env
    name = 'LabApp' if app == 'jupyterlab' else 'JupyterNotebookApp'
    with open(home/'server.log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', app, '--no-browser', '--allow-root',
            '--ServerApp.ip=127.0.0.1', f'--ServerApp.port={port}', '--ServerApp.port_retries=0',
            f'--ServerApp.root_dir={work}', f'--{name}.expose_app_in_browser=True',
            f'--{name}.user_settings_dir={settings(home)}', f'--{name}.workspaces_dir={home/"workspaces"}'],
            env=env, stdout=log, stderr=log)
        address, until = f'http://127.0.0.1:{port}', time.time() + 60
        while True:
            try: urllib.request.urlopen(f'{address}/api?token={token}', timeout=2); break
            except OSError:
                if server.poll() is not None or time.time() > until:
                    raise RuntimeError((home/'server.log').read_text()) from None
                time.sleep(.2)
        try: yield dict(address=address, token=token, home=home)
        finally:
            server.terminate()
            server.wait(20)


def launched(kind, *more):
    "Debian's Chromium, with `more` flags"
    path = shutil.which('chromium')
    if not path: raise FileNotFoundError('No chromium here: apt-get install chromium.')
    return kind.launch(executable_path=path, args=[*flags, *more])


@contextmanager
def chromium(*more):
    "The same, under a Playwright of its own"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = launched(p.chromium, *more)
        yield browser
        browser.close()


def lay(lab, name, *cells):
    "Write a notebook of code cells into the folder that JupyterLab shows"
    spec = dict(kernelspec=dict(name='python3', display_name='python3'))
    cells = [nbformat.v4.new_code_cell(c) for c in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), lab['home']/'work'/name)


def visited(lab, chromium, name, levels=('error',), init='', **view):
    "A page that shows a notebook; `said` is what its console says at `levels`, `init` a script to start with"
    page = chromium.new_page(**dict(viewport=dict(width=1280, height=900)) | view)
    page.said, page.name = [], name
    if init: page.add_init_script(init)
    page.on('pageerror', lambda e: page.said.append(f'{e}'))
    page.on('console', lambda m: page.said.append(m.text) if m.type in levels else None)
    page.goto(f'{lab["address"]}/lab/tree/{page.name}?token={lab["token"]}&reset')
    page.get_by_text('| Idle').wait_for(timeout=90_000)
    return page


def opened(lab, chromium, name, **more):
    "The same, with all cells of the notebook started"
    page = visited(lab, chromium, name, **more)
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    return page


@contextmanager
def client_of(lab, page):
    "A client of the notebook's kernel"
    with urllib.request.urlopen(f'{lab["address"]}/api/sessions?token={lab["token"]}') as reply:
        sessions = json.load(reply)
    number, = (s['kernel']['id'] for s in sessions if s['path'] == page.name)
    client = BlockingKernelClient(connection_file=str(lab['home']/'runtime'/f'kernel-{number}.json'))
    client.load_connection_file()
    client.start_channels()
    client.wait_for_ready(60)
    yield client
    client.stop_channels()


@contextmanager
def asking(lab, page):
    "Asks the notebook's kernel for the value of an expression"
    with client_of(lab, page) as client:
        def ask(expression):
            reply = client.execute('', store_history=False, allow_stdin=False, reply=True, timeout=60,
                                   user_expressions=dict(it=expression))
            return eval(reply['content']['user_expressions']['it']['data']['text/plain'])
        yield ask


def until(check, seconds=15):
    "The first true value of `check()`"
    end = time.time() + seconds
    while not (value := check()):
        if time.time() > end: raise AssertionError(f'Nothing in {seconds} s')
        time.sleep(.1)
    return value
