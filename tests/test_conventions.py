"Conventions: each row of the table against the library that it speaks for."
import ast
import json
import re
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_nb.data.volume import Volume
from medseg_nb.metrics.conventions import explain_difference

nan, inf = np.nan, np.inf
# Relative: MONAI reckons in 32 bits, its rank of the percentile too; areas here come from 32-bit meshes
near = {'MONAI': 3e-6, 'MedPy': 1e-12, 'surface-distance': 1e-6, 'SimpleITK': 1e-12, 'nnU-Net': 1e-12}


@pytest.fixture(autouse=True)
def old_numpy(monkeypatch):
    "surface-distance 0.1 asks NumPy for Inf and NaN, which NumPy 2 no longer has"
    monkeypatch.setattr(np, 'Inf', np.inf, raising=False)
    monkeypatch.setattr(np, 'NaN', np.nan, raising=False)


@pytest.fixture
def once(monkeypatch):
    "MONAI measures a pair anew for each call; it may remember here"
    from monai.metrics import hausdorff_distance, surface_dice, surface_distance
    kept, measure = {}, hausdorff_distance.get_edge_surface_distance
    def remember(p, t, **how):
        key = p.shape, p.numpy().tobytes(), t.numpy().tobytes(), str(
            [how.get(k) for k in ('distance_metric', 'spacing', 'symmetric', 'use_subvoxels')])
        if key not in kept: kept[key] = measure(p, t, **how)
        return kept[key]
    for module in (hausdorff_distance, surface_dice, surface_distance):
        monkeypatch.setattr(module, 'get_edge_surface_distance', remember)


def asked(f):
    "The number that a library gives, or the name of its error"
    with warnings.catch_warnings(), np.errstate(all='ignore'):
        warnings.simplefilter('ignore')
        try: return float(f())
        except Exception as e: return type(e).__name__


def monai(p, t, spacing, tolerance):
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
        compute_surface_dice,
    )
    two = [torch.tensor(m)[None, None].float() for m in (p, t)]
    where = dict(include_background=True, spacing=[float(s) for s in spacing])
    yield 'compute_dice', lambda: compute_dice(*two)
    yield 'compute_iou', lambda: compute_iou(*two)
    yield 'compute_hausdorff_distance', lambda: compute_hausdorff_distance(*two, **where)
    yield ('compute_hausdorff_distance(percentile=95)',
           lambda: compute_hausdorff_distance(*two, percentile=95, **where))
    yield 'compute_average_surface_distance', lambda: compute_average_surface_distance(*two, **where)
    yield ('compute_average_surface_distance(symmetric=True)',
           lambda: compute_average_surface_distance(*two, symmetric=True, **where))
    yield 'compute_surface_dice', lambda: compute_surface_dice(*two, [tolerance], **where)
    yield ('compute_surface_dice(use_subvoxels=True)',
           lambda: compute_surface_dice(*two, [tolerance], use_subvoxels=True, **where))


def medpy(p, t, spacing, tolerance):
    from medpy.metric import binary
    for name in ('dc', 'jc'): yield name, lambda f=getattr(binary, name): f(p, t)
    for name in ('hd', 'hd95', 'asd', 'assd'): yield name, lambda f=getattr(binary, name): f(p, t, spacing)


def deepmind(p, t, spacing, tolerance):
    import surface_distance as sd
    got = sd.compute_surface_distances(t, p, spacing)
    yield 'compute_dice_coefficient', lambda: sd.compute_dice_coefficient(t, p)
    for percent in (100, 95):
        yield f'compute_robust_hausdorff({percent})', lambda q=percent: sd.compute_robust_hausdorff(got, q)
    for k in (0, 1):
        yield (f'compute_average_surface_distance()[{k}]',
               lambda k=k: sd.compute_average_surface_distance(got)[k])
    yield ('compute_surface_dice_at_tolerance',
           lambda: sd.compute_surface_dice_at_tolerance(got, tolerance))


def simpleitk(p, t, spacing, tolerance):
    import SimpleITK as sitk
    two = [sitk.GetImageFromArray(m.astype('uint8')) for m in (p, t)]
    for image in two: image.SetSpacing([float(s) for s in spacing[::-1]])
    overlap, distance = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
    def after(f, get):
        f.Execute(*two)
        return getattr(f, get)()
    for f, get in ((overlap, 'GetDiceCoefficient'), (overlap, 'GetJaccardCoefficient'),
                   (distance, 'GetHausdorffDistance'), (distance, 'GetAverageHausdorffDistance')):
        yield get, lambda f=f, get=get: after(f, get)


