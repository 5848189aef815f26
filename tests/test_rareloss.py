"Losses for rare and hard pixels: equal to the field's, their slopes right, deaf where nobody looked."
import re

import pytest
import torch
import torch.nn.functional as F

from medseg_nb.train.loss import cross_entropy, soft_dice
from medseg_nb.train.rareloss import focal, generalized_dice, lovasz, smoothed, top_k, tversky

losses = dict(focal=focal, top_k=top_k, smoothed=smoothed, tversky=tversky, generalized_dice=generalized_dice,
              lovasz=lovasz, focal_tversky=lambda l, y: tversky(l, y, power=.75))
each = pytest.mark.parametrize('loss', losses.values(), ids=losses)


def some(k=3, dims=2, seed=0, low=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    shape = 2, *(5, 6, 4)[:dims]
    return (torch.randn(2, k, *shape[1:], generator=g, dtype=dtype),
            torch.randint(low, k, shape, generator=g))


@each
def test_slopes_are_those_of_finite_differences(loss):
    logits, y = some(low=-1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), logits.requires_grad_())


@each
def test_nobody_looked(loss):
    logits, y = some(low=-1)
    wild = torch.where(y[:, None] < 0, torch.randn(logits.shape)*50, logits)
    torch.testing.assert_close(loss(wild, y), loss(logits, y))
    logits.requires_grad_()
    nothing = loss(logits, torch.full_like(y, -1))
    nothing.backward()
    assert torch.isfinite(nothing) and logits.grad.abs().max() == 0


@each
def test_half_precision_counts_in_32_bits(loss):
    logits, y = some(dims=3)
    assert loss(logits.half(), y).dtype == torch.float32
    torch.testing.assert_close(loss(logits.half(), y), loss(logits.half().float(), y))


@each
def test_3d_and_the_order_of_pixels(loss):
    logits, y = some(dims=3)
    g = torch.randperm(y[0].numel(), generator=torch.Generator().manual_seed(1))
    mixed = logits.flatten(2)[..., g].view_as(logits), y.flatten(1)[:, g].view_as(y)
    torch.testing.assert_close(loss(*mixed), loss(logits, y))


@each
def test_right_and_certain_is_nothing_and_wrong_is_much(loss):
    _, y = some()
    right = 40*F.one_hot(y, 3).movedim(-1, 1).float()
    low = .4 if loss is smoothed else 0
    assert loss(right, y) < 1e-3 or low < loss(right, y) < 4
    assert loss(right.roll(1, 1), y) > loss(right, y) + .5


@each
@pytest.mark.parametrize('wrong, said', [(lambda l, y: (l, y.float()), 'y.long()'),
                                         (lambda l, y: (l, y[:, None]), 'no channel axis'),
                                         (lambda l, y: (l, y + 3), 'raise c_out'),
                                         (lambda l, y: (l.softmax(1), y), 'Got probabilities')])
def test_bad_input(loss, wrong, said):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)): loss(*wrong(*some()))


@pytest.mark.parametrize('call, said', [(lambda l, y: focal(l, y, -1.), 'gamma=-1.0'),
                                        (lambda l, y: top_k(l, y, 0.), 'share=0.0'),
                                        (lambda l, y: top_k(l, y, 10), 'share=10'),
                                        (lambda l, y: smoothed(l, y, 1.), 'eps=1.0'),
                                        (lambda l, y: tversky(l, y, 0., 0.), 'not both 0'),
                                        (lambda l, y: tversky(l, y, -1., 2.), 'alpha=-1.0'),
                                        (lambda l, y: tversky(l, y, power=0.), 'power=0.0')])
def test_bad_knobs(call, said):
    with pytest.raises(ValueError, match=re.escape(said)): call(*some())


@pytest.mark.parametrize('gamma', [0., 1., 2., 3.5])
def test_focal_is_that_of_smp(gamma):
    from segmentation_models_pytorch.losses import FocalLoss
    logits, y = some(2, low=-1)
    two = logits[:, 1] - logits[:, 0]
    theirs = FocalLoss('binary', gamma=gamma, ignore_index=-1)(two, y)
    torch.testing.assert_close(focal(logits, y, gamma), theirs)


def test_focal_is_that_of_monai():
    from monai.losses import FocalLoss
    logits, y = some(4, 3)
    theirs = FocalLoss(gamma=2., to_onehot_y=True, use_softmax=True, include_background=True)
    torch.testing.assert_close(focal(logits, y), 4*theirs(logits, y[:, None]))


