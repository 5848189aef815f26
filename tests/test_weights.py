"Published weights: all of them, or none and the reason; no code in a file is run."
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medseg_nb.core import weights
from medseg_nb.core.weights import load_reference, read_weights, reference, rename, shipped

RULES = ((r'head\.(.+)', r'last.\1'), (r'layer(\d)\.(.+)', lambda m: f'body.{int(m[1]) - 1}.{m[2]}'),
         (r'aux\..+', None))


class Net(nn.Module):
    def __init__(self, n=3):
        super().__init__()
        self.body = nn.ModuleList([nn.Conv2d(1, n, 3), nn.BatchNorm2d(n)])
        self.last = nn.Conv2d(n, 2, 1)


class Theirs(nn.Module):
    def __init__(self, n=3):
        super().__init__()
        self.layer1, self.layer2 = nn.Conv2d(1, n, 3), nn.BatchNorm2d(n)
        self.head, self.aux = nn.Conv2d(n, 2, 1), nn.Linear(2, 2)


@pytest.fixture
def source(monkeypatch):
    monkeypatch.setattr(weights, 'REFERENCES', {})
    reference('test:net', *RULES)
    return 'test:net'


@pytest.fixture
def theirs():
    torch.manual_seed(1)
    net = Theirs()
    net.layer2.running_mean += 3
    return net


def refused(net, state, source, match):
    was = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=match): load_reference(net, state, source)
    assert all(torch.equal(v, was[k]) for k, v in net.state_dict().items()), 'something was loaded'


def test_all_of_it(source, theirs):
    net = Net()
    assert load_reference(net, theirs.state_dict(), source) is net
    pairs = (net.body[0], theirs.layer1), (net.body[1], theirs.layer2), (net.last, theirs.head)
    for ours, other in pairs:
        for k, v in other.state_dict().items(): assert torch.equal(ours.state_dict()[k], v), k


def test_their_tensors_are_copied(source, theirs):
    net = load_reference(Net(), theirs.state_dict(), source)
    with torch.no_grad(): net.last.weight.zero_()
    assert theirs.head.weight.abs().sum() > 0


def test_half_precision_becomes_the_nets_own(source, theirs):
    net = load_reference(Net(), theirs.half().state_dict(), source)
    assert net.last.weight.dtype == torch.float32
    assert torch.equal(net.last.weight, theirs.head.weight.float())


def test_what_is_wrong_is_named_and_nothing_is_loaded(source, theirs):
    state = theirs.state_dict()
    headless = {k: v for k, v in state.items() if 'head' not in k}
    refused(Net(), headless, source, '2 of ours get nothing: last.bias, last.weight')
    refused(Net(), state | {'ema': torch.ones(1)}, source, '1 of theirs are left over: ema')
    refused(Net(), state | {'layer7.weight': torch.ones(1)}, source, 'that this net has not: body.6.weight')
    refused(Net(4), state, source, r'body.0.weight \(3, 1, 3, 3\) for \(4, 1, 3, 3\), .* and 3 more')
    endless = {'layer2.running_var': torch.tensor([1, torch.inf, 1])}
    refused(Net(), state | endless, source, 'not finite: body.1.running_var')
    both = {'ema': torch.ones(1), 'head.bias': torch.ones(9)}
    refused(Net(), state | both, source, 'ema.*; 1 have another shape')
    refused(Net(), {}, source, '9 of ours get nothing: .* and 5 more')


def test_unknown_source_names_those_there_are(source):
    refused(Net(), {}, 'test:other', "Got source='test:other', wanted one of .*test:net")


def test_first_rule_decides_and_may_change_the_tensor():
    rules = (r'a\.w', r'x', torch.Tensor.t), (r'a\..*', None), (r'(.)\.w', r'\1')
    one = torch.ones(1)
    ours, left = rename({'a.w': torch.ones(2, 3), 'a.b': one, 'c.w': one, 'd': one}, rules)
    assert {k: tuple(v.shape) for k, v in ours.items()} == {'x': (3, 2), 'c': (1,)} and left == ['d']


def test_a_pattern_must_match_the_whole_name():
    assert rename({'head.weight.extra': torch.ones(1)}, ((r'head\.weight', 'w'),))[1] == ['head.weight.extra']


def test_two_for_one_name():
    with pytest.raises(ValueError, match="two tensors for 'w', the second is 'b'"):
        rename(dict(a=torch.ones(1), b=torch.ones(1)), ((r'a|b', 'w'),))


def test_files(tmp_path, theirs):
    state = theirs.state_dict()
    torch.save(state, tmp_path/'a.pth')
    torch.save(dict(epoch=1, state_dict={f'module.{k}': v for k, v in state.items()}), tmp_path/'b.ckpt')
    save_file(state, tmp_path/'c.safetensors')
    np.savez(tmp_path/'d.npz', **{k: v.numpy() for k, v in state.items()})
    for path in tmp_path.iterdir():
        found = read_weights(path)
        assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state), path.name


class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (open, (str(self.path), 'w'))


def test_no_code_in_a_file_is_run(tmp_path):
    mark = tmp_path/'it ran'
    torch.save(Bomb(mark), tmp_path/'a.pth')
    (tmp_path/'b.ckpt').write_bytes(pickle.dumps(Bomb(mark)))
    np.save(tmp_path/'c.npy', np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    np.savez(tmp_path/'c.npz', a=np.array([Bomb(mark)], dtype=object))
    mark.unlink(missing_ok=True)
    for name in ('a.pth', 'b.ckpt', 'c.npz'):
        with pytest.raises(ValueError): read_weights(tmp_path/name)
    assert not mark.exists()


def test_a_hash_is_checked_before_a_file_is_opened(tmp_path, theirs, monkeypatch):
    torch.save(theirs.state_dict(), tmp_path/'a.pth')
    monkeypatch.setattr(torch, 'load', lambda *a, **k: pytest.fail('opened'))
    with pytest.raises(ValueError, match='it is another file'): read_weights(tmp_path/'a.pth', '0123')


def test_no_drawer_or_two(tmp_path, theirs):
    torch.save(dict(epoch=3), tmp_path/'a.pth')
    with pytest.raises(ValueError, match=r'0 sets of tensors by name \[\]'): read_weights(tmp_path/'a.pth')
    torch.save([torch.ones(1)], tmp_path/'b.pth')
    with pytest.raises(ValueError, match='0 sets of tensors'): read_weights(tmp_path/'b.pth')
    torch.save(dict(one=theirs.state_dict(), two=theirs.state_dict()), tmp_path/'c.pth')
    with pytest.raises(ValueError, match=r"2 sets .* \['one', 'two'\]"): read_weights(tmp_path/'c.pth')


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError): read_weights(tmp_path/'none.pth')


@pytest.mark.parametrize('name', ['mobilenet_v2', 'mobilenet_v3_small'])
def test_shipped_weights_are_torchvisions(name):
    import torchvision
    net = getattr(torchvision.models, name)()
    net.load_state_dict(read_weights(shipped(name)))
    assert net.classifier[-1].weight.std() > 0
