"The exam: clock, price, memory, resuming, and the report."
import math
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medseg_nb.cnn.unet import unet
from medseg_nb.data.case import Case
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.overlap import dice
from medseg_nb.train.bench import (bench, examine, is_builder, leaderboard, one_cycle, peak_memory, price,
                                   trained)


def disk(i, side=32, classes=1, channels=1):
    "A bright disk on noise, of a patient of its own"
    rng = np.random.default_rng(i)
    y, x = np.mgrid[:side, :side]
    near = (y - rng.uniform(8, 24))**2 + (x - rng.uniform(8, 24))**2
    mask = sum((near < r**2).astype('uint8') for r in (7, 4)[:classes])
    image = mask + .2*rng.standard_normal((channels, side, side))
    return Case(f'c{i}', Volume(image.astype('float32')), Volume(mask[None]), dict(patient=f'p{i//2}'))


train, test = [disk(i) for i in range(12)], [disk(i) for i in range(20, 26)]


class Net(nn.Conv2d):
    "One convolution"
    def __init__(self, c_in, c_out, dims=2): super().__init__(c_in, c_out, 5, padding=2)


def bright(volume): return volume.new((volume.data[:1] > .5).to(torch.uint8))


def test_one_cycle_rises_for_a_quarter_and_ends_at_zero():
    t = np.linspace(0, 1, 101)
    lr = np.array([one_cycle(i, 3.) for i in t])
    assert lr[0] == 0 and lr[25] == 3 and lr[-1] == pytest.approx(0) and lr.max() == 3
    assert (np.diff(lr[:26]) > 0).all() and (np.diff(lr[25:]) < 0).all()
    assert one_cycle(1.2) == 0


def test_training_learns_and_keeps_the_time():
    torch.manual_seed(0)
    segmenter, steps = trained(Net, train, seconds=3., size=32, lr=.03)
    assert steps > 5 and not segmenter.net.training
    assert np.mean([dice(segmenter(c.image), c.mask) for c in test]) > .6


def test_training_counts_channels_and_classes():
    many = [disk(i, classes=2, channels=3) for i in range(4)]
    segmenter, _ = trained(Net, many, seconds=.2, size=32)
    assert (segmenter.net.in_channels, segmenter.net.out_channels) == (3, 3)


def test_training_in_3d():
    def thick(v): return Volume(v.data[..., None].expand(-1, -1, -1, 16).clone(), np.eye(4))
    solid = [Case(c.id, thick(c.image), thick(c.mask)) for c in train[:4]]
    facts, table = examine(partial(unet, width=4, depth=2), solid, solid[:1], seconds=.5, size=16)
    assert facts['steps'] > 0 and table.error.isna().all()


def test_budget_never_validates(monkeypatch):
    from fastai.learner import Learner
    seen, was = [], Learner.one_batch
    def one(self, i, b):
        seen.append(self.training)
        was(self, i, b)
    monkeypatch.setattr(Learner, 'one_batch', one)
    trained(Net, train, seconds=.5, size=32)
    assert seen and all(seen)


def test_price_of_a_unet_equals_a_count_by_hand():
    net = unet(1, 2, width=4, depth=2)
    cost = price(net, torch.zeros(3, 1, 16, 16))
    assert cost['parameters'] == sum(p.numel() for p in net.parameters())
    work = []
    def count(m, inputs, out):
        per = math.prod(m.kernel_size)*m.in_channels
        work.append(2*per*out[0].numel() if not m.transposed else
                    2*math.prod(m.kernel_size)*m.out_channels*inputs[0][0].numel())
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)): m.register_forward_hook(count)
    net.eval()(torch.zeros(3, 1, 16, 16))
    assert cost['gflops'] == pytest.approx(sum(work)/1e9)


def test_price_leaves_the_net_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    price(net, torch.randn(2, 1, 8, 8))
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    class Fails(Net):
        def forward(self, x): raise RuntimeError('no')
    net = Fails(1, 2).train()
    with pytest.raises(RuntimeError): price(net, torch.zeros(1, 1, 8, 8))
    assert net.training


def test_price_counts_what_is_kept_for_the_way_back():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    kept = 2*100*(1 + 4) # the image for the first, the output of relu for relu and the last
    assert price(net, torch.zeros(2, 1, 10, 10))['train_mb'] == pytest.approx(4*(4*44 + kept)/1e6)


def test_peak_memory_sees_what_is_gone():
    facts = {}
    with peak_memory(facts): np.ones(40_000_000).sum()
    assert 250 < facts['image_mb'] < 500
    with pytest.raises(ZeroDivisionError), peak_memory(facts := {}): 1/0
    assert facts['image_mb'] < 100


