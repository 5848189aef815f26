"Phantoms: the formula, the voxels and the millimeters agree."
import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import euler_number

from medseg_nb.data.phantom import EGGS, KINDS, _egg, _measure, _paint, _spicule, pair, phantom

root = Path(__file__).resolve().parents[1]
eggs = st.sampled_from(sorted(EGGS))
made = [(k, d) for d in (2, 3) for k in KINDS if d == 3 or k not in ('torus', 'bead')]
of_each = pytest.mark.parametrize('kind, dims', made)
seeds = st.integers(0, 10**6)


def counted(case):
    voxel = np.prod(case.mask.spacing)
    return {k: (case.mask.numpy() == k).sum()*voxel for k in case.meta['volume']}


def errors(dims, n, seeds=6):
    cases = [phantom('organs', i, dims, n, 0, 64/n) for i in range(seeds)]
    return np.mean([abs(counted(c)[k]/v - 1) for c in cases for k, v in c.meta['volume'].items()])


@pytest.mark.parametrize('dims, sizes, floor', [(2, (16, 64, 256, 1024), 2e-4), (3, (16, 32, 64, 128), 2e-3)])
def test_counting_converges_to_the_formula(dims, sizes, floor):
    e = [errors(dims, n) for n in sizes]
    assert all(b < a for a, b in zip(e, e[1:])) and e[-1] < floor


def test_volume_is_archimedes():
    c = phantom('disk', 4, 3)
    r, = {x for x in c.meta['shapes'][0]['radii']}
    assert math.isclose(c.meta['volume'][1], 4/3*math.pi*r**3)
    c = phantom('organs', 4, 2)
    for s in c.meta['shapes']:
        assert math.isclose(c.meta['volume'][s['label']], math.pi*math.prod(s['radii']))
    c = phantom('disks', 4, 2)
    assert math.isclose(c.meta['volume'][1], math.pi*sum(s['radii'][0]**2 for s in c.meta['shapes']))


@settings(max_examples=60, deadline=None)
@given(eggs, seeds, st.sampled_from([2, 3]))
def test_shapes_lie_in_the_box_apart(kind, seed, dims):
    c = phantom(kind, seed, dims, 24, spacing=(1, 2, 3)[:dims])
    box, shapes = np.array(c.image.shape)*c.image.spacing, c.meta['shapes']
    assert [s['label'] for s in shapes] == list(EGGS[kind])
    for i, a in enumerate(shapes):
        assert all(r < m < b - r for m, r, b in zip(a['center'], a['radii'], box))
        for b in shapes[:i]: assert math.dist(a['center'], b['center']) > max(a['radii']) + max(b['radii'])


@settings(max_examples=30, deadline=None)
@given(eggs, seeds, st.sampled_from([2, 3]))
def test_a_voxel_is_marked_where_its_center_is_inside(kind, seed, dims):
    c = phantom(kind, seed, dims, (9, 12, 7)[:dims], spacing=(2, 1, 3)[:dims])
    for index in np.random.default_rng(seed).integers(0, c.mask.shape, (20, dims)):
        at = c.mask.to_world(index)
        far = [sum(((x - m)/r)**2 for x, m, r in zip(at, s['center'], s['radii'])) for s in c.meta['shapes']]
        label = [s['label'] for s, f in zip(c.meta['shapes'], far) if f < 1] or [0]
        assert c.mask.numpy()[(0, *index)] == label[0]


def test_the_grid_does_not_move_the_shapes():
    a = phantom('organs', 7, 3, 32)
    assert phantom('organs', 7, 3, (32, 32, 8), spacing=(1, 1, 4)).meta == a.meta
    assert phantom('organs', 7, 3, 64, spacing=.5).meta == a.meta
    assert phantom('organs', 7, 3, 32, noise=1, rician=True).meta == a.meta


def test_same_seed_same_bytes():
    code = ("import hashlib; from medseg_nb.data.phantom import phantom;"
            "c = phantom('organs', 5, 3, 16, .2, (1, 2, 3), True);"
            "data = c.image.numpy().tobytes() + c.mask.numpy().tobytes() + repr(c.meta).encode();"
            "out = hashlib.sha256(data).hexdigest()")
    here = {}
    exec(code, here)
    there = [sys.executable, '-c', code + ';print(out)']
    there = subprocess.run(there, capture_output=True, text=True, cwd=root)
    assert there.stdout.strip() == here['out'], there.stderr
    a, b = phantom('disks', 1), phantom('disks', 2)
    assert (a.image.data != b.image.data).any() and a.meta != b.meta and a.id != b.id


