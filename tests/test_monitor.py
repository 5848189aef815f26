"The monitor disturbs nothing, survives what a night brings, and leaves one picture where no page listens."
import math
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import *  # noqa: F403  patches Learner with fit_one_cycle
from nbclient import NotebookClient
from PIL import Image
from torch import nn

import medseg_nb.train.monitor as module
from medseg_nb.core.run import seed
from medseg_nb.data.case import Case
from medseg_nb.data.loaders import dataloaders
from medseg_nb.data.volume import Volume
from medseg_nb.train.learner import Resume, seg_learner
from medseg_nb.train.monitor import History, Monitor, smooth, undisturbed

root = Path(__file__).parents[1]


def squares(n=6, side=16, dims=2):
    "Bright blocks on noise, one a patient, two millimeters a voxel"
    rng, out = np.random.default_rng(0), []
    for i in range(n):
        mask = np.zeros((1, *[side]*dims), 'uint8')
        mask[(0, *(slice(a, a + side//2) for a in rng.integers(0, side//2, dims)))] = 1
        image = (mask*2 + rng.normal(0, .5, mask.shape)).astype('float32')
        affine = np.diag([2.]*dims + [1.])
        out.append(Case(f'case{i}', Volume(image, affine), Volume(mask, affine), dict(patient=f'p{i}')))
    return out


def small(dims=2, *more, c_in=1, width=4):
    conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
    return nn.Sequential(conv(c_in, width, 3, padding=1), nn.ReLU(), *more, conv(width, 2, 3, padding=1))


def learner(*more, dims=2, **about):
    seed(0)
    cases = squares(dims=dims)
    dls = dataloaders(cases[:4], cases[4:], dims=dims, size=16, bs=2, seed=0)
    return seg_learner(dls, small(dims, *more), **about)


def fit(learn, epochs, *cbs):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2, cbs=list(cbs))
    return learn


def words(fig): return ' '.join(t.get_text() for t in fig.findobj(lambda o: hasattr(o, 'get_text')))


def png(fig):
    file = BytesIO()
    fig.savefig(file)
    return Image.open(file)


class After(Callback):
    "Do something after a batch of training"
    order = 70
    def __init__(self, epoch, batch, do): self.at, self.do = (epoch, batch), do
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == self.at: self.do(self)


def test_smooth_is_the_weighted_mean_written_out():
    y, beta = [3., 1., 4., 1., 5.], .7
    w = [beta**k for k in range(5)]
    slow = [sum(w[i - j]*y[j] for j in range(i + 1))/sum(w[:i + 1]) for i in range(5)]
    np.testing.assert_allclose(smooth(y, beta), slow)
    gap = smooth([1., math.nan, 1., math.inf, 1.])
    assert np.isnan(gap).tolist() == [False, True, False, True, False] and gap[4] == pytest.approx(1)
    assert len(smooth([])) == 0


def test_training_is_the_same_bit_for_bit():
    noisy = lambda: learner(nn.Dropout(.5), nn.BatchNorm2d(4))
    plain = fit(noisy(), 3)
    for case in (None, squares()[5]):
        seen = fit(noisy(), 3, Monitor(case))
        a, b = plain.model.state_dict(), seen.model.state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a) and plain.recorder.values == seen.recorder.values


def test_modes_come_back_one_by_one():
    net = small(2, nn.Dropout(), nn.BatchNorm2d(4)).train()
    net[3].eval()
    for trouble in (False, True):
        before = torch.get_rng_state()
        try:
            with undisturbed(net):
                assert not any(m.training for m in net.modules()) and not torch.is_grad_enabled()
                torch.randn(3)
                if trouble: raise ValueError
        except ValueError: pass
        assert [m.training for m in net] == [True, True, True, False, True] and net.training
        assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()


@pytest.mark.parametrize('dims', [2, 3])
@pytest.mark.parametrize('given', [False, True])
def test_curves_and_answer_are_those_of_the_learner(dims, given):
    monitor = Monitor(squares(dims=dims)[4] if given else None)
    learn = fit(learner(dims=dims), 3, monitor)
    h = monitor.history
    np.testing.assert_allclose([x for x, _ in h.batches], np.arange(1, 7)/2)
    assert [x for x, _ in h.epochs] == [x for x, _ in h.answers] == [1, 2, 3] and h.name == 'case4'
    assert [list(row.values()) for _, row in h.epochs] == learn.recorder.values
    beta, mean = .98, 0
    for n, (_, loss) in enumerate(h.batches, 1): mean = beta*mean + (1 - beta)*loss
    assert float(learn.recorder.losses[-1]) == pytest.approx(mean/(1 - beta**n), rel=1e-5)
    x, y = learn.dls.valid.one_batch()
    with torch.no_grad(): labels = learn.model.eval()(x).argmax(1)[0].numpy()
    truth = y[0].numpy()
    if dims == 3:
        per_slice = truth.sum((0, 1))
        best = np.flatnonzero(per_slice == per_slice.max())
        k = best[len(best)//2]
        labels, truth = (v[::-1, ::-1, k].T for v in (labels, truth))
    np.testing.assert_array_equal(h.answers[-1][1], labels)
    np.testing.assert_array_equal(h.view.mask, truth)
    assert h.view.bar == given and str(h).startswith('done: 3 of 3 epochs, train_loss ')
    assert png(monitor.figure()).size[0] > 700


def test_fits_in_a_row_go_on():
    monitor, learn = Monitor(), learner()
    fit(learn, 2, monitor)
    fit(learn, 3, monitor)
    xs = [x for x, _ in monitor.history.batches]
    assert xs == sorted(set(xs)) and xs[-1] == 5 == monitor.history.until
    assert [x for x, _ in monitor.history.epochs] == [1, 2, 3, 4, 5]
    ax = monitor.figure().axes[0]
    assert ax.get_xlim() == (0, 5) and len(ax.lines[0].get_xdata()) == 10


def test_interrupted():
    monitor, learn = Monitor(), learner()
    def stop(cb): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(learn, 3, monitor, After(1, 0, stop))
    assert monitor.history.now == 1.5 and len(monitor.history.answers) == 1
    png(monitor.figure())
    fit(learn, 1, monitor)
    assert monitor.history.now == 2.5 and monitor.history.state == 'done'


def test_stopped_on_purpose_is_said():
    from fastai.callback.core import CancelFitException
    monitor = Monitor()
    def stop(cb): raise CancelFitException
    fit(learner(), 3, monitor, After(1, 1, stop))
    assert str(monitor.history).startswith('stopped: 2 of 3 epochs')


def test_no_epochs_no_metrics_no_validation():
    monitor = Monitor()
    fit(learner(), 0, monitor)
    assert monitor.history.now == 0 and 'done: 0 of 0 epochs' in words(monitor.figure())
    png(monitor.figure())
    monitor = Monitor()
    fit(learner(metrics=()), 1, monitor)
    assert 'no metrics' in words(monitor.figure())
    cases = squares()
    seed(0)
    dls = dataloaders(cases[:4], cases[4:], size=16, bs=2)
    dls.loaders = [dls.loaders[0], dls.loaders[1].new(dataset=[])]
    for case in (None, cases[4]):
        monitor = Monitor(case)
        fit(seg_learner(dls, small()), 1, monitor)
        assert len(monitor.history.answers) == bool(case)
        png(monitor.figure())


def test_loss_that_is_no_number_is_a_gap_and_said():
    monitor = Monitor()
    def spoil(cb): cb.learn.loss = cb.learn.loss*math.nan
    class Spoil(After): order = 40
    fit(learner(), 2, monitor, Spoil(1, 0, spoil))
    assert '1 of 4 losses are not finite,\nthe first after 1.50 epochs' in words(monitor.figure())
    assert [np.isnan(y) for y in monitor.figure().axes[0].lines[1].get_ydata()] == [False, False, True, False]
    png(monitor.figure())


def broken(case, how):
    if how == 'channels': return Case('odd', case.image.new(case.image.data.repeat(3, 1, 1)), case.mask)
    if how == 'axes': return squares(dims=3)[0]
    data = case.image.data.clone()
    data[0, 0] = math.nan
    return Case('odd', case.image.new(data), case.mask)


@pytest.mark.parametrize('how,said', [('channels', 'expected input'), ('nan', 'NaN or infinite'),
                                      ('axes', '3 axes of space, a batch has 2')])
def test_a_case_that_fails_says_so_and_stops_nothing(how, said):
    monitor = Monitor(broken(squares()[5], how))
    learn = fit(learner(), 2, monitor)
    assert len(learn.recorder.values) == 2 and said in monitor.history.trouble and not monitor.history.answers
    assert 'No prediction.' in words(monitor.figure())
    png(monitor.figure())


def test_case_of_a_wrong_kind():
    with pytest.raises(TypeError, match='Got a case of type str; wanted a Case'): Monitor('case4')


def test_case_without_a_mask_and_unlabeled_validation():
    cases = squares()
    monitor = Monitor(Case('bare', cases[5].image))
    fit(learner(), 1, monitor)
    assert 'filled' not in words(monitor.figure()) and monitor.history.view.mask is None
    dls = dataloaders(cases[:4], [Case('bare', cases[5].image)], size=16, bs=2)
    monitor = Monitor()
    fit(seg_learner(dls, small()), 1, monitor)
    assert len(monitor.history.answers) == 1
    png(monitor.figure())


def test_half_precision():
    monitor, learn = Monitor(squares()[4]), learner()
    with torch.autocast('cpu', dtype=torch.bfloat16, cache_enabled=False): fit(learn, 1, monitor)
    assert not monitor.history.trouble and len(monitor.history.answers) == 1
    learn, monitor = learner().to_bf16() if hasattr(learn, 'to_bf16') else learner().to_fp16(), Monitor()
    fit(learn, 1, monitor)
    assert not monitor.history.trouble and len(monitor.history.answers) == 1


def test_beside_fastais_other_tools(tmp_path):
    learn, monitor = learner(), Monitor()
    learn.add_cb(monitor)
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=4, show_plot=False)
        learn.get_preds()
        learn.validate()
    assert not monitor.history.batches and monitor.run
    fit(learn, 2, Resume(tmp_path/'r.safetensors'))
    assert monitor.history.now == 2
    again = Monitor()
    fit(learner(), 2, Resume(tmp_path/'r.safetensors'), again)
    assert not again.history.batches and [x for x, _ in again.history.epochs] == [1, 2]
    png(again.figure())


def test_plain_python_shows_nothing(monkeypatch):
    monkeypatch.setattr(module, 'get_ipython', lambda: None)
    monkeypatch.setattr(module, 'display', lambda *a, **k: pytest.fail('shown'))
    fit(learner(), 1, Monitor())


def test_pause_follows_the_cost_of_drawing(monkeypatch):
    shown, clock = [], [0.]
    class Handle:
        def update(self, *a, **k): shown.append(clock[0])
    class Shell: events = type('Events', (), dict(register=lambda *a: None))()
    monkeypatch.setattr(module, 'get_ipython', Shell)
    monkeypatch.setattr(module, 'front_end', lambda: True)
    monkeypatch.setattr(module, 'display', lambda *a, **k: shown.append(clock[0]) or Handle())
    monkeypatch.setattr(module.time, 'perf_counter', lambda: clock[0])
    def figure(self):
        clock[0] += .2
        return module.sheet(History())
    monkeypatch.setattr(Monitor, 'figure', figure)
    class Tick(Callback):
        order = 40
        def after_batch(self): clock[0] += .5*self.training
    monitor = Monitor()
    fit(learner(), 20, monitor, Tick())
    gaps = np.diff(shown[:-1])
    assert len(shown) > 3 and 1 <= gaps[0] < 3 and gaps[1:].min() >= 5
    assert monitor.page.spent == pytest.approx([.2]*len(shown))


cells = ["""import sys
sys.path.insert(0, {tests!r})
from test_monitor import *
learn, monitor = learner(), Monitor()
with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2, cbs=monitor)""",
"""with learn.no_bar(), learn.no_logging(): learn.fine_tune(2, freeze_epochs=1, cbs=monitor)""",
"""get_ipython().kernel._allow_stdin = True
live = Monitor(every=0)
with learn.no_bar(), learn.no_logging(): learn.fit(4, 1e-2, cbs=live)""",
"""def stop(cb): raise KeyboardInterrupt
cut = Monitor()
with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2, cbs=[cut, After(1, 0, stop)])""",
"""len(get_ipython().events.callbacks['post_run_cell']), monitor.page.handle, len(live.page.spent) > 1""",
"""monitor.figure()"""]


def test_one_picture_in_a_kernel(monkeypatch):
    monkeypatch.syspath_prepend(str(root/'tools'))
    from kernel import LocalKernel
    code = [c.replace('{tests!r}', repr(str(root/'tests'))) for c in cells]
    nb = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, code)))
    NotebookClient(nb, timeout=120, kernel_name='python3', kernel_manager_class=LocalKernel,
                   allow_errors=True, resources=dict(metadata=dict(path=str(root)))).execute()
    shown = [[o.data for o in c.outputs if 'data' in o] for c in nb.cells]
    assert [len(s) for s in shown] == [1]*6, [c.outputs for c in nb.cells]
    assert [s[0]['text/plain'].split(' epochs')[0] for s in shown[:4]] == [
        'done: 2 of 2', 'done: 5 of 5', 'done: 4 of 4', 'stopped: 1.5 of 3']
    assert 'KeyboardInterrupt' in [o.get('ename') for o in nb.cells[3].outputs]
    assert shown[4][0]['text/plain'].endswith('None, True)')
    pictures = [s[0] for s in shown[:4] + shown[5:]]
    assert all(set(data) == {'text/plain', 'image/png'} for data in pictures)
    assert len({Image.open(BytesIO(b64decode(data['image/png']))).size for data in pictures[:4]}) == 1
