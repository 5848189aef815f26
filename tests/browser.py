"Notebooks in a real JupyterLab under headless Chromium: what the tests that need one share (see conftest)."
import json
import os
import time
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest
from jupyter_client import BlockingKernelClient

unwanted = pytest.mark.skipif(os.environ.get('MEDSEG_NO_BROWSER') == '1',
                              reason='MEDSEG_NO_BROWSER=1 asks for no browser')

# Words of the console that are no fault of ours: exact patterns, each with its reason
harmless = ()


def lay(lab, name, *cells):
    "Write a notebook of code cells into the folder that JupyterLab shows"
    spec = dict(kernelspec=dict(name='python3', display_name='python3'))
    cells = [nbformat.v4.new_code_cell(c) for c in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), lab['home']/'work'/name)


def opened(lab, chromium, name):
    "A page on which all cells of a notebook run; `said` holds the errors of the console"
    page = chromium.new_page(viewport=dict(width=1280, height=900))
    page.said, page.name = [], name
    page.on('pageerror', lambda e: page.said.append(f'{e}'))
    page.on('console', lambda m: page.said.append(m.text) if m.type == 'error' else None)
    page.goto(f'{lab["address"]}/lab/tree/{page.name}?token={lab["token"]}&reset')
    page.get_by_text('| Idle').wait_for(timeout=90_000)
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    return page


@contextmanager
def asking(lab, page):
    "Asks the notebook's kernel for the value of an expression"
    with urllib.request.urlopen(f'{lab["address"]}/api/sessions?token={lab["token"]}') as reply:
        sessions = json.load(reply)
    number, = (s['kernel']['id'] for s in sessions if s['path'] == page.name)
    client = BlockingKernelClient(connection_file=str(lab['home']/'runtime'/f'kernel-{number}.json'))
    client.load_connection_file()
    client.start_channels()
    client.wait_for_ready(60)

    def ask(expression):
        reply = client.execute('', store_history=False, allow_stdin=False, reply=True, timeout=60,
                               user_expressions=dict(it=expression))
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
