"A network opened in a real JupyterLab: click the film, click the map, choose layers and channels by keys."
import pytest
from browser import asking, harmless, lay, opened, until, unwanted

pytestmark = unwanted

first = '''import torch
from torch import nn
from medseg_nb.cnn.inside import inside
torch.manual_seed(0)
half = dict(stride=2, padding=1)
net = nn.Sequential(nn.Conv2d(1, 6, 3, **half), nn.ReLU(), nn.Conv2d(6, 20, 3, **half))
e = inside(net, torch.rand(1, 1, 48, 64), layer='0')
e'''
second = '''solid = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.MaxPool3d(2))
v = inside(solid, torch.rand(1, 1, 12, 10, 8), layer='1')
v'''


@pytest.fixture(scope='module')
def page(lab, chromium):
    "inside.ipynb, opened and run; `e` and `v` are its explorers"
    lay(lab, 'inside.ipynb', first, second)
    page = opened(lab, chromium, 'inside.ipynb')
    until(lambda: page.locator('.mnx[data-drawn]').count() == 2, 240)
    page.e, page.v = page.locator('.mnx').nth(0), page.locator('.mnx').nth(1)
    yield page
    page.close()


@pytest.fixture(scope='module')
def python(lab, page):
    "Asks the kernel of inside.ipynb"
    with asking(lab, page) as ask: yield ask


def click(page, box, x, y):
    "Click the picture at a share of its width and height"
    box.scroll_into_view_if_needed()
    image = box.locator('img').bounding_box()
    page.mouse.click(image['x'] + x*image['width'], image['y'] + y*image['height'])


cell = "e.draw.__closure__[list(e.draw.__code__.co_freevars).index('opened')].cell_contents.cell(%r)"


def test_a_click_on_the_image_or_the_map_moves_the_cell(page, python):
    was = page.e.locator('img').get_attribute('src')
    click(page, page.e, .01 + .475*.9, .05 + .55*.3)
    until(lambda: python(cell % '0')[1] in (28, 29))
    until(lambda: page.e.locator('img').get_attribute('src') != was)
    click(page, page.e, .515 + .475*.1, .05 + .55*.5)
    until(lambda: python(cell % '0')[1] == 3)


def test_layer_and_channel_by_keys(page, python):
    page.e.get_by_label('layer').select_option(label='2')
    until(lambda: python('e.values["layer"]') == '2')
    until(lambda: '2 (Conv2d)' in page.e.inner_text())
    assert abs(python(cell % '2')[1] - 1.5) <= 1
    page.e.get_by_label('channel').focus()
    for _ in range(18): page.keyboard.press('ArrowRight')
    until(lambda: python('e.values["channel"]') == 18 and 'value' in page.e.inner_text())
    assert not python('e.error')


def test_a_slice_of_a_volume(page, python):
    page.v.get_by_label('slice').focus()
    was = page.v.locator('img').get_attribute('src')
    page.keyboard.press('ArrowRight')
    until(lambda: python('v.values["slice"]') == 5 and page.v.locator('img').get_attribute('src') != was)


def test_the_console_is_quiet(page):
    assert [words for words in page.said if words not in harmless] == []
