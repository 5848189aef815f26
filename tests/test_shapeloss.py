"Losses of place and shape: in mm, equal to MONAI's and to slow definitions, deaf where nobody looked."
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medseg_nb.train.loss import soft_dice
from medseg_nb.train.shapeloss import boundary, hausdorff, signed_distances, soft_cldice, soft_skeleton

losses = dict(boundary=boundary, hausdorff=hausdorff, soft_cldice=soft_cldice)
each = pytest.mark.parametrize('loss', losses.values(), ids=losses)


def some(k=3, dims=2, seed=0, low=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    shape = 2, *(7, 8, 6)[:dims]
    return (torch.randn(2, k, *shape[1:], generator=g, dtype=dtype),
            torch.randint(low, k, shape, generator=g))


def distances_by_search(inside, mm):
    "To the nearest voxel of the other side, pair by pair; one step less inside"
    at = np.argwhere(np.ones_like(inside))*np.array(mm)
    far = np.linalg.norm(at[:, None] - at[None], axis=-1)
    flat = inside.ravel()
    out = np.where(flat, -(far[:, ~flat].min(1) - min(mm)).clip(0), far[:, flat].min(1))
    return out.reshape(inside.shape)


@pytest.mark.parametrize('mm', [(1., 1.), (1., 3.), (.5, 2., 5.)])
def test_distances_are_those_of_a_search(mm):
    t = torch.rand(2, 2, *(7, 8, 6)[:len(mm)], generator=torch.Generator().manual_seed(0)) > .7
    found = signed_distances(t.float(), mm)
    for b, k in np.ndindex(2, 2):
        wanted = distances_by_search(t[b, k].numpy(), mm)
        np.testing.assert_allclose(found[b, k], wanted, rtol=1e-5, atol=1e-5)


def test_distances_of_nothing_and_of_everything_are_zero():
    t = torch.stack([torch.zeros(4, 5), torch.ones(4, 5)])[None]
    assert signed_distances(t).abs().max() == 0


def test_boundary_by_hand():
    y = torch.zeros(1, 1, 5, dtype=torch.long)
    y[..., 1:4] = 1
    p = torch.tensor([.5, 0, 1., 0, .25])
    logits = torch.stack([(1 - p).clamp(1e-9).log(), p.clamp(1e-9).log()])[None, :, None]
    assert boundary(logits, y).item() == pytest.approx((.5*1 - 1*1 + .25*1)/5, abs=1e-4)
    assert boundary(logits, y, (9., 2.)).item() == pytest.approx((.5*2 - 1*2 + .25*2)/5, abs=1e-4)


@pytest.mark.parametrize('dims', [2, 3])
def test_hausdorff_is_that_of_monai(dims):
    from monai.losses import HausdorffDTLoss
    logits, y = some(3, dims)
    for power in (1., 2.):
        theirs = HausdorffDTLoss(alpha=power, include_background=False, to_onehot_y=True, softmax=True)
        torch.testing.assert_close(hausdorff(logits, y, power=power), theirs(logits, y[:, None]),
                                   rtol=1e-5, atol=1e-5)


def test_hausdorff_of_an_empty_answer():
    y = torch.zeros(1, 9, 9, dtype=torch.long)
    y[0, 3:6, 3:6] = 1
    none = torch.stack([torch.full((1, 9, 9), 20.), torch.zeros(1, 9, 9)], 1)
    assert 0 < hausdorff(none, y) < torch.inf
    assert hausdorff(none, torch.zeros_like(y)).item() == pytest.approx(0, abs=1e-6)


def test_hausdorff_counts_in_mm():
    logits, y = some(2)
    torch.testing.assert_close(hausdorff(logits, y, 3.), 9*hausdorff(logits, y))
    assert hausdorff(logits, y, (1., 4.)) > hausdorff(logits, y)


@pytest.mark.parametrize('dims', [2, 3])
def test_cldice_is_that_of_monai(dims):
    from monai.losses import SoftclDiceLoss
    from monai.losses.cldice import soft_skel
    g = torch.Generator().manual_seed(dims)
    x = nn.functional.avg_pool2d(torch.rand(2, 2, 24, 24, generator=g), 3, 1, 1) if dims == 2 else torch.rand(
        2, 2, 9, 10, 11, generator=g)
    torch.testing.assert_close(soft_skeleton(x, 3), soft_skel(x, 3))
    logits, y = some(2, dims)
    logits, y = logits[:1], y[:1] # Theirs is for each image, ours for the batch
    two = logits.softmax(1)[:, 1:], F.one_hot(y, 2).movedim(-1, 1).float()[:, 1:]
    theirs = SoftclDiceLoss(iter_=3, smooth=1e-9, smooth_nr=1., smooth_dr=1.)(*two)
    torch.testing.assert_close(soft_cldice(logits, y, steps=3), theirs)


def test_a_cut_costs_more_than_a_coat():
    y = torch.zeros(1, 21, 41, dtype=torch.long)
    y[0, 9:12, 2:39] = 1
    cut, coat = y.clone(), y.clone()
    cut[0, :, 18:23] = 0
    coat[0, 8, 2:17] = 1
    sure = lambda a: 40*F.one_hot(a, 2).movedim(-1, 1).float()
    assert (cut != y).sum() == (coat != y).sum()
    assert soft_cldice(sure(cut), y) > 1.5*soft_cldice(sure(coat), y)
    assert abs(soft_dice(sure(cut), y) - soft_dice(sure(coat), y)) < .02


@each
def test_slopes_are_those_of_finite_differences(loss):
    logits, y = some(low=-1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), logits.requires_grad_(), eps=1e-7)


@each
def test_nobody_looked(loss):
    logits, y = some(low=-1)
    wild = torch.where(y[:, None] < 0, torch.randn(logits.shape)*50, logits)
    torch.testing.assert_close(loss(wild, y), loss(logits, y))
    nothing = loss(logits.requires_grad_(), torch.full_like(y, -1))
    nothing.backward()
    assert torch.isfinite(nothing) and logits.grad.abs().max() < 1e-9


@each
def test_half_precision_counts_in_32_bits(loss):
    logits, y = some(dims=3)
    assert loss(logits.half(), y).dtype == torch.float32


@each
@pytest.mark.parametrize('wrong, said', [(lambda l, y: (l, y.float()), 'y.long()'),
                                         (lambda l, y: (l, y[:, None]), 'no channel axis'),
                                         (lambda l, y: (l.softmax(1), y), 'Got probabilities')])
def test_bad_input(loss, wrong, said):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)): loss(*wrong(*some()))


@pytest.mark.parametrize('loss', [boundary, hausdorff])
@pytest.mark.parametrize('mm', [0., -1., (1., np.nan), (1., 1., 1.)])
def test_bad_spacing(loss, mm):
    with pytest.raises(ValueError): loss(*some(), mm)
