"""The methods of chapter 4 and a U-Net in one exam: `bench` on films, a head, nuclei and vessels

    MEDSEG_DATA=... python benchmarks/classic.py            all four
    python benchmarks/classic.py --only films head          what needs no folder of data
    MEDSEG_DATA=... python benchmarks/classic.py --seconds 60

Every method is asked, with its defaults (and the dark or the bright side, or the number of groups, that the task
wants). Those that need marks, a value or a first contour get them from Otsu's two sides, since nobody is there to
draw them. The U-Net has the seconds that are stated, for each seed. All are judged on the same cases of other patients. Of the head there
is one: its net learns from slices above and below those it is judged on, and so knows the person.
"""
import argparse
import inspect
import os
from functools import partial

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import torch
from scipy import ndimage

from medseg_nb.classic.local import niblack
from medseg_nb.classic.threshold import otsu, otsu_value, thresholds
from medseg_nb.cnn.unet import unet
from medseg_nb.core.system import systems
from medseg_nb.data.case import Case, split
from medseg_nb.data.scanner import Scanner, scan
from medseg_nb.data.sets import cases
from medseg_nb.data.volume import Volume
from medseg_nb.train.bench import bench, leaderboard


def grouped(image, method, group):
    "Labels of a method that splits brightness into groups, each group given its class"
    found = method(image)
    return found.new(torch.tensor(group, dtype=torch.uint8)[found.data.long().clamp(max=len(group) - 1)])


def marked(image, fn, needed, dark):
    "What a method must be given besides the image, made from Otsu's sides: a value, marks, a first contour"
    side = otsu(image, dark=dark)
    x = side.numpy()[0] > 0
    inner, outer = (ndimage.binary_erosion(m, iterations=3) for m in (x, ~x))
    if not (inner.any() and outer.any()): return side
    seeds = image.new(torch.from_numpy(np.select([inner, outer], [1, 2]).astype('uint8')[None]))
    low, high = (float(v) for v in thresholds(image, 3))
    have = dict(seeds=seeds, init=side, value=otsu_value(image), low=low, high=high)
    found = fn(image, **{k: have[k] for k in needed})
    return found.new((found.data == 1).to(torch.uint8))


def alone(dark, group):
    """{name: segmenter}: those with two sides mark the dark or the bright one, those with k groups make as many
    as there are classes in `group`, the darkest first; what needs marks gets them from Otsu's sides"""
    out = {}
    for entry in systems('segmenter'):
        knobs = inspect.signature(entry.fn).parameters
        needed = [k for k, p in knobs.items() if p.default is p.empty][1:]
        f = partial(entry.fn, dark=dark) if 'dark' in knobs else entry.fn
        if entry.name == 'nothing': continue
        if needed: out[f'{entry.name}, marks by Otsu'] = partial(marked, fn=f, needed=needed, dark=dark)
        elif 'k' in knobs: out[entry.name] = partial(grouped, method=partial(f, k=len(group)), group=group)
        else: out[entry.name] = partial(grouped, method=f, group=[0, 1])
    return out


def lungs():
    train, test = split(cases('chest')[:120], (.7, .3), seed=0)
    own = {'niblack, 100 mm': partial(niblack, window=100., k=-.2, dark=True)}
    return train, test, 128, alone(True, [1, 1, 0]) | own


def tissues():
    head, out = cases('mni152')[0], []
    for n, z in enumerate(range(40, 136, 3)):
        cut = lambda v, z=z: Volume(v.data[:, :, :, z].float()/(255 if v is head.image else 1), torch.eye(3))
        mask = cut(head.mask)
        flat = Case(f'slice {z}', cut(head.image), mask.new(mask.data.to(torch.uint8)), dict(patient=f'slice {z}'))
        out.append(scan(flat, n, Scanner(noise=.05, bias=.2, rician=True)))
    return out[0::2], out[1::2], 192, alone(False, [0, 0, 1, 2])


def nuclei():
    flat = lambda c: Case(c.id, c.image.new(c.image.data.float().mean(0, keepdim=True)),
                          c.mask.new((c.mask.data > 0).to(torch.uint8)), c.meta)
    found = [flat(c) for c in cases('dsb2018')[:200] if c.meta['kind'] == 'fluorescence'][:90]
    train, test = split(found, (.7, .3), seed=0)
    return train, test, 128, alone(False, [0, 1])


def vessels():
    flat = lambda c: Case(c.id, c.image.new(c.image.data[1:2])[::2, ::2], c.mask[::2, ::2], c.meta)
    train, test = split([flat(c) for c in cases('chase_db1')], (.7, .3), seed=0)
    own = {'niblack, 24 px': partial(niblack, window=24., k=.8, dark=True)}
    return train, test, 256, alone(True, [1, 0]) | own


worlds = dict(films=lungs, head=tissues, nuclei=nuclei, vessels=vessels)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--only', nargs='*', choices=worlds, default=[*worlds])
    p.add_argument('--seconds', type=float, default=20)
    p.add_argument('--seeds', type=int, default=3)
    args = p.parse_args()
    for name in args.only:
        train, test, size, rivals = worlds[name]()
        table = bench(rivals | {'unet': unet}, train, test, seconds=args.seconds, size=size,
                      seeds=range(args.seeds))
        board = leaderboard(table)[['dice', 'dice low', 'dice high', 'hd95', 'steps', 'image_s', 'undefined']]
        print(f'\n{name}: {len(train)} cases to learn from, {len(test)} to be judged on, {args.seconds:g} s\n')
        print(board.round(3).to_string(), flush=True)
