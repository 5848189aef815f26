"Fully convolutional networks against the published form and torchvision, with copied weights."
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medseg_nb.cnn.blocks import count
from medseg_nb.cnn.fcn import VGG, convs, enlarge, fcn, fcn_resnet50, resnet50_features
from medseg_nb.core.weights import REFERENCES, load_reference, rename
from oracles import CaffeFCN


def strange(net, seed=0):
    "Random weights, biases, BN statistics; eval mode"
    torch.manual_seed(seed)
    for p in net.parameters(): p.data += torch.randn_like(p)*.02
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)):
            m.running_mean.normal_(0, .3), m.running_var.uniform_(.5, 2)
            m.weight.data.uniform_(.5, 1.5), m.bias.data.normal_(0, .2)
    return net.eval()


def close(a, b, share=1e-5):
    "Within a share of the scale"
    assert a.shape == b.shape and b.abs().max() > 1e-2 and (a - b).abs().max() <= share*b.abs().max()


@pytest.mark.parametrize('stride,counted', [(32, 136_152_917), (16, 134_815_994), (8, 134_489_759)])
def test_published_counts(stride, counted):
    with torch.device('meta'):
        assert count(fcn(3, 21, width=64, stride=stride, hidden=4096, norm=None)) == counted
        assert sum(p.numel() for p in CaffeFCN(3, 21, 64, 4096, stride).parameters()) == counted


@pytest.mark.parametrize('stride', [32, 16, 8])
def test_fcn_equals_the_published_form_three_pixels_on(stride):
    "Pad 100, ceil pools, crops: away from the border the same numbers, for cells that begin 3 pixels earlier"
    torch.manual_seed(1)
    theirs = CaffeFCN(1, 3, 4, 8, stride)
    for p in theirs.parameters(): p.data.normal_(0, .1 if p.ndim == 1 else (2/p[0].numel())**.5)
    ours = fcn(1, 3, width=4, stride=stride, hidden=8, norm=None)
    load_reference(ours, theirs.state_dict(), 'wkentaro:fcn')
    x = torch.randn(1, 1, 576, 544)
    with torch.no_grad(): a, b = ours.eval()(x.roll((3, 3), (2, 3))).roll((-3, -3), (2, 3)), theirs.eval()(x)
    assert a.shape == b.shape == (1, 3, 576, 544)
    inner = (..., slice(248, -248), slice(248, -248))
    close(a[inner], b[inner])
    moved = ours(x)[inner]
    assert (moved - b[inner]).abs().max() > 1e-2*b.abs().max(), 'the comparison would not see a shift'


def test_published_form_of_torchvisions_vgg16_at_full_width_fits():
    import torchvision
    with torch.device('meta'):
        theirs = torchvision.models.vgg16()
        ours = VGG(3, 64, 4096, norm=None)
    kept = sum(p.numel() for p in theirs.parameters()) - count(theirs.classifier[6])
    assert count(ours) == kept == 134_260_544
    renamed, left = rename(theirs.state_dict(), REFERENCES['torchvision:vgg16'])
    shapes = lambda state: {k: v.shape for k, v in state.items()}
    assert not left and shapes(renamed) == shapes(ours.state_dict())


