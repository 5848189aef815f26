"U-Net++ against MONAI with copied weights, against the U-Net inside it, and against its own pruned parts."
import itertools
import re

import pytest
import torch
from torch import nn

from medseg_nb.cnn.blocks import count
from medseg_nb.cnn.unet import unet
from medseg_nb.cnn.unetpp import Node, UNetPP, prune, unetpp
from medseg_nb.core.weights import load_reference
from medseg_nb.train.learner import load_net, save_net

MONAI = 'monai:BasicUNetPlusPlus'


def stir(net):
    "Random weights, and random statistics as after training"
    with torch.no_grad():
        for p in net.parameters(): p.add_(torch.randn_like(p)*.05)
        for m in net.modules():
            if 'BatchNorm' in type(m).__name__: m.running_mean.normal_(0, .3), m.running_var.uniform_(.5, 2)
    return net.eval()


def monai(dims, norm='batch', act='relu', bias=False, **more):
    "MONAI's U-Net++, two channels in and three out, all heads"
    from monai.networks.nets import BasicUNetPlusPlus
    torch.manual_seed(0)
    act = ('leakyrelu', dict(negative_slope=.1)) if act == 'leaky' else act
    return stir(BasicUNetPlusPlus(dims, 2, 3, deep_supervision=True, act=act, bias=bias,
                                  norm=(norm, dict(affine=True)), **more))


def ours_for(theirs, dims, norm, widths=(32, 32, 64, 128, 256)):
    return load_reference(UNetPP(2, 3, dims, list(widths), norm, 'transposed', True),
                          theirs.state_dict(), MONAI).eval()


def same_heads(ours, theirs, size):
    "Largest difference over all heads, as a part of their scale"
    x = torch.randn(2, 2, *size)
    with torch.no_grad(): mine, yours = ours.answers(x), theirs(x)[::-1]
    assert len(mine) == len(yours) == 4 and mine[0].shape[2:] == tuple(size)
    assert torch.equal(ours(x), mine[0])
    return max(((a - b).abs().max()/b.abs().max()).item() for a, b in zip(mine, yours, strict=True))


@pytest.mark.parametrize('size', [(64, 64), (48, 80)])
@pytest.mark.parametrize('norm', ['batch', 'instance'])
def test_all_heads_equal_monai(norm, size):
    theirs = monai(2, norm)
    assert same_heads(ours_for(theirs, 2, norm), theirs, size) <= 1e-5


def test_all_heads_equal_monai_in_3d():
    small = (8, 8, 16, 32, 64)
    theirs = monai(3, 'batch', features=(*small, 8))
    assert same_heads(ours_for(theirs, 3, 'batch', small), theirs, (16, 32, 48)) <= 1e-5


def test_equals_monai_as_it_comes_with_leaky_relu_and_biases_that_instance_norm_removes():
    theirs = monai(2, 'instance', 'leaky', bias=True)
    state = {k: v for k, v in theirs.state_dict().items() if not re.search(r'conv_\d\.conv\.bias', k)}
    ours = UNetPP(2, 3, 2, [32, 32, 64, 128, 256], 'instance', 'transposed', True)
    load_reference(ours, state, MONAI)
    for m in ours.modules():
        for name, child in m.named_children():
            if isinstance(child, nn.ReLU): setattr(m, name, nn.LeakyReLU(.1))
    assert same_heads(ours.eval(), theirs, (48, 80)) <= 1e-5


def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded():
    state = monai(2).state_dict()
    net = UNetPP(2, 3, 2, [32, 32, 64, 128, 256], 'batch', 'transposed', False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match='heads.1'): load_reference(net, state, MONAI)
    more = state | {'final.weight': torch.ones(1)}
    with pytest.raises(ValueError, match='left over: final.weight'): load_reference(net, more, MONAI)
    with pytest.raises(ValueError, match='bias'): ours_for(monai(2, bias=True), 2, 'batch')
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def keras_count(level, w=(32, 64, 128, 256, 512)):
    "Numbers in the authors' program, node by node"
    double = lambda a, b: 9*a*b + b + 9*b*b + b
    nodes = [(i, j) for i, j in itertools.product(range(level + 1), repeat=2) if i + j <= level]
    down = sum(double(w[i - 1] if i else 1, w[i]) for i, j in nodes if j == 0)
    rest = sum(4*w[i + 1]*w[i] + w[i] + double((j + 1)*w[i], w[i]) for i, j in nodes if j)
    return down + rest + w[0] + 1


def test_counts_of_the_authors_and_of_the_copy_with_batch_norm():
    published = {1: 100_961, 2: 511_105, 3: 2_204_961, 4: 9_041_601}
    with torch.device('meta'):
        for level, n in published.items():
            assert count(unetpp(1, 1, width=32, depth=level + 1, norm=None)) == n == keras_count(level)
        biases = 2*sum(32*2**i*(5 - i) for i in range(5))
        assert count(unetpp(3, 1, width=32, depth=5, up='linear')) + biases == 9_163_329
        assert count(unetpp(3, 1, width=32, depth=5, up='linear', deep=True)) + biases == 9_163_428


