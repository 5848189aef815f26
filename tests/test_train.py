"Losses against MONAI and finite differences; a learner through kill, nan, full disk; windows against MONAI."
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from fastai.callback.schedule import *  # noqa: F403  patches Learner with fit_one_cycle
from safetensors.torch import load_file, save_file
from torch import nn

from medseg_nb.cnn.unet import unet
from medseg_nb.core.run import seed
from medseg_nb.data.case import Case
from medseg_nb.data.grid import same_grid
from medseg_nb.data.loaders import dataloaders
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.overlap import dice
from medseg_nb.train.learner import PerCase, Resume, load_net, save_net, seg_learner
from medseg_nb.train.loss import check, cross_entropy, deep_supervision, dice_ce, soft_dice
from medseg_nb.train.predict import Predictor, bell, pad_to_fit, slide, starts


def toy_cases(n=12, side=32):
    "Bright squares on noise, one a patient"
    rng = np.random.default_rng(0)
    out = []
    for i in range(n):
        mask = np.zeros((1, side, side), 'uint8')
        r, c = rng.integers(2, side - 14, 2)
        mask[0, r:r + 12, c:c + 12] = 1
        image = (mask*2 + rng.normal(0, .5, mask.shape)).astype('float32')
        out.append(Case(f'case{i:02}', Volume(image), Volume(mask), dict(patient=f'p{i}')))
    return out


def toy_learner(net=None, **more):
    seed(0)
    cases = toy_cases()
    dls = dataloaders(cases[:8], cases[8:], size=32, bs=2, seed=0)
    return seg_learner(dls, net or unet(width=4, depth=3), **more)


def quiet(learn): return learn.no_bar(), learn.no_logging()


def fit(learn, epochs, lr=1e-2, **more):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, **more)


@pytest.mark.parametrize('dims', [2, 3])
def test_soft_dice_equals_monai(dims):
    from monai.losses import DiceLoss
    g = torch.Generator().manual_seed(dims)
    for k in (2, 4):
        logits = torch.randn(3, k, *[6]*dims, generator=g)
        y = torch.randint(0, k, (3, *[6]*dims), generator=g)
        theirs = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        torch.testing.assert_close(soft_dice(logits, y), theirs(logits, y[:, None]))


def test_cross_entropy_equals_torch_where_somebody_looked():
    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(2, 3, 8, 8, generator=g), torch.randint(-1, 3, (2, 8, 8), generator=g)
    theirs = nn.functional.cross_entropy(logits, y, ignore_index=-1)
    torch.testing.assert_close(cross_entropy(logits, y), theirs)


@pytest.mark.parametrize('loss', [cross_entropy, soft_dice, dice_ce])
def test_loss_gradient_by_finite_differences(loss):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, 3, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.randint(-1, 3, (2, 3, 3), generator=g)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), logits)


@pytest.mark.parametrize('loss', [cross_entropy, soft_dice, dice_ce])
def test_unlabeled_pixels_do_not_matter(loss):
    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(1, 2, 4, 4, generator=g), torch.randint(0, 2, (1, 4, 4), generator=g)
    y[:, 0] = -1
    wild = logits.clone()
    wild[:, :, 0] = 50*torch.randn(1, 2, 4, generator=g)
    torch.testing.assert_close(loss(logits, y), loss(wild, y))
    assert torch.isfinite(loss(logits, torch.full_like(y, -1)))


@pytest.mark.parametrize('y,said', [(torch.zeros(1, 4, 4), 'y.long()'),
                                    (torch.zeros(1, 1, 4, 4).long(), 'no channel axis'),
                                    (torch.full((1, 4, 4), 2), 'raise c_out'),
                                    (torch.full((1, 4, 4), -2), 'from -2')])
def test_loss_refuses(y, said):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)): dice_ce(torch.zeros(1, 2, 4, 4), y)


@pytest.mark.parametrize('shape', [(1, 2, 4, 4), (2, 3, 60, 70), (1, 2, 9, 9, 30)])
def test_probabilities_are_refused_and_logits_are_not(shape):
    torch.manual_seed(0)
    logits, y = torch.randn(shape), torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    check(logits, y), check(logits.abs(), y), check(torch.zeros(shape), y)
    for p in (logits.softmax(1), logits.half().softmax(1), logits.softmax(1).round()):
        if p.sum(1).min() > .99:
            with pytest.raises(ValueError, match='Got probabilities'): check(p, y)


def test_deep_supervision_is_a_weighted_mean():
    torch.manual_seed(0)
    y, heads = torch.randint(-1, 3, (2, 5, 6)), [torch.randn(2, 3, 5, 6) for _ in range(3)]
    a, b, c = (dice_ce(h, y) for h in heads)
    assert deep_supervision(dice_ce)(heads, y).item() == pytest.approx(((4*a + 2*b + c)/7).item())
    assert deep_supervision(dice_ce, [0, 3, 1])(heads, y).item() == pytest.approx(((3*b + c)/4).item())
    assert torch.equal(deep_supervision(dice_ce)(heads[0], y), a)
    for w in ([1, 1], [0, 0, 0]):
        with pytest.raises(ValueError, match='a weight for each'): deep_supervision(dice_ce, w)(heads, y)


