"One JupyterLab and one Chromium for all tests that need them: a server on loopback, real keys, a real mouse."
import shutil

import live
import pytest


@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    "Address, token and folder of a JupyterLab that knows nothing of this user"
    from medseg_nb.core.run import cache_dir
    env = dict(MEDSEG_CACHE=str(cache_dir()), MEDSEG_PROFILE='tiny')
    with live.jupyter(tmp_path_factory.mktemp('lab'), **env) as lab: yield lab


@pytest.fixture(scope='session')
def chromium():
    "Debian's Chromium under Playwright"
    if not shutil.which('chromium'):
        pytest.fail('No chromium here: apt-get install chromium (or MEDSEG_NO_BROWSER=1 to skip).')
    with live.chromium() as browser: yield browser


def pytest_collection_modifyitems(items):
    "With several processes (-n): a file stays on one of them, and all that need the browser on the same"
    for item in items:
        group = 'browser' if 'chromium' in item.fixturenames else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
