"Every entry of the register is held to the contract of its kind (design: the seven kinds)."
import inspect
import re
from pathlib import Path

import pytest
import torch

from medseg_nb.core.system import KINDS, systems

root = Path(__file__).resolve().parents[1]
nets = systems('net')
each_net = pytest.mark.parametrize('entry', nets, ids=[s.name for s in nets])
each_dims = pytest.mark.parametrize('entry,dims', [(s, d) for s in nets for d in s.dims],
                                    ids=[f'{s.name}-{d}d' for s in nets for d in s.dims])


def small(entry, dims, **more):
    "A net small enough to test, and the size it takes"
    torch.manual_seed(0)
    net = entry.fn(c_in=2, c_out=3, dims=dims, **more)
    side = 2*getattr(net, 'divisor', 1)
    return net, torch.randn(2, 2, *[side]*dims)


def test_register_is_complete():
    written = set()
    for path in (root/'medseg_nb').rglob('*.py'):
        written |= set(re.findall(r'^@system\((?:.|\n)*?\ndef (\w+)\(', path.read_text(), flags=re.M))
    assert written == {s.name for s in systems()}
    assert nets


@pytest.mark.parametrize('entry', systems(), ids=[s.name for s in systems()])
def test_card_is_filled_in(entry):
    assert entry.kind in KINDS and 1900 < entry.year < 2100 and entry.paper and inspect.getdoc(entry.fn)
    assert (entry.paper_size is None) == (entry.paper_params is None)
    assert entry.scale in ('paper', 'teaching')
    assert entry.fn.__module__.endswith('.' + entry.name) or entry.kind == 'tool', 'named unlike its notebook'
    parent = entry.parent
    assert parent is None or parent in {s.name for s in systems()}, f'parent {parent} is not registered'


@each_dims
def test_net_shape(entry, dims):
    net, x = small(entry, dims)
    assert net(x).shape == (2, 3, *x.shape[2:])


@each_dims
def test_net_gradients_reach_every_parameter(entry, dims):
    net, x = small(entry, dims)
    (net(x)**2).mean().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


@each_dims
def test_net_samples_are_independent_in_eval(entry, dims):
    net, x = small(entry, dims)
    net.eval()
    with torch.no_grad(): torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=1e-4, atol=1e-5)


@each_dims
def test_net_awkward_size_works_or_names_the_size_to_pad_to(entry, dims):
    net, x = small(entry, dims)
    stride = getattr(net, 'divisor', 1)
    odd = torch.randn(1, 2, *[2*stride + 1]*dims)
    net.eval()
    if stride == 1: assert net(odd).shape[2:] == odd.shape[2:]
    else:
        with pytest.raises(ValueError, match=re.escape(f'pad it to {tuple([3*stride]*dims)}')): net(odd)


@each_dims
def test_net_wrong_channels_are_refused(entry, dims):
    net, x = small(entry, dims)
    with pytest.raises(ValueError, match='2 channels'): net(x[:, :1])


@each_dims
def test_net_state_dict_round_trip(entry, dims):
    net, x = small(entry, dims)
    twin = entry.fn(**net.spec['args'])
    twin.load_state_dict(net.state_dict())
    net.eval(), twin.eval()
    assert torch.equal(net(x), twin(x))


@each_dims
def test_net_same_seed_same_weights(entry, dims):
    a, b = small(entry, dims)[0].state_dict(), small(entry, dims)[0].state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@each_net
def test_net_has_the_parameters_of_its_paper(entry):
    with torch.device('meta'): net = entry.fn(**entry.paper_size)
    assert sum(p.numel() for p in net.parameters()) == entry.paper_params
