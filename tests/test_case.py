"Cases and splits."
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from grids import every_dtype, image, often, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import best_split

from medseg_nb.data.case import Case, split
from medseg_nb.data.volume import Volume

labels = torch.arange(120).reshape(1, 6, 5, 4)%3


@pytest.mark.parametrize('mask,word', [
    (image.new(labels).flip(0), 'flip'), (image.new(labels)[1:], 'shape'), (Volume(labels), 'header only'),
    (Volume(labels, image.affine + np.eye(4, k=3)*2), 'shift'),
    (Volume(labels, image.affine@np.diag([1, 1, 1.1, 1])), 'spacing'),
    (image.new(labels*.5), 'order=0'), (image.new(labels + float('nan')), 'not whole'),
    (image.new(labels + float('inf')), 'not whole'),
    (image.new(labels - 2), 'label -2'), (image.new(labels + 1), 'label 3 in the mask; 3 classes end at 2'),
    (image.new(labels.repeat(2, 1, 1, 1)), '2 channels'), (image.new(labels.to(torch.complex64)), 'complex')])
def test_bad_mask(mask, word):
    with pytest.raises(ValueError, match=word) as e: Case('anna', image, mask, dict(classes=('a', 'b', 'c')))
    assert "'anna'" in str(e.value)


@pytest.mark.parametrize('dtype', every_dtype + [torch.bool, torch.float16], ids=str)
def test_good_mask(dtype):
    case = Case('anna', image, image.new((labels%2).to(dtype)), dict(classes=2))
    assert not case.mask.data.is_floating_point() and case.mask.data.dtype != torch.bool
    assert torch.equal(case.mask.data.long(), labels%2)


def test_case():
    meta = dict(patient='p')
    case = Case('anna', image, image.new(labels - 1), meta)
    meta['patient'] = 'q'
    assert case.patient == 'p' and Case('anna', image).patient == 'anna' and case.mask.data.min() == -1
    with pytest.raises(FrozenInstanceError): case.image = image
    with pytest.raises(TypeError, match='Tensor; wanted a Volume'): Case('anna', image.data)
    with pytest.raises(TypeError, match='mask is a Tensor'): Case('anna', image, labels)


def album(counts):
    return [Case(f'{p}/{i}', image, meta=dict(patient=p)) for p, n in enumerate(counts) for i in range(n)]


@often
@given(st.lists(st.integers(1, 30), min_size=3, max_size=40),
       st.sampled_from([(.6, .2, .2), (.8, .2), (.5, .3, .2), (1.,)]), seeds)
def test_split(counts, fractions, seed):
    cases = album(counts)
    parts = split(cases, fractions, seed)
    assert [len(parts), all(parts)] == [len(fractions), True]
    assert sorted(c.id for p in parts for c in p) == sorted(c.id for c in cases)
    assert sum(len({c.patient for c in p}) for p in parts) == len(counts)
    ids = [[c.id for c in p] for p in parts]
    assert [[c.id for c in p][::-1] for p in split(cases[::-1], fractions, seed)] == ids
    off = abs(np.array([len(p) for p in parts]) - np.array(fractions)*len(cases))
    assert off.max() <= max(counts)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=7), seeds)
def test_split_is_near_the_best(counts, seed):
    parts = split(album(counts), seed=seed)
    off = abs(np.array([len(p) for p in parts]) - np.array([.6, .2, .2])*sum(counts)).sum()
    assert off <= best_split(counts, (.6, .2, .2)) + .15*sum(counts)


def test_split_of_equals_is_exact_and_seeded():
    cases = album([6]*20)
    assert [len(p) for p in split(cases)] == [72, 24, 24]
    assert len({tuple(c.id for c in split(cases, seed=s)[2]) for s in range(10)}) == 10
    assert len({c.patient for s in range(10) for c in split(album([9] + [1]*30), seed=s)[2]}) > 20


@pytest.mark.parametrize('fractions', [(.5, .2), (1.2, -.2), (.5, .5, 0), (np.nan, 1)])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match='sum to 1'): split(album([1]*9), fractions)


def test_too_few_patients():
    with pytest.raises(ValueError, match='2 patients cannot fill 3'): split(album([50, 50]))
