"Attention blocks: equal to the field's with copied weights, or to slow loops; what each can and cannot see."
import pytest
import torch
from oracles import coordinate_by_loops, criss_cross_by_loops
from torch import nn

from medseg_nb.cnn.attention import CBAM, ECA, SCSE, SE, Coordinate, CrissCross, Gate, NonLocal
from medseg_nb.cnn.blocks import count

sizes = [(8, 6), (7, 5)]
each_size = pytest.mark.parametrize('size', sizes)
blocks = {'se': lambda dims: SE(16, 4, dims), 'eca': lambda dims: ECA(16),
          'scse': lambda dims: SCSE(16, 4, dims), 'cbam': lambda dims: CBAM(16, 4, dims),
          'coordinate': lambda dims: Coordinate(16, dims=dims),
          'nonlocal': lambda dims: NonLocal(16, dims), 'crisscross': lambda dims: CrissCross(16, dims)}
each_block = pytest.mark.parametrize('name', blocks)


def shaken(block):
    "Random weights and random batch statistics, eval mode"
    torch.manual_seed(1)
    for t in [*block.parameters(), *block.buffers()]:
        if t.is_floating_point(): t.data.uniform_(.2, .8)
        if t.ndim > 1: t.data.mul_(torch.empty(t.shape).uniform_(-1, 1))
    return block.eval()


def features(size, c=16, n=2):
    torch.manual_seed(0)
    return torch.randn(n, c, *size)


def close(a, b):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-5*b.abs().max()


def pour(theirs, ours, order=None):
    "Copy all tensors in order; shapes may differ in axes of length 1"
    source = list(ours.state_dict().values())
    target = theirs.state_dict()
    for (k, t), i in zip(target.items(), order or range(len(source)), strict=True):
        target[k] = source[i].reshape(t.shape)
    theirs.load_state_dict(target)
    return theirs.eval()


@each_size
def test_se_equals_torchvision_and_timm(size):
    from timm.layers import SEModule
    from torchvision.ops import SqueezeExcitation
    x, ours = features(size), shaken(SE(16, 4, bias=True))
    for theirs in (SqueezeExcitation(16, 4), SEModule(16, rd_channels=4)):
        close(ours(x), pour(theirs, ours)(x))
    plain = shaken(SE(16, 4))
    close(plain(x), pour(SEModule(16, rd_channels=4, bias=False), plain)(x))


@each_size
@pytest.mark.parametrize('c', [16, 64, 256, 512])
def test_eca_equals_timm(size, c):
    from timm.layers import EcaModule
    x, ours = features(size, c), shaken(ECA(c))
    close(ours(x), pour(EcaModule(c), ours)(x))


@each_size
def test_scse_equals_smp(size):
    from segmentation_models_pytorch.base.modules import SCSEModule
    x, ours = features(size), shaken(SCSE(16, 4))
    close(ours(x), pour(SCSEModule(16, 4), ours)(x))


@each_size
def test_cbam_equals_timm_with_the_two_pictures_swapped(size):
    from timm.layers.cbam import CbamModule
    x, ours = features(size), shaken(CBAM(16, 4))
    theirs = CbamModule(16, rd_channels=4, mlp_bias=True)
    theirs.spatial.conv.bn.act = nn.Identity()
    pour(theirs, ours)
    assert (ours(x) - theirs(x)).abs().max() > 1e-3
    with torch.no_grad(): theirs.spatial.conv.conv.weight.copy_(ours.place[0].weight.flip(1))
    close(ours(x), theirs(x))


@each_size
def test_nonlocal_equals_timm(size):
    from timm.layers import NonLocalAttn
    x, ours = features(size), shaken(NonLocal(16))
    close(ours(x), pour(NonLocalAttn(16, rd_channels=8, use_scale=False), ours)(x))


@pytest.mark.parametrize('size', [*sizes, (4, 3, 5)])
def test_gate_equals_monai(size):
    from monai.networks.nets.attentionunet import AttentionBlock
    x, signal = features(size), features(size, 12) + 1
    ours = shaken(Gate(16, 12, 8, len(size)))
    theirs = AttentionBlock(len(size), f_int=8, f_g=12, f_l=16).eval()
    for a, b in ((ours.skip, theirs.W_x), (ours.signal, theirs.W_g), (ours.join, theirs.psi)): pour(b, a)
    close(ours(x, signal), theirs(signal, x))


