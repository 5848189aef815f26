"Sampling: patches, slices, stacks and whole volumes are where they say, and come again from the same seed."
from collections import Counter

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg_nb.data.case import Case
from medseg_nb.data.loaders import CaseLoader, dataloaders, prepare, unite
from medseg_nb.data.phantom import phantom
from medseg_nb.data.sampling import Memory, Patches, Slices, Whole
from medseg_nb.data.store import store
from medseg_nb.data.volume import Volume

matplotlib.use('agg')
quick = settings(max_examples=25, deadline=None)


@pytest.fixture(scope='module')
def shelf(tmp_path_factory): return tmp_path_factory.mktemp('shelf')


def maze(shape, start=0, name='maze'):
    "Each voxel's brightness and label are its address, from `start` on"
    x = np.arange(start, start + np.prod(shape)).reshape(1, *shape).astype('int32')
    return Case(name, Volume(x), Volume(x))


def balls(n, start=0, shape=(20, 18, 12)): return [phantom('organs', start + k, 3, shape) for k in range(n)]


sizes = st.tuples(*[st.integers(1, 12)]*3)


@quick
@given(sizes, sizes, st.integers(0, 99), st.sampled_from([0, .5, 1]))
def test_a_patch_is_where_it_says(tmp_path_factory, shape, size, seed, share):
    s, = store([maze(shape)], folder=tmp_path_factory.mktemp('s'))
    cut, top = Patches([s], size, foreground=share, window=(0, 2000)), np.prod(shape)
    for i in range(4):
        item = cut.draw(i, seed)
        x, y = (t[0] for t in cut.collate([item]))
        assert x.shape == (1, *size) and (x[0][y >= 0]*2000 - y[y >= 0]).abs().max() < 1e-3
        assert (y >= 0).sum() == np.prod(np.minimum(shape, size)) and y.max() < top
        for a, n, p in zip(item[1], shape, size): assert 0 <= a <= n - p or a == (n - p)//2 and n < p


def test_each_place_is_as_likely(shelf):
    s, = store([Case('flat', Volume(np.zeros((1, 8, 6, 5))))], folder=shelf)
    cut = Patches([s], (3, 6, 4), per_case=6000)
    seen = Counter(tuple(cut.draw(i, 1)[1]) for i in range(6000))
    assert len(seen) == 6*1*2 and max(seen.values()) < 1.3*min(seen.values())


def test_the_share_of_foreground(shelf):
    y = np.zeros((40, 40, 40), 'uint8')
    y[20, 20, 20], y[:2, :20, :20] = 2, 1
    s, = store([Case('spot', Volume(np.zeros((1, 40, 40, 40))), Volume(y[None]))], folder=shelf)
    for share in (0, 1/3, 1):
        cut = Patches([s], 5, per_case=1500, foreground=share)
        centers = [cut.collate([cut.draw(i, 2)])[1][0, 2, 2, 2].item() for i in range(1500)]
        spot = np.mean([c == 2 for c in centers])
        assert abs(spot - share/2) < .04, (share, spot)
    near = Patches([s], 5, per_case=600, foreground=1)
    hits = Counter(bool((near.collate([near.draw(i, 3)])[1] == 1).any()) for i in range(600))
    assert hits[True] > 250


@pytest.mark.parametrize('mask', [None, np.zeros((1, 9, 9, 9), 'uint8'), np.full((1, 9, 9, 9), -1, 'int8')])
def test_no_foreground_is_no_trouble(shelf, mask):
    image = Volume(np.random.default_rng(0).random((1, 9, 9, 9)))
    s, = store([Case('none', image, mask if mask is None else Volume(mask))], folder=shelf)
    x, y = next(iter(CaseLoader(Patches([s], 4, foreground=1), bs=4, shuffle=True)))
    assert y.unique().tolist() == ([0] if mask is not None and mask.max() == 0 else [-1])
    got = Slices([s], 4, empty=.5) if mask is None else Slices([s], 4)
    assert len(got) == 9 and got[0][1].shape == (4, 4)


@pytest.mark.parametrize('shape', [(1, 8, 8), (8, 1, 8), (8, 8, 1), (1, 1, 1)])
def test_one_voxel_thick(shelf, shape):
    s, = store([maze(shape, name=str(shape))], folder=shelf)
    x, y = Patches([s], 4)[0]
    assert x.shape == (1, 4, 4, 4) and (y >= 0).sum() == np.prod(np.minimum(shape, 4))
    x, y = Slices([s], 4, neighbors=2)[0]
    assert x.shape == (5, 4, 4)
    assert Whole([s])[0][0].shape == (1, *shape)


def everything(dl):
    return [(x.numpy().tobytes(), y.numpy().tobytes(), dl.batch_ids(i)) for i, (x, y) in enumerate(dl)]


ways = (lambda s: Patches(s, 8)), (lambda s: Slices(s, 10, neighbors=1, empty=.3)), Whole


