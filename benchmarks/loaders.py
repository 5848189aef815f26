"""3-D patches per second from compressed volumes: the store against MONAI's cache and TorchIO's queue

    python benchmarks/loaders.py                 16 volumes of 192^3, patches of 96^3, no workers
    python benchmarks/loaders.py --workers 2     with worker processes, the same number for each
    python benchmarks/loaders.py --rounds 5      more repeats (medians are reported)

Each library runs in a process of its own, one after the other, `rounds` times around. All read the same 16
pairs of .nii.gz files, stretch the image between its percentiles 0.5 and 99.5 to 0..1, and deliver batches
of two: x (2,1,96,96,96) float32 and y (2,96,96,96) int64. An epoch of 128 patches warms up and is not
counted. What must be done before the first patch is reported apart (`first`), and so is what a second start
costs (`again`). Ratios say how many times faster the store is, by the clock and by the processor's time,
which other programs disturb less (with workers only the clock counts: their time is not in the second
column). Peak memory is the largest resident size of the process, its imports and its file mappings
included; TorchIO's queue holds 64 patches. Boxes anywhere are compared with boxes anywhere, and boxes of which
a share is centered on foreground with such boxes.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VOLUMES, SIZE, PATCH, BATCH, PER_VOLUME, EPOCHS = 16, 192, 96, 2, 8, 3


def make(folder):
    "CT-like volumes with masks: air, a body with organs and noise, two labels; the same bytes at each call"
    import nibabel as nib
    import numpy as np
    ramp = np.linspace(-1, 1, SIZE, dtype='float32')
    x, y, z = np.meshgrid(ramp, ramp, ramp, indexing='ij', sparse=True)
    for i in range(VOLUMES):
        rng = np.random.default_rng(i)
        body = (x/.9)**2 + (y/.7)**2 + 0*z < 1
        image = np.where(body, 40 + 20*np.cos(5*x + i)*np.cos(4*y)*np.cos(6*z), -1024).astype('float32')
        mask = np.zeros(image.shape, 'uint8')
        for label, radius in ((1, .35), (2, .12)):
            cx, cy, cz = rng.uniform(-.4, .4, 3)
            mask[((x - cx)**2 + (y - cy)**2 + (z - cz)**2 < radius**2) & body] = label
        image += body*(60*(mask == 1) - 90*(mask == 2) + rng.normal(0, 12, image.shape).astype('float32'))
        for name, data in (('image', image.round().astype('int16')), ('mask', mask)):
            nib.save(nib.Nifti1Image(data, np.diag([.8, .8, 1.5, 1])), folder/f'{name}_{i:02}.nii.gz')


def files(folder): return sorted(folder.glob('image_*')), sorted(folder.glob('mask_*'))


def ours(folder, workers, foreground=1/3):
    from medseg_nb.data.loaders import CaseLoader
    from medseg_nb.data.sampling import Patches
    from medseg_nb.data.sets import paired
    from medseg_nb.data.store import store
    cases = list(paired(folder, 'image_{id}.nii.gz', 'mask_{id}.nii.gz'))
    stored = store(cases, folder=folder/'store')
    patches = Patches(stored, PATCH, PER_VOLUME, foreground)
    return CaseLoader(patches, bs=BATCH, shuffle=True, num_workers=workers)


def monai(folder, workers, crop='RandSpatialCropd', tuned=False, crops_at_once=1):
    import torch
    from monai import transforms as t
    from monai.data import CacheDataset, DataLoader, set_track_meta
    keys, size = ['image', 'label'], (PATCH,)*3
    crops = {'RandSpatialCropd': lambda: t.RandSpatialCropd(keys, size, random_size=False),
             'RandSpatialCropSamplesd': lambda: t.RandSpatialCropSamplesd(keys, size, crops_at_once,
                                                                          random_size=False),
             'RandCropByPosNegLabeld': lambda: t.RandCropByPosNegLabeld(keys, 'label', size, pos=1, neg=2)}
    steps = [t.LoadImaged(keys), t.EnsureChannelFirstd(keys),
             t.ScaleIntensityRangePercentilesd('image', .5, 99.5, 0, 1, clip=True),
             t.CastToTyped('label', torch.uint8), crops[crop]()]
    items = [dict(image=i, label=m) for i, m in zip(*files(folder))]
    data = CacheDataset(items, t.Compose(steps), progress=False, copy_cache=not tuned)
    if tuned: set_track_meta(False)
    visits = PER_VOLUME*VOLUMES//crops_at_once
    order = torch.utils.data.RandomSampler(data, replacement=True, num_samples=visits)
    loader = DataLoader(data, batch_size=BATCH//crops_at_once, sampler=order, num_workers=workers)
    return Pairs(loader, lambda b: (torch.as_tensor(b['image']), torch.as_tensor(b['label'])[:, 0].long()))


def torchio(folder, workers, sampler='uniform'):
    import torchio as tio
    subjects = [tio.Subject(image=tio.ScalarImage(i), label=tio.LabelMap(m)) for i, m in zip(*files(folder))]
    data = tio.SubjectsDataset(subjects, transform=tio.RescaleIntensity((0, 1), percentiles=(.5, 99.5)))
    samplers = dict(uniform=lambda: tio.UniformSampler(PATCH),
                    label=lambda: tio.LabelSampler(PATCH, 'label', {0: 2, 1: .5, 2: .5}))
    queue = tio.Queue(data, 8*PER_VOLUME, PER_VOLUME, samplers[sampler](), num_workers=workers)
    loader = tio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0)
    pair = lambda b: (b['image'][tio.DATA].float(), b['label'][tio.DATA][:, 0].long())
    return Pairs(loader, pair)


class Pairs:
    "A loader of dictionaries as one of (x, y)"
    def __init__(self, loader, pair): self.loader, self.pair = loader, pair
    def __iter__(self): return map(self.pair, self.loader)


METHODS = {
    'medseg_nb store, Patches': lambda f, w: ours(f, w, foreground=0),
    'medseg_nb store, Patches, a third on foreground': ours,
    'MONAI CacheDataset, RandSpatialCrop': monai,
    'MONAI CacheDataset, RandCropByPosNegLabel': lambda f, w: monai(f, w, 'RandCropByPosNegLabeld'),
    'TorchIO Queue, UniformSampler': torchio,
    'TorchIO Queue, LabelSampler': lambda f, w: torchio(f, w, 'label'),
    'tuned: MONAI, both patches of a batch from one copy':
        lambda f, w: monai(f, w, 'RandSpatialCropSamplesd', crops_at_once=2),
    'tuned: MONAI, copy_cache=False, no metadata': lambda f, w: monai(f, w, tuned=True)}
ANYWHERE, FOREGROUND = list(METHODS)[:2]


def peer(name):
    "Ours that does the same work: boxes anywhere, or some of them on foreground"
    return FOREGROUND if any(word in name for word in ('foreground', 'PosNeg', 'Label')) else ANYWHERE


def one(name, folder, workers):
    "Run one method in this process; facts as a dict"
    import torch
    torch.set_num_threads(1)
    start = time.perf_counter()
    loader = METHODS[name](folder, workers)
    ready, rates, busy = time.perf_counter() - start, [], []
    for _ in range(1 + EPOCHS):
        start, cpu, n, total = time.perf_counter(), time.process_time(), 0, 0
        for x, y in loader:
            if n == 0: shape = tuple(x.shape[1:]), tuple(y.shape[1:]), x.dtype, y.dtype
            n += len(x)
            total += float(x[0, 0, 0, 0, 0]) + int(y[0, 0, 0, 0])
        rates.append(n/(time.perf_counter() - start))
        busy.append(n/(time.process_time() - cpu))
        assert n == VOLUMES*PER_VOLUME, n
        assert shape == ((1, *[PATCH]*3), (PATCH,)*3, torch.float32, torch.int64), shape
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if workers: peak += workers*resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    rate, cpu = statistics.median(rates[1:]), statistics.median(busy[1:])
    return dict(ready=ready, rate=rate, cpu=cpu, peak=peak/1024)


def table(results):
    "Lines of a markdown table: medians over the rounds, ratios to the store doing the same work"
    mid = lambda name, key: statistics.median(r[key] for r in results[name])
    yield '| | patches/s | ratio | per CPU second | ratio | ready: first, again (s) | peak memory (MB) |'
    yield '|---|---|---|---|---|---|---|'
    for name in results:
        pairs = list(zip(results[peer(name)], results[name]))
        cells = [name]
        for key in ('rate', 'cpu'):
            cells += [f'{mid(name, key):.0f}', f'{statistics.median(a[key]/b[key] for a, b in pairs):.1f}']
        ready = f"{results[name][0]['ready']:.1f}, {min(r['ready'] for r in results[name]):.1f}"
        peak = max(r['peak'] for r in results[name])
        yield '| ' + ' | '.join([*cells, ready, f'{peak:.0f}']) + ' |'


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--workers', type=int, default=0)
    p.add_argument('--folder', type=Path, help='keep the volumes here and use them again')
    p.add_argument('--tuned', action='store_true', help='also MONAI in two ways beyond its defaults')
    p.add_argument('--one', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one: return print(json.dumps(one(a.one, a.folder, a.workers)))
    with tempfile.TemporaryDirectory() as tmp:
        folder = a.folder or Path(tmp)
        folder.mkdir(parents=True, exist_ok=True)
        if len(files(folder)[1]) < VOLUMES: make(folder)
        for p in (folder/'store').glob('*'): p.unlink()
        results = {name: [] for name in METHODS if a.tuned or not name.startswith('tuned')}
        for k in range(a.rounds):
            for name in results:
                print(f'round {k + 1}: {name}', file=sys.stderr, flush=True)
                call = [sys.executable, __file__, '--one', name, '--folder', folder]
                call += ['--workers', str(a.workers)]
                env = os.environ | dict(OMP_NUM_THREADS='1')
                done = subprocess.run(call, env=env, capture_output=True, text=True)
                if done.returncode: sys.exit(f'{name} failed:\n{done.stderr[-2000:]}')
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(*table(results), sep='\n')


if __name__ == '__main__': main()
