"Kernels between all pairs: against loops, their own transposes, finite differences and the paper's width."
import warnings
from math import exp

import numpy as np
import pytest
import torch
from grids import often, seeds
from hypothesis import given
from hypothesis import strategies as st

from medseg_nb.classic.lattice import (Exact, Lattice, Smooth, cubes, features, normalized, positions,
                                       simplices)
from medseg_nb.data.volume import Volume

makers = pytest.mark.parametrize('cells', ['cubes', 'simplices'])


def whole(kernel, n): return kernel(torch.eye(n, dtype=torch.float64)).numpy()


def test_features_are_mm_and_contrasts():
    x = np.random.default_rng(0).normal(0, 9, (2, 3, 4, 5))
    volume = Volume(x, np.diag([.5, 2., 3., 1.]))
    f = features(volume, 4., (10., 20.)).reshape(3, 4, 5, 5)
    np.testing.assert_allclose(f[2, 3, 4], [.25, 1.5, 3., x[0, 2, 3, 4]/10, x[1, 2, 3, 4]/20])
    assert np.array_equal(f[..., :3].reshape(-1, 3), positions(volume, 4.))


@pytest.mark.parametrize('width,contrast', [(0, 1.), (-1., 1.), (1., 0.), (1., np.nan), (np.nan, 1.),
                                            (1., (1., -1.))])
def test_widths_have_to_be_positive(width, contrast):
    volume = Volume(np.ones((2, 3, 3)))
    with pytest.raises(ValueError, match='wanted more than 0'): features(volume, width, contrast)


def test_exact_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    f, x = rng.normal(0, 1, (9, 3)), rng.random((9, 2))
    k = [[exp(-sum((a - b)**2 for a, b in zip(p, q))/2) for q in f] for p in f]
    slow = [[sum(k[i][j]*x[j, c] for j in range(9)) for c in range(2)] for i in range(9)]
    np.testing.assert_allclose(Exact(f)(torch.from_numpy(x)).numpy(), slow, rtol=1e-12)
    with pytest.raises(ValueError, match='10,001 points'): Exact(np.zeros((10_001, 2)))


@often
@given(seeds, st.sampled_from((2, 3)), st.floats(.3, 9))
def test_one_axis_after_the_other_is_all_pairs(seed, dims, width):
    rng = np.random.default_rng(seed)
    volume = Volume(np.zeros((1, *rng.integers(1, 6, dims))), np.diag([*rng.uniform(.3, 4, dims), 1.]))
    inside = rng.random(volume.shape) < .7
    inside.flat[0] = True
    x = torch.from_numpy(rng.normal(0, 1, (inside.sum(), 3)))
    np.testing.assert_allclose(Smooth(volume, width, inside)(x),
                               Exact(positions(volume, width)[inside.ravel()])(x), atol=1e-10)


@often
@given(seeds, st.integers(1, 7))
def test_corners_have_their_center_of_gravity_at_the_point(seed, d):
    f = np.random.default_rng(seed).normal(0, 7, (40, d))
    corners, weights, directions, _ = cubes(f)
    np.testing.assert_allclose((weights[..., None]*corners).sum(1), f, atol=1e-9)
    corners, weights, directions, _ = simplices(f)
    y = (weights[..., None]*corners).sum(1)/(d + 1)
    assert weights.min() > -1e-9 and np.allclose(weights.sum(1), 1)
    np.testing.assert_allclose(((y[:, None] - y)**2).sum(-1), ((f[:, None] - f)**2).sum(-1), atol=1e-6)
    assert not corners.sum(-1).any() and not directions.sum(-1).any()
    assert len({len(set(map(tuple, c))) for c in corners}) == 1


@makers
@pytest.mark.parametrize('d', [2, 3, 4])
def test_a_dense_cloud_sees_the_kernel_of_the_formula(cells, d):
    rng, side = np.random.default_rng(0), 6.
    f = rng.uniform(0, side, ({2: 4000, 3: 8000, 4: 9000}[d], d))
    probe = np.flatnonzero((abs(f - side/2) < .7).all(1))[:40]
    x = torch.zeros(len(f), len(probe), dtype=torch.float64)
    x[probe, torch.arange(len(probe))] = 1
    k = Lattice(f, cells)(x).numpy()
    d2 = ((f[:, None] - f[probe])**2).sum(-1)
    assert abs(k.sum(0).mean()/np.exp(-d2/2).sum(0).mean() - 1) < .06
    assert abs((k*d2).sum()/(np.exp(-d2/2)*d2).sum() - 1) < .1
    assert np.linalg.norm(k - np.exp(-d2/2))/np.linalg.norm(np.exp(-d2/2)) < .25


