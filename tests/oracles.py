"Slow, obvious re-implementations that the tests compare the package with."
from itertools import product

import numpy as np


def voxel_set(a, keep): return {i for i, on in np.ndenumerate(keep(a)) if on}


def overlap_by_sets(score, pred, truth, k, empty):
    "Overlap scores by sets of voxel addresses, straight from their definitions"
    seen = voxel_set(truth, lambda a: a != -1)
    P, T = voxel_set(pred, lambda a: a == k) & seen, voxel_set(truth, lambda a: a == k)
    part, whole = {
        'dice': (2*len(P & T), len(P) + len(T)),
        'iou': (len(P & T), len(P | T)),
        'sensitivity': (len(P & T), len(T)),
        'specificity': (len(seen - P - T), len(seen - T)),
        'precision': (len(P & T), len(P)),
    }[score]
    return part/whole if whole else {'nan': float('nan'), 'one': 1., 'zero': 0.}[empty]


def shrink_line(values, n):
    "Linear interpolation of a line to n samples; each averages over a triangle of two new samples at least"
    step = len(values)/n
    reach, out = max(step, 1.), []
    for i in range(n):
        center = (i + .5)*step
        weights = [max(0., 1 - abs(j + .5 - center)/reach) for j in range(len(values))]
        out.append(sum(w*v for w, v in zip(weights, values))/sum(weights))
    return np.array(out)


def resample_by_loops(v, target, order):
    "Nearest or linear values of `v` at every voxel of `target`, one voxel at a time"
    out = np.zeros((v.channels, *target.shape))
    size, array = np.array(v.shape), v.numpy()
    for i in np.ndindex(*target.shape):
        at = np.linalg.solve(v.affine, target.affine@np.array([*i, 1.]))[:-1]
        if (at < -.5).any() or (at > size - .5).any(): continue
        nearest = np.clip(np.floor(at + .5).astype(int), 0, size - 1)
        if order == 0: out[(slice(None), *i)] = array[(slice(None), *nearest)]
        else:
            at = np.clip(at, 0, size - 1)
            for corner in np.ndindex(*(2,)*v.ndim):
                k = np.floor(at).astype(int) + corner
                weight = np.prod(1 - abs(at - k))
                if weight > 0: out[(slice(None), *i)] += weight*array[(slice(None), *np.minimum(k, size - 1))]
    return out


def best_split(counts, fractions):
    "How near any sharing-out of patients, a patient or more for each part, can come to the fractions"
    target, parts = np.array(fractions)*sum(counts), range(len(fractions))
    ways = (w for w in product(parts, repeat=len(counts)) if len(set(w)) == len(fractions))
    return min(abs(np.bincount(w, weights=counts, minlength=len(fractions)) - target).sum() for w in ways)


def balls_by_loops(like, centers, diameters):
    "1 where a voxel's center lies in a ball, or is the nearest to its middle; every voxel asked in turn"
    out = np.zeros(like.shape, np.uint8)
    for center, d in zip(centers, diameters):
        for i in np.ndindex(*like.shape):
            if np.linalg.norm(like.affine[:3, :3]@i + like.affine[:3, 3] - center) <= d/2: out[i] = 1
        nearest = tuple(int(x) for x in np.round(np.linalg.solve(like.affine, [*center, 1.])[:3]))
        if all(0 <= k < n for k, n in zip(nearest, like.shape)): out[nearest] = 1
    return out
