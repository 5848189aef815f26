"Dice, HD95, ASSD and NSD of one case: `panel` beside MONAI, surface-distance and medpy, one thread each."
import os

for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'): os.environ.setdefault(name, '1')

import argparse
import multiprocessing as mp
import platform
import statistics
import time
import warnings
from pathlib import Path

import numpy as np

MM = (1., 1., 1.)


def ball(center, radius, shape):
    return sum((x - c)**2 for x, c in zip(np.ogrid[tuple(map(slice, shape))], center)) <= radius**2


def lesion():
    "5,000 voxels in 256 x 256 x 128; the prediction is a little smaller and aside"
    shape = 256, 256, 128
    p, t = ball((129, 130, 65), 10, shape), ball((128, 128, 64), 10.6, shape)
    return p.astype(np.uint8), t.astype(np.uint8), (1,)


def organ():
    "500,000 voxels in 256 x 256 x 256"
    shape = (256,)*3
    p, t = ball((130, 127, 126), 48.5, shape), ball((128,)*3, 49.2, shape)
    return p.astype(np.uint8), t.astype(np.uint8), (1,)


def speckle():
    "30 % of 256 x 256 x 256, at random"
    rng = np.random.default_rng(0)
    return *((rng.random((256,)*3, dtype=np.float32) < .3).astype(np.uint8) for _ in 'pt'), (1,)


def organs():
    "13 organs of 30,000 to 250,000 voxels in 256 x 256 x 256, all at once"
    p, t = np.zeros((2, 256, 256, 256), np.uint8)
    centers = [(x, y, z) for x in (64, 192) for y in (64, 192) for z in (48, 128, 208)] + [(128, 128, 128)]
    for k, c in enumerate(centers, 1):
        t[ball(c, 18 + 1.6*k, t.shape)] = k
        p[ball(np.add(c, (2, 0, 1)), 17.5 + 1.6*k, t.shape)] = k
    return p, t, tuple(range(1, 14))


def ours(p, t, labels):
    from medseg_nb.metrics.surface import panel
    out = panel(p, t, MM, labels)
    return np.array([out[k] for k in ('dice', 'hd95', 'assd', 'nsd')]).T


def monai(p, t, labels):
    import torch
    from monai.metrics import (
        compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_surface_dice)
    torch.set_num_threads(1)
    def one(k):
        P, T = (torch.from_numpy(m == k)[None, None].float() for m in (p, t))
        opts = dict(include_background=True, spacing=MM)
        return [x.item() for x in (
            compute_dice(P, T), compute_hausdorff_distance(P, T, percentile=95, **opts),
            compute_average_surface_distance(P, T, symmetric=True, **opts),
            compute_surface_dice(P, T, class_thresholds=[1.], **opts))]
    return np.array([one(k) for k in labels])


def deepmind(p, t, labels):
    import surface_distance as sd
    def one(k):
        P, T = p == k, t == k
        d = sd.compute_surface_distances(T, P, MM)
        return [sd.compute_dice_coefficient(T, P), sd.compute_robust_hausdorff(d, 95),
                np.mean(sd.compute_average_surface_distance(d)), sd.compute_surface_dice_at_tolerance(d, 1)]
    return np.array([one(k) for k in labels])


def medpy(p, t, labels):
    "Without NSD, which it does not have"
    from medpy.metric import binary
    def one(k):
        P, T = p == k, t == k
        return [binary.dc(P, T), binary.hd95(P, T, MM), binary.assd(P, T, MM), np.nan]
    return np.array([one(k) for k in labels])


scenes = {f.__name__: f for f in (lesion, organ, speckle, organs)}
libraries = {'medseg_nb': ours, 'MONAI': monai, 'surface-distance': deepmind, 'medpy': medpy}


def status(key):
    "A line of the kernel's account of this process, MB"
    line = next(x for x in Path('/proc/self/status').read_text().splitlines() if x.startswith(key))
    return int(line.split()[1])/1024


def measure(name, scene, runs, queue):
    "Seconds of processor of each run, the first run's memory above its start, and the scores"
    warnings.simplefilter('ignore')
    score, tiny = libraries[name], np.pad(np.ones((4, 4, 4), np.uint8), 4)
    score(tiny, tiny, (1,))
    p, t, labels = scenes[scene]()
    Path('/proc/self/clear_refs').write_text('5')
    before, seconds = status('VmRSS'), []
    for i in range(runs):
        start = time.process_time()
        values = score(p, t, labels)
        seconds.append(time.process_time() - start)
        if i == 0: peak = status('VmHWM') - before
        if sum(seconds) > 30: break
    queue.put((seconds, peak, values.mean(0)))


def main(wanted, names, runs):
    spawn = mp.get_context('spawn')
    print(f'{platform.machine()}, {os.cpu_count()} cores, one thread each, median of up to {runs} runs\n')
    print('| scene | library | seconds | times ours | memory (MB) | Dice | HD95 | ASSD | NSD |')
    print('|---|---|---|---|---|---|---|---|---|')
    for scene in wanted:
        base = None
        for name in names:
            queue = spawn.Queue()
            worker = spawn.Process(target=measure, args=(name, scene, runs, queue))
            worker.start()
            seconds, peak, values = queue.get()
            worker.join()
            middle = statistics.median(seconds)
            base = base or middle
            cells = [scene, name, f'{middle:.4f}', f'{middle/base:.1f}', f'{peak:.0f}']
            cells += [f'{v:.4f}' for v in values]
            print('|', ' | '.join(cells), '|', flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--scene', nargs='+', choices=scenes, default=list(scenes))
    parser.add_argument('--library', nargs='+', choices=libraries, default=list(libraries))
    parser.add_argument('--runs', type=int, default=9)
    args = parser.parse_args()
    main(args.scene, args.library, args.runs)
