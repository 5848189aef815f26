"Every entry of the register is held to the contract of its kind (design: the seven kinds)."
import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medseg_nb.core.system import KINDS, systems
from medseg_nb.data.grid import grid_difference
from medseg_nb.data.volume import Volume

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
    room, alone = entry.fn.__module__.rpartition('.')[2], entry.kind not in ('tool', 'fusion', 'segmenter')
    assert entry.name.startswith(room) or not alone, 'named unlike its notebook'
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


fusions = systems('fusion')
each_fusion = pytest.mark.parametrize('entry', fusions, ids=[s.name for s in fusions])


def outlines(R, shape=(9, 11), K=2, wrong=.2, seed=0):
    "Masks by R raters on one oblique grid, a share of the voxels wrong; rater 0 skips row 0"
    rng, n = np.random.default_rng([seed, R, K]), len(shape)
    turn = np.linalg.qr(rng.standard_normal((n, n)))[0]*rng.uniform(.5, 3, n)
    affine = np.eye(n + 1)
    affine[:n, :n], affine[:n, n] = turn, rng.uniform(-50, 50, n)
    truth = np.sort(rng.integers(0, K, shape), 0)
    votes = [np.where(rng.random(shape) < wrong, rng.integers(0, K, shape), truth) for _ in range(R)]
    if R > 1 and wrong: votes[0][0] = -1
    return [Volume(v[None].astype('int16'), affine) for v in votes]


def test_every_function_that_fuses_is_registered():
    written = set()
    for path in (root/'medseg_nb').rglob('*.py'):
        lines = path.read_text().splitlines()
        for f in ast.parse('\n'.join(lines)).body:
            if not isinstance(f, ast.FunctionDef) or f.name.startswith('_') or not f.args.args: continue
            head = '\n'.join(lines[f.lineno - 1:f.body[0].lineno - 1])
            returns = re.search(r'\)\s*->tuple:.*DataFrame', head)
            if f.args.args[0].arg == 'masks' and returns: written.add(f.name)
    assert written == {s.name for s in fusions}, 'masks -> Volume, DataFrame is a fusion: give it a card'
    assert fusions


@each_fusion
@pytest.mark.parametrize('shape', [(9, 11), (4, 5, 6), (1, 1)])
@pytest.mark.parametrize('K', [1, 2, 4])
@pytest.mark.parametrize('R', [1, 2, 5])
def test_fusion_of_the_unanimous_is_their_mask(entry, shape, K, R):
    mask = outlines(1, shape, K, wrong=0)[0]
    fused, raters = entry.fn([mask]*R)
    assert torch.equal(fused.data.long(), mask.data.long()) and len(raters) == R
    if mask.data.numel() < 2: return
    mask.data.view(-1)[0] = -1
    assert torch.equal(entry.fn([mask]*R)[0].data.long(), mask.data.long()), 'where nobody looked stays -1'


@each_fusion
def test_fusion_of_empty_and_of_full_masks(entry):
    for value in (0, 1, 7):
        mask = Volume(torch.full((1, 6, 7), value, dtype=torch.uint8))
        assert (entry.fn([mask]*3)[0].data == value).all()


@each_fusion
@pytest.mark.parametrize('K', [2, 4])
@pytest.mark.parametrize('R', [2, 3, 4, 7])
def test_fusion_does_not_depend_on_the_order_of_raters(entry, R, K):
    for seed in range(4):
        masks = outlines(R, K=K, seed=seed, wrong=.4)
        order = np.random.default_rng(seed).permutation(R)[::-1]
        fused, raters = entry.fn(masks)
        other, moved = entry.fn([masks[r] for r in order])
        assert torch.equal(fused.data, other.data)
        pd.testing.assert_frame_equal(moved.reset_index(drop=True), raters.iloc[order].reset_index(drop=True),
                                      rtol=1e-6, atol=1e-9)


