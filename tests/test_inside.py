"Networks opened: the count of fields against gradients, costs against formulas, and nothing left behind."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medseg_nb.cnn.inside import Inside, box, cut, features, inside, reach, screen
from medseg_nb.cnn.unet import unet
from medseg_nb.core.explore import Point
from medseg_nb.data.volume import Volume
from medseg_nb.train.predict import Predictor
from medseg_nb.train.sight import layers, sight


@st.composite
def stacks(draw, dims):
    "A chain of convolutions, transposed convolutions and pools, and the size of an image"
    nd, net, c = {2: '2d', 3: '3d'}[dims], [], 1
    for _ in range(draw(st.integers(1, 5 if dims == 2 else 3))):
        kind = draw(st.sampled_from('conv conv conv max avg up relu'.split()))
        k, s, p, d = (draw(st.integers(*ends)) for ends in ((1, 4), (1, 3), (0, 2), (1, 2)))
        make = lambda name, *args, **kw: net.append(getattr(nn, name + nd)(*args, **kw))
        if kind == 'conv': make('Conv', c, 2, k, s, p, d)
        if kind == 'up': make('ConvTranspose', c, 2, k, s, 0)
        if kind == 'max': make('MaxPool', k, s, min(p, k//2), d, ceil_mode=draw(st.booleans()))
        if kind == 'avg': make('AvgPool', k, s, min(p, k//2))
        if kind == 'relu': make('BatchNorm', c); net.append(nn.ReLU(inplace=True))
        c = 2 if kind in ('conv', 'up') else c
    return nn.Sequential(*net), draw(st.tuples(*[st.integers(6, 26 if dims == 2 else 12)]*dims))


def check_stack(net, size, data):
    "One cell's field, counted and by gradient"
    try:
        with torch.no_grad(): out = net.eval()(torch.zeros(1, 1, *size)).shape[2:]
    except RuntimeError: assume(False)
    assume(min(out) > 0 and max(out) < 80)
    last, at = str(len(net) - 1), tuple(data.draw(st.integers(0, n - 1)) for n in out)
    assert box(reach(net, (1, 1, *size), last, at)) == sight(net, (1, 1, *size), last).box(at)


@settings(max_examples=20, deadline=None)
@given(stacks(2), st.data())
def test_the_count_is_what_the_gradient_sees(stack, data): check_stack(*stack, data)


@settings(max_examples=15, deadline=None)
@given(stacks(3), st.data())
def test_the_count_is_what_the_gradient_sees_in_3d(stack, data): check_stack(*stack, data)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=5))
def test_field_and_jump_by_the_papers_recursion(specs):
    r = j = 1
    for k, s, d in specs: r, j = r + (k - 1)*d*j, j*s
    net = nn.Sequential(*(nn.Conv2d(1, 1, k, s, padding=2, dilation=d) for k, s, d in specs))
    try: last = layers(net, (1, 1, 30, 40)).iloc[-1]
    except RuntimeError: assume(False)
    assert last.field == (r, r) and last.jump == (j, j)


class Branches(nn.Module):
    "Skips, functional operations, interpolation, a gate of one cell, one module twice, one never"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 4, 3, padding=1) for i in (1, 4, 8))
        self.gate, self.act, self.idle = nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        x = self.act(self.a(x))
        low = self.act(self.b(F.max_pool2d(x, 2)))
        x = torch.cat([x, F.interpolate(low, scale_factor=2, mode='bilinear')], 1)
        x = self.c(F.pad(x, (2, 0, 1, 1)))
        gate = torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return dict(out=x*self.scale, gated=(x*gate, gate))


