"""The methods of chapter 4 and a U-Net in one exam: `bench` on films, a head, nuclei and vessels

    MEDSEG_DATA=... python benchmarks/classic.py            all four
    python benchmarks/classic.py --only films head          what needs no folder of data
    MEDSEG_DATA=... python benchmarks/classic.py --seconds 60

The U-Net has the seconds that are stated, once for each of three seeds; the others learn nothing. Every system
is judged on the same cases of other patients. Of the head there is one: its nets learn from slices above and
below those they are judged on, through other machines, and so know the person. Knobs stand as the notebooks
chose them, on other images.
"""
import argparse
import os
from functools import partial

os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch

from medseg_nb.classic.fuzzy import fcm, sfcm
from medseg_nb.classic.kmeans import kmeans
from medseg_nb.classic.levelset import chan_vese
from medseg_nb.classic.local import niblack, sauvola
from medseg_nb.classic.threshold import hysteresis, multi_otsu, nothing, otsu
from medseg_nb.cnn.unet import unet
from medseg_nb.data.case import Case, split
from medseg_nb.data.scanner import Scanner, scan
from medseg_nb.data.sets import cases
from medseg_nb.data.volume import Volume
from medseg_nb.train.bench import bench, leaderboard


def grouped(image, method, group):
    "Labels of a method that splits brightness into groups, each group given its class"
    found = method(image)
    return found.new(torch.tensor(group, dtype=torch.uint8)[found.data.long()])


def lungs():
    train, test = split(cases('chest')[:120], (.7, .3), seed=0)
    three = {'multi-Otsu, two darkest of 3': multi_otsu, 'k-means, two darkest of 3': partial(kmeans, sigma=1.),
             'fuzzy c-means, two darkest of 3': fcm}
    return train, test, 128, {
        'Otsu, dark': partial(otsu, dark=True),
        'Niblack, dark, 100 mm': partial(niblack, window=100., k=-.2, dark=True),
        'Chan-Vese, dark': partial(chan_vese, dark=True),
        } | {name: partial(grouped, method=m, group=[1, 1, 0]) for name, m in three.items()}


def tissues():
    head, out = cases('mni152')[0], []
    for n, z in enumerate(range(40, 136, 3)):
        cut = lambda v, z=z: Volume(v.data[:, :, :, z].float()/(255 if v is head.image else 1), torch.eye(3))
        mask = cut(head.mask)
        flat = Case(f'slice {z}', cut(head.image), mask.new(mask.data.to(torch.uint8)), dict(patient=f'slice {z}'))
        out.append(scan(flat, n, Scanner(noise=.05, bias=.2, rician=True)))
    ways = {'multi-Otsu, 4 groups': multi_otsu, 'k-means, 4 groups': kmeans, 'fuzzy c-means, 4 groups': fcm,
            'spatial fuzzy c-means, 4 groups': sfcm}
    return out[0::2], out[1::2], 192, {
        name: partial(grouped, method=partial(m, k=4), group=[0, 0, 1, 2]) for name, m in ways.items()}


def nuclei():
    flat = lambda c: Case(c.id, c.image.new(c.image.data.float().mean(0, keepdim=True)),
                          c.mask.new((c.mask.data > 0).to(torch.uint8)), c.meta)
    found = [flat(c) for c in cases('dsb2018')[:200] if c.meta['kind'] == 'fluorescence'][:90]
    train, test = split(found, (.7, .3), seed=0)
    return train, test, 128, {
        'Otsu': otsu, 'Sauvola, 25 px': partial(sauvola, window=25.), 'k-means': partial(kmeans, k=2),
        'fuzzy c-means': partial(fcm, k=2), 'Chan-Vese': chan_vese}


def vessels():
    flat = lambda c: Case(c.id, c.image.new(c.image.data[1:2]), c.mask, c.meta)
    train, test = split([flat(c) for c in cases('chase_db1')], (.7, .3), seed=0)
    return train, test, 320, {
        'Otsu, dark': partial(otsu, dark=True), 'hysteresis, dark': partial(hysteresis, dark=True),
        'Niblack, dark, 25 px': partial(niblack, window=25., k=.8, dark=True),
        'Sauvola, dark, 25 px': partial(sauvola, window=25., dark=True)}


worlds = dict(films=lungs, head=tissues, nuclei=nuclei, vessels=vessels)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--only', nargs='*', choices=worlds, default=[*worlds])
    p.add_argument('--seconds', type=float, default=20)
    args = p.parse_args()
    for name in args.only:
        train, test, size, systems = worlds[name]()
        table = bench({'nothing': nothing} | systems | {'U-Net': unet}, train, test, seconds=args.seconds, size=size)
        board = leaderboard(table)[['dice', 'dice low', 'dice high', 'hd95', 'steps', 'image_s', 'undefined']]
        print(f'\n{name}: {len(train)} cases to learn from, {len(test)} to be judged on, {args.seconds:g} s\n')
        print(board.round(3).to_string(), flush=True)