@pytest.mark.parametrize('make', ways)
def test_seeds_and_workers(shelf, make):
    stored = store(balls(5), folder=shelf)
    epochs = []
    for workers, seed in ((0, 1), (0, 1), (2, 1), (0, 2)):
        dl = CaseLoader(make(stored), bs=3, shuffle=True, num_workers=workers)
        dl.rng.seed(seed)
        epochs.append([everything(dl), everything(dl)])
    assert epochs[0] == epochs[1] == epochs[2] and epochs[0] != epochs[3] and epochs[0][0] != epochs[0][1]


def test_each_epoch_cuts_elsewhere(shelf):
    dl = CaseLoader(Patches(store(balls(1), folder=shelf), 8, per_case=1), bs=1, shuffle=True)
    assert len({str(everything(dl)) for _ in range(9)}) > 2


def test_an_epoch_can_be_taken_up_again(shelf):
    stored = store(balls(5), folder=shelf)
    dl, other = (CaseLoader(Patches(stored, 8), bs=3, shuffle=True) for _ in range(2))
    everything(dl)
    other.rng.setstate(dl.rng.getstate())
    assert everything(dl) == everything(other)


def test_validation_is_the_same_each_time(shelf):
    stored = store(balls(5), folder=shelf)
    dls = dataloaders(Patches(stored[:3], 8), Patches(stored[3:], 8), bs=3, seed=0)
    first = everything(dls.valid)
    everything(dls.train), everything(dls.valid.new(shuffle=True))
    assert everything(dls.valid) == first == everything(dls.valid.new())


def test_memory_is_not_taken_from_who_holds_it(shelf):
    dl = CaseLoader(Patches(store(balls(4), folder=shelf), 8), bs=2)
    once, kept = everything(dl), list(dl)
    parts = [x[0, 0, 1:] for x, _ in kept]
    copies = [(x.clone(), y.clone()) for x, y in kept]
    assert [(x.numpy().tobytes(), y.numpy().tobytes()) for x, y in kept] == [batch[:2] for batch in once]
    part_copies = [p.clone() for p in parts]
    kept_again = list(dl)
    for (x, y), (a, b) in zip(kept, copies): assert torch.equal(x, a) and torch.equal(y, b)
    del kept, kept_again, x, y
    for _ in range(3): list(dl)
    assert all(torch.equal(p, c) for p, c in zip(parts, part_copies)) and everything(dl) == once
    memory = Memory()
    places = set()
    for _ in range(20): places.add(memory((2, 50), 'float32').data_ptr())
    assert len(places) <= 2 and len(memory.arrays) <= 6


def test_ids_and_patients(shelf):
    cases = [Case(f'c{k}', c.image, c.mask, dict(patient=f'p{k//2}')) for k, c in enumerate(balls(4))]
    stored = store(cases, folder=shelf)
    for data in (Patches(stored, 8, per_case=3), Slices(stored, 8), Whole(stored)):
        dl = CaseLoader(data, bs=4, shuffle=True)
        for i, _ in enumerate(dl):
            assert dl.batch_ids(i) == [data.items[j].id for j in list(dl.order)[4*i:4*i + 4]]
        with pytest.warns(UserWarning, match="1 patients are both in train and in valid, such as 'p1'"):
            dataloaders(Slices(stored[:3], 8), type(data)(stored[3:], *(() if type(data) is Whole else (8,))))


@pytest.mark.parametrize('axis', [0, 1, 2, -1])
@pytest.mark.parametrize('neighbors', [0, 1, 3])
def test_slices_against_the_slow_way(shelf, axis, neighbors):
    shape = (5, 6, 7)
    s, = store([maze(shape, 1)], folder=shelf)
    v = maze(shape, 1).image.data[0].movedim(axis, 0)
    got = Slices([s], v.shape[1:], axis, neighbors, window=(0, 1000))
    assert len(got) == len(v)
    for k in range(len(v)):
        x, y = got[k]
        want = torch.stack([v[min(max(k + d, 0), len(v) - 1)] for d in range(-neighbors, neighbors + 1)])
        assert (y == v[k]).all() and (x*1000 - want).abs().max() < 1e-3


def test_stacks_of_two_modalities(shelf):
    a = maze((4, 5, 6)).image.data
    s, = store([Case('two', Volume(torch.cat([a, a + 200])))], folder=shelf)
    x, _ = Slices([s], (4, 5), neighbors=1, window=(0, 1000))[2]
    want = torch.stack([a[0, ..., k] + 200*c for c in (0, 1) for k in (1, 2, 3)])
    assert (x*1000 - want).abs().max() < 1e-3


@pytest.mark.parametrize('empty', [None, 0, .25, .5, .99])
def test_empty_slices(shelf, empty):
    stored = store(balls(3, shape=(20, 18, 30)), folder=shelf)
    full = sum(int(s.tensors['any.2'].sum()) for s in stored)
    bare = 90 - full
    data = Slices(stored, 12, empty=empty)
    n = bare if empty is None else min(bare, round(full*empty/(1 - empty)))
    def shown(seed):
        out = Counter()
        for i in range(len(data)):
            case, k = data.draw(i, seed)
            assert case.id == data.ids[i]
            out[bool(case.tensors['any.2'][k])] += 1
        return out
    assert shown(1) == Counter({True: full, False: n}) - Counter() and len(data) == full + n
    drawn = [[data.draw(i, seed)[1] for i in range(len(data))] for seed in (1, 2)]
    assert (drawn[0] != drawn[1]) == (empty not in (None, 0))