class Twice(torch.nn.Module):
    "Two answers in train mode, the final one in eval mode"
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(2, 2, 3, padding=1)
    def forward(self, x):
        early = self.one(x)
        late = self.two(early.relu())
        return [late, early] if self.training else late


def test_the_learner_takes_a_net_with_two_answers():
    learn = toy_learner(net=Twice(), loss=deep_supervision(dice_ce))
    fit(learn, 2)
    assert np.isfinite(learn.recorder.values[-1]).all()


def test_losses_count_in_32_bits():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 200, 200, generator=g).bfloat16()
    y = torch.randint(0, 2, (2, 200, 200), generator=g)
    for loss in (cross_entropy, soft_dice, dice_ce):
        assert loss(logits, y).dtype == torch.float32
        torch.testing.assert_close(loss(logits, y), loss(logits.double(), y).float())


def test_learner_learns_and_reports_dice_per_case():
    learn = toy_learner()
    fit(learn, 8)
    assert learn.recorder.metric_names[3] == 'dice' and learn.recorder.values[-1][2] > .8
    preds, y = learn.get_preds()
    by_hand = np.mean([dice(p, t)[0] for p, t in zip(preds.argmax(1).numpy(), y.numpy())])
    assert abs(learn.validate()[1] - by_hand) < 1e-9


def test_per_case_leaves_out_undefined_cases():
    class Batch: y = torch.zeros(2, 4, 4).long(); pred = torch.zeros(2, 2, 4, 4)  # noqa: E702
    metric = PerCase(dice)
    metric.reset()
    metric.accumulate(Batch)
    assert np.isnan(metric.value)


def test_fastai_tools_work_on_the_learner():
    learn = toy_learner()
    with learn.no_bar(), learn.no_logging(): found = learn.lr_find(num_it=12, show_plot=False)
    assert found.valley > 0
    learn.to_bf16() if hasattr(learn, 'to_bf16') else learn.to_fp16()
    fit(learn, 1)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


def test_half_precision_logits_train():
    learn, kinds = toy_learner(), set()
    learn.model.register_forward_hook(lambda m, x, out: kinds.add(out.dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16, cache_enabled=False): fit(learn, 8)
    assert kinds == {torch.bfloat16} and learn.recorder.values[-1][2] > .8
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())


def test_nan_stops_training_and_names_the_cases():
    learn = toy_learner()
    learn.dls.train.dataset.x[3] = torch.nan
    said = r'epoch 0, batch \d \(training; cases .*case03.*not finite'
    with pytest.raises(FloatingPointError, match=said): fit(learn, 1)


night = '''
import sys, os, signal
sys.path.insert(0, {tests!r})
from test_train import *
from fastai.callback.core import Callback
class Kill(Callback):
    def after_batch(self):
        if self.training and self.epoch == 2 and self.iter == 1: os.kill(os.getpid(), signal.SIGKILL)
learn = toy_learner()
fit(learn, 4, cbs=[Resume({path!r})] + ([Kill()] if {kill} else []))
save_file(dict(learn.model.state_dict()), {out!r})
json.dump([list(v) for v in learn.recorder.values], open({out!r} + '.json', 'w'))
'''


def run_night(tmp_path, name, kill):
    "One training process; returns how it ended"
    code = night.format(tests=os.path.dirname(__file__), path=str(tmp_path/f'{name}.resume.safetensors'),
                        kill=kill, out=str(tmp_path/name))
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)


def test_killed_run_ends_as_an_unbroken_one(tmp_path):
    assert run_night(tmp_path, 'unbroken', False).returncode == 0
    assert run_night(tmp_path, 'broken', True).returncode == -signal.SIGKILL
    assert not (tmp_path/'broken').exists()
    again = run_night(tmp_path, 'broken', False)
    assert again.returncode == 0, again.stderr[-800:]
    a, b = load_file(tmp_path/'unbroken'), load_file(tmp_path/'broken')
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert (tmp_path/'unbroken.json').read_text() == (tmp_path/'broken.json').read_text()
    assert not list(tmp_path.glob('.part-*'))


def test_resume_refuses_another_number_of_epochs(tmp_path):
    fit(toy_learner(), 2, cbs=Resume(tmp_path/'r.safetensors'))
    with pytest.raises(ValueError, match='run of 2 epochs, but this one has 3'):
        fit(toy_learner(), 3, cbs=Resume(tmp_path/'r.safetensors'))


def test_resume_refuses_a_broken_file(tmp_path):
    path = tmp_path/'r.safetensors'
    fit(toy_learner(), 1, cbs=Resume(path))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match='not a whole safetensors file'):
        fit(toy_learner(), 1, cbs=Resume(path))
    save_net(unet(width=4, depth=3), path)
    with pytest.raises(ValueError, match="no note under 'resume'"): fit(toy_learner(), 1, cbs=Resume(path))


