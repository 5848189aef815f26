"Leakage: each kind of tie planted and found, and none where there is none."
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from grids import often, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from medseg_nb.data.case import Case, split
from medseg_nb.data.leakage import _digest, _near, _spread, leaks, phash
from medseg_nb.data.sets import cases
from medseg_nb.data.volume import Volume


def scene(seed, size=(60, 72)):
    "A smooth picture unlike any other: noise blurred to the size of organs"
    noise = np.random.default_rng(seed).standard_normal(size)
    smooth = sum(s*ndimage.gaussian_filter(noise, s) for s in (3, 8))
    return (255*(smooth - smooth.min())/np.ptp(smooth)).astype(np.float32)


def case(id, array, **meta): return Case(id, Volume(np.asarray(array)[None]), meta=meta)


def apart(a, b): return (phash(Volume(np.asarray(a)[None])) != phash(Volume(np.asarray(b)[None]))).mean()


changes = {
    'float': lambda x, rng: x.astype(np.float64), 'gray levels': lambda x, rng: x.round().astype(np.uint8),
    'contrast': lambda x, rng: (x*.4 + 30).astype(np.float32), 'gamma': lambda x,
    rng: 255*(x/255)**rng.uniform(.5, 2),
    'noise': lambda x, rng: x + rng.normal(0, 6, x.shape), 'smaller': lambda x,
    rng: ndimage.zoom(x, .6, order=1),
    'larger': lambda x, rng: ndimage.zoom(x, 1.7, order=1), 'blur': lambda x,
    rng: ndimage.gaussian_filter(x, 1),
    'int16': lambda x, rng: (x*8 - 1000).astype(np.int16)}


@pytest.mark.parametrize('change', changes)
@pytest.mark.parametrize('dims', [2, 3])
def test_a_changed_copy_is_found(change, dims):
    rng = np.random.default_rng(0)
    size = {2: (120, 144), 3: (36, 44, 40)}[dims]
    for seed in range(4):
        x = scene(seed, size)
        train, test = [case('a', scene(seed + 50, size)), case('b', x)], [case('c', changes[change](x, rng))]
        found = leaks(train, test)
        assert [tuple(r) for r in found[['a', 'b', 'part_a', 'part_b']].to_numpy()] == [('b', 'c', 0, 1)]
        assert found.kind[0] == ('exact duplicate' if change == 'float' else 'near duplicate')


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seeds, st.floats(.2, 5), st.floats(-1e3, 1e3), st.floats(.6, 1.8))
def test_the_hash_keeps_contrast_and_gamma(seed, slope, offset, gamma):
    x = scene(seed, (32, 32)).astype(np.float64)/255
    assert apart(x, slope*x + offset) < .01
    assert apart(x, slope*x**gamma + offset) < .2
    assert apart(x, -x) > .98


@pytest.mark.parametrize('size,sd', [((120, 144), 1), ((120, 144), 5), ((36, 44, 40), 1)])
def test_air_full_of_noise_is_flat(size, sd):
    at = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing='ij')
    inside = sum(a**2 for a in at) < .6**2
    for seed in range(3):
        rng, x = np.random.default_rng(seed), np.where(inside, 255 + scene(seed, size), 0)
        twice = [x + rng.normal(0, sd, size) for _ in range(2)]
        assert apart(*twice) <= .125 and apart(twice[0], x) <= .125
        other = np.where(inside, 255 + scene(seed + 50, size), 0)
        assert apart(other, x) > .125 and list(leaks([case('a', twice[0])], [case('b', twice[1])]).kind) == [
            'near duplicate']


@pytest.mark.parametrize('most', [1, 3, 64])
def test_no_gray_takes_more_than_its_limit(most):
    noise = np.random.default_rng(0).normal(0, 5, (32, 32))
    flat = np.arange(1024).reshape(32, 32) < 850
    x = np.sort(np.where(flat, noise, np.linspace(0, 300, 1024).reshape(32, 32)).ravel()).reshape(32, 32)
    low, high = np.percentile(x, (2, 98))
    steepest = (np.diff(_spread(x, most).ravel())/np.diff(x.ravel())).max()*(high - low)/x.size
    assert steepest <= most*(1 + 1e-9) and steepest > min(most, 5)*.99


