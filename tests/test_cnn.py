"The networks against independent implementations, with copied weights."
import pytest
import torch
from torch import nn

from medseg_nb.cnn.blocks import DoubleConv, count, up
from medseg_nb.cnn.unet import unet


def nnunet_unet(c_in, c_out, dims, width, depth, norm):
    "The same architecture, put together from nnU-Net's own library"
    from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
    from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    norm_op = {('batch', 2): nn.BatchNorm2d, ('batch', 3): nn.BatchNorm3d,
               ('instance', 2): nn.InstanceNorm2d, ('instance', 3): nn.InstanceNorm3d}.get((norm, dims))
    widths, strides = [width*2**i for i in range(depth)], [1] + [2]*(depth - 1)
    encoder = PlainConvEncoder(c_in, depth, widths, conv, 3, strides, 2, conv_bias=norm is None,
                               norm_op=norm_op, norm_op_kwargs=dict(affine=True) if norm else None,
                               nonlin=nn.ReLU, return_skips=True, pool='max')
    return UNetDecoder(encoder, c_out, 2, deep_supervision=False, conv_bias=True)


def copy_weights(ours, theirs):
    "Layer by layer, in the order of computation; theirs stacks [up, skip], ours [skip, up]"
    def leaves(m): return [x for x in m.modules() if not list(x.children()) and list(x.parameters())]
    mine = [leaves(m) for m in (ours.encoder, *ours.decoder.ups, *ours.decoder.blocks, ours.head)]
    unique = []
    for m in leaves(theirs.encoder):
        if not any(m is u for u in unique): unique.append(m)
    blocks = [[x for i, x in enumerate(found) if not any(x is y for y in found[:i])]
              for found in map(leaves, theirs.stages)]
    yours = [unique] + [leaves(m) for m in theirs.transpconvs] + blocks + [[theirs.seg_layers[-1]]]
    first = [b[0] for b in blocks]
    for a, b in zip(mine, yours, strict=True):
        for p, q in zip(a, b, strict=True):
            state = {k: v.clone() for k, v in p.state_dict().items() if k in q.state_dict()}
            if q in first:
                skip, double = state['weight'].chunk(2, 1)
                state['weight'] = torch.cat([double, skip], 1)
                if 'bias' in q.state_dict() and 'bias' not in state: state['bias'] = torch.zeros_like(q.bias)
            for k, v in q.state_dict().items(): v.copy_(state.get(k, torch.zeros_like(v)))


@pytest.mark.parametrize('dims,norm', [(2, None), (2, 'batch'), (2, 'instance'), (3, 'batch'), (3, None)])
def test_unet_equals_nnunet_library_with_copied_weights(dims, norm):
    torch.manual_seed(0)
    args = dict(c_in=2, c_out=3, dims=dims, width=6, depth=3, norm=norm)
    ours, theirs = unet(**args), nnunet_unet(**args)
    with torch.no_grad():
        for p in ours.parameters(): p.add_(torch.randn_like(p)*.05)
        for m in ours.modules():
            if norm == 'batch' and 'BatchNorm' in type(m).__name__:
                m.running_mean.normal_(), m.running_var.uniform_(.5, 2)
        copy_weights(ours, theirs)
    x = torch.randn(2, 2, *[16]*dims)
    ours.eval(), theirs.eval()
    with torch.no_grad(): torch.testing.assert_close(ours(x), theirs(theirs.encoder(x)), rtol=1e-4, atol=1e-5)


def test_unet_with_batch_norm_has_the_known_count():
    with torch.device('meta'): assert count(unet(1, 2, width=64, depth=5)) == 31_036_546


def test_unet_is_equivariant_to_shifts_by_its_stride():
    torch.manual_seed(0)
    net = unet(depth=3).eval()
    x = torch.zeros(1, 1, 96, 96)
    x[..., 40:56, 40:56] = torch.randn(16, 16)
    with torch.no_grad(): moved, still = net(x.roll((4, 8), (2, 3))), net(x).roll((4, 8), (2, 3))
    torch.testing.assert_close(moved[..., 30:70, 30:70], still[..., 30:70, 30:70], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dims', [2, 3])
def test_up_and_double_conv_by_hand(dims):
    x = torch.arange(2.**dims).view(1, 1, *[2]*dims)
    double = up(1, 1, dims)
    nn.init.ones_(double.weight), nn.init.zeros_(double.bias)
    for axis in range(2, dims + 2): x = x.repeat_interleave(2, axis)
    assert torch.equal(double(torch.arange(2.**dims).view(1, 1, *[2]*dims)), x)
    block = DoubleConv(1, 1, dims, norm=None)
    for p in block.parameters(): nn.init.constant_(p, 1)
    inside = block(torch.ones(1, 1, *[5]*dims))[(0, 0, *[2]*dims)]
    assert inside == (3**dims + 1)*3**dims + 1


def test_blocks_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="norm='group'"): DoubleConv(1, 2, norm='group')
    with pytest.raises(ValueError, match='dims=4'): unet(dims=4)
