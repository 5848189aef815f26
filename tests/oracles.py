"Slow, obvious re-implementations that the tests compare the package with."
from fractions import Fraction
from itertools import product

import numpy as np
import torch


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


def votes_of_voxel(votes, i): return [int(v[i]) for v in votes if v[i] >= 0]


def kappa_by_pairs(votes):
    "Fleiss' kappa: two raters of a voxel drawn at random, against any two votes, drawn with replacement"
    votes = np.asarray(votes).reshape(len(votes), -1)
    same, R = [], len(votes)
    for i in range(votes.shape[1]):
        v = votes_of_voxel(votes, i)
        same.append(np.mean([v[a] == v[b] for a in range(R) for b in range(R) if a != b]))
    everything = votes.ravel().tolist()
    chance = sum((everything.count(k)/len(everything))**2 for k in set(everything))
    return (np.mean(same) - chance)/(1 - chance) if len(set(everything)) > 1 else float('nan')


def alpha_by_pairs(votes, level):
    "Krippendorff's alpha: pairs within a voxel against pairs of any two votes, one pair at a time"
    votes = np.asarray(votes).reshape(len(votes), -1)
    units = [u for i in range(votes.shape[1]) if len(u := votes_of_voxel(votes, i)) > 1]
    pool = [v for u in units for v in u]
    n = {k: pool.count(k) for k in set(pool)}
    def apart(a, b):
        if level == 'nominal': return float(a != b)
        if level == 'interval': return float(a - b)**2
        low, high = min(a, b), max(a, b)
        return (sum(n[k] for k in n if low <= k <= high) - (n[low] + n[high])/2)**2
    pairs = lambda u: [(a, b) for i, a in enumerate(u) for j, b in enumerate(u) if i != j]
    seen = sum(apart(a, b)/(len(u) - 1) for u in units for a, b in pairs(u))
    any_two = sum(n[a]*n[b]*apart(a, b) for a in n for b in n)
    return 1 - (seen/len(pool))/(any_two/(len(pool)*(len(pool) - 1))) if any_two else float('nan')


def conformity_by_pairs(votes, k):
    "Intersections over unions, summed over pairs of raters, where both looked"
    votes = np.asarray(votes).reshape(len(votes), -1)
    part = whole = 0
    for a in range(len(votes)):
        for b in range(a):
            for x, y in zip(votes[a], votes[b]):
                if x < 0 or y < 0: continue
                part, whole = part + (x == k and y == k), whole + (x == k or y == k)
    return part/whole if whole else float('nan')


def band_by_distances(mask, spacing, width):
    "Voxels of a mask with one outside within `width`: all distances; a ring of outside around the image"
    around = np.pad(np.asarray(mask, bool), 1)
    outside, kept = np.argwhere(~around)*np.asarray(spacing, float), np.zeros(mask.shape, bool)
    for at in np.argwhere(mask):
        d = np.sqrt((((at + 1)*np.asarray(spacing, float) - outside)**2).sum(1)).min()
        kept[tuple(at)] = d <= width*(1 + 1e-6)
    return kept


def boundary_by_distances(score, pred, truth, spacing, width):
    "Dice or IoU of the bands, as sets of addresses"
    P, T = (voxel_set(m, lambda m: band_by_distances(m, spacing, width)) for m in (pred, truth))
    part, whole = {'dice': (2*len(P & T), len(P) + len(T)), 'iou': (len(P & T), len(P | T))}[score]
    return part/whole if whole else float('nan')


def pieces(voxels):
    "Connected pieces of a set of voxel addresses, corners included: one grown after the other"
    left, out = set(voxels), []
    while left:
        piece, edge = set(), {min(left)}
        while edge:
            piece |= edge
            steps = product((-1, 0, 1), repeat=len(min(left)))
            near = {tuple(a + b for a, b in zip(v, s)) for s in steps for v in edge}
            edge = (near & left) - piece
        left -= piece
        out.append(piece)
    return out


