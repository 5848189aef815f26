"Cases and splits."
import warnings
from dataclasses import FrozenInstanceError
from itertools import product

import numpy as np
import pytest
import torch
from grids import every_dtype, image, often, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import best_split
from sklearn.model_selection import StratifiedGroupKFold

from medseg_nb.data.case import Case, folds, split
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


def test_the_repair_is_told_by_the_image():
    at = np.indices((40, 32))
    organ = ((at[0] - 14)**2 + (at[1] - 19)**2 < 70).astype(np.uint8)
    gray = Volume((50*organ + at[0]*.3 + np.random.default_rng(0).normal(0, 3, organ.shape))[None])
    mask = gray.new(torch.from_numpy(organ)[None])
    with pytest.raises(ValueError, match=r"^Case 'a': .*flip: .*image\.new\(mask\.data\).*check_pair"):
        Case('a', gray, Volume(mask.data, mask.flip(0).affine))
    with pytest.raises(ValueError, match=r'The headers are right: mask\.resample\(like=image, order=0\)'):
        Case('a', gray, mask.flip(0))
    with pytest.raises(ValueError, match='shape: 2 axes of space against 3'):
        Case('a', gray, Volume(torch.zeros(1, 4, 4, 4)))


def stratified(counts, groups):
    return [Case(f'{p}/{i}', image, meta=dict(patient=p, site=g))
            for p, (n, g) in enumerate(zip(counts, groups)) for i in range(n)]


def unevenness(valids, cases):
    "Sum over folds, groups and all cases of squared shares"
    total = 0
    for g in {None} | {c.meta['site'] for c in cases}:
        n = [sum(g in (None, c.meta['site']) for c in v) for v in valids]
        total += (np.array(n)/sum(n))@(np.array(n)/sum(n))
    return total


@often
@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from('AAAB')), min_size=5, max_size=40),
       st.integers(2, 5), seeds)
def test_folds(patients, k, seed):
    cases = stratified(*zip(*patients))
    parts = folds(cases, k, seed, by='site')
    assert len(parts) == k and sorted(c.id for _, v in parts for c in v) == sorted(c.id for c in cases)
    for train, valid in parts:
        assert valid and train and not {c.patient for c in train} & {c.patient for c in valid}
        assert [c for c in cases if c in train
                or c in valid] == cases and len(train) + len(valid) == len(cases)
    ids = [{c.id for c in v} for _, v in parts]
    assert [{c.id for c in v} for _, v in folds(cases[::-1], k, seed, by='site')] == ids
    assert [{c.id for c in v} for _, v in folds(cases, k, seed, by=lambda c: c.meta['site'])] == ids


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from('AAAB')), min_size=12, max_size=40), seeds)
def test_folds_are_no_less_even_than_scikit_learns(patients, seed):
    counts, groups = zip(*patients)
    cases = stratified(counts, groups)
    ours = unevenness([v for _, v in folds(cases, 4, seed, by='site')], cases)
    theirs = StratifiedGroupKFold(4, shuffle=True, random_state=seed%2**31)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        held = list(theirs.split(cases, [c.meta['site'] for c in cases], [c.patient for c in cases]))
    assert ours <= unevenness([[cases[i] for i in v] for _, v in held], cases) + .02


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from('AB')), min_size=4, max_size=7), seeds)
def test_folds_are_near_the_best(patients, seed):
    cases = stratified(*zip(*patients))
    best = min(unevenness([[c for c in cases if way[c.patient] == f] for f in range(3)], cases)
               for way in product(range(3), repeat=len(patients)) if len(set(way)) == 3)
    assert unevenness([v for _, v in folds(cases, 3, seed, by='site')], cases) <= best*1.15 + 1e-9


def test_folds_of_a_rare_group():
    cases = stratified([3]*50, ['B' if p < 5 else 'A' for p in range(50)])
    valids = [v for _, v in folds(cases, 5, by='site')]
    assert [sum(c.meta['site'] == 'B' for c in v) for v in valids] == [3]*5 and {len(v)
                                                                                 for v in valids} == {30}
    assert len({tuple(c.id for c in folds(cases, 5, seed=s, by='site')[0][1]) for s in range(10)}) == 10
    assert {len(v) for _, v in folds(cases, 5)} == {30}


@pytest.mark.parametrize('k', [0, 1, 5, -2])
def test_bad_number_of_folds(k):
    with pytest.raises(ValueError, match='folds of 4 patients'): folds(album([1]*4), k)


def test_folds_by_a_missing_key():
    with pytest.raises(ValueError, match="Case '1/0' has no 'site'"):
        folds([Case('0/0', image, meta=dict(site='A')), Case('1/0', image)], 2, by='site')
    with pytest.raises(ValueError, match='folds of 0 patients'): folds([], 2)


@pytest.mark.parametrize('seed', range(8))
def test_folds_are_the_most_even_of_many_deals(seed):
    rng, v = np.random.default_rng(seed), Volume(torch.zeros(1, 2, 2))
    album = [Case(f'{p}-{i}', v, meta=dict(patient=p, site='abc'[rng.integers(3)]))
             for p in range(14) for i in range(rng.integers(1, 6))]
    held = [valid for _, valid in folds(album, 3, by='site')]
    counts = [[sum(c.meta['site'] == site for c in valid) for site in 'abc'] for valid in held]
    assert np.ptp(counts, axis=0).sum() <= 3
