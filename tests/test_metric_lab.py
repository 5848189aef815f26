"The Metric Lab: masks broken by hand, known answers, and what is left where no page listens."
import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from medseg_nb.data.case import Case
from medseg_nb.data.phantom import phantom
from medseg_nb.data.volume import Volume
from medseg_nb.metrics import lab as module
from medseg_nb.metrics.lab import SCORES, WAYS, Breaker, MetricLab, moved, scores


def box(shape=(24, 30), low=6, high=18, spacing=(1., 1.)):
    "A square or a cube on a grid"
    m = np.zeros(shape, 'uint8')
    m[(slice(low, high),)*len(shape)] = 1
    return Volume(torch.from_numpy(m[None]), np.diag([*spacing, 1.]))


def on(v): return set(map(tuple, np.argwhere(v.numpy()[0])))


@pytest.mark.parametrize('truth', [box(), box((20, 22, 24), spacing=(1., 2., 3.))], ids=['2d', '3d'])
def test_each_way_by_loops(truth):
    b, mm = Breaker(truth), np.array(truth.spacing)
    inside, every = on(truth), set(np.ndindex(*truth.shape))
    far = lambda i, j: np.linalg.norm((np.array(i) - j)*mm)
    assert on(b()) == inside
    assert on(b(hole=3)) == {i for i in inside if far(i, b.deep) > 3}
    assert on(b(split=4)) == {i for i in inside if abs(i[0] - b.deep[0])*mm[0] > 2}
    assert on(b(speck=5)) == inside | {i for i in every if far(i, b.far) <= 5}
    steps = np.zeros(len(mm), int)
    steps[:2] = np.round((3/mm[0], -4/mm[1]))
    assert on(b(down=3, right=-4)) == {tuple(np.array(i) + steps) for i in inside} & every
    assert on(b(grow=2)) > inside > on(b(grow=-2))
    for mm_out in (2, -2): assert on(b(grow=mm_out)) == {i for i in every if b.depth[i] <= mm_out}


@pytest.mark.parametrize('steps', [(9, 0), (-9, 3), (2, -2), (24, 0), (99, -99)])
def test_what_leaves_the_image_is_lost(steps):
    rng = np.random.default_rng(0)
    mask = rng.random((24, 30)) < .5
    want = np.zeros_like(mask)
    for i, j in np.argwhere(mask):
        i, j = i + steps[0], j + steps[1]
        if 0 <= i < 24 and 0 <= j < 30: want[i, j] = True
    np.testing.assert_array_equal(moved(mask, steps), want)


def test_scores_of_a_known_move():
    truth = box(spacing=(2., 3.))
    b = Breaker(truth)
    t = scores(b(right=3.), truth, tolerance=2.).set_index(['score', 'definition']).value
    assert t['Dice', 'voxels'] == pytest.approx(11/12)
    assert t['HD', 'farthest'] == pytest.approx(3.) and t['volume error', 'relative'] == 0
    assert len(t) == len(SCORES) and t.index.is_unique
    perfect = scores(b(), truth)
    assert (perfect.value == perfect.perfect).all()


def test_the_lab_measures_what_it_shows():
    case = phantom('organs', 0, 2, 48)
    lab = MetricLab(case, grow=-1.)
    np.testing.assert_array_equal(lab.pred.numpy(), lab.breaker(grow=-1.).numpy())
    before = lab.table
    lab.change(right=4)
    assert lab.ways == dict.fromkeys(WAYS, 0.) | dict(grow=-1., right=4.)
    assert lab.table.value.iloc[0] < before.value.iloc[0]
    assert 'grow=-1, right=4' in repr(lab)


@pytest.mark.parametrize('dims', [2, 3])
def test_a_picture_stays_where_no_page_listens(dims):
    lab = MetricLab(phantom('organs', 0, dims, 32), right=3)
    bundle = lab._repr_mimebundle_()
    assert set(bundle) == {'text/plain', 'image/png'}
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(bundle['image/png']))).convert('RGB'))
    assert shown.shape[1] > 500 and len(np.unique(shown.reshape(-1, 3), axis=0)) > 20
    empty = MetricLab(phantom('organs', 0, dims, 32))
    assert bundle['image/png'] != empty._repr_mimebundle_()['image/png']


def test_sliders_and_python_see_the_same(monkeypatch):
    monkeypatch.setattr(module, 'front_end', lambda: True)
    lab = MetricLab(phantom('organs', 0, 2, 32), right=3)
    assert 'application/vnd.jupyter.widget-view+json' in lab._repr_mimebundle_()
    left, table = lab.live().children
    image, _, *sliders, button = left.children
    assert [s.value for s in sliders] == list(lab.ways.values())
    was, said = image.value, table.value
    sliders[list(WAYS).index('right')].value = 6
    assert lab.ways['right'] == 6 and image.value != was and table.value != said
    assert f"{lab.table.value[0]:.3f}" in table.value
    button.click()
    assert not any(lab.ways.values()) and lab.table.value[0] == 1


def test_undefined_is_said():
    lab = MetricLab(Case('x', box(), box()), right=999)
    html = module.table_html(lab.table)
    assert html.count('undefined') == int(lab.table.value.isna().sum()) > 3


@pytest.mark.parametrize('call, words', [
    (lambda: Breaker(box(), label=3), r'No voxel has label 3; there are \[0, 1\]'),
    (lambda: Breaker(box(low=0, high=30)), 'Label 1 fills the image'),
    (lambda: MetricLab(box()), 'There is no truth to break'),
    (lambda: MetricLab(box(), box((9, 9), 2, 5)), 'truth is not on the grid'),
    (lambda: MetricLab(box(), box()).change(up=3), "no way 'up' to be wrong"),
])
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words): call()
