"Augmentation: image and mask alike, against scipy, and drawn as it is said."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from medseg_nb.data.augment import Augment, _places

strengths = 'rotate scale shift elastic bias contrast gamma clahe blur lowres noise cutout'.split()
geometry = dict(rotate=30., scale=.3, shift=.1, elastic=.02)
off = dict.fromkeys(strengths, 0.)
seldom = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)


def just(p=1., **effects): return Augment(**{**off, **effects}, p=p)


def batch(dims, n=2, c=2, size=20, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = [size - 3*i for i in range(dims)]
    return torch.rand(n, c, *shape, generator=g), torch.randint(0, 4, (n, *shape), generator=g)


@pytest.mark.parametrize('dims', [2, 3])
def test_nothing_at_strength_0(dims):
    x, y = batch(dims)
    a, b = just()(x, y)
    assert torch.equal(a, x) and torch.equal(b, y)
    a, b = Augment(p=0.)(x, y)
    assert torch.equal(a, x) and torch.equal(b, y)


@pytest.mark.parametrize('dims', [2, 3])
def test_what_comes_in_stays_as_it_was(dims):
    x, y = batch(dims)
    kept = x.clone(), y.clone()
    Augment(p=1., cutout=.5, flip=(0,))(x, y)
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])


def fixed(aug, monkeypatch, **numbers):
    "An Augment whose draw has these numbers and changes nothing else"
    original = Augment.draw
    def draw(self, batch, dims, n): return {**original(aug, batch, dims, n), **numbers}
    monkeypatch.setattr(Augment, 'draw', draw)
    return aug


@pytest.mark.parametrize('axes', [(0, 1), (0, 2), (1, 2)])
def test_a_quarter_turn_is_rot90(monkeypatch, axes):
    x = torch.rand(1, 1, 8, 8, 8)
    y = torch.randint(0, 5, (1, 8, 8, 8))
    angles = [[90. if pair == axes else 0. for pair in ((0, 1), (0, 2), (1, 2))]]
    a, b = fixed(just(), monkeypatch, rotate=torch.tensor(angles))(x, y)
    assert torch.allclose(a, x.rot90(1, [i + 2 for i in axes]), atol=1e-5)
    assert torch.equal(b, y.rot90(1, [i + 1 for i in axes]))


def test_a_shift_moves_by_its_share_and_leaves_minus_1(monkeypatch):
    x, y = batch(2, n=1, size=20)
    a, b = fixed(just(), monkeypatch, shift=torch.tensor([[.25, 0.]]))(x, y)
    assert torch.allclose(a[:, :, 5:], x[:, :, :-5], atol=1e-5) and a[:, :, :5].max() < 1e-5
    assert torch.equal(b[:, 5:], y[:, :-5]) and (b[:, :5] == -1).all()


@pytest.mark.parametrize('axis', [0, 1, 2, -1])
def test_mirror(axis):
    x, y = batch(3, n=40, c=1, size=9)
    a, b = Augment(**off, p=1., flip=(axis,))(x, y)
    turned = [not torch.equal(i, j) for i, j in zip(x, a)]
    assert 8 < sum(turned) < 32
    for i, t in enumerate(turned):
        dim = axis % 3 + 1
        assert torch.allclose(a[i], x[i].flip(dim) if t else x[i], atol=1e-5)
        assert torch.equal(b[i], y[i].flip(dim - 1) if t else y[i])


