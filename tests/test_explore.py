"Sliders to a picture: every door checked, errors told, the latest wish drawn, a picture left behind."
import base64
import inspect
import io
import json
import threading
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import traitlets
from hypothesis import assume, example, given
from hypothesis import strategies as st
from IPython.display import HTML
from nbclient import NotebookClient
from PIL import Image

from medseg_nb.core import explore as module
from medseg_nb.core.control import Box, Menu, Place, Point, Slider, control, controls_of
from medseg_nb.core.explore import Explorer, as_image, drawn, explore, under

live = 'application/vnd.jupyter.widget-view+json'
number = st.floats(-1e6, 1e6) | st.integers(-10**6, 10**6)


def gray(n=3): return np.full((8, 6), n/20)


# ---------------------------------------------------------------- controls

@given(st.tuples(number, number).map(sorted), st.none() | st.floats(1e-3, 1e6), st.floats(0, 1))
@example((0., 1e-9), None, 1.)
@example((0, 3), None, .5)
@example((-.05, .95), .1, .5)
def test_a_slider_starts_inside_and_takes_its_own_values(span, step, part):
    low, high = span
    assume(high - low > 1e-9*max(abs(low), abs(high)) and (step is None or step <= high - low))
    s = Slider(low, high, step)
    assert s.low <= s.start <= s.high and type(s.start) is type(s.low) and 0 < s.step <= high - low
    value = s.low + part*(s.high - s.low)
    value = int(value) if s.whole else min(value, s.high)
    assert s.read(json.loads(json.dumps(s.tell(s.check(value))))) == value
    assert (s.read(low - 1), s.read(high + 1)) == (s.low, s.high)
    json.dumps(s.about())


@given(st.floats(1e-6, 1e6))
def test_steps_are_nice_and_about_fifty(span):
    step = Slider(0., span).step
    assert 49 <= span/step <= 126 and f'{step:.0e}'[0] in '125' and float(f'{step:.0e}') == step


@pytest.mark.parametrize('low, high, step', [
    (1, 1, None), (2, 1, None), (0., float('nan'), None), (0, 9, 0), (0., float('inf'), None), (0, 9, 10),
    (0, 9, -1), ('a', 'b', None)])
def test_ranges_that_are_none(low, high, step):
    with pytest.raises(ValueError, match='wanted'): Slider(low, high, step)


@pytest.mark.parametrize('made, value', [
    (Slider(0, 9), 9.5), (Slider(0, 9), 10), (Slider(0, 9), True), (Slider(0, 9), '3'), (Slider(0, 9), None),
    (Slider(0., 9.), float('nan')), (Slider(0., 9.), -1e-9), (Slider(0., 9.), 3j), (Menu(['a', 2]), 'b'),
    (Menu(['a', 2]), np.zeros(2)), (Menu(['a', 2]), ['a']), (Box(True), 1), (Box(True), 'on'),
    (Place(Point(1, 1)), (1, -1)), (Place(Point(1, 1)), (1.5, 2)), (Place(Point(1, 1)), (1, 2, 3)),
    (Place(Point(1, 1)), 'ab'), (Place(Point(1, 1)), 7), (Place(Point(1, 1)), None)])
def test_values_that_are_refused(made, value):
    with pytest.raises(ValueError, match='got .*wanted'): made.check(value)


def test_digits_say_the_step():
    ranges = (0, 9), (0., 1.), (0., 1., .25), (.125, 1, .5), (0., 400., 5)
    assert [Slider(*r).about()['digits'] for r in ranges] == [0, 2, 2, 3, 0]


@pytest.mark.parametrize('spec', ['lots', (1,), (1, 2, 3, 4), [], ['a', 'a'], [1, '1'], [gray], None, {1: 2}])
def test_short_forms_that_mean_nothing(spec):
    with pytest.raises(ValueError, match='wanted'): control(spec)


def test_names_and_starts_come_from_the_function():
    def f(a, b=2, *, c='y', **more): ...
    made = controls_of(f, dict(a=(0., 1.), b=(0, 9), c=['x', 'y'], d=True, e=Point(3, 4)))
    assert [c.start for c in made.values()] == [.5, 2, 'y', True, Point(3, 4)]