def test_grays_are_spread_evenly():
    x = np.arange(1024.).reshape(32, 32)**2
    even = np.sort(_spread(x, 64).ravel())
    assert abs(even - np.arange(1024)).max() < 90 and (np.diff(_spread(x).ravel()) >= 0).all()
    assert np.ptp(_spread(np.full((32, 32), 7.))) == 0


def test_the_hash_is_finite_whatever_the_image():
    x = np.random.default_rng(0).random((1, 40, 40)).astype(np.float32)
    for odd in (np.inf, -np.inf, np.nan, 3e38):
        y = x.copy()
        y[0, 3:6, 4:9] = odd
        assert phash(Volume(y)).shape == (255,)
    few = np.zeros((1, 64, 64))
    few[0, 40:44, 8:12] = 1
    assert phash(Volume(few)).any() and (phash(Volume(few)) == phash(Volume(few*1e-30))).mean() > .9


@often
@given(st.integers(0, 10**6), st.sampled_from([(40, 40), (24, 30, 20)]))
def test_strangers_are_strangers(seed, size):
    assert apart(scene(seed, size), scene(seed + 1, size)) > .2


def test_mirrored_hashes_differ_in_every_second_wave():
    x = scene(1, (64, 64))
    a, b = (np.insert(phash(Volume(v[None].copy())), 0, False).reshape(16, 16) for v in (x, x[:, ::-1]))
    assert (a != b).mean(0)[1::2].min() > .9 and (a != b).mean(0)[2::2].max() < .1


def test_every_kind_is_named():
    x = [scene(k) for k in range(6)]
    train = [case('a', x[0], patient='Ada'), case('b', x[1]), case('c', x[2], patient='Cem', slice=4),
             case('d', x[3])]
    test = [case('e', x[4], patient='Ada'), case('f', x[1].copy()), case('g', x[5], patient='Cem', slice=5),
            case('h', x[3]*.5), case('i', scene(9), patient='Cem', slice=7)]
    found = leaks(train, test)
    assert sorted(zip(found.kind, found.a, found.b)) == [
        ('exact duplicate', 'b', 'f'), ('near duplicate', 'd', 'h'), ('neighboring slices', 'c', 'g'),
        ('same patient', 'a', 'e'), ('same patient', 'c', 'g'), ('same patient', 'c', 'i')]
    assert set(found.part_a) == {0} and set(found.part_b) == {1} and list(found.columns) == [
        'kind', 'a', 'b', 'part_a', 'part_b', 'distance']
    assert found.set_index(['kind', 'a']).distance['exact duplicate', 'b'] == 0


def test_slices_of_two_volumes_of_one_patient_are_no_neighbors():
    a, b, c = (case(n, scene(k), patient='p', volume=v, slice=s) for k, (n, v, s) in
               enumerate((('a', 'mr', 1), ('b', 'ct', 2), ('c', 'mr', 2))))
    found = leaks([a], [b, c])
    assert sorted(zip(found.kind, found.b)) == [('neighboring slices', 'c'), ('same patient', 'b'),
                                                ('same patient', 'c')]


def test_one_part_is_searched_within_and_several_across():
    twins = [case('a', scene(1)), case('b', scene(1)), case('c', scene(2))]
    assert list(leaks(twins).kind) == ['exact duplicate'] and leaks(twins, [case('d', scene(3))]).empty
    parts = [[case(f'{p}', scene(7 if p != 1 else 8))] for p in range(4)]
    pairs = leaks(*parts)
    assert sorted(zip(pairs.part_a, pairs.part_b)) == [(0, 2), (0, 3), (2, 3)]
    assert leaks([], twins).empty and leaks([]).empty and leaks(twins, []).empty
    assert list(leaks([], []).columns) == list(pairs.columns)


def test_flat_and_thin_images_and_mixed_dimensions():
    flat, other = case('a', np.zeros((9, 9))), case('b', np.full((9, 9), 7))
    volume = case('c', np.zeros((9, 9, 1)), patient='a')
    found = leaks([flat], [other, volume])
    assert set(zip(found.kind, found.b)) == {('near duplicate', 'b'), ('same patient', 'c')}
    assert np.isnan(found.set_index('b').distance['c'])
    assert not phash(Volume(np.full((1, 4, 5), np.nan))).any()