@makers
@pytest.mark.parametrize('d', [2, 3, 4, 5, 6])
def test_normalized_sums_are_near_those_of_all_pairs(cells, d):
    rng = np.random.default_rng(d)
    levels = rng.choice([0., 2.5, 5.], (24*24, max(d - 2, 1))) + rng.normal(0, .3, (24*24, max(d - 2, 1)))
    f = np.concatenate([np.indices((24, 24)).reshape(2, -1).T/4, levels], 1)[:, :d]
    x = torch.from_numpy(rng.random((len(f), 4)))
    a, b = normalized(Exact(f), len(f))(x), normalized(Lattice(f, cells), len(f))(x)
    assert (a - b).norm()/a.norm() < (.1 if cells == 'cubes' else .2)


@often
@given(seeds, st.integers(1, 6), st.sampled_from(('cubes', 'simplices')), st.floats(.1, 20))
def test_cells_are_symmetric_and_never_negative(seed, d, cells, size):
    f = np.random.default_rng(seed).normal(0, size, (30, d))
    f[:5] = f[5:10]
    for kernel in (Lattice(f, cells), normalized(Lattice(f, cells), 30)):
        k = whole(kernel, 30)
        np.testing.assert_allclose(k, k.T, atol=1e-9*k.max())
        assert k.min() >= 0 and np.linalg.eigvalsh(k).min() > -1e-9*k.max()
        np.testing.assert_allclose(k[:5], k[5:10], atol=1e-9*k.max())


@makers
def test_the_gradient_is_the_filter(cells):
    f = np.random.default_rng(0).normal(0, 1, (9, 3))
    x = torch.rand(9, 2, dtype=torch.float64, requires_grad=True)
    for kernel in (Lattice(f, cells), normalized(Lattice(f, cells), 9), Exact(f)):
        assert torch.autograd.gradcheck(kernel, x)
        assert torch.autograd.gradgradcheck(lambda x: kernel(x)**2, x)
    volume = Volume(np.zeros((1, 3, 3)))
    assert torch.autograd.gradcheck(normalized(Smooth(volume, 1.), 9), x)


def test_symmetric_weights_as_pydensecrf():
    f = np.random.default_rng(0).normal(0, 1, (20, 2))
    k = Exact(f).matrix.numpy()
    d = k.sum(1)
    np.testing.assert_allclose(whole(normalized(Exact(f), 20), 20), k/np.sqrt(d)/np.sqrt(d)[:, None])


def test_cubes_up_to_four_dimensions_then_simplices():
    f = np.random.default_rng(0).normal(0, 1, (50, 5))
    assert Lattice(f[:, :4]).cells == Lattice(f[:, :4], 'cubes').cells != Lattice(f[:, :4], 'simplices').cells
    assert Lattice(f).cells == Lattice(f, 'simplices').cells != Lattice(f, 'cubes').cells


def test_precision_type_and_bad_points():
    f = np.random.default_rng(0).normal(0, 1, (30, 3))
    x = torch.rand(30, 2, dtype=torch.float64)
    a, b, c = Lattice(f)(x), Lattice(f)(x.float()), Lattice(f)(x.bfloat16())
    assert (a.dtype, b.dtype, c.dtype) == (torch.float64, torch.float32, torch.bfloat16)
    assert torch.allclose(a.float(), b, rtol=1e-5) and torch.allclose(b, c.float(), rtol=.03)
    assert torch.equal(Lattice(f)(x), a)
    f[3, 1] = np.nan
    with pytest.raises(ValueError, match='not finite'): Lattice(f)
    with pytest.raises(ValueError, match="wanted 'cubes' or 'simplices'"): Lattice(f[:2], 'balls')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_all_kernels_answer_in_the_type_they_are_asked(dtype):
    f, x = np.random.default_rng(0).normal(0, 1, (30, 3)), torch.rand(30, 2, dtype=dtype)
    for kernel in (Exact(f), Smooth(Volume(np.zeros((1, 5, 6))), 2.), Lattice(f)):
        for k in (kernel, normalized(kernel, 30)):
            assert k(x).dtype == dtype and torch.allclose(k(x).double(), k(x.double()), rtol=1e-4)


def test_far_points_do_not_meet_and_one_point_is_enough():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        far = np.array([[0., 0, 0], [1e6, -1e6, 3], [1e9, 0, 0]])
        for cells in ('cubes', 'simplices'):
            k = whole(normalized(Lattice(far, cells), 3), 3)
            np.testing.assert_allclose(k, np.eye(3), atol=1e-12)
            np.testing.assert_allclose(whole(normalized(Lattice(far[:1], cells), 1), 1), [[1]])