def one_to_one_choices(pairs):
    "Every set of pairs (i, j) in which no i and no j comes twice"
    if not pairs: return [[]]
    (i, j), rest = pairs[0], pairs[1:]
    free = [p for p in rest if p[0] != i and p[1] != j]
    return one_to_one_choices(rest) + [[(i, j), *c] for c in one_to_one_choices(free)]


def detection_by_sets(P, T, unknown=frozenset(), iou=0, one_to_one=False, least=0):
    "All outcomes (found, missed, hits, alarms, sum of Dice) that the best matches of sets of voxels may have"
    T, seen = [t for t in T if t], [p - unknown for p in P]
    overlap = {(i, j): Fraction(len(p & t), len(p | t)) for i, p in enumerate(seen) for j, t in enumerate(T)}
    pairs = [ij for ij, x in overlap.items() if x > iou]
    ways = one_to_one_choices(pairs) if one_to_one else [pairs]
    if one_to_one:
        worth = [(sum(overlap[ij] for ij in way), len(way)) for way in ways]
        ways = [way for way, x in zip(ways, worth) if x == max(worth)]
    out = []
    for way in ways:
        found = missed = alarms = dice = 0
        hits = set()
        for j, t in enumerate(T):
            mine = {i for i, b in way if b == j}
            if len(t) < least: continue
            hits |= mine
            found, missed = found + bool(mine), missed + (not mine)
            if mine: dice += 2*sum(len(seen[i] & t) for i in mine)/(sum(len(seen[i]) for i in mine) + len(t))
        for i, p in enumerate(seen):
            hidden = 2*len(P[i] & unknown) > len(P[i])
            alarms += bool(p) and len(p) >= least and not hidden and i not in {a for a, _ in way}
        out.append((found, missed, len(hits), alarms, dice))
    return out


def isles_f1(pred, truth):
    "Lesion F1 of ISLES 2022: any common voxel, 26 neighbors, 1 where both are empty"
    P, T = (pieces(voxel_set(a, lambda x: x == 1)) for a in (pred, truth))
    tp = sum(any(t & p for p in P) for t in T)
    fp = sum(not any(t & p for t in T) for p in P)
    return tp/(tp + (fp + len(T) - tp)/2) if P or T else 1.


def brats_dice(pred, truth):
    "Lesion-wise Dice of BraTS 2023 without growing and without a smallest size; 1 where both are empty"
    P, T = (pieces(voxel_set(a, lambda x: x == 1)) for a in (pred, truth))
    total, touched = 0, []
    for t in T:
        mine = [p for p in P if p & t]
        touched += mine
        union = set().union(*mine)
        total += 2*len(union & t)/(len(union) + len(t))
    whole = len(T) + sum(p not in touched for p in P)
    return total/whole if whole else 1.


def label_images(shape, labels=3):
    "Adversarial label images: empty, full, one voxel, a checkerboard, stripes, every label, random ones"
    rng, one = np.random.default_rng(len(shape)), np.zeros(shape, int)
    one[(0,)*len(shape)] = 1
    at = np.indices(shape)
    found = [0*one, 0*one + 1, 0*one + labels-1, one, at.sum(0) % 2, at[-1] % labels, at.sum(0) % labels]
    found += [(rng.random(shape) < d).astype(int) for d in (.02, .5, .98)]
    return found + [rng.integers(0, labels, shape) for _ in range(3)]


def chance_by_fractions(score, pred, truth, k):
    "Scores that know of luck, from lists of yes and no, in exact fractions; None where there is 0 / 0"
    yes = [(int(p == k), int(t == k)) for p, t in zip(pred.flat, truth.flat) if t != -1]
    n, said, real = len(yes), Fraction(sum(p for p, _ in yes)), Fraction(sum(t for _, t in yes))
    right = Fraction(sum(p == t for p, t in yes))
    if score == 'volume_error': return (said - real)/real if real else None
    if not n: return None
    if score == 'accuracy': return right/n
    if score == 'balanced_accuracy':
        if real in (0, n): return None
        return sum(Fraction(sum(p == t for p, t in yes if t == side), sum(t == side for _, t in yes))
                   for side in (0, 1))/2
    if score == 'kappa':
        luck = said/n*real/n + (1 - said/n)*(1 - real/n)
        return (right/n - luck)/(1 - luck) if luck != 1 else None
    along = sum((p - said/n)*(t - real/n) for p, t in yes)
    spread = sum((p - said/n)**2 for p, _ in yes)*sum((t - real/n)**2 for _, t in yes)
    return float(along)/float(spread)**.5 if spread else None