@pytest.mark.parametrize('layer', ['a', 'act', 'b', 'act#2', 'c', 'gate'])
def test_branches_interpolation_and_repeats(layer):
    torch.manual_seed(0)
    net, shape = Branches(), (1, 1, 18, 14)
    s = sight(net, shape, layer)
    for at in {(0, 0), (s.sizes[0]//2, s.sizes[1]//3), (s.sizes[0] - 1, s.sizes[1] - 1)}:
        assert s.box(at) == box(reach(net, shape, layer, at))


@pytest.mark.parametrize('mode', ['nearest', 'nearest-exact', 'bilinear', 'bilinear corners'])
@pytest.mark.parametrize('to', [dict(scale_factor=2), dict(scale_factor=1.5), dict(size=(11, 23)),
                                dict(size=(4, 5))])
def test_interpolations(mode, to):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.d = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            corners = dict(align_corners=True) if 'corners' in mode else {}
            return self.d(F.interpolate(self.c(x), mode=mode.split()[0], **to, **corners))
    torch.manual_seed(0)
    net, shape = Net(), (1, 1, 12, 15)
    s = sight(net, shape, 'd')
    if mode == 'nearest-exact': assert np.isnan(s.field)
    else:
        for at in np.ndindex(*s.sizes):
            if sum(at) % 5 == 0: assert s.box(at) == box(reach(net, shape, 'd', at)), at


def test_unet_everywhere():
    net = unet(depth=3, width=4)
    s = sight(net, (1, 1, 72, 72), 'head')
    for at in ((0, 0), (35, 36), (40, 71)):
        assert s.box(at) == box(reach(net, (1, 1, 72, 72), 'head', at))
    assert s.field == (44, 44) and s.jump == (1, 1)
    net = unet(dims=3, depth=2, width=2)
    s = sight(net, (1, 1, 24, 20, 22), 'head')
    assert s.box((9, 9, 9)) == box(reach(net, (1, 1, 24, 20, 22), 'head', (9, 9, 9)))


@pytest.mark.parametrize('name, layer, published', [
    ('vgg16', 'features.30', 212), ('alexnet', 'features.12', 195)])
def test_published_fields(name, layer, published):
    import torchvision
    with torch.device('meta'): net = getattr(torchvision.models, name)()
    t = layers(net, (1, 3, 224, 224)).set_index('name')
    assert t.field[layer] == (published,)*2  # Araujo, Norris and Sim, Distill 2019


def nets():
    import torchvision
    from monai.networks.nets import UNet
    return dict(
        resnet=(torchvision.models.resnet18(), (1, 3, 64, 64)), unet=(unet(width=4), (2, 1, 32, 48)),
        unet3=(unet(dims=3, width=2, depth=3), (1, 1, 16, 8, 12)),
        monai=(UNet(3, 1, 2, channels=(4, 8), strides=(2,)), (1, 1, 8, 8, 8)),
        fcn=(torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None),
             (1, 3, 32, 32)),
        mobile=(torchvision.models.mobilenet_v3_small(), (1, 3, 64, 64)),
        vit=(torchvision.models.VisionTransformer(32, 16, 2, 4, 32, 64), (1, 3, 32, 32)))


@pytest.mark.parametrize('name', ['resnet', 'unet', 'unet3', 'monai', 'fcn', 'mobile', 'vit'])
@pytest.mark.parametrize('depth', [None, 1])
def test_costs_add_up(name, depth):
    net, shape = nets()[name]
    net.train()
    table, count = layers(net, shape, depth), FlopCounterMode(display=False)
    torch.backends.mha.set_fastpath_enabled(False)
    with count, torch.no_grad(): net.eval()(torch.zeros(shape))
    torch.backends.mha.set_fastpath_enabled(True)
    assert table.macs.sum()*2 == count.get_total_flops()
    assert table.params.sum() == sum(p.numel() for p in net.parameters())
    assert table.name.is_unique and table.bytes.sum() > 0


def test_costs_of_convolutions_by_formula():
    net = nn.Sequential(nn.Conv2d(4, 6, (3, 5), stride=2, groups=2), nn.ConvTranspose2d(6, 8, 2, stride=2),
                        nn.ReLU(True))
    t = layers(net, (3, 4, 21, 25))
    assert t.output.tolist() == [(3, 6, 10, 11), (3, 8, 20, 22), (3, 8, 20, 22)]
    assert t.macs.tolist() == [3*6*10*11*(4//2)*3*5, 3*6*10*11*8*2*2, 0]
    assert t.bytes.tolist() == [3*6*10*11*4, 3*8*20*22*4, 0]
    assert t.params.tolist() == [6*2*15 + 6, 6*8*4 + 8, 0]
    assert t.field[0] == (3, 5) and t.start[0] == (1, 2) and t.jump[1] == (1, 1)


class Between(nn.Module):
    "Something between two convolutions"
    def __init__(self, f):
        super().__init__()
        self.f, self.a, self.b = f, nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)

    def forward(self, x): return self.b(self.f(self.a(x)))


def written(y):
    out = torch.zeros(1, 2, 9, 9)
    out[:, :, :6, :6] = y
    return out


@pytest.mark.parametrize('f', [
    written, lambda y: y.roll(2, 3), lambda y: y.flip(2), lambda y: y.cumsum(3), lambda y: y.transpose(2, 3),
    lambda y: y.softmax(3), lambda y: torch.cat([y, y], 2), lambda y: y[:, :, 1:],
    lambda y: y.reshape(1, 2, 3, 12), lambda y: y.mean(3, keepdim=True).expand(1, 2, 6, 6)])
def test_unknown_is_nan_from_there_on(f):
    t = layers(Between(f), (1, 1, 8, 8)).set_index('name')
    assert t.field['a'] == (3, 3) and np.isnan(t.field['b'])
    assert sight(Between(f), (1, 1, 8, 8), 'b').box((0, 0)) is None


@pytest.mark.parametrize('f', [
    lambda y: y[:, :1].expand(-1, 2, -1, -1), lambda y: torch.cat([y[:, 1:], 2*y[:, :1]], 1),
    lambda y: y.softmax(1), lambda y: F.gelu(y) + y.clamp(-1, 1),
    lambda y: y.chunk(2, 1)[0].repeat(1, 2, 1, 1)])
def test_what_looks_at_one_cell_changes_nothing(f):
    s = sight(Between(f), (1, 1, 8, 8), 'b')
    assert s.field == (5, 5) and s.box((0, 3)) == [(0, 4), (3, 7)]


@pytest.mark.parametrize('norm, whole', [
    (nn.BatchNorm2d(4), False), (nn.BatchNorm2d(4, track_running_stats=False), True),
    (nn.InstanceNorm2d(4), True), (nn.GroupNorm(2, 4), True), (nn.LayerNorm((4, 7, 7)), True)])
def test_norms_of_the_whole_image_are_said(norm, whole):
    t = layers(nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Conv2d(4, 1, 3)), (1, 1, 9, 9))
    assert t.norm.tolist() == [False, whole, whole] and t.field[2] == (5, 5)


class Moody(nn.Module):
    "Counts its calls, and raises when asked to"
    def __init__(self):
        super().__init__()
        self.bad, self.a, self.norm, self.b = False, nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)

    def forward(self, x):
        x = self.norm(self.a(x))
        if self.bad: raise RuntimeError('out of sorts')
        return self.b(x)