@seldom
@given(seeds, st.sampled_from([2, 3]), st.booleans())
def test_like_scipy(seed, dims, anisotropic):
    x, y = batch(dims, n=1, c=1, size=16, seed=seed)
    spacing = (.7, 2.5, 1.1)[:dims] if anisotropic else None
    aug = just(rotate=40., scale=.3, shift=.1)
    aug.spacing, aug.seed = spacing, seed
    d, shape, mm = aug.draw(1, dims, 0), np.array(x.shape[2:]), np.array(spacing or (1,)*dims)
    turn = np.eye(dims)
    pairs = [(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)]
    for (i, j), angle in zip(pairs, np.radians(d['rotate'][0].numpy())):
        one = np.eye(dims)
        one[[i, j], [i, j]], one[i, j], one[j, i] = np.cos(angle), np.sin(angle), -np.sin(angle)
        turn = turn@one
    back = np.diag(1/mm)@turn@np.diag(mm)/d['scale'].item()
    middle = (shape - 1)/2
    offset = middle - back@(middle + d['shift'][0].numpy()*shape)
    a, b = aug(x, y, n=0)
    want = ndimage.affine_transform(x[0, 0].numpy(), back, offset, order=1, mode='grid-constant')
    assert np.abs(a[0, 0].numpy() - want).max() < 2e-3
    at = np.moveaxis(np.indices(shape), 0, -1)@back.T + offset
    sure = (np.abs(at - np.floor(at) - .5) > 1e-3).all(-1)
    label = ndimage.affine_transform(y[0].numpy().astype(float), back, offset, order=0, cval=-1)
    outside = ((at < -.5) | (at > shape - .5)).any(-1)
    sure_side = (np.minimum(np.abs(at + .5), np.abs(at - shape + .5)) > .01).all(-1)
    inside = ((at > 0) & (at < shape - 1)).all(-1)
    assert (b[0].numpy()[sure & inside] == label[sure & inside]).all()
    assert ((b[0].numpy() == -1) == outside)[sure_side].all()


@seldom
@given(seeds, st.sampled_from([2, 3]))
def test_labels_stay_labels(seed, dims):
    x, y = batch(dims, seed=seed)
    y = torch.where(y == 3, -1, y)*7
    _, b = Augment(**geometry, p=1., flip=(0, 1))(x, y, n=seed)
    assert set(b.unique().tolist()) <= set(y.unique().tolist()) | {-1}
    assert b.dtype == y.dtype
    big = torch.full_like(y, 65_535)
    assert set(Augment(**geometry, p=1.)(x, big, n=seed)[1].unique().tolist()) <= {-1, 65_535}


@pytest.mark.parametrize('dims,size', [(2, 64), (3, 40)])
def test_image_and_mask_move_together(dims, size):
    rng, grid = np.random.default_rng(0), np.stack(np.indices((size,)*dims), -1)
    worst = []
    for n in range(30):
        far = ((grid - rng.uniform(.35, .65, dims)*size)**2).sum(-1)
        x, y = torch.tensor(np.exp(-far/8)).float()[None, None], torch.tensor((far < 36)*1)[None]
        for mask in (y, y[None].float()):
            a, b = Augment(**{**off, **geometry}, p=1.)(x, mask, n=n)
            disk = (b.reshape(a.shape)[0, 0]).clamp(min=0).double().numpy()
            light = a[0, 0].numpy()*(disk > 0)
            centers = [(grid*w[..., None]).reshape(-1, dims).sum(0)/w.sum() for w in (light, disk)]
            worst.append(np.abs(centers[0] - centers[1]).max())
    assert max(worst) < .5


def test_soft_labels_are_shares():
    x, y = batch(2, n=3, size=30)
    soft = torch.nn.functional.one_hot(y, 4).movedim(-1, 1).float()
    a, hard = Augment(**geometry, p=1.)(x, y, n=5)
    b, shares = Augment(**geometry, p=1.)(x, soft, n=5)
    assert torch.equal(a, b) and shares.shape == soft.shape
    total = shares.sum(1)
    assert total.max() < 1 + 1e-5 and (total[hard >= 0] > .24).all()
    assert (shares.argmax(1) == hard)[(shares.max(1)[0] > .76)].all()


