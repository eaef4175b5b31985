"""Slow, literal versions of the rules, straight from the papers; rows are numpy float64."""

import itertools

import numpy as np


def mean(x):
    return x.mean(0)


def median(x):
    return np.median(x, axis=0)


def trimmed_mean(x, f):
    out = []
    for column in x.T:
        ordered = sorted(column)
        out.append(sum(ordered[f : len(ordered) - f]) / (len(ordered) - 2 * f))
    return np.array(out)


def around(x, centre, keep):
    out = []
    for column, c in zip(x.T, centre, strict=True):
        nearest = sorted(range(len(column)), key=lambda i: (abs(column[i] - c), i))[:keep]
        out.append(sum(column[i] for i in nearest) / keep)
    return np.array(out)


def meamed(x, f):
    return around(x, median(x), len(x) - f)


def phocas(x, f):
    return around(x, trimmed_mean(x, f), len(x) - f)


def krum_scores(x, f, neighbours=None):
    count = len(x) - f - 2 if neighbours is None else neighbours
    scores = []
    for i in range(len(x)):
        others = sorted(float(((x[i] - x[j]) ** 2).sum()) for j in range(len(x)) if j != i)
        scores.append(sum(others[:count]))
    return scores


def krum(x, f):
    scores = krum_scores(x, f)
    return x[scores.index(min(scores))]


def multi_krum(x, f, m=None):
    m = len(x) - f if m is None else m
    scores = krum_scores(x, f)
    best = sorted(range(len(x)), key=lambda i: (scores[i], i))[:m]
    return x[best].mean(0)


def bulyan(x, f):
    left, picked = list(range(len(x))), []
    while len(picked) < len(x) - 2 * f:
        if len(left) == 1:
            picked.append(left.pop())
            continue
        scores = krum_scores(x[left], f, neighbours=max(1, len(left) - f - 2))
        picked.append(left.pop(scores.index(min(scores))))
    chosen = x[picked]
    return around(chosen, median(chosen), len(picked) - 2 * f)


def cge(x, f):
    order = sorted(range(len(x)), key=lambda i: (np.linalg.norm(x[i]), i))
    return x[order[: len(x) - f]].mean(0)


def geometric_median(x):
    point = x.mean(0)
    for _ in range(20000):
        distances = np.maximum(np.linalg.norm(x - point, axis=1), 1e-12)
        moved = (x / distances[:, None]).sum(0) / (1 / distances).sum()
        if np.linalg.norm(moved - point) < 1e-13 * (1 + np.linalg.norm(point)):
            break
        point = moved
    return point


def rfa(x, iterations=3, nu=1e-6):
    point = x.mean(0)
    for _ in range(iterations):
        weights = [1 / max(nu, np.linalg.norm(row - point)) for row in x]
        point = sum(w * row for w, row in zip(weights, x, strict=True)) / sum(weights)
    return point


def centered_clipping(x, tau, iterations=1):
    point = np.zeros(x.shape[1])
    for _ in range(iterations):
        clipped = []
        for row in x:
            offset = row - point
            norm = np.linalg.norm(offset)
            clipped.append(offset * min(1, tau / norm) if norm else offset)
        point = point + np.mean(clipped, axis=0)
    return point


def norm_clipping(x, bound):
    return np.mean([row * min(1, bound / np.linalg.norm(row)) for row in x], axis=0)


def sign_majority(x):
    return np.sign(np.sign(x).sum(0))


def nnm(x, f):
    rows = []
    for i in range(len(x)):
        order = sorted(range(len(x)), key=lambda j: (((x[i] - x[j]) ** 2).sum(), j))
        rows.append(x[order[: len(x) - f]].mean(0))
    return np.array(rows)


def foundation(x, synthetic=None):
    high, low = x.max(0), x.min(0)
    scores = [min(np.linalg.norm(row - high), np.linalg.norm(row - low)) for row in x]
    best = max(range(len(x)), key=lambda i: (scores[i], -i))
    copies = len(x) // 2 if synthetic is None else synthetic
    return np.array([*x, *[x[best]] * copies])


def mda(x, f):
    def diameter(subset):
        return max(np.linalg.norm(x[i] - x[j]) for i in subset for j in subset)

    subsets = list(itertools.combinations(range(len(x)), len(x) - f))
    return x[list(min(subsets, key=diameter))].mean(0)


def smea(x, f):
    def spread(subset):
        rows = x[list(subset)]
        return np.linalg.eigvalsh((rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows))[-1]

    subsets = list(itertools.combinations(range(len(x)), len(x) - f))
    return x[list(min(subsets, key=spread))].mean(0)


def caf(x, f):
    """Covariance-bound agnostic filter; the greatest score is that of the rows still counted."""
    weights, best, least = np.ones(len(x)), None, np.inf
    while weights.sum() > len(x) - 2 * f:
        centre = (weights[:, None] * x).sum(0) / weights.sum()
        spread = sum(w * np.outer(r, r) for w, r in zip(weights, x - centre, strict=True))
        values, vectors = np.linalg.eigh(spread / weights.sum())
        if values[-1] < least:
            best, least = centre, values[-1]
        scores = ((x - centre) @ vectors[:, -1]) ** 2
        alive = [s for s, w in zip(scores, weights, strict=True) if w > 0]
        weights = np.where(weights > 0, weights * np.maximum(0, 1 - scores / max(alive)), 0)
        weights[weights < 1e-12] = 0
    return best if best is not None else x.mean(0)