@pytest.mark.parametrize('specs, words', [
    (dict(m=(0, 9)), r"Got controls for \['m'\]; draw takes \['n'\]"), ({}, 'Got controls for'),
    (dict(n=(4, 9)), 'n: got 3; wanted a whole number from 4 to 9'), (dict(n='x'), "n: got 'x'"),
    (dict(n=(0., 1.)), 'n: got 3'), (dict(n=(9, 0)), 'n: Got the range')])
def test_controls_that_do_not_fit(specs, words):
    with pytest.raises(ValueError, match=words): explore(gray, **specs)


def test_an_argument_without_default_needs_a_control():
    with pytest.raises(ValueError, match='needs one'): explore(lambda n, m: gray(), n=(0, 9))


def test_one_place_at_most():
    with pytest.raises(ValueError, match='several places'):
        explore(lambda a, b: gray(), a=Point(0, 0), b=Point(1, 1))


# ---------------------------------------------------------------- pictures

@pytest.mark.parametrize('x, corner', [
    (np.array([[0, 255]], 'uint8'), 0), (np.array([[.2, 1.]]), 51), (np.array([[True, False]]), 255),
    (np.array([[7, 8]], 'int64'), 7), (np.full((1, 2, 3), .6), 153), (np.zeros((1, 2, 4)), 255),
    (torch.tensor([[.2, 1.]]), 51), (Image.new('L', (2, 1), 9), 9), (Image.new('1', (2, 1), 1), 255),
    (Image.new('RGBA', (2, 1)), 255)], ids=lambda x: f'{type(x).__name__}')
def test_any_picture_becomes_rgb(x, corner):
    out = as_image(x)
    assert out.mode == 'RGB' and out.size == (2, 1) and out.getpixel((0, 0)) == (corner,)*3


def test_figures_keep_their_size_and_are_closed():
    opened = plt.get_fignums()

    def bad():
        plt.figure()
        raise RuntimeError('no')
    picture, words = drawn(lambda: (plt.figure(figsize=(3, 2), dpi=50), 'said'), {})
    with pytest.raises(RuntimeError): drawn(bad, {})
    assert picture.size == (150, 100) and words == 'said' and plt.get_fignums() == opened


@pytest.mark.parametrize('x, words', [
    (None, 'draw returned NoneType'), ('a.png', 'returned str'), (np.zeros((2, 2, 5)), r'\(2, 2, 5\)'),
    (np.zeros((0, 4)), 'wanted'), (np.zeros(4), 'wanted'), (np.array([[2.]]), 'from 2 to 2; wanted 0 to 1'),
    (np.array([[np.nan]]), 'nan'), (np.array([[-1]]), 'from -1'), (np.array([['a']]), 'wanted'),
    (np.array([[1j]]), 'wanted'), ((gray(), 'a', 'b'), 'returned tuple'),
    (np.zeros((1, 2**24 + 1), 'uint8'), '16777216 at most')])
def test_what_is_no_picture(x, words):
    with pytest.raises((TypeError, ValueError), match=words): drawn(lambda: x, {})


