"One JupyterLab and one Chromium for all tests that need them: a server on loopback, real keys, a real mouse."
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
flags = ('--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--no-first-run')


def settings(folder):
    "No news, no questions"
    where = folder/'settings'/'@jupyterlab'/'apputils-extension'
    where.mkdir(parents=True)
    (where/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
    return folder/'settings'


@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    "Address, token and folder of a JupyterLab that knows nothing of this user"
    from medseg_nb.core.run import cache_dir
    home = tmp_path_factory.mktemp('lab')
    work = home/'work'
    work.mkdir()
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


@pytest.fixture(scope='session')
def chromium():
    "Debian's Chromium under Playwright"
    from playwright.sync_api import sync_playwright
    path = shutil.which('chromium')
    if not path: pytest.fail('No chromium here: apt-get install chromium (or MEDSEG_NO_BROWSER=1 to skip).')
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()
