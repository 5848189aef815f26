"Loaders: prepared once and in one way, every case once an epoch, and every batch knows whose it is."
import random
import warnings
from collections import Counter

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from oracles import shrink_line
from PIL import Image
from torch import nn

from medseg_nb.core import run
from medseg_nb.data.case import Case
from medseg_nb.data.loaders import CaseLoader, Prepared, dataloaders, normalize, prepare, resize, unite
from medseg_nb.data.phantom import phantom
from medseg_nb.data.volume import Volume

matplotlib.use('agg')
quick = settings(max_examples=50, deadline=None)
images = arrays(np.float32, (1, 9, 11), elements=st.floats(-1e4, 1e4, width=32))


def numbered(k, side=8, **meta):
    "A case whose image, mask and id all say k"
    image = np.zeros(side*side)
    image[k] = 1
    mask = np.full((1, side, side), k, 'uint8')
    return Case(str(k), Volume(image.reshape(mask.shape)), Volume(mask), meta)


many = [numbered(k) for k in range(40)]


@quick
@given(images)
def test_normalized_is_0_to_1_and_keeps_the_order(x):
    y = normalize(x).numpy()
    assert y.dtype == np.float32 and y.min() >= 0 and y.max() <= 1
    order = np.argsort(x.ravel(), kind='stable')
    assert (np.diff(y.ravel()[order]) >= 0).all()
    assert y.max() == (0 if x.min() == x.max() else 1)


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'float32', 'float64'])
def test_brightness_and_contrast_do_not_matter(dtype):
    x = np.random.default_rng(0).integers(0, 100, (2, 30, 30))
    a, b = normalize(x.astype(dtype)), normalize((2*x + 10).astype(dtype))
    assert torch.allclose(a, b, atol=1e-5) and a.std() > .2


def test_a_few_hot_pixels_do_not_matter():
    x = np.random.default_rng(0).normal(size=(1, 100, 100))
    hot = x.copy()
    hot[0, :3, :10] = 1e6
    assert (normalize(x)[:, 3:] - normalize(hot)[:, 3:]).abs().max() < .2
    assert normalize(hot).std() > .1


def test_channels_are_stretched_alone():
    x = np.random.default_rng(0).random((1, 20, 20))
    assert torch.allclose(normalize(np.concatenate([x, 1000*x]))[0], normalize(1000*x)[0], atol=1e-6)


def test_flat_and_nearly_empty_images():
    assert (normalize(np.full((1, 5, 5), 3.)) == 0).all()
    spot = np.zeros((1, 100, 100))
    spot[0, 50, 50] = 7
    assert normalize(spot)[0, 50, 50] == 1 and normalize(spot).sum() == 1


@quick
@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 1, width=32)), st.integers(1, 40))
def test_resize_against_the_slow_way(line, n):
    got = resize(torch.from_numpy(line)[None, None], (1, n))[0, 0].numpy()
    assert np.allclose(got, shrink_line(line.tolist(), n), atol=1e-5)


@pytest.mark.parametrize('size', [(128, 128), (300, 100), (224, 7), (1, 224)])
def test_resize_against_pillow(size):
    x = np.random.default_rng(0).random((1, 224, 200)).astype('float32')
    pillow = Image.fromarray(x[0]).resize(size[::-1], Image.BILINEAR)
    assert np.abs(np.array(pillow) - resize(torch.from_numpy(x), size)[0].numpy()).max() < 1e-5


def test_resize_in_three_dimensions_is_one_axis_after_the_other():
    x = torch.rand(2, 12, 10, 9)
    a = resize(resize(resize(x, (12, 10, 4)), (12, 17, 4)), (5, 17, 4))
    assert torch.allclose(resize(x, (5, 17, 4)), a, atol=1e-6)
    up = nn.functional.interpolate(x[None], (24, 20, 18), mode='trilinear', align_corners=False)[0]
    assert torch.allclose(resize(x, (24, 20, 18)), up, atol=1e-5)


@quick
@given(st.integers(1, 30), st.integers(1, 30))
def test_labels_take_the_voxel_under_their_center(old, n):
    got = resize(torch.arange(old)[None, None], (1, n), order=0)[0, 0].tolist()
    assert got == [int((i + .5)*old/n) for i in range(n)]


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_labels_are_never_invented(dtype):
    y = (torch.rand(1, 31, 17, 9) > .7).to(dtype)*(1 if dtype == torch.bool else 3)
    z = resize(y.to(dtype), (7, 23, 5), order=0)
    assert z.dtype == dtype and set(z.unique().tolist()) <= set(y.unique().tolist())


def test_prepare_shapes():
    v = Volume(np.random.default_rng(0).random((2, 20, 30)))
    assert prepare(v, 16).shape == (2, 16, 16) and prepare(v, (8, 12)).shape == (2, 8, 12)
    assert prepare(phantom(dims=3, size=12).image, 8).shape == (1, 8, 8, 8)
    for size in ((8, 8, 8), 0, (8, -1)):
        with pytest.raises(ValueError, match='wanted 2 sizes above 0'): prepare(v, size)