def surface_voxels(m):
    "Addresses of the voxels of a mask that have a side neighbor outside it, one at a time"
    inside = {i for i, on in np.ndenumerate(m) if on}
    def beside(i): return [(*i[:a], i[a] + s, *i[a+1:]) for a in range(len(i)) for s in (-1, 1)]
    return [i for i in sorted(inside) if any(j not in inside for j in beside(i))]


def surface_ways(p, t, spacing):
    "Distances from each surface voxel of p to the nearest of t, and back: every pair of voxels measured"
    P, T = surface_voxels(p), surface_voxels(t)
    def far(a, b): return sum(((x - y)*s)**2 for x, y, s in zip(a, b, spacing))**.5
    return [min(far(a, b) for b in T) for a in P], [min(far(a, b) for a in P) for b in T]


def staple_by_voxels(said, steps, prior=None):
    "STAPLE in plain loops over voxels, labels and raters: soft truth (N,K) and confusion (R,K,K)"
    R, N = said.shape
    labels = sorted({int(v) for v in said.flat if v >= 0})
    K = len(labels)
    votes = [[labels.index(v) if v >= 0 else None for v in row] for row in said.tolist()]
    heard = [[row[i] for row in votes if row[i] is not None] for i in range(N)]
    if prior is None: prior = [sum(h.count(k) for h in heard)/sum(map(len, heard)) for k in range(K)]
    soft = [[h.count(k)/len(h) if h else 0. for k in range(K)] for h in heard]
    confusion = [np.eye(K).tolist() for _ in range(R)]
    for _ in range(steps):
        for r in range(R):
            looked = [i for i in range(N) if votes[r][i] is not None]
            for t in range(K):
                whole = sum(soft[i][t] for i in looked)
                for s in range(K):
                    part = sum(soft[i][t] for i in looked if votes[r][i] == s)
                    if whole > 0: confusion[r][t][s] = part/whole
        for i in range(N):
            w = list(prior)
            for t in range(K):
                for r in range(R):
                    if votes[r][i] is not None: w[t] *= confusion[r][t][votes[r][i]]
            soft[i] = [x/sum(w) for x in w]
    return np.array(soft), np.array(confusion)


def cldice_published(v_p, v_l):
    "Hard clDice as in the authors' repository (jocpae/clDice): names as in the paper, nan for 0 / 0"
    from skimage.morphology import skeletonize
    method = {2: 'zhang', 3: 'lee'}[v_p.ndim]
    def share(line, mask): return (line & mask).sum()/line.sum() if line.any() else float('nan')
    precision = share(skeletonize(v_p, method=method), v_l)
    sensitivity = share(skeletonize(v_l, method=method), v_p)
    both = precision + sensitivity
    return precision, sensitivity, 2*precision*sensitivity/both if both else float('nan')