def test_fully_connected_layers_answer_in_the_middle_cell():
    from torchvision.models.vgg import make_layers
    torch.manual_seed(0)
    plan = [c for k, n in zip((4, 8, 16, 32, 32), (2, 2, 3, 3, 3)) for c in [k]*n + ['M']]
    features = make_layers(plan)
    classifier = nn.Sequential(nn.Linear(32*49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(),
                               nn.Dropout(), nn.Linear(16, 1000))
    theirs = strange(nn.ModuleDict(dict(features=features, classifier=classifier)))
    ours = fcn(3, width=4, hidden=16, norm=None).encoder
    load_reference(ours, theirs.state_dict(), 'torchvision:vgg16')
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad(): close(ours.eval()(x)[-1][..., 3, 3], classifier[:-2](features(x).flatten(1)))
    with torch.no_grad(): close(ours(x)[0], features[:17](x))


@pytest.mark.parametrize('aux', [False, True])
def test_fcn_resnet50_equals_torchvision(aux):
    from torchvision.models.segmentation import fcn_resnet50 as theirs_of
    theirs = strange(theirs_of(weights=None, weights_backbone=None, num_classes=5, aux_loss=aux))
    ours = fcn_resnet50(3, 5, width=64, aux=aux)
    load_reference(ours, theirs.state_dict(), 'torchvision:fcn_resnet50')
    for shape in ((64, 96), (65, 51)):
        x = torch.randn(2, 3, *shape)
        with torch.no_grad():
            both, one = theirs(x), ours.eval()(x)
            close(one, both['out'])
            if not aux: continue
            ours.train()
            for m in ours.modules():
                if isinstance(m, (nn.BatchNorm2d, nn.Dropout)): m.eval()
            final, auxiliary = ours(x)
            close(final, both['out']), close(auxiliary, both['aux'])


def test_weights_of_another_net_are_refused_and_nothing_is_loaded():
    net = fcn_resnet50(3, 5)
    was = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match='left over|not'):
        load_reference(net, fcn_resnet50(3, 5, aux=True).state_dict(), 'torchvision:fcn_resnet50')
    with pytest.raises(ValueError, match='another shape'):
        load_reference(net, fcn_resnet50(3, 5, width=16).state_dict(), 'torchvision:fcn_resnet50')
    with pytest.raises(ValueError, match='get nothing'): load_reference(net, {}, 'torchvision:resnet50')
    assert all(torch.equal(v, was[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize('dilate,sides', [((False, False, False), (24, 12, 6, 3)),
                                          ((False, False, True), (24, 12, 6, 6)),
                                          ((False, True, True), (24, 12, 12, 12))])
def test_resnet50_features_equal_torchvision(dilate, sides):
    import torchvision
    theirs = strange(torchvision.models.resnet50(replace_stride_with_dilation=list(dilate)))
    ours = resnet50_features(dilate=dilate).eval()
    load_reference(ours, theirs.state_dict(), 'torchvision:resnet50')
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        found = ours(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for i, (mine, side) in enumerate(zip(found, sides, strict=True), 1):
            y = getattr(theirs, f'layer{i}')(y)
            assert y.shape[-1] == side
            close(mine, y)


@pytest.mark.parametrize('dims', [2, 3])
def test_dilation_is_the_halving_network_at_all_places(dims):
    halving = strange(resnet50_features(2, 4, dims, (False, False, False)))
    dilating = resnet50_features(2, 4, dims).eval()
    dilating.load_state_dict(halving.state_dict())
    x = torch.randn(1, 2, *[72 if dims == 2 else 40]*dims)
    with torch.no_grad(): close(dilating(x)[-1][(..., *[slice(None, None, 4)]*dims)], halving(x)[-1])


@pytest.mark.parametrize('dims,how', [(2, 'bilinear'), (3, 'trilinear')])
@pytest.mark.parametrize('factor', [2, 8])
def test_enlarge_is_linear_interpolation_inside_and_fades_at_the_rim(dims, how, factor):
    torch.manual_seed(0)
    x, half = torch.randn(2, 3, *[4, 5, 3][:dims]), factor//2
    out, want = enlarge(3, factor, dims)(x), F.interpolate(x, scale_factor=factor, mode=how)
    inner = (..., *[slice(half, -half)]*dims)
    assert out.shape == want.shape
    torch.testing.assert_close(out[inner], want[inner], rtol=1e-5, atol=1e-6)
    flat = enlarge(1, factor, dims)(torch.ones(1, 1, *[3]*dims))
    assert flat[inner].sub(1).abs().max() < 1e-6
    assert flat.flatten()[0].item() == pytest.approx((.5 + .5/factor)**dims) == flat.min().item()


def test_enlarge_keeps_the_largest_class_at_the_rim():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, 3)
    out, want = enlarge(4, 8)(x).argmax(1), F.interpolate(x, scale_factor=8, mode='bilinear').argmax(1)
    assert torch.equal(out, want)


def test_repeated_slices_give_the_answer_of_the_picture():
    "The 3-D net with the 2-D weights in the middle of its windows, on a film repeated along depth"
    torch.manual_seed(0)
    flat = strange(fcn_resnet50(1, 2, 2, width=4))
    deep = fcn_resnet50(1, 2, 3, width=4).eval()
    for (name, a), b in zip(deep.state_dict().items(), flat.state_dict().values(), strict=True):
        if a.ndim == 5: a.zero_(), a[:, :, a.shape[2]//2].copy_(b)
        else: a.copy_(b)
    x = torch.randn(1, 1, 40, 33)
    with torch.no_grad(): out = deep(x[:, :, None].repeat(1, 1, 24, 1, 1))
    with torch.no_grad(): close(out[:, :, 12], flat(x))


def test_moving_the_image_by_32_pixels_moves_the_answer():
    net = strange(fcn(width=4, hidden=8))
    x = torch.zeros(1, 1, 640, 608)
    x[..., 280:340, 280:320] = torch.randn(60, 40)
    at = lambda y: y[..., 272:352, 272:336]
    with torch.no_grad(): moved, still = net(x.roll((32, 32), (2, 3))).roll((-32, -32), (2, 3)), net(x)
    close(at(moved), at(still), 1e-4)


def test_finer_scores_reach_only_their_surroundings():
    "With the bottom cut off, a pixel is seen from the cells of pool3 and pool4 only"
    net = strange(fcn(width=4, hidden=8))
    for p in net.scores[0].parameters(): p.data.zero_()
    x = torch.randn(1, 1, 384, 384, requires_grad=True)
    net(x)[0, 1, 192, 192].backward()
    seen = x.grad[0, 0].abs().amax(0).nonzero()
    assert 40 < seen.max() - seen.min() < 200
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.scores[2].parameters())


def test_dropout_acts_in_training_only():
    net = fcn(dropout=.5, norm=None)
    x = torch.randn(1, 1, 64, 64)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_deep_supervision_lists_the_final_answer_first():
    from medseg_nb.train.loss import deep_supervision, dice_ce
    torch.manual_seed(0)
    net, x = fcn_resnet50(aux=True), torch.randn(2, 1, 20, 20)
    out = net(x)
    assert isinstance(out, list) and [y.shape for y in out] == [(2, 2, 20, 20)]*2
    deep_supervision(dice_ce)(out, torch.randint(2, (2, 20, 20))).backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    assert net.eval()(x).shape == (2, 2, 20, 20) and fcn_resnet50().train()(x).shape == (2, 2, 20, 20)


def test_bad_input_is_refused_with_what_was_wanted():
    with pytest.raises(ValueError, match="Got norm='group', wanted 'batch'"): convs(1, 2, 1, norm='group')
    with pytest.raises(ValueError, match='Got stride=4, wanted 8, 16 or 32'): fcn(stride=4)
    with pytest.raises(ValueError, match='dims=4'): fcn(dims=4)
    with pytest.raises(ValueError, match='dims=1'): fcn_resnet50(dims=1)
    with pytest.raises(ValueError, match=r'pad it to \(64, 32\)'): fcn()(torch.zeros(2, 1, 33, 32))
    with pytest.raises(ValueError, match='3 channels'): fcn_resnet50(3)(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match='2 spatial axes'): fcn_resnet50()(torch.zeros(2, 1, 8, 32, 32))


def test_one_number_for_each_channel_is_not_trained_on():
    one = torch.zeros(1, 1, 32, 32)
    with pytest.raises(ValueError, match=r'of \(32, 32\).*two images, or a side above 32'): fcn()(one)
    with pytest.raises(ValueError, match=r'one image of \(8, 8\).*above 8'): fcn_resnet50()(one[..., :8, :8])
    assert fcn().eval()(one).shape == fcn(norm=None)(one).shape == (1, 2, 32, 32)
    assert fcn()(one.repeat(2, 1, 1, 1)).isfinite().all()
    assert fcn()(torch.zeros(1, 1, 64, 32)).isfinite().all()
    assert fcn_resnet50()(one[..., :9, :8]).isfinite().all()
    assert fcn_resnet50().eval()(one[..., :8, :8]).isfinite().all()