@pytest.mark.parametrize('layout', [None, 'constrained', 'tight'])
def test_under_a_pixel_lies_what_is_drawn_there(layout):
    fig, axs = plt.subplots(1, 2, figsize=(5, 4), dpi=60, layout=layout)
    image = np.zeros((9, 7, 3), 'uint8')
    image[6, 2] = 255, 0, 0
    for ax in axs: ax.imshow(image)
    assert under(axs[0], Point(0, 0)) is None
    red = np.argwhere((np.asarray(as_image(fig)) == (255, 0, 0)).all(2))
    for ax, half in zip(axs, (red[red[:, 1] < 150], red[red[:, 1] > 150])):
        assert len(half) > 20
        found = np.array([under(ax, Point(*map(int, p))) for p in half[::len(half)//3]])
        assert np.abs(found - (2, 6)).max() < .6
    plt.close(fig)


def test_what_was_looked_up_does_not_move_in_the_picture():
    fig, ax = plt.subplots(figsize=(4, 4), dpi=72, layout='constrained')
    ax.imshow(np.zeros((256, 256)))
    under(ax, Point(100, 100))
    before = ax.bbox.bounds
    as_image(fig)
    assert ax.bbox.bounds == before
    plt.close(fig)


# ---------------------------------------------------------------- the explorer in Python

def test_values_are_merged_checked_and_read_only():
    def f(a=1, b=.5, at=None): return gray(a)
    e = explore(f, a=(0, 9), b=(0., 1.), at=Point(2, 3))
    e.values = dict(b=.25)
    assert dict(e.values) == dict(a=1, b=.25, at=Point(2, 3))
    e.values = dict(at=[7, 5])
    assert e.values['at'] == Point(7, 5) and isinstance(e.values['at'], Point)
    before, picture = e.values, e.picture
    for wrong, words in ((dict(c=1), "no control 'c'"), (dict(b=2), 'b: got 2'), (dict(at=(8, 0)), '8 rows')):
        with pytest.raises(traitlets.TraitError, match=words): e.values = wrong
    with pytest.raises(TypeError): e.values['a'] = 3
    assert e.values == before and e.picture is picture


def test_the_first_place_lies_in_the_first_picture():
    with pytest.raises(traitlets.TraitError, match='outside the picture of 8 rows and 6 columns'):
        explore(lambda at: gray(), at=Point(0, 6))


def test_equal_values_draw_once():
    seen = []
    e = explore(lambda n=3: (seen.append(n), gray())[1], n=(0, 9))
    e.values = dict(n=3)
    e.values = {}
    assert seen == [3]


def test_watchers_see_the_new_picture():
    e, seen = explore(gray, n=(0, 20)), []
    e.observe(lambda change: seen.append(change['new'].getpixel((0, 0))[0]), 'picture')
    e.values = dict(n=20)
    assert seen == [255]


def test_the_first_error_is_raised():
    with pytest.raises(ZeroDivisionError): explore(lambda n: 1/0, n=(0, 9))


def test_a_later_error_keeps_the_picture_and_says_why():
    def f(n=1): return gray(n) if n < 5 else 1/0
    e = explore(f, n=(0, 9))
    picture = e.picture
    with pytest.raises(ZeroDivisionError): e.values = dict(n=7)
    assert e.picture is picture and e.error == 'ZeroDivisionError: division by zero' and e.error in repr(e)
    assert e.values['n'] == 7
    with_words = e.still()
    e.values = dict(n=1)
    assert not e.error and e.still() != with_words


def test_never_two_drawings_and_the_latest_wins():
    seen, begun, going, most = [], threading.Event(), threading.Event(), []

    def f(n=0):
        most.append(1)
        seen.append(n)
        assert len(most) == 1
        if n == 1: begun.set() or going.wait(10)
        most.pop()
        return gray(n)
    e = explore(f, n=(0, 20))
    first = threading.Thread(target=lambda: setattr(e, 'values', dict(n=1)))
    first.start()
    assert begun.wait(10)
    for n in range(2, 20): e.values = dict(n=n)
    assert seen == [0, 1]
    going.set()
    first.join(10)
    assert seen == [0, 1, 19] and e.picture.getpixel((0, 0))[0] == round(255*19/20)


# ---------------------------------------------------------------- the page's messages

class Wire:
    "What the kernel would send"
    def __init__(self): self.comm_id, self.sent = 'x', []
    def on_msg(self, f): pass
    def close(self): pass
    def send(self, data=None, metadata=None, buffers=None):
        if data['method'] == 'custom':
            json.dumps(data['content'])
            self.sent.append((data['content'], buffers))


@pytest.fixture
def heard():
    "Makes an explorer whose messages are kept"
    def start(draw, **controls):
        e = explore(draw, **controls)
        e.comm = Wire()
        return e, e.comm.sent
    return start


def want(e, turn='p 1', **values): e.answer(e, dict(type='want', turn=turn, values=values), [])


def pixel(sent): return Image.open(io.BytesIO(sent[-1][1][0])).getpixel((0, 0))[0]


def test_ready_is_answered_with_everything(heard):
    def f(n=3, kind='b', at=None): return gray(n), 'a < b'
    e, sent = heard(f, n=(0, 20), kind=['a', 'b'], at=Point(1, 2))
    e.answer(e, dict(type='ready'), [])
    (said, _), = sent
    assert said['values'] == dict(n=3, kind=1, at=(1, 2)) and said['turn'] is None and said['size'] == (8, 6)
    assert [c['kind'] for c in said['controls']] == ['slider', 'menu', 'place']
    assert said['controls'][1]['choices'] == ['a', 'b'] and said['words'] == '<p>a &lt; b</p>'
    assert pixel(sent) == round(255*3/20)


def test_each_wish_gets_one_answer(heard):
    e, sent = heard(lambda n=3, kind='a': gray(n), n=(0, 20), kind=['a', 'b'])
    want(e, n=10)
    want(e, 'p 2', n=10)
    want(e, 'p 3', kind=1, n=999)
    assert [s['turn'] for s, _ in sent] == ['p 1', 'p 2', 'p 3']
    assert dict(e.values) == dict(n=20, kind='b') and pixel(sent) == 255


@pytest.mark.parametrize('values', [dict(m=1), dict(n='x'), dict(n=None), dict(kind=9), dict(at=[99, 0]),
                                    dict(at=3)])
def test_a_wish_that_makes_no_sense_is_answered_too(heard, values):
    e, sent = heard(lambda n=3, kind='a', at=None: gray(n), n=(0, 20), kind=['a', 'b'], at=Point(0, 0))
    before = e.values
    want(e, **values)
    assert len(sent) == 1 and sent[0][0]['turn'] == 'p 1' and sent[0][0]['error'] and e.values == before
    want(e, n=4)
    assert not sent[1][0]['error']


@pytest.mark.parametrize('error', [ValueError('five'), KeyboardInterrupt('five')])
def test_the_page_gets_words_and_the_last_picture(heard, error):
    def f(n=3):
        if n == 5: raise error
        return gray(n)
    e, sent = heard(f, n=(0, 20))
    want(e, n=5)
    assert sent[-1][0]['error'] == f'{type(error).__name__}: five' and pixel(sent) == round(255*3/20)
    assert sent[-1][0]['values'] == dict(n=5)
    want(e, n=6)
    assert sent[-1][0]['error'] == '' and pixel(sent) == round(255*6/20)


def test_python_tells_the_page(heard):
    e, sent = heard(gray, n=(0, 20))
    e.values = dict(n=20)
    assert len(sent) == 1 and sent[0][0]['turn'] is None and pixel(sent) == 255


@pytest.mark.parametrize('words, html', [
    (None, ''), ('<b>', '<p>&lt;b&gt;</p>'), (HTML('<b>x</b>'), '<b>x</b>'), (3, '<p>3</p>')])
def test_words(heard, words, html):
    e, sent = heard(lambda n: (gray(), words), n=(0, 9))
    e.tell()
    assert sent[0][0]['words'] == html


def test_tables_are_tables(heard):
    e, sent = heard(lambda n: (gray(), pd.DataFrame(dict(dice=[.25]))), n=(0, 9))
    e.tell()
    assert '<table' in sent[0][0]['words'] and '0.25' in sent[0][0]['words']


# ---------------------------------------------------------------- what stays

def test_only_a_picture_where_no_page_listens():
    e = explore(gray, n=(0, 20))
    bundle, _ = e._repr_mimebundle_()
    assert set(bundle) == {'text/plain', 'image/png'} and e.comm is None
    assert Image.open(io.BytesIO(base64.b64decode(bundle['image/png']))).width > 200


def test_picture_and_view_where_a_page_listens(monkeypatch):
    e = explore(gray, n=(0, 20))
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=True))
    monkeypatch.setattr(module, 'get_ipython', lambda: shell)
    bundle, _ = e._repr_mimebundle_()
    assert set(bundle) == {'text/plain', 'image/png', live} and bundle[live]['model_id'] == e.model_id


def test_the_still_says_values_words_and_place():
    def f(n=3, at=None): return gray(n), f'{n} is the number'
    e = explore(f, n=(0, 20), at=Point(2, 3))
    seen = {e.still()}
    for change in (dict(n=4), dict(at=Point(5, 5)), dict(n=20)):
        e.values = change
        seen.add(e.still())
    assert len(seen) == 4 and e.said == 'n 20, at row 5, column 5'
    tall = explore(lambda n: (gray(), pd.DataFrame(np.zeros((30, 12)))), n=(0, 9))
    w, h = Image.open(io.BytesIO(tall.still())).size
    assert w > 400 and h > 360 + 30*15


def test_papermill_leaves_a_picture_and_no_widget():
    cell = f'''import numpy as np
from medseg_nb.core.explore import explore
{inspect.getsource(gray)}
explore(gray, n=(0, 20))'''
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(nb, kernel_name='python3', timeout=120).execute()
    out, = nb.cells[0].outputs
    assert set(out.data) == {'text/plain', 'image/png'} and 'widgets' not in nb.metadata


def test_a_widget_is_an_explorer(): assert isinstance(explore(gray, n=(0, 9)), Explorer)