def test_replay():
    x, y = batch(3)
    aug = Augment(p=1.)
    first, second = aug(x, y), aug(x, y)
    assert not torch.equal(first[0], second[0]) and aug.calls == 2
    state = torch.get_rng_state()
    again = Augment(p=1.)(x, y, n=1)
    assert torch.equal(again[0], second[0]) and torch.equal(again[1], second[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(Augment(p=1., seed=43)(x, y, n=1)[0], second[0])


@pytest.mark.parametrize('name,low,high,log', [
    ('rotate', -15, 15, False), ('scale', -.15, .15, True), ('shift', -.05, .05, False),
    ('contrast', -.25, .25, True), ('gamma', -.3, .3, True), ('blur', 0, 1, False), ('noise', 0, .05, False)])
def test_distributions(name, low, high, log):
    d = Augment(p=1., shift=.05).draw(4000, 3, 1)[name].double()
    values = (d.log() if log else d).flatten().numpy()
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    half = Augment().draw(4000, 3, 2)[name].reshape(4000, -1)[:, 0]
    assert abs((half != (1 if log else 0)).float().mean() - .5) < .03


@pytest.mark.parametrize('dims', [2, 3])
def test_bends_have_their_size_and_never_fold(dims):
    aug, shape = just(elastic=.015), (48, 40, 36)[:dims]
    zero = {**just().draw(60, dims, 0)}
    d = {**zero, 'elastic': aug.draw(60, dims, 0)['elastic']}
    bend = (_places(d, shape, None) - _places(zero, shape, None)).flip(-1)*torch.tensor(shape)/2  # in voxels
    sd = bend.std(0)/min(shape)
    assert (sd/.015 - 1).abs().max() < .5 and abs(sd.mean()/.015 - 1) < .05
    inner = (slice(None), *(slice(0, n - 1) for n in shape))
    jacobian = torch.stack([bend.diff(dim=i + 1)[inner] for i in range(dims)], -1) + torch.eye(dims)
    assert torch.linalg.det(jacobian).min() > 0


def test_intensities():
    x, y = batch(2, n=3, c=1, size=40)
    def one(**effect):
        aug = just(**effect)
        out, same = aug(x, y, n=0)
        assert torch.equal(same, y)
        return out, {k: v[:, None, None, None] if v.ndim == 1 else v for k, v in aug.draw(3, 2, 0).items()}
    out, d = one(gamma=.5)
    assert torch.allclose(out, x**d['gamma'])
    out, d = one(contrast=.5)
    mean = x.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(out, mean + (x - mean)*d['contrast'], atol=1e-6)
    out, d = one(blur=2.)
    want = ndimage.gaussian_filter(x[1, 0].numpy(), d['blur'][1].item(), truncate=8)
    assert np.abs(out[1, 0].numpy() - want)[10:-10, 10:-10].max() < 1e-4
    out, d = one(noise=.2)
    assert torch.allclose((out - x).std((1, 2, 3)), d['noise'].flatten(), rtol=.1)
    out, _ = one(bias=.5)
    ratio = (out/x).log()
    assert ratio.diff(dim=2).abs().max() < .2 and ratio.std() > .05
    assert torch.allclose(just(lowres=4.)(torch.full_like(x, .3), y)[0], torch.full_like(x, .3), atol=1e-5)
    assert one(lowres=4.)[0].std() < x.std()
    out, _ = one(cutout=.6)
    for a, b in zip(out, x):
        hidden = (a != b)[0]
        if hidden.any():
            rows, columns = hidden.any(1).nonzero(), hidden.any(0).nonzero()
            assert hidden[rows.min():rows.max() + 1, columns.min():columns.max() + 1].all()
            assert torch.allclose(a[0][hidden], b.mean())


def test_cutout_sides_are_up_to_their_share():
    x, y = batch(2, n=200, c=1, size=40)
    hidden = (just(cutout=.5)(x, y)[0] != x)[:, 0]
    sides = [(h.any(1).sum().item()/40, h.any(0).sum().item()/37) for h in hidden]
    assert .4 < np.max(sides) <= .52 and np.mean(sides) == pytest.approx(.25, abs=.04)


def test_other_kinds_of_tensors():
    x, y = batch(3)
    out, mask = Augment(p=1.)(x.double(), y.int())
    assert out.dtype == torch.float64 and mask.dtype == torch.int32
    with pytest.raises(ValueError, match='slice by slice'): just(clahe=2.)(x, y)
    flat, label = batch(2, size=40)
    local, same = just(clahe=4.)(flat, label)
    assert not torch.equal(local, flat) and torch.equal(same, label)