def nnunet(p, t, spacing, tolerance):
    evaluation = pytest.importorskip('nnunetv2.evaluation.evaluate_predictions')
    class Reader:
        def read_seg(self, name): return dict(pred=p, truth=t)[name].astype(int), {}
    for name in ('Dice', 'IoU'):
        yield (f"compute_metrics()['{name}']",
               lambda n=name: evaluation.compute_metrics('truth', 'pred', Reader(), [1])['metrics'][1][n])


libraries = {'MONAI': monai, 'MedPy': medpy, 'surface-distance': deepmind, 'SimpleITK': simpleitk,
             'nnU-Net': nnunet}


def masks(shape):
    "Adversarial masks: empty, full, one voxel in a corner, a ball, at the border, islands, a shell, speckle"
    rng, at = np.random.default_rng(len(shape)), np.indices(shape)
    center = (np.array(shape) - 1)/2
    r = sum(((x - c)/(c + 1))**2 for x, c in zip(at, center))
    corner = (at.sum(0) == 0)
    yield from (0*corner > 0, corner | True, corner, r < .3, at[0] < 2, corner | (r < .1),
                (r < .5) & (r > .2), r < .6, rng.random(shape) < .3, rng.random(shape) < .02)


shapes = {(13, 11): (1., 1.), (12, 14): (8., 1.), (9, 10): (.7, 1.3), (7, 8, 6): (1., 1., 1.),
          (6, 9, 5): (8., 1., 1.), (6, 7, 8): (1., 1., 8.), (8, 6, 7): (.9, .45, 1.25)}


def pairs():
    "Two of these masks, either way round: 2-D and 3-D, equal spacing and 1:1:8, three in ten"
    for k, (shape, spacing) in enumerate(shapes.items()):
        found = list(masks(shape))
        for i, j in product(range(10), repeat=2):
            if (3*i + 7*j + k) % 10 < 3: yield found[i], found[j], spacing, (0., 1., 2.5)[(i + j) % 3]
    square = np.zeros((12, 9), bool)
    square[:6, 1:6] = True
    yield np.roll(square, 3, 0), square, (.1, .1), .3   # 3 x 0.1 > 0.3 in 64 bits, not in 32


@pytest.fixture(scope='module')
def told():
    "The table for each pair"
    return [(pair, explain_difference(*(one_image(m) for m in pair[:2]), pair[2], tolerance=pair[3]))
            for pair in pairs()]


def one_image(m): return m[None] if m.ndim == 3 else m   # a volume of 2 classes may look one-hot


@pytest.mark.parametrize('name', libraries)
def test_the_library_itself(name, told, once):
    assert len(told) == 211
    for pair, table in told:
        rows = table[table.library == name].set_index('call')
        want = {call: asked(f) for call, f in libraries[name](*pair)}
        assert list(rows.index) == [c for c in rows.index if c in want] and len(rows) == len(want)
        for call, value in want.items():
            got, words = rows.value[call], rows.why[call]
            if isinstance(value, str): assert np.isnan(got) and words.startswith(f'raises {value}: ')
            else:
                assert 'raises' not in words
                message = f'{call}, {pair[2:]}, {words}\n{pair[0].astype(int)}\n{pair[1].astype(int)}'
                np.testing.assert_allclose(got, value, near[name], 1e-12, err_msg=message)


def test_the_first_picture():
    "The numbers that the page calls the libraries' own are"
    source = next(s for s in page() if "answers = {'MedPy'" in s)
    said = ast.literal_eval(re.search(r'answers = (\{.*?\})', source)[1])
    space = {}
    exec(source.split('d_pred,')[0], dict(np=np), space)
    both = space['pred'], space['truth'], (1., 1.), 1.
    calls = {'MedPy': (medpy, 'hd95'), 'MONAI': (monai, 'compute_hausdorff_distance(percentile=95)'),
             'surface-distance': (deepmind, 'compute_robust_hausdorff(95)')}
    for name, (library, call) in calls.items():
        assert round(asked(dict(library(*both))[call]), 2) == said[name]
    assert list(said.values()) == [0, 3.65, 4]


