"""Slow literal versions of the attacks, one number at a time, and small rules to attack."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np


def column_stats(honest, ddof=0):
    rows, columns = len(honest), len(honest[0])
    means = [math.fsum(honest[i][j] for i in range(rows)) / rows for j in range(columns)]
    stds = [
        math.sqrt(math.fsum((honest[i][j] - means[j]) ** 2 for i in range(rows)) / (rows - ddof))
        for j in range(columns)
    ]
    return np.array(means), np.array(stds)


def median(values):
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def column_median(rows):
    return np.array([median([row[j] for row in rows]) for j in range(len(rows[0]))])


def column_mean(rows):
    return column_stats(rows)[0]


def trimmed_mean(rows, f):
    ordered = np.sort(np.asarray(rows), axis=0)
    return ordered[f : len(rows) - f].mean(axis=0)


def squared(x, y):
    return math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def krum_index(rows, f):
    n, scores = len(rows), []
    for i in range(n):
        others = sorted(squared(rows[i], rows[j]) for j in range(n) if j != i)
        scores.append(math.fsum(others[: n - f - 2]))
    return scores.index(min(scores))


def krum(rows, f):
    return np.asarray(rows[krum_index(rows, f)], dtype=float)


def normal_cdf(z):
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def z_by_search(share):
    """Largest z with cdf(z) < share, by bisection on the definition."""
    low, high = -10.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if normal_cdf(middle) < share else (low, middle)
    return low


def alie(honest, n, f, z=None, sign=-1, ddof=0):
    if z is None:
        s = math.floor(n / 2 + 1) - f
        z = max(0.0, z_by_search((n - f - s) / (n - f)))
    means, stds = column_stats(honest, ddof)
    return np.array([m + sign * z * s for m, s in zip(means, stds, strict=True)])


def pushed(honest, direction, ddof=1):
    means, stds = column_stats(honest, ddof)
    norm = math.sqrt(math.fsum(m * m for m in means))
    p = {"std": -stds, "sign": -np.sign(means), "unit": -means / norm}[direction]
    return means, p


def min_max(honest, direction):
    means, p = pushed(honest, direction)
    limit = max(squared(x, y) for x in honest for y in honest)
    return means + p * bisect(
        lambda g: max(squared(means + g * p, x) for x in honest) <= limit * (1 + 1e-13)
    )


def min_sum(honest, direction, bound):
    means, p = pushed(honest, direction)
    pick = max if bound == "max" else min
    limit = pick(math.fsum(squared(x, y) for y in honest) for x in honest)
    return means + p * bisect(
        lambda g: math.fsum(squared(means + g * p, x) for x in honest) <= limit * (1 + 1e-13)
    )


def bisect(allowed):
    low, high = 0.0, 1.0
    while allowed(high):
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low


def medoid(honest):
    sums = [sum(math.sqrt(squared(x, y)) for y in honest) for x in honest]
    return np.asarray(honest[sums.index(min(sums))], dtype=float)


def seesaw(honest, mode, t, f, amplitude=1.5, angle=45.0, reference=column_median):
    r = reference(honest)
    _, std = column_stats(honest)
    rows = []
    for k in range(f):
        row = np.zeros(len(r))
        for j in range(len(r)):
            if mode == "temporal":
                row[j] = r[j] + (-1) ** t * amplitude * std[j]
            if mode == "split":
                row[j] = r[j] + (-1) ** k * amplitude * std[j]
            if mode == "coordinate":
                row[j] = r[j] + (-1) ** j * amplitude * std[j]
        if mode == "rotation":
            side = np.array([(-1) ** j * std[j] for j in range(len(r))])
            side -= (side @ r) / (r @ r) * r
            side /= np.linalg.norm(side)
            turn = math.radians(angle) * (-1) ** t
            row = math.cos(turn) * r + math.sin(turn) * np.linalg.norm(r) * side
        rows.append(row)
    return np.array(rows)


def fang_interval(values, b):
    """Where Fang's full-knowledge attack on the trimmed mean draws one coordinate from."""
    low, high = min(values), max(values)
    if math.fsum(values) / len(values) < 0:
        return (high, b * high) if high > 0 else (high, high / b)
    return (low / b, low) if low > 0 else (b * low, low)


def fang_krum(honest, f):
    """Halve lambda from the bound until Krum, on all n rows, picks the first attacker's.

    Theorem 1 of Fang et al.: the m - c - 2 = h - 2 nearest honest, over m - 2 c - 1 = h - c - 1.
    """
    means, _ = column_stats(honest)
    sign = np.where(means < 0, -1.0, 1.0)
    d, rows = len(sign), len(honest)
    scores = [sum(sorted(math.sqrt(squared(x, y)) for y in honest)[1 : rows - 1]) for x in honest]
    size = min(scores) / ((rows - f - 1) * math.sqrt(d))
    size += max(np.linalg.norm(x) for x in honest) / math.sqrt(d)
    while size > 1e-5 and krum_index([*honest, *[-size * sign] * f], f) < rows:
        size /= 2
    return -size * sign


def rop(honest, previous, z, angle, memory=0.9, pi=1.0):
    means, _ = column_stats(honest)
    last = np.zeros(len(means)) if previous is None else np.asarray(previous)
    u = means if previous is None else memory * last + (1 - memory) * means
    u = u / np.linalg.norm(u)
    aside = np.ones(len(u)) - np.sum(u) * u
    aside = aside / np.linalg.norm(aside)
    turn = math.radians(angle)
    p = math.sin(turn) * aside + math.cos(turn) * u
    return pi * last + (1 - pi) * means + z * p / np.linalg.norm(p)


def line_search(value, evaluations):
    """Expand from 0 by 10, 20, 40, ...; after the first failure try shrinking steps."""
    points = [(0.0, value(0.0))]
    step, failed = 10.0, False
    while len(points) < evaluations:
        best = max(points, key=lambda p: (p[1], -p[0]))
        trial = best[0] + step
        points.append((trial, value(trial)))
        failed = failed or not points[-1][1] > best[1]
        step = step * 0.8 if failed else step * 2
    return max(points, key=lambda p: (p[1], -p[0]))


def smallest_bend(values, rule, limit, side, size=20_000):
    """On one coordinate: the smallest step from the mean that bends the rule most, on a grid."""
    centre, spread = np.mean(values), np.std(values)
    base = rule(values)
    grid = np.linspace(0, limit, size)
    moved = [side * (rule([*values, centre + side * t * spread]) - base) for t in grid]
    goal = max(moved) * (1 - 1e-3)
    return centre + side * spread * next(t for t, m in zip(grid, moved, strict=True) if m >= goal)


def increasing(values):
    return all(a <= b for a, b in pairwise(values))


def hidra(honest, n, f, sigma, expansion, groups):
    """Mean minus its direction times the root of what a filter of each group lets through."""
    rows, eps = np.asarray(honest, dtype=float), f / n
    out = np.zeros(rows.shape[1])
    for low, high in groups:
        part = rows[:, low:high]
        mean = part.mean(0)
        if sigma is None:
            variance = np.linalg.eigvalsh(np.cov(part.T, bias=True).reshape(high - low, -1))[-1]
        else:
            variance = sigma
        s = mean / np.linalg.norm(mean)
        excess = (math.sqrt(expansion) - 1) * variance
        out[low:high] = mean - s * math.sqrt(1 / (eps * eps + (1 - eps) * (1 - eps) * eps)) * (
            math.sqrt(excess)
        )
    return out
