"Notebooks in a real JupyterLab under headless Chromium: what the tests that need one share (see conftest)."
import os

import pytest
from live import asking, lay, opened, until, visited  # noqa: F401

unwanted = pytest.mark.skipif(os.environ.get('MEDSEG_NO_BROWSER') == '1',
                              reason='MEDSEG_NO_BROWSER=1 asks for no browser')

# Words of the console that are no fault of ours: exact patterns, each with its reason
harmless = ()