def page():
    "The code cells of the notebook"
    path = Path(__file__).parents[1]/'nbs/03_metrics/09_conventions.ipynb'
    return [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']


def test_what_the_page_tells_of_libraries(monkeypatch):
    from monai.metrics import DiceMetric, HausdorffDistanceMetric
    none = torch.zeros(1, 1, 5, 5)
    for metric in (DiceMetric(), HausdorffDistanceMetric(include_background=True, percentile=95)):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            metric(none, none)
        assert metric.aggregate().item() == 0
    import surface_distance as sd
    for name in ('Inf', 'NaN'): monkeypatch.delattr(np, name, raising=False)
    empty, one = np.zeros((5, 5), bool), np.eye(5) > 0
    with pytest.raises(AttributeError): sd.compute_dice_coefficient(empty, empty)
    with pytest.raises(AttributeError): sd.compute_surface_distances(one, empty, (1, 1))


def test_every_row_has_its_reason():
    ball, empty = np.indices((9, 9)).sum(0) % 5 > 1, np.zeros((9, 9), bool)
    tables = [explain_difference(p, t, (1., 2.)) for p in (ball, empty) for t in (ball, empty)]
    for table in tables:
        assert list(table.columns) == ['metric', 'library', 'call', 'value', 'why'] and len(table) == 26
        assert table.notna().drop(columns='value').all(None) and (table.why.str.len() > 20).all()
        assert table.value.dtype == float and not table.duplicated(['library', 'call']).any()
        assert table.library.nunique() == 5 and table.metric.nunique() == 6
    assert tables[0].value.notna().all()
    for table in tables[1:]: assert (table.value.notna() | table.why.str.contains('nan|raises')).all()


def test_reasons_carry_the_numbers():
    p, t = np.zeros((2, 6, 20), bool)
    p[1:3, 2:6] = t[1:3, 9:13] = True
    table = explain_difference(p, t, (1., 1.)).set_index('call')
    assert '7 mm over 8 surface voxels of pred, 7 mm over 8 of truth' in table.why['hd']
    assert '2 x 0 / (8 + 8)' in table.why['dc'] and '0 of 16 within 1 mm' in table.why['compute_surface_dice']
    for row in table.itertuples():
        if row.metric in ('hd', 'hd95', 'mean distance'): assert f'{row.value:.4g} mm' in row.why, row


@given(st.integers(0, 2**32 - 1), st.integers(2, 3))
@settings(max_examples=20, deadline=None)
def test_identical_padded_flipped_and_swapped(seed, ndim):
    rng = np.random.default_rng(seed)
    p, t = (rng.random((2, *rng.integers(2, 7, ndim))) < rng.choice([.1, .4, .8])) | False
    p, t, spacing = one_image(p), one_image(t), tuple(rng.choice([.5, 1., 3.], ndim))
    table = explain_difference(p, t, spacing)
    if t.any():
        same = explain_difference(t, t, spacing)
        assert same.value.tolist() == [float(m in ('dice', 'iou', 'nsd')) for m in same.metric]
    def equal(other): np.testing.assert_allclose(other.value, table.value, 1e-5, 1e-12)
    width = [(0, 0)]*(p.ndim - ndim) + [(2, 3)]*ndim
    equal(explain_difference(np.pad(p, width), np.pad(t, width), spacing))
    equal(explain_difference(p[..., ::-1], t[..., ::-1], spacing))
    one_way = table.call.str.contains(r"\[[01]\]|^asd$|distance$") & (table.metric == 'mean distance')
    skips = (table.library == 'MONAI') & table.metric.isin(['dice', 'iou'])
    both_ways = explain_difference(t, p, spacing).value[~(one_way | skips)]
    np.testing.assert_allclose(both_ways, table.value[~(one_way | skips)], 1e-5, 1e-12)


def test_containers_and_labels():
    rng = np.random.default_rng(0)
    p, t = rng.integers(0, 3, (2, 1, 6, 7, 5))
    mm = (.5, 2., 1.)
    want = explain_difference(p == 2, t == 2, mm)
    for make, spacing in ((np.asarray, mm), (torch.tensor, mm),
                          (lambda a: Volume(a, np.diag([*mm, 1])), None)):
        pd.testing.assert_frame_equal(explain_difference(make(p), make(t), spacing, label=2), want)
    assert not want.equals(explain_difference(p, t, mm, label=1))
    assert not want.equals(explain_difference(p == 2, t == 2, mm[::-1]))
    nsd = [explain_difference(p == 2, t == 2, mm, tolerance=x).value.iloc[-1] for x in (0., .6, 4.)]
    assert nsd == sorted(nsd) and nsd[0] < nsd[1] < nsd[2]


mask = np.eye(5, dtype=int)


@pytest.mark.parametrize('args, options, words', [
    ((mask, mask), {}, 'spacing is missing'),
    ((mask, mask, (1., 1., 1.)), {}, 'wanted 2 numbers'),
    ((mask, -mask, (1., 1.)), {}, 'nobody looked'),
    ((mask, mask, (1., 1.)), dict(label=.5), 'label is 0.5; wanted one whole number'),
    ((mask, mask, (1., 1.)), dict(label=(1, 2)), 'wanted one whole number'),
    ((mask, mask, (1., 1.)), dict(label=-1), 'label is -1'),
    ((mask, mask, (1., 1.)), dict(tolerance=-1.), 'tolerance is -1.0; wanted mm'),
    ((mask, mask, (1., 1.)), dict(tolerance=nan), 'tolerance is nan'),
])
def test_refusals(args, options, words):
    with pytest.raises(ValueError, match=words): explain_difference(*args, **options)