@each_fusion
@pytest.mark.parametrize('shape,K', [((9, 11), 2), ((4, 5, 6), 4)])
def test_fusion_is_integer_labels_on_the_same_grid(entry, shape, K):
    masks = outlines(5, shape, K)
    kept = [m.data.clone() for m in masks]
    fused, raters = entry.fn(masks)
    assert isinstance(fused, Volume) and fused.channels == 1 and not grid_difference(fused, masks[0])
    assert not fused.data.is_floating_point() and fused.data.dtype != torch.bool
    given = set(torch.stack([m.data for m in masks]).unique().tolist())
    assert set(fused.data.unique().tolist()) <= given, 'a label that no rater gave to any voxel'
    assert all(torch.equal(m.data, k) for m, k in zip(masks, kept)), 'the masks were changed'


@each_fusion
def test_fusion_has_a_row_for_each_rater_in_the_order_given(entry):
    masks = outlines(5, (20, 20), wrong=.02)
    masks[3] = outlines(5, (20, 20), wrong=.9)[3]
    raters = entry.fn(masks)[1]
    assert isinstance(raters, pd.DataFrame) and list(raters.index) == list(range(5))
    odd = (raters - raters.median()).abs().select_dtypes('number').sum(axis=1)
    assert odd.idxmax() == 3, 'the row of rater 3, who is the careless one, looks like the others'
    named = entry.fn(dict(zip('abcde', masks)))[1]
    assert list(named.index) == list('abcde')
    np.testing.assert_array_equal(named.astype(float), raters.astype(float))


@each_fusion
def test_fusion_without_a_vote_is_no_vote_against(entry):
    mask = outlines(1, K=3, wrong=0)[0]
    nobody = mask.new(torch.full_like(mask.data, -1))
    fused, raters = entry.fn([mask, nobody, mask])
    assert torch.equal(fused.data.long(), mask.data.long()) and len(raters) == 3


@each_fusion
def test_fusion_names_the_rater_who_differs(entry):
    a, b, c = outlines(3)
    with pytest.raises(ValueError, match=r'masks\[2\].*flip'): entry.fn([a, b, c.flip(0)])
    with pytest.raises(ValueError, match=r'masks\[1\].*shape'): entry.fn([a, b[1:], c])
    with pytest.raises(TypeError, match=r'masks\[1\].*Volume'): entry.fn([a, b.numpy(), c])
    with pytest.raises(TypeError, match=r'masks\[0\].*labels'): entry.fn([a.new(a.data.float()), b, c])
    with pytest.raises(ValueError, match=r'masks\[1\].*-[23]'): entry.fn([a, b.new(b.data - 2), c])
    with pytest.raises(ValueError, match=r"masks\['c'\].*flip"): entry.fn(dict(a=a, b=b, c=c.flip(0)))
    with pytest.raises(ValueError, match='no masks'): entry.fn([])


segmenters = systems('segmenter')
each_segmenter = pytest.mark.parametrize('entry', segmenters, ids=[s.name for s in segmenters])
each_segmenter_dims = pytest.mark.parametrize('entry,dims', [(s, d) for s in segmenters for d in s.dims],
                                              ids=[f'{s.name}-{d}d' for s in segmenters for d in s.dims])


def oblique(x, seed=0):
    "An image of one channel on a tilted, anisotropic grid; its largest voxel has 1.2 mm"
    x = torch.as_tensor(x)
    affine, rng = np.eye(x.ndim + 1), np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((x.ndim, x.ndim)))[0]
    affine[:-1, :-1], affine[:-1, -1] = turn*np.linspace(.7, 1.2, x.ndim), 30.
    return Volume(x[None], affine)