@pytest.mark.parametrize('rician', [False, True])
def test_noise(rician):
    c = phantom('disk', 0, size=512, noise=.2, rician=rician)
    air = c.image.numpy()[c.mask.numpy() == 0]
    nu, s = .1, .2
    power = nu**2 + (2 if rician else 1)*s**2
    assert abs((air**2).mean()/power - 1) < .01
    assert (air.min() >= 0) == rician
    if not rician: assert abs(air.mean() - nu) < .002 and abs(air.std() - s) < .002
    else: assert air.mean() > .25


def test_without_noise_an_intensity_per_label():
    c = phantom('organs', 0, noise=0)
    for k in range(4): assert len(np.unique(c.image.numpy()[c.mask.numpy() == k])) == 1
    assert len(np.unique(c.image.numpy())) == 4


def test_a_case_like_any_other():
    c = phantom()
    assert c.image.data.shape == (1, 64, 64) and c.image.data.dtype.is_floating_point
    assert c.patient == c.id and c.meta['set'] == 'phantom'
    assert phantom('organs', dims=3, size=20).image.axcodes == 'RAS'


@pytest.mark.parametrize('wrong, words', [(dict(kind='liver'), 'wanted one of disk'),
                                          (dict(dims=4), 'wanted 2 or 3'),
                                          (dict(kind='torus'), 'wanted dims=3'),
                                          (dict(dims=3, size=(8, 8)), 'size for each')])
def test_refused(wrong, words):
    with pytest.raises(ValueError, match=words): phantom(**wrong)


def digest(*volumes):
    "sha256 of voxels rounded to a thousandth, so that a last bit of another machine does not matter"
    data = b''.join(np.round(v.numpy().astype('float64')*1000).astype('<i8').tobytes() for v in volumes)
    return hashlib.sha256(data).hexdigest()[:16]


def golden():
    "Run `python -c 'from test_phantom import golden; print(golden())'` in tests/ to make these again"
    cases = {(k, d): phantom(k, 7, d, 24, .1, 64/24, d == 3) for k, d in made}
    return {f'{k}-{d}': digest(c.image, c.mask) for (k, d), c in cases.items()}


def test_golden(): assert golden() == GOLDEN


@of_each
def test_counting_converges_for_every_kind(kind, dims):
    sizes = (64, 512) if dims == 2 else (32, 112)
    e = []
    for n in sizes:
        cases = [phantom(kind, i, dims, n, 0, 64/n) for i in (0, 1)]
        e.append(np.mean([abs(counted(c)[k]/v - 1) for c in cases for k, v in c.meta['volume'].items()]))
    assert e[1] < max(.003 if dims == 2 else .012, .1*e[0]) and e[1] < .012, e


@pytest.mark.parametrize('kind, dims', [m for m in made if m[0] not in EGGS])
def test_topology(kind, dims):
    for seed in range(3):
        c = phantom(kind, seed, dims, 80, 0, .8)
        m = c.mask.numpy()[0] > 0
        components = ndimage.label(m, np.ones((3,)*dims))[1]
        assert (components, euler_number(m, dims)) == (c.meta['components'], c.meta['euler']), seed
        if kind == 'lesions': assert ndimage.label(c.mask.numpy()[0] == 2)[1] == c.meta['count']


@pytest.mark.parametrize('dims', [2, 3])
def test_a_tree_grows_as_its_meta_says(dims):
    for seed in range(8):
        t = phantom('vessels', seed, dims, 16, spacing=4).meta
        parts = t['shapes']
        starts = [tuple(s['start']) for s in parts]
        assert len(parts) == t['branches'] == 15
        assert t['forks'] == sum(starts.count(tuple(s['end'])) == 2 for s in parts) == 7
        assert t['tips'] == 1 + sum(tuple(s['end']) not in starts for s in parts) == 9
        assert math.isclose(t['length'], sum(math.dist(s['start'], s['end']) for s in parts))
        for s in parts:
            above = [p for p in parts if p['end'] == s['start']]
            assert all(p['radii'][1] == s['radii'][0] for p in above) and s['radii'][1] < s['radii'][0]


def pieces(m):
    return ndimage.label(m, np.ones((3,)*m.ndim))[1]


@pytest.mark.parametrize('dims', [2, 3])
def test_spicules_can_be_counted(dims):
    for seed in range(4):
        c = phantom('nodule', seed, dims, 96, 0, 64/96)
        ball, *spikes = c.meta['shapes']
        at = c.mask.to_world(np.stack(np.meshgrid(*map(np.arange, c.mask.shape), indexing='ij'), -1))
        far = np.linalg.norm(at - ball['center'], axis=-1)
        outside = (c.mask.numpy()[0] > 0) & (far > ball['radii'][0]*1.08)
        assert pieces(outside) == len(spikes) == c.meta['spicules']
        reach = max(s['length'] for s in spikes) + ball['radii'][0]
        assert reach - 1.2 < far[outside].max() < reach + 1.2


