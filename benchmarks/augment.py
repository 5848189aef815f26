"""Affine + elastic + intensity on a batch of 3-D patches with their masks, against MONAI and TorchIO.

    python benchmarks/augment.py [--size 96] [--batch 2] [--repeats 5]

Every peer does the same set on every image: turn, scale, shift and bend in one go where it can, then gamma, bias
field, blur and noise; images by linear, masks by nearest interpolation. One thread each, interleaved, medians.
"""
import argparse
import os
import time
from statistics import median

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np  # noqa: E402
import torch  # noqa: E402


def ours(size):
    from medseg_nb.data.augment import Augment
    aug = Augment(contrast=0., lowres=0., p=1.)
    return lambda x, y: aug(x, y)


def with_monai(size):
    from monai import transforms as t
    keys, turn = ['x', 'y'], (np.radians(15.),)*3
    change = t.Compose([
        t.Rand3DElasticd(keys, sigma_range=(7., 7.), magnitude_range=(80., 80.), prob=1., rotate_range=turn,
                         scale_range=(.15,)*3, translate_range=(.05*size,)*3, mode=('bilinear', 'nearest'),
                         padding_mode='zeros'),
        t.RandAdjustContrastd('x', prob=1., gamma=(.74, 1.35)), t.RandBiasFieldd('x', prob=1., coeff_range=(0., .15)),
        t.RandGaussianSmoothd('x', prob=1., sigma_x=(.1, 1.), sigma_y=(.1, 1.), sigma_z=(.1, 1.)),
        t.RandGaussianNoised('x', prob=1., std=.05)])
    return lambda x, y: [change(dict(x=a, y=b[None])) for a, b in zip(x, y)]


def with_torchio(size):
    import torchio as tio
    change = tio.Compose([
        tio.RandomAffine(scales=.15, degrees=15., translation=.05*size, default_pad_value=0),
        tio.RandomElasticDeformation(num_control_points=7, max_displacement=.03*size), tio.RandomGamma(log_gamma=.3),
        tio.RandomBiasField(.15), tio.RandomBlur((0, 1)), tio.RandomNoise(std=(0, .05))])
    return lambda x, y: [change(tio.Subject(x=tio.ScalarImage(tensor=a), y=tio.LabelMap(tensor=b[None])))
                         for a, b in zip(x, y)]


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (('size', 96), ('batch', 2), ('repeats', 5)): parse.add_argument(f'--{name}', type=int, default=default)
    o = parse.parse_args()
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    g = torch.Generator().manual_seed(0)
    x = torch.rand(o.batch, 1, *(o.size,)*3, generator=g)
    y = torch.randint(0, 3, (o.batch, *(o.size,)*3), generator=g)
    peers = dict(medseg_nb=ours(o.size), monai=with_monai(o.size), torchio=with_torchio(o.size))
    seconds = {name: [] for name in peers}
    for run in range(o.repeats + 1):
        for name, change in peers.items():
            start = time.perf_counter()
            change(x, y)
            if run: seconds[name].append(time.perf_counter() - start)
    own = median(seconds['medseg_nb'])
    print(f'{o.batch} x {o.size}^3 with masks, {torch.get_num_threads()} thread, median of {o.repeats}')
    for name, s in seconds.items(): print(f'{name:10} {o.batch/median(s):7.2f} patches/s   {median(s)/own:5.1f} x our time')


if __name__ == '__main__': main()
