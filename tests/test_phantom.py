"Phantoms: the formula, the voxels and the millimeters agree."
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from medseg_nb.data.phantom import KINDS, phantom

root = Path(__file__).resolve().parents[1]
kinds = st.sampled_from(sorted(KINDS))
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
@given(kinds, seeds, st.sampled_from([2, 3]))
def test_shapes_lie_in_the_box_apart(kind, seed, dims):
    c = phantom(kind, seed, dims, 24, spacing=(1, 2, 3)[:dims])
    box, shapes = np.array(c.image.shape)*c.image.spacing, c.meta['shapes']
    assert [s['label'] for s in shapes] == list(KINDS[kind])
    for i, a in enumerate(shapes):
        assert all(r < m < b - r for m, r, b in zip(a['center'], a['radii'], box))
        for b in shapes[:i]: assert math.dist(a['center'], b['center']) > max(a['radii']) + max(b['radii'])


@settings(max_examples=30, deadline=None)
@given(kinds, seeds, st.sampled_from([2, 3]))
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
                                          (dict(dims=3, size=(8, 8)), 'size for each')])
def test_refused(wrong, words):
    with pytest.raises(ValueError, match=words): phantom(**wrong)