def state(net):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in net.modules()]
    return hooks, {k: v.clone() for k, v in net.state_dict().items()}, [p.grad for p in net.parameters()]


@pytest.mark.parametrize('bad', [False, True])
@pytest.mark.parametrize('look', [
    lambda n, x: layers(n, x), lambda n, x: layers(n, x.shape), lambda n, x: features(n, x, 'b'),
    lambda n, x: inside(n, x), lambda n, x: reach(n, x, 'b', (1, 1)),
    lambda n, x: reach(n, tuple(x.shape), 'b', (1, 1))])
def test_nothing_is_left_behind(bad, look):
    net = Moody().train()
    net.norm.eval()
    net.bad, x = bad, torch.rand(1, 1, 6, 6)
    kept, before, seed = x.clone(), state(net), torch.random.get_rng_state()
    if bad:
        with pytest.raises(RuntimeError, match='out of sorts'): look(net, x)
    else: look(net, x)
    after = state(net)
    assert before[0] == after[0] and before[2] == after[2]
    assert torch.equal(x, kept) and not hasattr(x, 'sight')
    assert all(torch.equal(v, after[1][k]) for k, v in before[1].items())
    assert torch.equal(seed, torch.random.get_rng_state()) and torch.backends.mha.get_fastpath_enabled()