def dawid_skene_by_loops(votes, steps):
    "Dawid and Skene's EM, voxel by voxel and rater by rater: labels, prior, confusion[r][k][j], posterior"
    votes = np.asarray(votes).reshape(len(votes), -1)
    labels = sorted(set(votes.ravel().tolist()) - {-1})
    V, R, K = range(votes.shape[1]), range(len(votes)), range(len(labels))
    seen = [i for i in V if any(votes[r, i] >= 0 for r in R)]
    given = {i: votes_of_voxel(votes, i) for i in seen}
    T = {i: [given[i].count(k)/len(given[i]) for k in labels] for i in seen}
    for _ in range(steps):
        prior = [sum(T[i][k] for i in seen)/len(seen) for k in K]
        theta = [[[float('nan')]*len(K) for _ in K] for _ in R]
        for r in R:
            mine = [i for i in seen if votes[r, i] >= 0]
            for k in K:
                whole = sum(T[i][k] for i in mine)
                if whole == 0: continue
                for j in K: theta[r][k][j] = sum(T[i][k] for i in mine if votes[r, i] == labels[j])/whole
        for i in seen:
            likely = []
            for k in K:
                p = prior[k]
                for r in R:
                    if votes[r, i] >= 0:
                        t = theta[r][k][labels.index(votes[r, i])]
                        p *= 1/len(K) if t != t else t
                likely.append(p)
            T[i] = [p/sum(likely) for p in likely]
    return labels, np.array(prior), np.array(theta), T


def spammer_score_by_pairs(table):
    "Raykar and Yu's score: squared distances between all pairs of rows"
    K = len(table)
    pairs = [(k, m) for k in range(K) for m in range(k)]
    return sum((table[k][j] - table[m][j])**2 for k, m in pairs for j in range(K))/(K*(K - 1))


def best_lines(levels, counts, k, only=None, near=1e-12):
    "The largest between-class variance that k groups reach, and all places of their lines that come near it"
    from itertools import combinations
    levels, counts = np.asarray(levels, dtype=float), np.asarray(counts)
    mean, found = np.average(levels, weights=counts), []
    for lines in only or combinations(range(len(levels) - 1), k - 1):
        groups = np.split(np.arange(len(levels)), [i + 1 for i in lines])
        score = sum(counts[g].sum()*(np.average(levels[g], weights=counts[g]) - mean)**2 for g in groups)
        found.append((score, list(lines)))
    best = max(score for score, _ in found)
    return best, [lines for score, lines in found if score >= best*(1 - near)]


def flood(strong, weak):
    "Weak voxels that a walk over faces reaches from a strong one, a voxel at a time"
    out, todo = np.zeros(weak.shape, bool), list(map(tuple, np.argwhere(strong & weak)))
    while todo:
        at = todo.pop()
        if out[at]: continue
        out[at] = True
        for axis in range(weak.ndim):
            for step in (-1, 1):
                to = at[:axis] + (at[axis] + step,) + at[axis + 1:]
                if 0 <= to[axis] < weak.shape[axis] and weak[to]: todo.append(to)
    return out