def test_refusals():
    with pytest.raises(TypeError,
                       match=r'Volume; wanted lists of Cases'): leaks([Volume(torch.zeros(1, 2, 2))])
    with pytest.raises(TypeError, match='nothing'): leaks()


def test_a_digest_is_of_voxels():
    x = np.arange(12).reshape(1, 3, 4)
    same = [Volume(x.astype(t)) for t in (np.uint8, np.int32, np.float32, '>i2')]
    assert len({_digest(v) for v in same}) == 1
    assert len({_digest(v)
                for v in (same[0], same[0].flip(0), Volume(x.reshape(1, 4, 3)), Volume(x + 1))}) == 4
    assert _digest(Volume(x, np.diag([2, 2, 1]))) == _digest(same[0])


@often
@given(seeds, st.integers(1, 3), st.sampled_from([1, 7, 64, 1024]))
def test_near_like_two_loops(seed, parts, rows):
    rng = np.random.default_rng(seed)
    n, base = 40, rng.random((6, 63)) < .5
    bits = base[rng.integers(6, size=n)] ^ (rng.random((n, 63)) < .05)
    part = np.sort(rng.integers(parts, size=n))
    part -= part[0]
    want = [(i, j) for i in range(n) for j in range(n) if (bits[i] != bits[j]).mean() <= .1
            and (part[i] < part[j] if part.max() else i < j)]
    assert sorted(map(tuple, _near(bits, part, .1, rows).tolist())) == want


def test_chest_films_as_published():
    films = cases('chest')
    found = leaks(films)
    assert list(found.kind).count('exact duplicate') == 1 and 'near duplicate' not in set(found.kind)
    pair = found[found.kind == 'exact duplicate'].iloc[0]
    one, two = (next(c for c in films if c.id == i) for i in (pair.a, pair.b))
    assert torch.equal(one.image.data, two.image.data) and not torch.equal(one.mask.data, two.mask.data)
    assert leaks(*split(films)).empty or set(leaks(*split(films)).kind) == {'exact duplicate'}


def test_three_thousand_images_in_seconds():
    many = [case(f'{k}', np.random.default_rng(k).random((32, 32))) for k in range(3000)]
    start = time.process_time()
    assert leaks(many[:2000], many[2000:]).empty
    assert time.process_time() - start < 20


@pytest.mark.skipif('MEDSEG_DATA' not in os.environ, reason='needs MEDSEG_DATA')
def test_hearts_shuffled_by_slice_leak_and_flatter():
    folder = Path(os.environ['MEDSEG_DATA'])/'sunnybrook_cmr'
    hearts = []
    for path in sorted((folder/'Train'/'Images').rglob('*.png'))[:300]:
        label = Path(str(path).replace('/Images/', '/Labels/'))
        patient, frame = path.name.split('-IM-')
        mask = (np.array(Image.open(label).convert('L')) > 0).astype('uint8')
        hearts.append(Case(path.stem, Volume(np.array(Image.open(path).convert('L'))[None]),
                           Volume(mask[None]),
                           dict(patient=patient)))
    order = np.random.default_rng(0).permutation(len(hearts))
    cut = len(order)*7//10
    shuffled = [[hearts[i] for i in order[:cut]], [hearts[i] for i in order[cut:]]]
    fair = split(hearts, (.7, .3))

    def dice(train, test):
        small = [torch.stack([torch.nn.functional.adaptive_avg_pool2d(c.image.data.float(), 32).ravel()
                              for c in p])
                 for p in (test, train)]
        pairs = [(train[j].mask.data > 0, c.mask.data > 0) for j,
                 c in zip(torch.cdist(*small).argmin(1), test)]
        return np.mean([float(2*(a & b).sum()/(a.sum() + b.sum() + 1e-9)) for a, b in pairs])
    scores = dice(*shuffled), dice(*fair)
    assert scores[0] > scores[1] + .1, scores
    kinds = [leaks(*parts).kind.value_counts() for parts in (shuffled, fair)]
    assert kinds[0]['same patient'] > 100 and 'same patient' not in kinds[1], kinds