def test_features_are_what_the_layer_made():
    torch.manual_seed(0)
    net, x = Moody().eval(), torch.rand(2, 1, 7, 8)
    torch.testing.assert_close(features(net, x, 'norm'), net.norm(net.a(x))[0])
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    x = x - .5
    torch.testing.assert_close(features(net, x, '0'), F.conv2d(x, net[0].weight, net[0].bias)[0])
    net = Branches().eval()
    assert features(net, torch.rand(1, 1, 8, 8), 'act#2').shape == (4, 4, 4)
    assert features(net, torch.rand(1, 1, 8, 8), '').shape == (4, 10, 10)


def test_effective_field_is_the_gradient_of_this_image():
    torch.manual_seed(0)
    net, x = unet(width=4, depth=2).eval(), torch.rand(1, 1, 16, 16)
    probe = x.clone().requires_grad_()
    net(probe)[0, 1, 7, 9].backward()
    torch.testing.assert_close(reach(net, x, 'head', (7, 9), channel=1), probe.grad[0, 0].abs())
    two = nn.Conv2d(2, 1, 1)
    heat = reach(two, torch.rand(1, 2, 3, 3), '', (1, 1))
    torch.testing.assert_close(heat[1, 1], two.weight.detach().abs().sum())


@pytest.mark.parametrize('call, error, words', [
    (lambda n, x: features(n, x, 'conv'), KeyError, "No layer is named 'conv'; there are .*a, norm, b"),
    (lambda n, x: reach(n, x, 'c', (0, 0)), KeyError, 'a, norm, b'),
    (lambda n, x: sight(n, x, 'c'), KeyError, 'a, norm, b'),
    (lambda n, x: features(n, x, 'a#2'), ValueError, 'a#2 is not reached: this pass calls a 1 times'),
    (lambda n, x: reach(n, x, 'b', (4, 0)), IndexError, r'Cell \(4, 0\) is outside b, whose map is \(4, 4\)'),
    (lambda n, x: reach(n, x, 'b', (-1, 0)), IndexError, 'outside'),
    (lambda n, x: reach(n, x, 'b', (0,)), IndexError, 'outside'),
    (lambda n, x: layers(n, (1, 6, 6)), ValueError, r'Got \(1, 6, 6\), wanted \(B, C, H, W\)'),
    (lambda n, x: layers(nn.LazyConv2d(3, 3), x.shape), ValueError, 'weight has no shape yet'),
    (lambda n, x: inside(n, x, layer='c'), ValueError, r"got 'c'; wanted one of \['a', 'norm', 'b'\]"),
    (lambda n, x: inside(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), x), ValueError,
     'No module .* makes a map'),
    (lambda n, x: reach(Cut(), x, 'a', (0, 0)), ValueError, 'cuts the gradient before a'),
])
def test_refusals(call, error, words):
    with pytest.raises(error, match=words): call(Moody(), torch.rand(1, 1, 6, 6))


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 1, 1)

    @torch.no_grad()
    def forward(self, x): return self.a(x)


def test_odd_nets():
    t = layers(Branches(), (1, 1, 8, 8)).set_index('name')
    assert isinstance(t.output['idle'], float) and t.params['idle'] == 12 and t.macs['idle'] == 0
    assert t.params['scale'] == 4 and t.kind['scale'] == 'Parameter' and t.params['act#2'] == 0
    both = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Identity())
    both.append(both[0])
    assert layers(both, (1, 1, 9, 9)).name.tolist() == ['0', '1', '0#2']
    assert layers(both, (1, 1, 9, 9)).params.tolist() == [10, 0, 0]
    single = layers(nn.Conv2d(1, 2, 3).double(), (1, 1, 9, 9))
    assert len(single) == 1 and single.bytes[0] == 2*49*8
    pools = nn.Sequential(nn.MaxPool2d(2))
    assert layers(pools, (1, 1, 9, 9)).field[0] == (2, 2)
    assert box(reach(pools, (1, 1, 9, 9), '0', (1, 1))) == [(2, 3)]*2
    assert box(torch.zeros(3, 3)) is None