def rlr(x, threshold):
    out = []
    for column in x.T:
        votes = abs(sum(1 if v > 0 else -1 if v < 0 else 0 for v in column))
        out.append(column.mean() if votes >= threshold else -column.mean())
    return np.array(out)


def fednga(x):
    return sum(row / np.linalg.norm(row) for row in x) / len(x)


def huber(x, threshold):
    """Descend the sum of Huber losses by small steps; it is convex and smooth."""
    point = np.median(x, axis=0)
    for _ in range(20000):
        slope = 0
        for row in x:
            away = np.linalg.norm(point - row)
            slope = slope + (point - row) * min(1, threshold / away if away else 1)
        point = point - 0.5 * slope / len(x)
    return point


def fedrdf(x):
    """Of each column in order: the value at the place of the highest frequency."""
    place = int(np.argmax(np.abs(np.fft.fftfreq(len(x)))))
    return np.array([sorted(column)[place] for column in x.T])


def _z(values):
    return np.abs(np.array(values) - np.median(values)) / np.std(values)


def lasa(x, layers, sparsity, norm_radius, sign_radius):
    """Step by step as its authors' program, layer by layer in dictionaries."""
    cut = sorted(np.linalg.norm(row) for row in x)[(len(x) - 1) // 2]
    updates = []
    for row in x:
        row = row * min(1.0, cut / np.linalg.norm(row))
        held, at = {}, 0
        for name, shape in layers:
            held[name] = row[at : at + int(np.prod(shape))].reshape(shape)
            at += int(np.prod(shape))
        updates.append(held)
    for held in updates:
        weights = [name for name, shape in layers if len(shape) in (2, 4)]
        scores = np.sort(np.abs(np.concatenate([held[name].ravel() for name in weights])))[::-1]
        threshold = scores[int(len(scores) * (1 - sparsity)) - 1]
        for name in weights:
            held[name] = held[name] * (np.abs(held[name]) > threshold if sparsity else 1)
    out = []
    for name, _ in layers:
        norms = [np.linalg.norm(held[name]) for held in updates]
        signs = [
            0.5 * (1 + np.sign(h[name]).sum() / np.abs(np.sign(h[name])).sum() * (1 - sparsity))
            for h in updates
        ]
        kept = [
            held[name].ravel()
            for held, norm, sign in zip(updates, _z(norms), _z(signs), strict=True)
            if norm < norm_radius and sign < sign_radius
        ] or [held[name].ravel() for held in updates]
        out.append(np.mean(kept, axis=0))
    return np.concatenate(out)


def alignins(x, model, share, sign_radius, direction_radius):
    """Step by step as its authors' program, all clients with equally many examples."""
    major = np.sign(np.sign(x).sum(0))
    mpsa, tda = [], []
    for row in x:
        top = np.argsort(-np.abs(row))[: int(len(row) * share)]
        mpsa.append(np.mean(np.sign(row[top]) == major[top]))
        tda.append(row @ model / (np.linalg.norm(row) * np.linalg.norm(model)))
    near = (_z(mpsa) < sign_radius) & (_z(tda) < direction_radius)
    kept = [i for i in range(len(x)) if near[i]]
    if not kept:
        return np.zeros(x.shape[1])
    lengths = [np.linalg.norm(x[i]) for i in kept]
    cut = sorted(lengths)[(len(kept) - 1) // 2]
    return np.mean([x[i] * min(1, cut / np.linalg.norm(x[i])) for i in kept], axis=0)


def filtering(x, f, variance, expansion, chunk):
    """The spectral filter with the covariance written out, group by group."""
    out = []
    for low in range(0, x.shape[1], chunk):
        part, weights = x[:, low : low + chunk], np.ones(len(x))
        for _ in range(2 * f):
            centre = np.average(part, axis=0, weights=weights)
            cov = np.cov(part.T, aweights=weights, bias=True).reshape(part.shape[1], -1)
            values, vectors = np.linalg.eigh(cov)
            if values[-1] <= np.sqrt(expansion) * variance:
                break
            tau = ((part - centre) @ vectors[:, -1]) ** 2
            weights = weights * np.maximum(0, 1 - tau / max(tau[weights > 0]))
            weights[weights < 1e-12] = 0
        out.append(np.average(part, axis=0, weights=weights))
    return np.concatenate(out)


def randeigen(x, f):
    """The filter without a bound: of all its steps the weights of the least main variance."""
    weights, best = np.ones(len(x)), (np.inf, None)
    for step in range(2 * f + 1):
        centre = np.average(x, axis=0, weights=weights)
        values, vectors = np.linalg.eigh(np.cov(x.T, aweights=weights, bias=True))
        if values[-1] < best[0]:
            best = (values[-1], centre)
        if step == 2 * f:
            break
        tau = ((x - centre) @ vectors[:, -1]) ** 2
        weights = weights * np.maximum(0, 1 - tau / max(tau[weights > 0]))
        weights[weights < 1e-12] = 0
    return best[1] if f else x.mean(0)