@pytest.mark.parametrize('dims', [2, 3])
def test_a_wide_spicule_leaves_out_its_cap(dims):
    center, radii = np.full(dims, 24.) + .1, np.full(dims, 10.)
    axis = np.array([.8, .6, 0][:dims])
    spike, extra = _spicule(center, axis, 10., 1.1, 22.)
    counted = _paint(np.zeros((120,)*dims, 'uint8'), (.4,)*dims,
                     [_egg(1, center, radii), spike]).sum()*.4**dims
    assert math.isclose(counted, _measure(radii) + extra, rel_tol=.004)


@pytest.mark.parametrize('dims', [2, 3])
def test_lesions_lie_as_deep_as_stated(dims):
    rng = np.random.default_rng(0)
    for seed in range(4):
        organ, *balls = phantom('lesions', seed, dims, 16, spacing=4).meta['shapes']
        on = rng.standard_normal((300_000, dims))
        on = organ['center'] + on/np.linalg.norm(on, axis=1, keepdims=True)*organ['radii']
        depth = cKDTree(on).query([b['center'] for b in balls])[0] - [b['radii'][0] for b in balls]
        assert abs(depth - [b['depth'] for b in balls]).max() < (.02 if dims == 3 else 1e-4)
        assert min(b['depth'] for b in balls) == 0 < max(b['depth'] for b in balls)


def surface(kind, dims, r, d):
    "Ways both ways between two surfaces, from points spread evenly on them"
    rng = np.random.default_rng(3)
    n = rng.standard_normal((200_000, dims))
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    if kind == 'grown': return np.full(9, abs(r - (r + d)))
    move = np.eye(dims)[0]*d
    return abs(np.linalg.norm(n*r - move, axis=1) - r)


@pytest.mark.parametrize('dims', [2, 3])
@pytest.mark.parametrize('kind', ['grown', 'shifted'])
@pytest.mark.parametrize('by', [.5, 4, 12])
def test_pair_against_points_on_the_surface(kind, dims, by):
    *masks, exact = pair(kind, 12, by, dims, 56, 1)
    ways = surface(kind, dims, 12, by)
    assert abs(ways.max() - exact['hd']) < 1e-3 and abs(ways.mean() - exact['assd']) < .01*by
    assert abs(np.quantile(ways, .95) - exact['hd95']) < .01*by
    a, b = (m.numpy()[0] > 0 for m in masks)
    assert abs(2*(a & b).sum()/(a.sum() + b.sum()) - exact['dice']) < .02
    assert np.allclose([a.sum(), b.sum()], exact['volume'], rtol=.02)


@pytest.mark.parametrize('dims', [2, 3])
@pytest.mark.parametrize('kind', ['grown', 'shifted'])
def test_distances_on_the_grid_converge(kind, dims):
    off = []
    for n in (32, 128 if dims == 3 else 512):
        *masks, exact = pair(kind, 12, 5, dims, n, 40/n)
        a, b = (m.numpy()[0] > 0 for m in masks)
        edge = [x & ~ndimage.binary_erosion(x) for x in (a, b)]
        ways = [ndimage.distance_transform_edt(~y, sampling=40/n)[x] for x, y in (edge, edge[::-1])]
        both = np.concatenate(ways)
        off.append(max(abs(both.max() - exact['hd']), abs(both.mean() - exact['assd']),
                       abs(np.quantile(both, .95) - exact['hd95'])))
    assert off[1] < off[0] and off[1] < 1.2*40/n, off


@pytest.mark.parametrize('wrong, words', [
    (dict(kind='apart'), "wanted 'grown'"), (dict(by=0), 'more than 0'),
    (dict(by=20), 'at most the radius'), (dict(radius=31), 'do not fit')])
def test_pair_refuses(wrong, words):
    with pytest.raises(ValueError, match=words): pair(**wrong)


GOLDEN = {
    'disk-2': '5be995a6490edf17', 'disks-2': '6433be2e54414214', 'organs-2': '6a9e8a90a3a95515',
    'lesions-2': '1f6e97fad1c4cad2', 'nodule-2': '7e22ae8e72b5dfc0', 'vessels-2': '4227913e889cc858',
    'shell-2': '76bbc32908b81372', 'disk-3': 'ad3ed1cf14158275', 'disks-3': 'a6e9564ab1b6c73b',
    'organs-3': '9047fc23acbc40db', 'lesions-3': 'fc9ed145f3e06d60', 'nodule-3': 'b2526ba9e06266a0',
    'vessels-3': '4596105c491210d9', 'shell-3': '27d84958b51735f7', 'torus-3': '310f62967d947941',
    'bead-3': '133bf3900a53d310'}