def test_builders_are_told_from_segmenters():
    assert all(map(is_builder, (Net, unet, partial(unet, width=4))))
    assert not any(map(is_builder, (bright, lambda v: v, partial(bright), 3, Net(1, 2))))


def test_a_segmenter_runs_once_and_a_net_for_each_seed():
    table = bench({'rule': bright, 'net': Net}, train, test, seconds=.2, seeds=(3, 4), size=32, metrics=dice)
    assert table.groupby('system').seed.unique().map(list).to_dict() == {'rule': [3], 'net': [3, 4]}
    assert len(table) == 3*len(test) and list(table.columns[:2]) == ['system', 'seed']
    rule = table[table.system == 'rule'].set_index('case').value
    assert all(rule[c.id] == dice(bright(c.image), c.mask) for c in test)


def test_seeds_give_other_nets_and_the_same_seed_the_same_start():
    first = []
    class Told(Net):
        def __init__(self, *a, **k):
            super().__init__(*a, **k)
            first.append(self.weight.detach().clone())
    bench({'net': Told}, train, test[:1], seconds=.1, seeds=(0, 1, 0), size=32)
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])


def test_a_net_that_is_made_already_is_refused():
    with pytest.raises(TypeError, match=r"'mine' is a net; wanted what makes one, or Predictor\(net, size"):
        bench({'mine': Net(1, 2)}, train, test)


def test_a_patient_on_both_sides_is_refused():
    with pytest.raises(ValueError, match="1 patients are in train and in test, such as 'p0'"):
        bench({'rule': bright}, train, [train[0]])


def test_a_failing_candidate_stops_nobody():
    class Fails(Net):
        def forward(self, x): raise RuntimeError('no such layer')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        who = {'net': Fails, 'rule': bright, 'odd': lambda v: 1/0}
        table = bench(who, train, test, seconds=.2, seeds=(0,))
    assert table[table.system == 'net'].error.tolist() == ['RuntimeError: no such layer']
    assert 'ZeroDivisionError' in table[table.system == 'odd'].error.iloc[0]
    assert table[table.system == 'rule'].error.isna().all()
    board = leaderboard(table)
    assert list(board.index)[0] == 'rule' and board.dice.isna().sum() == 2


def test_resumed_exam_is_the_same_table(tmp_path):
    keep, who = tmp_path/'exam.jsonl', {'rule': bright, 'net': Net}
    whole = bench(who, train, test, seconds=.2, seeds=(0, 1), size=32, keep=keep)
    again = bench(who, train, test, seconds=.2, seeds=(0, 1), size=32, keep=keep)
    pd.testing.assert_frame_equal(whole, again)
    lines = keep.read_text().splitlines()
    assert len(lines) == 1 + 3
    keep.write_text('\n'.join(lines[:2]) + '\n' + lines[2][:50])
    bench(who, train, test, seconds=.2, seeds=(0, 1), size=32, keep=keep)
    kept = [line for line in keep.read_text().splitlines() if line.endswith('}')]
    assert len(kept) == 1 + 3


@pytest.mark.parametrize('change', [dict(seconds=.3), dict(size=16), dict(metrics=dice), dict(test=test[:3])])
def test_other_rules_are_another_exam(tmp_path, change):
    how = dict(train=train, test=test, seconds=.2, size=32, seeds=(0,), keep=tmp_path/'exam.jsonl')
    bench({'rule': bright}, **how)
    with pytest.warns(UserWarning, match='made anew'): bench({'rule': bright}, **how | change)


def test_leaderboard_counts_patients_once():
    scores = [('p', .2), ('p', .4), ('q', .9), ('r', .6)]
    rows = [dict(system='a', seed=s, case=i, patient=p, metric='dice', value=v, error=None)
            for s in (0, 1) for i, (p, v) in enumerate(scores)]
    board = leaderboard(pd.DataFrame(rows))
    assert board.dice['a'] == pytest.approx(np.mean([.3, .9, .6]))
    assert board['dice low']['a'] < board.dice['a'] < board['dice high']['a']
    assert board['dice seeds']['a'] == 0 and board.undefined['a'] == 0


def test_leaderboard_sorts_distances_upward():
    rows = [dict(system=n, seed=0, case=k, patient=k, metric='hd95', value=v, error=None)
            for n, v in (('far', 9.), ('near', 1.)) for k in (1, 2)]
    assert list(leaderboard(pd.DataFrame(rows), by='hd95').index) == ['near', 'far']
    with pytest.raises(ValueError, match=r"No metric 'dice' in the table; it has \['hd95'\]"):
        leaderboard(pd.DataFrame(rows))
