"Fully-connected CRF: loops over all pairs, a free energy that falls, prices that learn, bad input."
import numpy as np
import pytest
import torch
from grids import often, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import mean_field_by_pairs

from medseg_nb.classic.crf import MeanField, crf, crf_kernels, free_energy, group_probs, refine, spread
from medseg_nb.classic.lattice import Exact, Lattice, features, normalized
from medseg_nb.classic.threshold import multi_otsu
from medseg_nb.data.volume import Volume


def scene(shape=(12, 12), c=1, seed=0, noise=.3, spacing=None):
    "A box in the dark, noisy"
    rng, x = np.random.default_rng(seed), np.zeros((c, *shape))
    x[(slice(None), *(slice(n//4, -(n//4)) for n in shape))] = 1
    return Volume(x + rng.normal(0, noise, x.shape), np.diag([*(spacing or (1,)*len(shape)), 1.]))


def random_logits(n, k, seed=0):
    return torch.randn(n, k, dtype=torch.float64, generator=torch.manual_seed(seed))*2


@pytest.mark.parametrize('shape,c,spacing', [((12, 12), 1, (1., 1.)), ((12, 12), 2, (.5, 2.)),
                                             ((4, 5, 6), 1, (3., 1., .7))])
def test_exact_kernels_give_the_loops_and_cells_come_near(shape, c, spacing):
    volume, contrast = scene(shape, c, spacing=spacing), np.linspace(.5, .8, c)
    n = np.prod(shape)
    logits, prices = random_logits(n, 3), (2., 3.)
    mu = torch.tensor([[0., 1, 2], [1, 0, .5], [2, .5, 0]], dtype=torch.float64)
    slow = mean_field_by_pairs(volume, logits.numpy(), 1.5, 4., contrast, prices, mu.numpy(), 4)
    net = MeanField(3, prices, 4).double()
    net.compatibility.data = mu
    with torch.no_grad():
        exact = net(logits, crf_kernels(volume, 1.5, 4., contrast, exact=True)).numpy()
        fast = net(logits, crf_kernels(volume, 1.5, 4., contrast)).numpy()
    assert abs(exact - slow).max() < 1e-5
    assert abs(fast - slow).mean() < .02 and (fast.argmax(1) == slow.argmax(1)).mean() > .96


def test_prices_are_of_my_label_and_theirs_in_this_order():
    mu, volume, logits = torch.tensor([[0., 3], [.5, 0]]).double(), scene((5, 6)), random_logits(30, 2)
    net = MeanField(2, (2., 3.), 3).double()
    net.compatibility.data = mu
    with torch.no_grad(): q = net(logits, crf_kernels(volume, 1.5, 4., .5, exact=True)).numpy()
    slow = mean_field_by_pairs(volume, logits.numpy(), 1.5, 4., [.5], (2., 3.), mu.numpy(), 3)
    np.testing.assert_allclose(q, slow, atol=1e-6)


def test_missing_voxels_are_not_asked():
    volume = scene((8, 9))
    inside = np.random.default_rng(0).random((8, 9)) < .7
    rest = np.where(inside, volume.numpy()[0], np.nan)
    logits = random_logits(inside.sum(), 3)
    kernels = crf_kernels(Volume(rest[None]), 1.5, 4., .5, inside, exact=True)
    with torch.no_grad(): q = MeanField(3, steps=3).double()(logits, kernels).numpy()
    mu = 1 - np.eye(3)
    slow = mean_field_by_pairs(volume, logits.numpy(), 1.5, 4., [.5], (3., 3.), mu, 3, inside)
    np.testing.assert_allclose(q, slow, atol=1e-5)


@often
@given(seeds, st.integers(2, 5), st.floats(.1, 12), st.booleans())
def test_parallel_updates_never_raise_the_free_energy(seed, k, price, exact):
    rng = np.random.default_rng(seed)
    f = rng.normal(0, 2, (40, 3))
    kernel = normalized((Exact if exact else Lattice)(f), 40)
    logits, last = random_logits(40, k, seed), np.inf
    for steps in range(8):
        net = MeanField(k, (price,), steps).double()
        with torch.no_grad():
            F = free_energy(net(logits, [kernel]), logits, [kernel], net.weights, net.compatibility).item()
        assert F <= last + 1e-6
        last = F


def test_without_oneself_all_at_once_swaps_and_one_by_one_falls():
    bond, logits = 6*torch.tensor([[0., 1], [1, 0]]).double(), torch.eye(2).double()
    def kernel(q): return bond@q
    def q_at(steps):
        net = MeanField(2, (1.,), steps).double()
        with torch.no_grad(): return net(logits, [kernel])
    assert (q_at(7) - q_at(8)).abs().max() > .9 and torch.allclose(q_at(7), q_at(9), atol=1e-3)
    q, mu, F = logits.softmax(1), 1 - torch.eye(2).double(), []
    for _ in range(5):
        for i in (0, 1):
            q[i] = (logits[i] - (bond[i]@q)@mu).softmax(0)
            F.append(free_energy(q, logits, [kernel], [1.], mu).item())
    assert np.diff(F).max() <= 1e-12 and F[-1] < F[0]


def test_free_energy_of_labels_is_the_energy():
    rng, K = np.random.default_rng(0), np.random.default_rng(1).random((5, 5))
    K, mu = K + K.T, np.array([[0, 1, 3], [1, 0, 2], [3, 2, 0.]])
    logits, label = rng.normal(0, 1, (5, 3)), rng.integers(0, 3, 5)
    E = -sum(logits[i, label[i]] for i in range(5))
    E += sum(2.*K[i, j]*mu[label[i], label[j]] for i in range(5) for j in range(i))
    q = torch.eye(3).double()[label]
    kernels = [lambda q: torch.from_numpy(K)@q]
    F = free_energy(q, torch.from_numpy(logits), kernels, [2.], torch.from_numpy(mu))
    assert abs(F.item() - E) < 1e-9


def test_gradients_reach_prices_and_labels_and_logits():
    kernels = crf_kernels(scene((4, 4)), 1.5, 4., .5)
    net = MeanField(3, steps=2).double()
    logits = random_logits(16, 3).requires_grad_()
    def f(logits, w, mu):
        return torch.func.functional_call(net, dict(weights=w, compatibility=mu), (logits, kernels))
    assert torch.autograd.gradcheck(f, (logits, net.weights, net.compatibility))


def test_prices_learn_on_one_picture_and_help_on_others():
    def data(seed):
        v = scene((24, 24), seed=seed, noise=.7)
        truth = torch.from_numpy(scene((24, 24), noise=0).numpy()[0].ravel() > .5).long()
        x = v.data.flatten() - .5
        return crf_kernels(v, 1.5, 5., 1.), torch.stack([-x, x], 1)*2, truth
    net = MeanField(2, (.1, .1), 4).double()
    opt, loss = torch.optim.Adam(net.parameters(), .2), torch.nn.functional.nll_loss
    def cost(seed):
        kernels, logits, truth = data(seed)
        return loss(net(logits, kernels).clamp(min=1e-9).log(), truth)
    with torch.no_grad(): before = [cost(s).item() for s in (1, 2, 3)]
    for _ in range(25):
        opt.zero_grad(); cost(0).backward(); opt.step()
    with torch.no_grad(): after = [cost(s).item() for s in (1, 2, 3)]
    assert all(a < .7*b for a, b in zip(after, before))


def test_millimeters_count_not_voxels():
    thick = scene((20, 10), spacing=(1., 4.))
    same = Volume(thick.data, np.diag([2., 8., 1.]))
    probs = group_probs(thick, 2)
    a = refine(probs, thick, 1.5, 5.).data
    assert torch.allclose(a, refine(group_probs(same, 2), same, 3., 10.).data, atol=1e-5)
    square = Volume(thick.data)
    assert (a - refine(group_probs(square, 2), square, 1.5, 5.).data).abs().max() > .05


def test_units_of_the_image_do_not_matter():
    a = scene((16, 16))
    b = a.new(a.data*50 - 1000)
    assert torch.equal(crf(a, 2).data, crf(b, 2).data)


@pytest.mark.parametrize('shape', [(32, 32), (12, 14, 13)])
def test_noise_goes(shape):
    volume, truth = scene(shape, noise=.4), scene(shape, noise=0).data > .5
    rough, fine = ((f(volume, 2).data.bool() == truth).float().mean().item() for f in (multi_otsu, crf))
    assert fine > rough + .05 and fine > .93


def test_a_second_channel_makes_borders():
    a = scene((24, 24), noise=1.)
    b = scene((24, 24), seed=1, noise=.05)
    both, truth = Volume(torch.cat([a.data, b.data])), b.data > .5
    right = [(crf(v, 2).data.bool() == truth).float().mean().item() for v in (a, both)]
    assert right[1] > right[0] + .02


def test_refine_of_certain_or_unchanged():
    volume = scene((10, 12))
    p = group_probs(volume, 3)
    before = p.data.clone()
    assert torch.allclose(refine(p, volume, steps=0).data, p.data, atol=1e-4)
    assert torch.allclose(refine(p, volume, prices=(0., 0.)).data, p.data, atol=1e-4)
    out = refine(p, volume)
    assert torch.equal(p.data, before) and np.array_equal(out.affine, p.affine)
    assert torch.allclose(out.data.sum(0), torch.ones(10, 12), atol=1e-5)
    assert torch.equal(refine(p, volume).data, out.data)
    net = MeanField(3, (1., 2.), 4)
    assert torch.equal(refine(p, volume, net=net).data, refine(p, volume, prices=(1., 2.), steps=4).data)


def test_refine_leaves_holes_alone():
    volume = scene((10, 12))
    p = group_probs(volume, 2)
    holes = volume.data.clone()
    holes[0, 3], holes[0, 5, 5] = torch.nan, torch.inf
    out = refine(p, volume.new(holes)).data
    assert torch.isfinite(out).all()
    assert torch.equal(out[:, 3], p.data[:, 3]) and torch.equal(out[:, 5, 5], p.data[:, 5, 5])
    assert not torch.equal(out[:, 4], p.data[:, 4])


def test_refine_says_what_it_wants():
    volume = scene((10, 12))
    p = group_probs(volume, 2)
    for probs, words in ((p.new(p.data*2), 'add up to 1'), (p.new(p.data[:1]), 'one channel'),
                         (p[1:], 'shape'), (p.new(p.data*torch.nan), 'add up to 1'),
                         (Volume(p.data, np.diag([2., 1, 1])), 'spacing')):
        with pytest.raises(ValueError, match=words): refine(probs, volume)
    for bad in (dict(near=0.), dict(far=-1.), dict(contrast=0.)):
        with pytest.raises(ValueError, match='wanted more than 0'): refine(p, volume, **bad)
    with pytest.raises(ValueError, match='wanted 2 to 255'): crf(volume, 1)


def test_groups_are_those_of_the_first_channel():
    first, other = scene((16, 16), noise=.1), scene((16, 16), seed=1, noise=.1)
    both = Volume(torch.cat([first.data, 1 - other.data.flip(1).roll(5, 2)]))
    found = group_probs(both, 2).data.argmax(0) == 1
    assert (found == first.data[0].gt(.5)).float().mean() > .9


def test_constant_images_and_holes_have_two_classes():
    flat = Volume(np.full((1, 5, 6), .1))
    p = group_probs(flat, 3)
    assert p.channels == 2 and (p.data[0] == 1).all() and (crf(flat).data == 0).all()
    volume = scene((8, 8))
    volume.data[0, 2], volume.data[0, 5, 5] = torch.nan, torch.inf
    p = group_probs(volume, 2).data
    assert (p[0, 2] == 1).all() and (p[1, 2] == 0).all() and p[:, 5, 5].tolist() == [1, 0]


@pytest.mark.parametrize('x', [.1, 7., -1e6/3])
def test_rounding_is_no_spread(x):
    q = np.random.default_rng(0).dirichlet((1, 1, 1), 50)
    assert spread(np.full((50, 1), x), q) == 1


def test_soft_groups_are_multi_otsus_and_spread_is_inside():
    volume = scene((16, 16), noise=.1)
    p = group_probs(volume, 2)
    hard = multi_otsu(volume, 2).data[0]
    assert torch.equal(p.data.argmax(0).byte(), hard)
    assert torch.allclose(p.data.sum(0), torch.ones(16, 16))
    x, q = volume.numpy().reshape(1, -1).T, torch.nn.functional.one_hot(hard.flatten().long()).numpy()
    inside = np.concatenate([x[q[:, k] > 0] - x[q[:, k] > 0].mean() for k in (0, 1)])
    np.testing.assert_allclose(spread(x, q.astype(float)), inside.std(), rtol=1e-9)
    assert spread(np.full((5, 1), 7.), np.ones((5, 2))/2) == 1 and features(volume, 1., 1.).shape == (256, 3)