def test_top_k_by_sorting():
    logits, y = some(low=-1)
    s = F.cross_entropy(logits, y, ignore_index=-1, reduction='none')[y >= 0].sort(descending=True)[0]
    for share in (.1, .5, 1.):
        torch.testing.assert_close(top_k(logits, y, share), s[:round(share*len(s))].mean())
    torch.testing.assert_close(top_k(logits, y, 1e-9), s[0])
    torch.testing.assert_close(top_k(logits, y, 1.), cross_entropy(logits, y))


@pytest.mark.parametrize('eps', [0., .1, .5])
def test_smoothed_is_that_of_torch(eps):
    logits, y = some(low=-1)
    theirs = F.cross_entropy(logits, y, ignore_index=-1, label_smoothing=eps)
    torch.testing.assert_close(smoothed(logits, y, eps), theirs)


@pytest.mark.parametrize('alpha, beta', [(.5, .5), (.3, .7), (.9, .1), (1., 1.)])
def test_tversky_is_that_of_monai(alpha, beta):
    from monai.losses import TverskyLoss
    logits, y = some(4, 3)
    theirs = TverskyLoss(include_background=False, to_onehot_y=True, softmax=True, alpha=alpha, beta=beta,
                         batch=True)
    torch.testing.assert_close(tversky(logits, y, alpha, beta), theirs(logits, y[:, None]))


def test_tversky_with_equal_prices_is_dice():
    logits, y = some(low=-1)
    torch.testing.assert_close(tversky(logits, y, .5, .5), soft_dice(logits, y))


def test_the_power_is_taken_of_each_class():
    logits, y = some(2)
    torch.testing.assert_close(tversky(logits, y, power=.75), tversky(logits, y)**.75)
    logits, y = some(3)
    assert tversky(logits, y, power=.75) > tversky(logits, y)


def test_a_miss_costs_what_beta_says():
    y = torch.zeros(1, 4, 4, dtype=torch.long)
    y[0, :2, :2] = 1
    none = torch.stack([torch.full((1, 4, 4), 40.), torch.zeros(1, 4, 4)], 1)
    every = none.flip(1)
    assert tversky(none, y) == pytest.approx(1, abs=1e-4)
    assert tversky(every, y, .3, .7).item() == pytest.approx(1 - 4/(4 + .3*12), abs=1e-4)
    assert tversky(every, y, .7, .3).item() == pytest.approx(1 - 4/(4 + .7*12), abs=1e-4)


@pytest.mark.parametrize('seed', range(3))
def test_generalized_dice_is_that_of_monai(seed):
    from monai.losses import GeneralizedDiceLoss
    logits, y = some(3, seed=seed)
    theirs = GeneralizedDiceLoss(to_onehot_y=True, softmax=True, batch=True)(logits, y[:, None])
    torch.testing.assert_close(generalized_dice(logits, y), theirs)


def test_generalized_dice_without_one_class():
    logits, y = some(3)
    y = y.clamp(max=1)
    assert torch.isfinite(generalized_dice(logits, y))
    loud = logits + torch.tensor([0., 0, 3])[:, None, None]
    assert generalized_dice(loud, y) > generalized_dice(logits, y), 'an absent class costs nothing'


@pytest.mark.parametrize('seed', range(3))
def test_lovasz_is_that_of_smp(seed):
    from segmentation_models_pytorch.losses import LovaszLoss
    logits, y = some(3, seed=seed, low=-1)
    theirs = LovaszLoss('multiclass', per_image=False, ignore_index=-1, from_logits=True)(logits, y)
    torch.testing.assert_close(lovasz(logits, y), theirs)


def test_lovasz_of_hard_answers_is_iou():
    _, y = some(3)
    _, guess = some(3, seed=1)
    sure = 200*F.one_hot(guess, 3).movedim(-1, 1).float()
    iou = [((guess == k) & (y == k)).sum()/((guess == k) | (y == k)).sum() for k in range(3)]
    torch.testing.assert_close(lovasz(sure, y), 1 - torch.stack(iou).mean())


def test_lovasz_asks_only_classes_that_are_there():
    logits, y = some(3)
    y = y.clamp(max=1)
    torch.testing.assert_close(lovasz(logits, y), lovasz_by_hand(logits, y, (0, 1)))


def lovasz_by_hand(logits, y, classes):
    "Pixel after pixel"
    out = []
    for k in classes:
        t, p = (y == k).flatten(), logits.softmax(1)[:, k].flatten()
        m = (t.float() - p).abs()
        wrong, last, total = torch.zeros(len(t), dtype=torch.bool), 0., 0.
        for i in m.argsort(descending=True):
            wrong[i] = True
            guess = t ^ wrong
            now = 1 - ((t & guess).sum()/(t | guess).sum()).item()
            total, last = total + m[i]*(now - last), now
        out.append(total)
    return torch.stack(out).mean()
