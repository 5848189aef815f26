"""Cases per second of `evaluate`, one process beside several

    python benchmarks/evaluate.py                as many workers as there are cores
    python benchmarks/evaluate.py --workers 8    or another number
    python benchmarks/evaluate.py --cases 48     more volumes

Three kinds of work on the same volumes of 96^3, which are made from a seed: distances of surfaces by scipy,
a classical segmenter by scipy, and a small network by torch (one thread each). The workers are started and
fed once before the clock runs; what that costs is reported apart. Rounds alternate, and the best of each
counts, since other programs can only slow a round down. A fourth line is work in Python itself, for which
threads would gain nothing. `threads` is the same list through concurrent.futures, for comparison only.
"""
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import argparse
import platform
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from joblib import cpu_count
from scipy import ndimage

from medseg_nb.data.case import Case
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.evaluate import case_scores, evaluate
from medseg_nb.metrics.overlap import dice

SIZE = 96


def case(i):
    "A noisy ball"
    rng = np.random.default_rng(i)
    far = np.linalg.norm(np.indices((SIZE,)*3) - rng.uniform(.4, .6, (3, 1, 1, 1))*SIZE, axis=0)
    image = (100*(far < 30) + rng.normal(0, 40, far.shape)).astype('float32')
    return Case(f'case {i}', Volume(torch.from_numpy(image)[None]), Volume(torch.from_numpy(far < 30)[None]))


def surfaces(pred, truth, labels=(1,)):
    "The 95th percentile of the distances between two surfaces, mm"
    out = []
    for k in labels:
        masks = [v.numpy()[0] == k for v in (pred, truth)]
        edges = [m ^ ndimage.binary_erosion(m) for m in masks]
        far = [ndimage.distance_transform_edt(~e, truth.spacing) for e in edges]
        out.append(np.percentile(np.r_[far[0][edges[1]], far[1][edges[0]]], 95))
    return np.array(out)


def bright(v): return v.new((v.data > 50).to(torch.uint8))


def classical(v):
    smooth = ndimage.gaussian_filter(v.numpy()[0], 2)
    pieces, _ = ndimage.label(smooth > 50)
    size = np.bincount(pieces.ravel())
    largest = ndimage.binary_opening(pieces == size[1:].argmax() + 1, iterations=3)
    return v.new(torch.from_numpy(largest[None]).to(torch.uint8))


def network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.ReLU(),
                              torch.nn.Conv3d(8, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))
    @torch.no_grad()
    def segment(v): return v.new(net(v.data[None]/100).argmax(1).to(torch.uint8))
    return segment


def python(v):
    total = 0
    for i in range(2_000_000): total += i*i
    return bright(v)


def main(workers, n, rounds):
    cases = [case(i) for i in range(n)]
    work = {'surface distances': (bright, surfaces), 'classical segmenter': (classical, dice),
            'small network': (network(), dice), 'Python loop': (python, dice)}
    start = time.perf_counter()
    evaluate(bright, cases[:workers], workers=workers, progress=False)
    print(f'{n} volumes of {SIZE}^3, {platform.machine()}, {cpu_count()} cores, {workers} workers; '
          f'their start: {time.perf_counter() - start:.1f} s')
    for name, (segmenter, metric) in work.items():
        def threads():
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(lambda c: case_scores(segmenter, [metric], (1,), c), cases))
        ways = {'one': lambda: evaluate(segmenter, cases, metric, 1, progress=False), 'threads': threads,
                'workers': lambda: evaluate(segmenter, cases, metric, 1, progress=False, workers=workers)}
        seconds = dict.fromkeys(ways, np.inf)
        for _ in range(rounds):
            for way, run in ways.items():
                start = time.perf_counter()
                out = run()
                seconds[way] = min(seconds[way], time.perf_counter() - start)
                if out is not None and out.error.notna().any(): raise SystemExit(out.error.dropna().iloc[0])
        gain = {way: seconds['one']/s for way, s in seconds.items()}
        print(f"{name:20} {seconds['one']/n:.3f} s a case; {gain['workers']:.2f} times as fast with workers, "
              f"{gain['threads']:.2f} with threads", flush=True)


if __name__ == '__main__':
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument('--workers', type=int, default=cpu_count())
    parser.add_argument('--cases', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=3)
    a = parser.parse_args()
    main(a.workers, a.cases, a.rounds)