def scene(dims, seed=0):
    "A bright ball with a brighter one in it, some noise"
    rng, n = np.random.default_rng([seed, dims]), 13 if dims == 3 else 24
    r2 = sum(np.square(i - n//2) for i in np.indices((n,)*dims))
    return np.where(r2 < (n/5)**2, .9, np.where(r2 < (n/2.6)**2, .6, .1)) + rng.normal(0, .03, (n,)*dims)


def ask(entry, volume):
    "A segmenter's labels; what it cannot do without is given by the name of the parameter"
    def spot(v):
        out = torch.zeros_like(v.data, dtype=torch.uint8)
        out[(0, *(n//2 for n in v.shape))], out.view(-1)[0] = 2, 1
        return v.new(out)
    def box(v):
        out = torch.zeros_like(v.data, dtype=torch.uint8)
        out[(0, *(slice(n//4, max(n//4 + 1, 3*n//4)) for n in v.shape))] = 1
        return v.new(out)
    given = dict(value=lambda v: .5, low=lambda v: .4, high=lambda v: .7, seeds=spot, init=box)
    strange = set(needed(entry)) - set(given)
    assert not strange, f'{entry.name} wants {sorted(strange)}; give a default, or use one of {list(given)}'
    return entry.fn(volume, **{name: given[name](volume) for name in needed(entry)})


def needed(entry):
    "Names of what a segmenter wants besides the image"
    wanted = list(inspect.signature(entry.fn).parameters.values())[1:]
    return [p.name for p in wanted if p.default is p.empty]


def check_labels(volume, out):
    "What holds of every answer: integer labels of one channel, on the grid of the image"
    assert isinstance(out, Volume) and not grid_difference(volume, out) and out.channels == 1
    assert not out.data.is_floating_point() and out.data.dtype != torch.bool
    assert out.data.min() >= 0 and out.data.device == volume.data.device
    return out.data.long()


@each_segmenter_dims
def test_segmenter_keeps_grid_and_input(entry, dims):
    volume = oblique(scene(dims))
    before, affine = volume.data.clone(), volume.affine.copy()
    labels = check_labels(volume, ask(entry, volume))
    assert torch.equal(volume.data, before) and np.array_equal(volume.affine, affine), 'the input was changed'
    assert len(labels.unique()) > 1, 'a clear scene, and it found nothing'
    assert torch.equal(labels, ask(entry, volume).data.long()), 'the same input, other labels'


@each_segmenter_dims
@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16,
                                   torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
def test_segmenter_takes_any_type_of_number(entry, dims, dtype):
    x = torch.tensor(scene(dims))
    volume = oblique(x > .4 if dtype == torch.bool else (x if dtype.is_floating_point else x*100).to(dtype))
    check_labels(volume, ask(entry, volume))


@each_segmenter_dims
@pytest.mark.parametrize('value', [0., 7., -1000.])
def test_segmenter_survives_a_constant_image(entry, dims, value):
    volume = oblique(np.full((9, 8, 7)[:dims], value))
    found = check_labels(volume, ask(entry, volume)).unique()
    assert len(found) == 1 or {'seeds', 'init'} & set(needed(entry)), 'one brightness, several labels'


@each_segmenter_dims
def test_segmenter_survives_two_voxels_and_thin_images(entry, dims):
    rng = np.random.default_rng(0)
    flat, deep = ((1, 2), (2, 1), (1, 30), (30, 1)), ((1, 1, 2), (12, 9, 1), (1, 12, 9), (1, 1, 20))
    for shape in flat if dims == 2 else deep:
        volume = oblique(rng.random(shape))
        check_labels(volume, ask(entry, volume))


@each_segmenter_dims
def test_segmenter_leaves_what_is_not_finite_to_the_background(entry, dims):
    x = scene(dims)
    x[0], x[5, 5], x[4, 4] = np.nan, np.inf, -np.inf
    volume = oblique(x)
    labels = check_labels(volume, ask(entry, volume))
    assert not labels[0][torch.tensor(~np.isfinite(x))].any(), 'a label where there is no number'
    assert len(labels.unique()) > 1, 'a slice of nan made it blind'
    with pytest.raises(ValueError, match='finite'): ask(entry, oblique(np.full(x.shape, np.nan)))


@each_segmenter
def test_segmenter_says_what_it_wants(entry):
    with pytest.raises(TypeError, match='wanted a Volume'): entry.fn(scene(2), **dict.fromkeys(needed(entry)))