def window_stats(x, sizes):
    "Mean and deviation of the finite voxels in the window around each voxel, by looking at each window"
    mean, spread = np.zeros(x.shape), np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        box = x[tuple(slice(max(i - s//2, 0), i + s//2 + 1) for i, s in zip(at, sizes))]
        box = box[np.isfinite(box)]
        if box.size: mean[at], spread[at] = box.mean(), box.std()
    return mean, spread


def distance_to_stroke(grid, points):
    "For each voxel its least distance in mm to the segments of a polyline, one segment after the other"
    points = np.asarray(points, float)
    at = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    least = np.linalg.norm(at - grid.to_world(points[0]), axis=-1)
    for a, b in zip(grid.to_world(points), grid.to_world(points[1:])):
        w = b - a
        t = np.clip((at - a)@w/(w@w), 0, 1) if w@w else np.zeros(at.shape[:-1])
        least = np.minimum(least, np.linalg.norm(at - a - t[..., None]*w, axis=-1))
    return least


def line_voxels(points, shape):
    "The voxels that a polyline runs through, by steps of half a voxel"
    on = np.zeros(shape, bool)
    for a, b in zip(points, [*points[1:], points[-1]]):
        n = max(1, int(np.ceil(2*max(abs(y - x) for x, y in zip(a, b)))))
        for i in range(n + 1):
            at = tuple(int(np.floor(x + (y - x)*i/n + .5)) for x, y in zip(a, b))
            if all(0 <= k < size for k, size in zip(at, shape)): on[at] = True
    return on


def grown_by_queue(image, seed, tolerance, radius=None, axis=None):
    "Region growing from neighbor to neighbor, voxel by voxel"
    x, shape = image.numpy().astype(float), image.shape
    around = [range(i, i + 1) if a == axis else range(max(0, i - 1), min(n, i + 2))
              for a, (i, n) in enumerate(zip(seed, shape))]
    values = [x[(slice(None), *at)] for at in product(*around)]
    mean = [sum(v[c] for v in values)/len(values) for c in range(len(x))]
    home = image.to_world(seed)

    def like(at):
        if any(abs(x[(c, *at)] - mean[c]) > tolerance for c in range(len(x))): return False
        return radius is None or np.linalg.norm(image.to_world(at) - home) <= radius + 1e-6
    on, queue = np.zeros(shape, bool), [tuple(seed)] if like(seed) else []
    while queue:
        at = queue.pop()
        if on[at]: continue
        on[at] = True
        for a, step in product((a for a in range(len(shape)) if a != axis), (-1, 1)):
            to = (*at[:a], at[a] + step, *at[a + 1:])
            if 0 <= to[a] < shape[a] and not on[to] and like(to): queue.append(to)
    return on


def mean_field_by_pairs(volume, logits, near, far, contrast, prices, mu, steps, inside=None):
    "Fully-connected CRF, all voxels at once, over all pairs; symmetric normalization, oneself included"
    x, at = volume.numpy(), [i for i in np.ndindex(volume.shape) if inside is None or inside[i]]
    def bound(width, contrast=None):
        k = np.zeros((len(at), len(at)))
        for i, a in enumerate(at):
            for j, b in enumerate(at):
                d2 = sum(((p - q)*mm/width)**2 for p, q, mm in zip(a, b, volume.spacing))
                if contrast is not None: d2 += sum(((c[a] - c[b])/s)**2 for c, s in zip(x, contrast))
                k[i, j] = np.exp(-d2/2)
        total = k.sum(1)
        return k/np.sqrt(total[:, None]*total[None])
    def softmax(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e/e.sum(1, keepdims=True)
    bonds, q = prices[0]*bound(near) + prices[1]*bound(far, contrast), softmax(logits)
    for _ in range(steps): q = softmax(logits - bonds@q@mu.T)
    return q


def minibatch_loop(x, centers, batch, rng, rounds):
    "Mini-batch k-means voxel by voxel (Sculley 2010, Algorithm 1)"
    centers, seen = np.array(centers, float), [0]*len(centers)
    for _ in range(rounds):
        part = x[rng.integers(len(x), size=batch)]
        near = [min(range(len(centers)), key=lambda j: ((p - centers[j])**2).sum()) for p in part]
        for p, j in zip(part, near):
            seen[j] += 1
            centers[j] += (p - centers[j])/seen[j]
    return centers


def grown_by_sorted_list(x, seeds):
    "Adams and Bischof with a plain list: the nearest voxel first, of equals the one that came first"
    out, waiting = seeds.copy(), []
    def around(at):
        for axis in range(x.ndim):
            for step in (-1, 1):
                to = at[:axis] + (at[axis] + step,) + at[axis + 1:]
                if 0 <= to[axis] < x.shape[axis] and not np.isnan(x[to]): yield to
    def nearest(at):
        return min((abs(x[at] - total[k]/count[k]), k) for k in {out[to] for to in around(at)} if k)
    labels = [int(k) for k in np.unique(seeds) if k]
    total, count = {k: x[seeds == k].sum() for k in labels}, {k: (seeds == k).sum() for k in labels}
    def enlist(at):
        for to in around(at):
            if not out[to] and to not in {w for _, w in waiting}: waiting.append((nearest(to)[0], to))
    for at in map(tuple, np.argwhere(seeds > 0)): enlist(at)
    while waiting:
        _, at = waiting.pop(min(range(len(waiting)), key=lambda i: waiting[i][0]))
        k = out[at] = nearest(at)[1]
        total[k], count[k] = total[k] + x[at], count[k] + 1
        enlist(at)
    return out


def even_blocks(x, tolerance):
    "Blocks that are even, or halved along each axis, by recursion"
    out, n = np.zeros(x.shape, int), [0]
    def split(box):
        part = x[tuple(slice(a, b) for a, b in box)]
        if not part.size: return
        known = part[~np.isnan(part)]
        if not known.size or known.std() <= tolerance + 1e-9 or all(b - a == 1 for a, b in box):
            out[tuple(slice(a, b) for a, b in box)] = n[0] = n[0] + 1
            return
        longest = max(b - a for a, b in box)
        halves = [[(a, b)] if b - a < longest else [(a, a + longest//2), (a + longest//2, b)] for a, b in box]
        for part in product(*halves): split(part)
    split([(0, 1 << (size - 1).bit_length()) for size in x.shape])
    return out


def region_graph(x, labels, faces):
    "Pairs of touching regions, voxel by voxel: {(a, b): [border, difference of means]}"
    members = {}
    for at, k in np.ndenumerate(labels): members.setdefault(int(k), []).append(float(x[at]))
    out = {}
    for at, k in np.ndenumerate(labels):
        for axis, face in enumerate(faces):
            to = (*at[:axis], at[axis] + 1, *at[axis + 1:])
            if to[axis] == labels.shape[axis] or labels[to] == k or not k or not labels[to]: continue
            a, b = sorted((int(k), int(labels[to])))
            gap = abs(np.mean(members[a]) - np.mean(members[b]))
            out[a, b] = [out.get((a, b), [0])[0] + face, gap]
    return out


def merged_by_scanning(x, labels, until=None, k=None):
    "Join the least different neighbors, looking at all pairs anew each time"
    labels = labels.copy()
    while True:
        left = len(set(labels[labels > 0].tolist()))
        graph = region_graph(x, labels, [1]*labels.ndim)
        if not graph or (k is not None and left <= k): return labels
        (a, b), (_, gap) = min(graph.items(), key=lambda item: item[1][1])
        if until is not None and gap >= until: return labels
        labels[labels == b] = a


def sugeno(x, centers, widths, conclusions):
    "Sugeno rules for one point: strengths of all rules, and their weighted answer"
    fire, answers = [], []
    for rule, which in enumerate(product(*(range(len(c)) for c in centers))):
        fits = [np.exp(-((x[j] - centers[j][t])/widths[j][t])**2/2) for j, t in enumerate(which)]
        fire.append(np.prod(fits))
        answers.append([sum(p*v for p, v in zip(line, [*x, 1])) for line in conclusions[rule].T])
    fire = np.array(fire)/sum(fire)
    return fire, fire@np.array(answers)


def around_voxel(at, shape):
    "The voxels that share a face with one"
    for axis in range(len(shape)):
        for step in (-1, 1):
            to = at[:axis] + (at[axis] + step,) + at[axis + 1:]
            if 0 <= to[axis] < shape[axis]: yield to


def flooded(height, seeds, within):
    "Of all voxels that water has reached, the lowest lets it on to its neighbors; no two of one height"
    out, wet = seeds.copy(), [tuple(at) for at in np.argwhere(seeds > 0)]
    while wet:
        at = wet.pop(min(range(len(wet)), key=lambda i: height[wet[i]]))
        for to in around_voxel(at, height.shape):
            if within[to] and not out[to]:
                out[to] = out[at]
                wet.append(to)
    return out


def summits_by_definition(height, within, depth):
    "Cut by depth, grown back voxel by voxel, and the flat tops that have no higher neighbor"
    cut, changed = np.where(within, height - depth, np.nan), True
    while changed:
        changed = False
        for at in map(tuple, np.argwhere(within)):
            near = [cut[to] for to in around_voxel(at, height.shape) if within[to]]
            new = min(height[at], max([cut[at], *near]))
            if new > cut[at]: cut[at], changed = new, True
    top, changed = within.copy(), True
    while changed:
        changed = False
        for at in map(tuple, np.argwhere(top)):
            for to in around_voxel(at, height.shape):
                if within[to] and (cut[to] > cut[at] or cut[to] == cut[at] and not top[to]) and top[at]:
                    top[at], changed = False, True
    return top


def walks_by_dense_equations(x, seeds, spacing, beta, door):
    "Laplacian by loops; labels; chance of meeting each first, by a dense solve (0 where none can be met)"
    at = list(np.ndindex(x.shape))
    number, L, shape = {a: i for i, a in enumerate(at)}, np.zeros((x.size, x.size)), x.shape
    pairs = [(a, b) for a in at for b in around_voxel(a, shape) if not np.isnan(x[a] - x[b])]
    usual = np.sqrt(np.mean([(x[a] - x[b])**2 for a, b in pairs])) if pairs else 1
    for a, b in pairs:
        axis = next(i for i in range(x.ndim) if a[i] != b[i])
        w = (np.exp(-beta*((x[a] - x[b])/usual)**2) + door)*(min(spacing)/spacing[axis])**2
        L[number[a], number[b]] -= w
        L[number[a], number[a]] += w
    met, todo = {a for a in at if seeds[a]}, [a for a in at if seeds[a]]
    while todo:
        a = todo.pop()
        for b in around_voxel(a, shape):
            if b not in met and not np.isnan(x[b]): met.add(b); todo.append(b)
    free = [number[a] for a in at if a in met and not seeds[a]]
    kinds, flat = [int(k) for k in np.unique(seeds) if k], seeds.ravel()
    out = np.array([flat == k for k in kinds], float)
    if free: out[:, free] = np.linalg.solve(L[np.ix_(free, free)], -(L[free]@out.T)).T
    return L, kinds, out.reshape(-1, *shape)


def fuzzy_round(x, centers, m, weights):
    "One round of fuzzy c-means by loops: memberships (k,n) for centers (k,C), the next centers, the energy"
    n, k = len(x), len(centers)
    u = np.zeros((k, n))
    for i in range(n):
        far = [sum((a - b)**2 for a, b in zip(x[i], c)) for c in centers]
        for j in range(k):
            if min(far) == 0: u[j, i] = (far[j] == 0)/far.count(0)
            else: u[j, i] = 1/sum((far[j]/far[l])**(1/(m - 1)) for l in range(k))
    pull = [[weights[i]*u[j, i]**m for i in range(n)] for j in range(k)]
    moved = np.array([sum(p*v for p, v in zip(row, x))/sum(row) for row in pull])
    energy = sum(pull[j][i]*((x[i] - centers[j])**2).sum() for i in range(n) for j in range(k))
    return u, moved, energy


def window_of(at, shape, sizes):
    "The places in the window around a voxel, itself included, inside the image"
    spans = [range(max(a - s//2, 0), min(a + s//2 + 1, n)) for a, s, n in zip(at, sizes, shape)]
    return [tuple(b) for b in np.array(np.meshgrid(*spans, indexing='ij')).reshape(len(shape), -1).T]


def spatial_round(x, centers, sizes, p, q, m=2.):
    "One round of spatial FCM (Chuang et al. 2006) by loops: memberships (k,*S), the next centers"
    u = fuzzy_round(x.reshape(-1, 1), centers[:, None], m, np.ones(x.size))[0].reshape(-1, *x.shape)
    out = np.zeros_like(u)
    for at in np.ndindex(x.shape):
        near = window_of(at, x.shape, sizes)
        both = [v[at]**p*sum(v[b] for b in near)**q for v in u]
        for j in range(len(u)): out[(j, *at)] = both[j]/sum(both)
    return out, np.array([(v**m*x).sum()/(v**m).sum() for v in out])


def bias_energy(y, field, centers, sizes, m, alpha):
    "The energy of Ahmed et al. (2002) at the best memberships, by loops; nan is not there"
    total = 0.
    for at in np.ndindex(y.shape):
        if np.isnan(y[at]): continue
        near = [b for b in window_of(at, y.shape, sizes) if b != at and not np.isnan(y[b])]
        cost = []
        for c in centers:
            own = (y[at] - field[at] - c)**2
            cost.append(own + alpha*sum((y[b] - field[b] - c)**2 for b in near)/max(len(near), 1))
        share = np.array(cost)**(-1/(m - 1))
        total += ((share/share.sum())**m*cost).sum()
    return total


class CaffeFCN(torch.nn.Module):
    "FCN-32s, 16s or 8s as Long et al. published them: pad 100, ceil pools, no padding from fc6 on, crops"
    def __init__(self, c_in, c_out, width, hidden, stride):
        super().__init__()
        nn, c = torch.nn, c_in
        for i, (n, k) in enumerate(zip((2, 2, 3, 3, 3), (1, 2, 4, 8, 8)), 1):
            for j in range(1, n + 1):
                self.add_module(f'conv{i}_{j}', nn.Conv2d(c, k*width, 3, padding=100 if i == j == 1 else 1))
                c = k*width
        self.fc6, self.fc7 = nn.Conv2d(c, hidden, 7), nn.Conv2d(hidden, hidden, 1)
        self.stride, self.score_fr = stride, nn.Conv2d(hidden, c_out, 1)
        up = lambda n: nn.ConvTranspose2d(c_out, c_out, 2*n, stride=n, bias=False)
        if stride < 32: self.score_pool4, self.upscore2 = nn.Conv2d(8*width, c_out, 1), up(2)
        if stride < 16: self.score_pool3, self.upscore_pool4 = nn.Conv2d(4*width, c_out, 1), up(2)
        self.add_module({32: 'upscore', 16: 'upscore16', 8: 'upscore8'}[stride], up(stride))

    def forward(self, x):
        crop = lambda y, at, like: y[..., at:at + like.shape[2], at:at + like.shape[3]]
        h, pools = x, []
        for i, n in enumerate((2, 2, 3, 3, 3), 1):
            for j in range(1, n + 1): h = torch.relu(getattr(self, f'conv{i}_{j}')(h))
            h = torch.nn.functional.max_pool2d(h, 2, ceil_mode=True)
            pools.append(h)
        h = self.score_fr(torch.relu(self.fc7(torch.relu(self.fc6(h)))))
        if self.stride == 32: return crop(self.upscore(h), 19, x)
        h = self.upscore2(h)
        h = h + crop(self.score_pool4(pools[3]), 5, h)
        if self.stride == 16: return crop(self.upscore16(h), 27, x)
        h = self.upscore_pool4(h)
        h = h + crop(self.score_pool3(pools[2]), 9, h)
        return crop(self.upscore8(h), 31, x)


def criss_cross_by_loops(block, x, times):
    "Each place asks the places that differ from it in one axis at most; a loop over all pairs of places"
    places = list(product(*map(range, x.shape[2:])))
    for _ in range(times):
        q, k, v, out = block.query(x), block.key(x), block.value(x), x.clone()
        for b, p in product(range(len(x)), places):
            asked = [o for o in places if sum(i != j for i, j in zip(p, o)) <= 1]
            score = torch.stack([(q[b, :, *p]*k[b, :, *o]).sum() for o in asked])
            weight = score.exp()/score.exp().sum()
            out[b, :, *p] += block.gamma[0]*sum(w*v[b, :, *o] for w, o in zip(weight, asked))
        x = out
    return x


def coordinate_by_loops(block, x):
    "Gain of a place: for each axis, one number from the mean of the plane through it across that axis"
    out, norm = x.clone(), block.shared[1]
    for b, p in product(range(len(x)), product(*map(range, x.shape[2:]))):
        for a, excite in enumerate(block.excite):
            mean = x[b].select(a + 1, p[a]).flatten(1).mean(1)
            h = block.shared[0].weight[:, :, 0] @ mean + block.shared[0].bias
            h = norm.weight*(h - norm.running_mean)/(norm.running_var + norm.eps).sqrt() + norm.bias
            h = h*(h + 3).clamp(0, 6)/6
            out[b, :, *p] *= 1/(1 + (-(excite.weight[:, :, 0] @ h + excite.bias)).exp())
    return out
