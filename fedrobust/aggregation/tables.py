"""The tables: one line per rule and pre-aggregator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation import columns, geometry, pre, selection, spectral, subsets, trust

RULES: dict[str, Callable[..., Tensor]] = {
    "mean": columns.mean,
    "median": columns.median,
    "trimmed_mean": columns.trimmed_mean,
    "meamed": columns.meamed,
    "phocas": columns.phocas,
    "sign_majority": columns.sign_majority,
    "krum": selection.krum,
    "multi_krum": selection.multi_krum,
    "bulyan": selection.bulyan,
    "cge": selection.cge,
    "mda": subsets.mda,
    "smea": subsets.smea,
    "geometric_median": geometry.geometric_median,
    "rfa": geometry.rfa,
    "centered_clipping": geometry.centered_clipping,
    "norm_clipping": geometry.norm_clipping,
    "median_of_means": trust.median_of_means,
    "dnc": spectral.dnc,
    "caf": spectral.caf,
    "sign_guard": trust.sign_guard,
    "fltrust": trust.fltrust,
    "foolsgold": trust.foolsgold,
    "hierarchical_clustering_krum": trust.hierarchical_clustering_krum,
}
PREAGGREGATORS: dict[str, Callable[..., Tensor]] = {
    "nnm": pre.nnm,
    "bucketing": pre.bucketing,
    "clip": pre.clip,
    "arc": pre.arc,
}

# Pre-aggregators as mixing matrices (m, n): what lets a weight be traced back to its client.
MIXINGS: dict[str, Callable[..., Tensor]] = {
    "nnm": pre.nnm_mixing,
    "bucketing": pre.bucketing_mixing,
    "clip": pre.clip_mixing,
    "arc": pre.arc_mixing,
}

# Rules that are a weighted sum of updates: (n, d) -> (n,).
WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "mean": lambda updates: torch.full((len(updates),), 1 / len(updates), dtype=torch.float64),
    "krum": selection.krum_weights,
    "multi_krum": selection.multi_krum_weights,
    "cge": selection.cge_weights,
    "mda": subsets.mda_weights,
    "smea": subsets.smea_weights,
    "dnc": spectral.dnc_weights,
    "caf": spectral.caf_weights,
    "sign_guard": trust.sign_guard_weights,
    "foolsgold": trust.foolsgold_weights,
    "hierarchical_clustering_krum": trust.hierarchical_clustering_krum_weights,
}

# What a rule remembers: (memory, updates, aggregate) -> memory.
REMEMBER: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "centered_clipping": lambda memory, updates, aggregate: aggregate,
    "foolsgold": lambda memory, updates, aggregate: trust.foolsgold_memory(memory, updates),
}

# f -> the fewest updates.
MINIMUM: dict[str, Callable[[int], int]] = {
    "mean": lambda f: 1,
    "median": lambda f: 1,
    "sign_majority": lambda f: 1,
    "trimmed_mean": lambda f: 2 * f + 1,
    "meamed": lambda f: 2 * f + 1,
    "phocas": lambda f: 2 * f + 1,
    "cge": lambda f: 2 * f + 1,
    "krum": lambda f: 2 * f + 3,
    "multi_krum": lambda f: 2 * f + 3,
    "bulyan": lambda f: 4 * f + 3,
    "geometric_median": lambda f: 1,
    "rfa": lambda f: 1,
    "centered_clipping": lambda f: 1,
    "norm_clipping": lambda f: 1,
    "median_of_means": lambda f: 1,
    "dnc": lambda f: 2 * f + 1,
    "caf": lambda f: 2 * f + 1,
    "sign_guard": lambda f: 3,
    "fltrust": lambda f: 1,
    "foolsgold": lambda f: 2,
    "hierarchical_clustering_krum": lambda f: 2 * f + 3,
    "mda": lambda f: 2 * f + 1,
    "smea": lambda f: 2 * f + 1,
    "nnm": lambda f: 2 * f + 1,
    "arc": lambda f: 2 * f + 1,
    "clip": lambda f: 1,
    "bucketing": lambda f: 1,
}
