"The zoo: what the key names is broken in just that way, and nothing else is."
import hashlib

import numpy as np
import pytest

from medseg_nb.data.case import Case
from medseg_nb.data.grid import grid_difference, same_grid
from medseg_nb.data.leakage import leaks
from medseg_nb.data.zoo import ANIMALS, Found, _patient, zoo

seeds = 0, 1
cages = {seed: zoo(seed) for seed in seeds}
each = pytest.mark.parametrize('name', ANIMALS)


def well(seed, name, i):
    "The healthy patient that case i of a cage was made from"
    return _patient(f'P{i + 1}', np.random.default_rng([seed, 8, [*ANIMALS].index(name), i + 1]),
                    seed + i + 1)


def pairs(name):
    "Broken cases (before, after, key) and healthy ones (before, after)"
    sick, fine = [], []
    for seed in seeds:
        cases, key = cages[seed][name]
        for i, c in enumerate(cases):
            if c.id in key: sick.append((well(seed, name, i), c, key[c.id]))
            else: fine.append((well(seed, name, i), c))
    return sick, fine


def same(a, b): return np.array_equal(a.data, b.data) and np.array_equal(a.affine, b.affine)


@each
def test_what_the_key_does_not_name_is_healthy(name):
    sick, fine = pairs(name)
    assert len(fine) + len(sick) == 8 and 2 <= len(sick) <= 4
    for before, c in fine:
        assert isinstance(c, Case) and same(before.image, c.image)
        if name != 'label 255': assert same(before.mask, c.mask)
        else: assert set(np.unique(c.mask.numpy())) == {0, 1}


@each
def test_ids_and_patients_are_distinct(name):
    for seed in seeds:
        cases, key = cages[seed][name]
        assert len({c.id for c in cases}) == len({c.patient for c in cases}) == 4
        assert set(key) <= {c.id for c in cases}


def test_headers():
    for before, c, _ in pairs('flipped affine')[0]:
        assert isinstance(c, Found) and grid_difference(c.image, c.mask).startswith('flip')
        assert np.array_equal(c.mask.data, before.mask.data) and same(c.image, before.image)
    for before, c, _ in pairs('header lost')[0]:
        assert isinstance(c, Found) and grid_difference(c.image, c.mask).startswith('header only')
        assert np.array_equal(c.mask.data, before.mask.data)
    for before, c, _ in pairs('z spacing')[0]:
        assert isinstance(c, Case) and c.image.spacing == (6, 12, 3) and same_grid(c.image, c.mask)
        assert np.array_equal(c.image.data, before.image.data)


def test_voxels_that_moved():
    for before, c, _ in pairs('mirrored')[0]:
        assert same(c.image.flip(0), before.image.flip(0).flip(0)) is False
        assert np.array_equal(c.image.data.flip(1), before.image.data)
        assert np.array_equal(c.mask.data.flip(1), before.mask.data)
        assert np.array_equal(c.image.affine, before.image.affine)
    for before, c, _ in pairs('half voxel')[0]:
        x, y = before.image.numpy()[0].astype(float), c.image.numpy()[0]
        corners = [x[i:59 + i, j:19 + j, k:59 + k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        assert np.allclose(y[1:, 1:, 1:], np.mean(corners, 0), atol=1e-2)
        assert same(before.mask, c.mask)


def test_labels():
    for before, c, _ in pairs('swapped labels')[0]:
        a, b = before.mask.numpy(), c.mask.numpy()
        assert ((a == 1) == (b == 2)).all() and ((a == 2) == (b == 1)).all() and ((a == 3) == (b == 3)).all()
    for before, c, _ in pairs('empty mask')[0]: assert not c.mask.numpy().any() and before.mask.numpy().any()
    for before, c, _ in pairs('label 255')[0]:
        assert isinstance(c, Found) and set(np.unique(c.mask.numpy())) == {0, 255}
        assert ((c.mask.numpy() == 255) == np.isin(before.mask.numpy(), (1, 2))).all()


def test_intensities():
    for before, c, _ in pairs('rescaled twice')[0]: assert (before.image.data - c.image.data == 1024).all()
    for before, c, _ in pairs('mixed units')[0]: assert (c.image.data - before.image.data == 1024).all()
    for before, c, _ in pairs('NaN')[0]:
        odd = np.isnan(c.image.numpy())
        assert odd.sum() == 80 and np.array_equal(c.image.numpy()[~odd], before.image.numpy()[~odd])
    for before, c, _ in pairs('overflow')[0]:
        x, y = before.image.numpy(), c.image.numpy()
        fits = (x >= -1100) & (x < 436)
        assert abs(x - y)[fits].max() < 6 and (x[~fits & (x > 0)] - y[~fits & (x > 0)] >= 1530).all()
        assert (~fits).sum() > 100
    for before, c, _ in pairs('burnt-in text')[0]:
        changed = (before.image.data != c.image.data).numpy()[0]
        assert 50 < changed[:, 10].sum() < 100 and (c.image.numpy()[0][changed] == 1200).all()
        assert not changed[:, :, :50].any()


def test_a_duplicate_is_the_same_person_again():
    for seed in seeds:
        cases, key = cages[seed]['duplicate']
        (again, words), = key.items()
        first = words[-2:]
        a, b = (next(c for c in cases if c.id == i) for i in (first, again))
        assert again != first and np.array_equal(a.mask.data, b.mask.data)
        assert not np.array_equal(a.image.data, b.image.data)
        assert float((a.image.data - b.image.data).std()) < 30
        others = [c for c in cases if c.id not in (first, again)]
        assert all(not np.array_equal(c.mask.data, a.mask.data) for c in others)


@each
def test_leaks_finds_the_duplicate_and_accuses_no_other(name):
    for seed in seeds:
        cases, key = cages[seed][name]
        found = leaks([c for c in cases if isinstance(c, Case)])
        pairs = [{again, words[-2:]} for again, words in key.items() if name == 'duplicate']
        assert [{a, b} for a, b in zip(found.a, found.b)] == pairs and set(found.kind) <= {'near duplicate'}


def test_seeds():
    again = zoo(0)
    assert all(again[n][1] == cages[0][n][1] for n in ANIMALS)
    assert all(x.image.numpy().tobytes() == y.image.numpy().tobytes()
               for n in ANIMALS for x, y in zip(again[n][0], cages[0][n][0]))
    assert any(cages[0][n][1] != cages[1][n][1] for n in ANIMALS)


def golden():
    "Run `python -c 'from test_zoo import golden; print(golden())'` in tests/ to make it again"
    c = _patient('P1', np.random.default_rng(5), 5)
    data = [np.round(v.numpy()).astype('<i2').tobytes() for v in (c.image, c.mask)]
    return hashlib.sha256(b''.join(data)).hexdigest()[:16]


def test_golden(): assert golden() == GOLDEN


GOLDEN = 'b95036d2088b257d'