@pytest.mark.parametrize('dims,up,norm', [(2, 'transposed', 'batch'), (2, 'linear', None),
                                          (3, 'linear', 'instance')])
def test_pruned_net_is_the_head_it_keeps(dims, up, norm):
    torch.manual_seed(0)
    net = stir(unetpp(2, 3, dims, width=4, deep=True, up=up, norm=norm))
    x, state = torch.randn(2, 2, *[16]*dims), torch.random.get_rng_state()
    answers = net.answers(x)
    for level in (1, 2, 3):
        small = prune(net, level)
        assert torch.equal(small(x), answers[3 - level])
        assert not small.training and small.divisor == 2**level and small.spec['args']['depth'] == level + 1
        assert set(small.nodes) == {f'{i}_{j}' for i in range(4) for j in range(1, 4) if i + j <= level}
    assert torch.equal(torch.random.get_rng_state(), state), 'pruning drew random numbers'


def test_pruned_net_is_a_copy_that_learns_and_can_be_saved(tmp_path):
    torch.manual_seed(0)
    net = unetpp(width=4, deep=True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    small = prune(net, 2)
    x = torch.randn(2, 1, 16, 16)
    assert small.training and small(x).shape == (2, 2, 16, 16)
    (small(x)**2).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in small.parameters())
    with torch.no_grad():
        for p in small.parameters(): p.add_(1)
    changed = [k for k, v in net.state_dict().items() if not torch.equal(before[k], v)]
    assert not changed
    save_net(small, tmp_path/'small.safetensors')
    again = load_net(tmp_path/'small.safetensors')
    again = again[0] if isinstance(again, tuple) else again
    assert torch.equal(again.eval()(x), small.eval()(x))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match='level=1, but this net has heads at 3'): prune(unetpp(width=4), 1)
    with pytest.raises(ValueError, match='level=4, .* 3, 2, 1'): prune(unetpp(width=4, deep=True), 4)
    with pytest.raises(ValueError, match="up='bilinear'"): unetpp(up='bilinear')
    with pytest.raises(ValueError, match='1 resolution'): unetpp(depth=1)


@pytest.mark.parametrize('dims', [2, 3])
def test_all_heads_answer_in_training_and_the_final_one_afterwards(dims):
    torch.manual_seed(0)
    net, x = unetpp(2, 3, dims, width=4, deep=True), torch.randn(2, 2, *[16]*dims)
    answers = net(x)
    assert isinstance(answers, list) and [a.shape for a in answers] == [(2, 3, *[16]*dims)]*3
    sum((a**2).mean() for a in answers).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    net.eval()
    assert torch.equal(net(x), net.heads['3'](net.grid(x)[0, 3]))
    assert isinstance(unetpp(2, 3, dims, width=4)(x), torch.Tensor)


@pytest.mark.parametrize('dims,norm', [(2, 'batch'), (2, None), (3, 'instance')])
def test_without_the_nodes_between_it_is_the_unet(dims, norm):
    torch.manual_seed(0)
    plus, plain = stir(unetpp(2, 3, dims, width=4, norm=norm)), unet(2, 3, dims, width=4, norm=norm).eval()
    plain.encoder.load_state_dict(plus.encoder.state_dict())
    plain.head.load_state_dict(plus.heads['3'].state_dict())
    for step, i in enumerate((2, 1, 0)):
        node, w = plus.nodes[f'{i}_{3 - i}'], 4*2**i
        node.convs[0].weight.data[:, w:-w] = 0
        state = node.convs.state_dict()
        state['0.weight'] = torch.cat([state['0.weight'][:, :w], state['0.weight'][:, -w:]], 1)
        plain.decoder.blocks[step].load_state_dict(state)
        plain.decoder.ups[step].load_state_dict(node.enlarge.state_dict())
    x = torch.randn(2, 2, *[24]*dims)
    with torch.no_grad(): mine, theirs = plus(x), plain(x)
    assert (mine - theirs).abs().max() <= 1e-5*theirs.abs().max()


def test_a_node_stacks_its_row_from_the_left_and_the_enlarged_from_below_last():
    node = Node(1, 2, 2, norm=None, up='linear')
    assert node.convs[0].in_channels == 2*1 + 2
    nn.init.zeros_(node.convs[0].weight), nn.init.zeros_(node.convs[0].bias)
    node.convs[0].weight.data[0, :, 1, 1] = torch.tensor([1., 10, 100, 1000])
    nn.init.zeros_(node.convs[2].weight), nn.init.zeros_(node.convs[2].bias)
    node.convs[2].weight.data[0, 0, 1, 1] = 1
    row = [torch.full((1, 1, 4, 4), v) for v in (1., 2)]
    below = torch.stack([torch.full((2, 2), 3.), torch.tensor([[4., 4], [7, 7]])])[None]
    out = node(row, below)
    lines = 1 + 20 + 300 + 1000*torch.tensor([4., 5, 6, 7])
    assert torch.allclose(out[0, 0], lines[:, None].expand(4, 4))