def quiet(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return dataloaders(*args, **kwargs)


def test_a_batch_is_what_prepare_says():
    cases = [phantom('organs', i, size=(40, 30)) for i in range(5)]
    dls = quiet(cases, cases[:1], size=(16, 24), bs=2, seed=3)
    by = {c.id: c for c in cases}
    for i, (x, y) in enumerate(dls.train):
        for image, label, name in zip(x.cpu(), y.cpu(), dls.train.batch_ids(i)):
            assert (image == prepare(by[name].image, (16, 24))).all()
            assert (label == resize(by[name].mask.data, (16, 24), order=0)[0]).all()


def epoch(dl): return [dl.batch_ids(i) for i, _ in enumerate(dl)]


@pytest.mark.parametrize('bs', [1, 7, 40, 64])
def test_every_case_once_an_epoch_under_its_own_name(bs):
    dl = dataloaders(many, [numbered(50)], size=8, bs=bs, seed=0).train
    seen, orders = Counter(), []
    for _ in range(2):
        for i, (x, y) in enumerate(dl):
            assert (x.dtype, x.shape[1:]) == (torch.float32, (1, 8, 8))
            assert (y.dtype, y.shape[1:]) == (torch.int64, (8, 8))
            ids = [int(k) for k in dl.batch_ids(i)]
            assert x.flatten(1).argmax(1).tolist() == y[:, 0, 0].tolist() == ids
            seen.update(ids)
        orders.append(dl.order)
    assert seen == Counter({k: 2 for k in range(40)}) and orders[0] != orders[1]
    assert len(dl) == -(-40//bs)


def test_valid_comes_in_order():
    for dls in (dataloaders(many[:3], many[3:], size=8, bs=8), quiet(many, many, size=8, bs=8)):
        ids = dls.valid.dataset.ids
        assert sum(epoch(dls.valid), []) == ids == sum(epoch(dls.valid), []) and ids[-1] == '39'


def test_the_seed_fixes_the_order():
    a, b, c = (dataloaders(many, [numbered(50)], size=8, bs=8, seed=s).train for s in (1, 1, 2))
    first = [epoch(a), epoch(a)]
    random.random(), torch.rand(3)
    assert [epoch(b), epoch(b)] == first and epoch(c) != first[0]
    orders = []
    for _ in range(2):
        run.seed(5)
        orders.append(epoch(dataloaders(many, [numbered(50)], size=8, bs=8).train))
    assert orders[0] == orders[1]


def test_an_epoch_can_be_taken_up_again():
    dl = dataloaders(many, [numbered(50)], size=8, bs=8, seed=1).train
    epoch(dl)
    state = dl.rng.getstate()
    two, three = epoch(dl), epoch(dl)
    other = dataloaders(many, [numbered(50)], size=8, bs=8, seed=99).train
    other.rng.setstate(state)
    assert [epoch(other), epoch(other)] == [two, three] and two != three


def test_nobody_looked_here():
    part = np.zeros((1, 8, 8), 'int16')
    part[0, :4] = -1
    cases = [Case('none', Volume(np.eye(8)[None])), Case('part', Volume(np.eye(8)[None]), Volume(part))]
    (_, none), (_, half) = Prepared(cases, 8)[0], Prepared(cases, 8)[1]
    assert none.dtype == torch.int64 and (none == -1).all()
    assert (half[:4] == -1).all() and (half[4:] == 0).all()


def test_a_patient_on_both_sides_is_said():
    a, b = numbered(1, patient='p'), numbered(2, patient='p')
    with pytest.warns(UserWarning, match="1 patients are both in train and in valid, such as 'p'"):
        dataloaders([a], [b], size=8)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dataloaders([a], [numbered(3)], size=8)


def test_refused_by_name():
    sick = Case('scan 7', Volume(np.array([[[1, np.nan], [np.inf, 2]]])))
    with pytest.raises(ValueError, match="Case 'scan 7': Got 2 voxels"):
        dataloaders([many[0], sick], many[1:2], size=8)
    two = Case('rgb', Volume(np.zeros((3, 8, 8))))
    with pytest.raises(ValueError, match=r"'rgb' has \(axes, channels\) = \(2, 3\), wanted \(2, 1\)"):
        Prepared([many[0], two], 8)
    with pytest.raises(ValueError, match=r"= \(3, 1\), wanted \(2, 1\)"):
        dataloaders([phantom(dims=3, size=8)], many[:1], size=8)
    with pytest.raises(ValueError, match='no cases'): dataloaders([], many[:1], size=8)


def test_three_dimensions():
    cases = [phantom('organs', i, 3, 16) for i in range(3)]
    x, y = dataloaders(cases[:2], cases[2:], dims=3, size=(8, 12, 10), bs=2).one_batch()
    assert x.shape == (2, 1, 8, 12, 10) and y.shape == (2, 8, 12, 10) and y.max() > 0


class Names(Callback):
    "Writes down whose batch each step saw"
    def __init__(self): self.seen = []
    def before_batch(self): self.seen.append((self.dl.batch_ids(self.iter), self.yb[0][:, 0, 0].tolist()))


def test_a_learner_takes_them():
    torch.manual_seed(0)
    dls = dataloaders(many, [numbered(50)], size=8, bs=16, seed=0)
    net = nn.Conv2d(1, 64, 3, padding=1)
    names = Names()
    learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss(ignore_index=-1), cbs=names)
    learn.logger = lambda row: None
    learn.fit(2, 1e-2)
    assert len(names.seen) == 2*(3 + 1) and all([int(i) for i in ids] == y for ids, y in names.seen)
    assert isinstance(dls.valid, CaseLoader) and learn.get_preds()[0].shape == (1, 64, 8, 8)


def set_of(c, keep, names):
    return Case(c.id, c.image, c.mask.new(keep(c.mask.data)), dict(classes=('background', *names)))


def test_unite():
    a, b, c = (phantom('organs', k, size=32) for k in range(3))
    liver = set_of(a, lambda y: (y == 1).byte(), ['liver'])
    full = set_of(b, lambda y: y, ['spleen', 'liver', 'kidney'])
    bare = Case('bare', c.image)
    (one, none), (two,) = unite([liver, bare], [full])
    names = 'background', 'liver', 'spleen', 'kidney'
    assert one.meta['classes'] == two.meta['classes'] == none.meta['classes'] == names
    assert none.mask is None and liver.mask.data.unique().tolist() == [0, 1]
    assert (one.mask.data == torch.where(a.mask.data == 1, 1, -1)).all()
    assert (two.mask.data == torch.tensor([0, 2, 1, 3])[b.mask.data.long()]).all()
    again, = unite([two])
    assert (again[0].mask.data == two.mask.data).all() and again[0].meta == two.meta


def test_unite_keeps_what_nobody_saw():
    y = torch.tensor([[-1, 0], [1, 2]], dtype=torch.int8)[None]
    c = Case('c', Volume(torch.zeros(1, 2, 2)), Volume(y), dict(classes=('background', 'a', 'b')))
    assert unite([c])[0][0].mask.data.tolist() == [[[-1, 0], [1, 2]]]


def test_unite_says_what_is_wrong():
    a, b = phantom('organs', 0, size=32), phantom('organs', 1, size=32)
    for classes in (None, 4):
        with pytest.raises(ValueError, match=f"'x' has classes {classes}; wanted names"):
            unite([Case('x', a.image, a.mask, {} if classes is None else dict(classes=classes))])
    parts = set_of(a, lambda y: (y == 1).byte(), ['a']), set_of(b, lambda y: (y == 2).byte(), ['b'])
    with pytest.warns(UserWarning, match='No case knows all of a, b'): unite(parts[:1], parts[1:])


def test_augment_is_for_training_only():
    def brighter(x, y): return x + 10, y
    dls = dataloaders(many, [numbered(50)], size=8, bs=8, seed=1, augment=brighter)
    plain = dataloaders(many, [numbered(50)], size=8, bs=8, seed=1)
    for (x, y), (a, b) in zip(dls.train, plain.train): assert torch.equal(x, a + 10) and torch.equal(y, b)
    assert epoch(dls.train) == epoch(plain.train) and dls.valid.one_batch()[0].max() == 1
    assert dls.train.new().one_batch()[0].min() == 10
    assert dls.train.new(shuffle=False).one_batch()[0].max() == 1


@pytest.mark.parametrize('dims', [2, 3])
def test_batches_are_drawn(dims):
    cases = [phantom('organs', k, dims, 16) for k in range(5)]
    cases[1] = Case('nobody', cases[1].image)
    dls = dataloaders(cases[:4], cases[4:], dims, 16, bs=4, seed=0)
    dls.show_batch(max_n=3)
    axes = plt.gcf().axes
    assert [a.get_title() for a in axes] == dls.train.batch_ids(0)[:3]
    x, y = dls.valid.one_batch()
    dls.valid.show_results((x, y), nn.functional.one_hot(y, 4).movedim(-1, 1).float())
    truth, pred = plt.gcf().axes
    shown = [a.images[1].get_array() for a in (truth, pred)]
    assert (shown[0] == shown[1]).all() and shown[0].count() > 0
    if dims == 3: assert shown[0].count() == (y[0] > 0).sum((0, 1)).max()
    plt.close('all')


def test_a_learner_shows_its_results():
    cases = [phantom('organs', k, size=16) for k in range(5)]
    dls = dataloaders(cases[:3], cases[3:], size=16, bs=2)
    net = nn.Conv2d(1, 4, 1)
    nn.init.zeros_(net.weight)
    net.bias.data = torch.tensor([0, 0, 9., 0])
    learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss())
    learn.show_results(max_n=2)
    for a in plt.gcf().axes[1::2]: assert (a.images[1].get_array() == 1).all()
    plt.close('all')