@pytest.mark.parametrize('times', [1, 2])
@pytest.mark.parametrize('size', [(5, 4), (3, 2, 4)])
def test_criss_cross_equals_loops(size, times):
    x, ours = features(size), shaken(CrissCross(16, len(size), times))
    close(ours(x), criss_cross_by_loops(ours, x, times))


@pytest.mark.parametrize('size', [(5, 4), (3, 2, 4)])
def test_coordinate_equals_loops(size):
    x, ours = features(size), shaken(Coordinate(16, dims=len(size)))
    close(ours(x), coordinate_by_loops(ours, x))


def reach(block, size, at):
    x = features(size, n=1).requires_grad_()
    shaken(block)(x)[0, :, *at].sum().backward()
    return x.grad[0].abs().sum(0) > 0


@pytest.mark.parametrize('size, at', [((6, 7), (2, 4)), ((4, 5, 3), (1, 3, 0))])
def test_criss_cross_sees_a_cross_and_then_everything(size, at):
    cross = torch.zeros(size, dtype=torch.bool)
    for a in range(len(size)):
        cross[tuple(slice(None) if b == a else at[b] for b in range(len(size)))] = True
    assert (reach(CrissCross(16, len(size), 1), size, at) == cross).all()
    assert reach(CrissCross(16, len(size), len(size)), size, at).all()


def test_identity_at_start():
    x = features((6, 5))
    for block in (NonLocal(16), CrissCross(16)): assert torch.equal(block(x), x)


@pytest.mark.parametrize('name', ['se', 'eca', 'scse', 'cbam', 'coordinate'])
def test_gains_lie_between_0_and_1(name):
    gain = shaken(blocks[name](2)).gate(50*features((6, 5)))
    top = 2 if name == 'scse' else 1
    assert gain.min() >= 0 and gain.max() <= top
    assert gain.max() > .5*top


def test_rank_one_gain():
    gain = shaken(Coordinate(16)).gate(features((9, 8))).double()
    assert (torch.linalg.matrix_rank(gain, rtol=1e-5) == 1).all()


def test_shuffled_places():
    x, order = features((6, 5)), torch.randperm(30)
    shuffle = lambda t: t.flatten(2)[..., order].reshape(t.shape)
    for name in ('se', 'eca'):
        gate = shaken(blocks[name](2)).gate
        assert torch.allclose(gate(x), gate(shuffle(x)), atol=1e-6)
    gate = shaken(Coordinate(16)).gate
    assert (gate(x) - gate(shuffle(x))).abs().max() > 1e-3
    block = shaken(NonLocal(16))
    assert torch.allclose(block(shuffle(x)), shuffle(block(x)), atol=1e-5)


@each_block
@pytest.mark.parametrize('dims', [2, 3])
def test_shape_gradients_and_independent_samples(name, dims):
    block, x = shaken(blocks[name](dims)), features((5, 4, 3)[:dims])
    out = block(x)
    assert out.shape == x.shape
    assert torch.allclose(out[:1], block(x[:1]), atol=1e-5)
    out.square().sum().backward()
    assert all(p.grad is not None for p in block.parameters())


@pytest.mark.parametrize('name', [n for n in blocks if n not in ('cbam', 'coordinate')])
def test_volume_of_one_slice_is_a_picture(name):
    flat, thick = shaken(blocks[name](2)), shaken(blocks[name](3))
    thick.load_state_dict({k: v.reshape(thick.state_dict()[k].shape) for k, v in flat.state_dict().items()})
    x = features((6, 5))
    assert torch.allclose(flat(x), thick(x[:, :, None])[:, :, 0], atol=1e-5)


def test_counts_at_64_channels():
    built = [SE(64), ECA(64), SCSE(64), CBAM(64), Gate(64, 64, 32), Coordinate(64), NonLocal(64),
             CrissCross(64)]
    assert [count(b) for b in built] == [512, 3, 645, 680, 4323, 1688, 8480, 5201]


def test_bad_input():
    x = features((6, 5))
    with pytest.raises(ValueError, match='reduction of at most 8'): SE(8)
    with pytest.raises(ValueError, match='enlarge the signal'): Gate(16, 16, 8)(x, x[..., :3, :3])
    for block in (Coordinate(16), CrissCross(16)):
        with pytest.raises(ValueError, match='16 channels'): block(x[:, :8])
        with pytest.raises(ValueError, match='2 spatial axes'): block(x[..., None])