WIDE, HIGH = 619, 525  # pixels of the picture


def click(side, y, x, shape=1.):
    "The pixel of the picture at a share of the height and width of the image or of the map"
    room = np.array([.55*HIGH, .475*WIDE])
    size = min(room[0]/shape, room[1])*np.array([shape, 1])
    corner = np.array([.05*HIGH, {'image': .01, 'map': .515}[side]*WIDE]) + (room - size)/2
    return Point(*(corner + size*(y, x)).astype(int).tolist())


def opened(net, x, **options):
    e = inside(net, x, **options)
    return e, e.draw.__closure__[[*e.draw.__code__.co_freevars].index('opened')].cell_contents


@pytest.mark.parametrize('side', ['image', 'map'])
def test_a_click_moves_the_cell(side):
    torch.manual_seed(0)
    e, o = opened(unet(width=4, depth=3), torch.rand(1, 1, 32, 32), layer='encoder.blocks.2.5')
    assert e.picture.size == (WIDE, HIGH) and o.cell('encoder.blocks.2.5') in ((3, 3), (4, 4))
    was = np.array(e.picture)
    e.values = dict(at=click(side, .3, .8))
    assert o.cell('encoder.blocks.2.5') == (2, 6) and (np.array(e.picture) != was).any()
    e.values = dict(layer='head')
    assert all(abs(c - 4*n - 2) <= 2 for c, n in zip(o.cell('head'), (2, 6)))
    e.values = dict(at=Point(HIGH - 20, 20), layer='encoder.blocks.2.5')
    assert o.cell('encoder.blocks.2.5') == (2, 6)


def test_every_layer_and_channel_can_be_drawn():
    torch.manual_seed(0)
    e, o = opened(Branches(), torch.rand(1, 1, 16, 12))
    for layer in o.rows:
        e.values = dict(layer=layer, channel=3, at=click('map', .99, .99, o.shape))
        n = o.maps(layer).shape
        assert o.cell(layer) == (n[1] - 1, n[2] - 1) and not e.error and layer in e.words
    assert set(o.rows) == {'a', 'act', 'b', 'act#2', 'c', 'gate'}
    e.values = dict(gradient=False)
    assert 'glows' not in e.words


def test_volumes_lie_as_on_the_viewer():
    data, affine = torch.rand(1, 8, 6, 4), np.diag([2., 2., 3., 1.])
    for codes in ('RAS', 'LPS', 'AIR'):
        volume = Volume(data, affine).reorient(codes)
        axes = screen(volume)
        assert cut(volume.data[0], axes, 1).shape == (6, 8)
        k = 1 if 'S' in codes else 2
        np.testing.assert_array_equal(cut(volume.data[0], axes, k), data[0].numpy()[::-1, ::-1, 1].T)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.AvgPool3d(2))
    e, o = opened(net, Volume(data, affine), layer='1')
    assert e.values['slice'] == 2 and o.cell('1')[2] == 1
    e.values = dict(at=click('image', .1, .1, o.shape), slice=0)
    assert o.cell('1') == (3, 2, 0)
    e.values = dict(at=click('map', .9, .9, o.shape), slice=3)
    assert o.cell('1') == (0, 0, 1)


def test_a_predictor_brings_its_size():
    torch.manual_seed(0)
    volume = Volume(torch.rand(1, 20, 30))
    o = Inside(Predictor(unet(width=4, depth=2), size=16), volume)
    assert o.x.shape == (1, 1, 16, 16) and o.shape == 20/30
    assert Inside(unet(width=4), volume).x.shape == (1, 1, 24, 32)
    assert inside(nn.Conv2d(1, 1, 3), torch.rand(1, 1, 5, 5)).values['channel'] == 0


def test_a_picture_stays_where_no_page_listens():
    bundle, _ = inside(nn.Conv2d(1, 2, 3), torch.rand(1, 1, 9, 9))._repr_mimebundle_()
    assert set(bundle) == {'text/plain', 'image/png'}