def test_nothing_but_empty_slices(shelf):
    nothing = np.zeros((1, 4, 5, 6), 'uint8')
    s, = store([Case('bare', Volume(nothing), Volume(nothing))], folder=shelf)
    assert len(Slices([s], 4)) == 6
    with pytest.raises(ValueError, match='No slice has foreground'): Slices([s], 4, empty=.5)


def test_refused(shelf):
    a, = store(balls(1), folder=shelf)
    rgb, = store([Case('rgb', Volume(np.zeros((3, 8, 8, 8))))], folder=shelf)
    flat, = store([phantom(size=16)], folder=shelf)
    for other in (rgb, flat):
        with pytest.raises(ValueError, match=rf"Case '{other.id}' has \(axes, channels\) .*wanted \(3, 1\)"):
            Patches([a, other], 8)
    with pytest.raises(TypeError, match='is a Case; wanted one from store'): Patches(balls(1), 8)
    with pytest.raises(ValueError, match='no cases'): Patches([], 8)
    for size in (0, (8, 8), (8, 8, -1)):
        with pytest.raises(ValueError, match='wanted 3 sizes above 0'): Patches([a], size)
    for share in (-.1, 1.1):
        with pytest.raises(ValueError, match='wanted 0 to 1'): Patches([a], 8, foreground=share)
    for share in (-.1, 1):
        with pytest.raises(ValueError, match='wanted a share'): Slices([a], 8, empty=share)
    with pytest.raises(ValueError, match='wanted low < high'): Patches([a], 8, window=(5, 5))
    with pytest.raises(ValueError, match='slices need 3'): Slices([flat], 8)
    two = store([*balls(1), *balls(1, 7, (8, 9, 10))], folder=shelf)
    with pytest.raises(ValueError, match='use bs=1'): next(iter(CaseLoader(Whole(two), bs=2)))


def test_patches_of_pictures(shelf):
    stored = store([phantom('organs', k, size=(30, 20)) for k in range(3)], folder=shelf)
    x, y = dataloaders(Patches(stored[:2], 16), Patches(stored[2:], 16), bs=8).one_batch()
    assert x.shape == (8, 1, 16, 16) and y.shape == (8, 16, 16)


def test_stored_cases_as_whole_images(shelf):
    cases = balls(3)
    stored = store(cases, folder=shelf)
    a = dataloaders(cases[:2], cases[2:], dims=3, size=10, bs=2, seed=1).one_batch()
    b = dataloaders(stored[:2], stored[2:], dims=3, size=10, bs=2, seed=1).one_batch()
    assert (a[0] - b[0]).abs().max() < 1e-3 and torch.equal(a[1], b[1])
    seen = torch.stack([prepare(s.case().image, 10) for s in stored[:2]])
    assert torch.allclose(b[0].sort(0)[0], seen.sort(0)[0])


def test_united_in_the_store_as_in_memory(shelf):
    half = [Case(c.id, c.image, c.mask.new((c.mask.data == 2)*1), dict(classes=('background', 'b')))
            for c in balls(2)]
    full = [Case(c.id, c.image, c.mask, dict(classes=('background', 'a', 'b', 'c'))) for c in balls(2, 5)]
    memory = unite(half, full)
    disk = unite(store(half, folder=shelf), store(full, folder=shelf))
    for part, other in zip(memory, disk):
        for c, s in zip(part, other):
            assert torch.equal(c.mask.data[0].long(), s.read()[1]) and c.meta == s.meta
    assert memory[0][0].mask.data.unique().tolist() == [-1, 1]
    assert memory[1][0].meta['classes'] == ('background', 'b', 'a', 'c')
    x, y = Patches(disk[0], 40)[0]
    assert set(y.unique().tolist()) == {-1, 1}


class Names(Callback):
    def __init__(self): self.seen = []
    def before_batch(self):
        if hasattr(self.dl, 'batch_ids'): self.seen.append(self.dl.batch_ids(self.iter))


def test_a_learner_learns_from_patches_and_shows_them(shelf):
    stored = store(balls(4), folder=shelf)
    dls = dataloaders(Patches(stored[:3], 8), Patches(stored[3:], 8), bs=4, seed=0)
    names = Names()
    torch.manual_seed(0)
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    learn = Learner(dls, nn.Conv3d(1, 4, 3, padding=1), loss_func=loss, cbs=names)
    learn.logger = lambda row: None
    learn.fit(1, 1e-2)
    assert [len(n) for n in names.seen] == [4]*4 and set(sum(names.seen, [])) == {s.id for s in stored}
    learn.show_results(max_n=2)
    assert len(plt.gcf().axes) == 4
    plt.close('all')