def test_finished_run_is_not_trained_again(tmp_path):
    learn = toy_learner()
    fit(learn, 2, cbs=Resume(tmp_path/'r.safetensors'))
    again = toy_learner()
    start = time.perf_counter()
    fit(again, 2, cbs=Resume(tmp_path/'r.safetensors'))
    a, b = learn.model.state_dict(), again.model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert again.recorder.values == learn.recorder.values and time.perf_counter() - start < 5


def test_saved_net_is_rebuilt(tmp_path):
    net = unet(c_in=3, c_out=4, dims=3, width=4, depth=2, norm='instance').eval()
    save_net(net, tmp_path/'net.safetensors', classes=list('abcd'))
    again, facts = load_net(tmp_path/'net.safetensors')
    x = torch.randn(1, 3, 4, 4, 4)
    assert torch.equal(net(x), again(x)) and facts == {'classes': list('abcd')} and again.spec == net.spec


def test_full_disk_while_saving_keeps_the_earlier_model(tmp_path, monkeypatch):
    path = tmp_path/'net.safetensors'
    save_net(unet(width=4, depth=2), path)
    before = path.read_bytes()
    import medseg_nb.train.learner as learner
    def full(tensors, where, note):
        where.write_bytes(b'half of it')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(learner, 'save_file', full)
    with pytest.raises(OSError, match='No space left'): save_net(unet(width=4, depth=2), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['net.safetensors']


@pytest.mark.parametrize('how,said', [('truncated', 'not a whole safetensors file'),
                                      ('pickle', 'not a whole safetensors file'),
                                      ('no note', 'no note under'),
                                      ('unknown net', "needs the net 'hal9000'")])
def test_broken_model_files_are_refused(tmp_path, how, said):
    path = tmp_path/'net.safetensors'
    net = unet(width=4, depth=2)
    save_net(net, path)
    if how == 'truncated': path.write_bytes(path.read_bytes()[:-100])
    if how == 'pickle': torch.save(net.state_dict(), path)
    if how == 'no note': save_file(dict(net.state_dict()), path)
    if how == 'unknown net':
        note = json.dumps(dict(system='hal9000', args={}, facts={}))
        save_file(dict(net.state_dict()), path, {'medseg_nb': note})
    with pytest.raises(ValueError, match=said): load_net(path)


def test_net_without_spec_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match='without .spec'):
        save_net(nn.Conv2d(1, 2, 1), tmp_path/'net.safetensors')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('shape,window,overlap', [((40, 50), (16, 24), .5),
                                                  ((33, 20, 27), (16, 16, 16), .25),
                                                  ((12, 12), (32, 32), .5)])
def test_sliding_window_equals_monai(shape, window, overlap):
    from monai.inferers import sliding_window_inference
    torch.manual_seed(0)
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[len(shape)](1, 3, 5, padding=2)
    x = torch.randn(1, 1, *shape)
    roi = tuple(min(w, s) for w, s in zip(window, shape))
    with torch.no_grad():
        theirs = sliding_window_inference(x, roi, 1, conv, overlap, mode='gaussian')
        torch.testing.assert_close(slide(conv, x, window, overlap), theirs, rtol=1e-4, atol=1e-5)


def test_windows_cover_everything():
    for size in (5, 16, 17, 40):
        for window in (5, 4, 3):
            at = starts(size, window, .5)
            assert set().union(*(range(s, s + window) for s in at)) == set(range(size))
            assert len(at) == len(set(at))
    assert bell((5, 4)).max() <= 1 and bell((9, 9))[4, 4] == 1


@pytest.mark.parametrize('shape', [(64, 64), (61, 50), (17, 90)])
def test_predictor_answers_on_the_patients_grid(shape):
    image = Volume(torch.randn(1, *shape), [[0, -.7, 3], [.4, 0, 9], [0, 0, 1]])
    for size in (None, 32, (24, 40)):
        answer = Predictor(unet(width=4, depth=3), size=size)(image)
        assert same_grid(answer, image) and not answer.data.is_floating_point() and answer.channels == 1


def test_predictor_round_trip_and_mode(tmp_path):
    seed(0)
    image = Volume(torch.randn(1, 48, 48))
    predictor = Predictor(unet(width=4, depth=3), size=32, classes=['background', 'lung'])
    predictor.net.train()
    probs = predictor.probs(image)
    assert predictor.net.training
    predictor.save(tmp_path/'p.safetensors')
    again = Predictor.load(tmp_path/'p.safetensors')
    assert torch.equal(again.probs(image).data, probs.data)
    assert again.classes == ['background', 'lung'] and again.size == 32
    torch.testing.assert_close(probs.data.sum(0), torch.ones(48, 48))


def test_padding_keeps_what_was_there():
    x = torch.randn(1, 2, 5, 7)
    y = pad_to_fit(x, 4)
    assert y.shape == (1, 2, 8, 8) and torch.equal(y[..., :5, :7], x)
    assert torch.equal(y[..., 5:, :7], x[..., 4:5, :].expand(1, 2, 3, 7))
