"""The tables: one line per rule and pre-aggregator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation import (
    bulyan,
    clusters,
    columns,
    geometry,
    history,
    pre,
    selection,
    spectral,
    subsets,
    trust,
)
from fedrobust.aggregation.outcome import Outcome

RULES: dict[str, Callable[..., Tensor]] = {
    "mean": columns.mean,
    "median": columns.median,
    "trimmed_mean": columns.trimmed_mean,
    "meamed": columns.meamed,
    "phocas": columns.phocas,
    "sign_majority": columns.sign_majority,
    "krum": selection.krum,
    "multi_krum": selection.multi_krum,
    "bulyan": bulyan.bulyan,
    "cge": selection.cge,
    "mda": subsets.mda,
    "smea": subsets.smea,
    "geometric_median": geometry.geometric_median,
    "rfa": geometry.rfa,
    "centered_clipping": geometry.centered_clipping,
    "norm_clipping": geometry.norm_clipping,
    "median_of_means": geometry.median_of_means,
    "dnc": spectral.dnc,
    "caf": spectral.caf,
    "sign_guard": clusters.sign_guard,
    "fltrust": trust.fltrust,
    "zeno": trust.zeno,
    "rsa": trust.rsa,
    "foolsgold": history.foolsgold,
    "safeguard": history.safeguard,
    "clipped_clustering": history.clipped_clustering,
    "flame": clusters.flame,
    "hierarchical_clustering_krum": clusters.hierarchical_clustering_krum,
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
    "geometric_median": geometry.geometric_median_weights,
    "rfa": geometry.rfa_weights,
    "norm_clipping": geometry.norm_clipping_weights,
    "zeno": trust.zeno_weights,
    "dnc": spectral.dnc_weights,
    "caf": spectral.caf_weights,
    "sign_guard": clusters.sign_guard_weights,
    "hierarchical_clustering_krum": clusters.hierarchical_clustering_krum_weights,
}

# Rules that yield more than their aggregate: memory for the next round, or weights beside a term
# that is no update (the previous aggregate, noise, a root).
STEPS: dict[str, Callable[..., Outcome]] = {
    "centered_clipping": geometry.centered_clipping_step,
    "median_of_means": geometry.median_of_means_step,
    "fltrust": trust.fltrust_step,
    "foolsgold": history.foolsgold_step,
    "safeguard": history.safeguard_step,
    "clipped_clustering": history.clipped_clustering_step,
    "flame": clusters.flame_step,
}

# Rules that cannot do without data of the server's own.
NEEDS_OWN_DATA = {"fltrust", "zeno"}

# Rules that treat every coordinate by itself: they run block by block behind a mixing.
COORDINATE_WISE = {"median", "trimmed_mean", "meamed", "phocas", "sign_majority"}

# Settings -> the fewest updates; one where a rule is not named.
MINIMUM: dict[str, Callable[[dict[str, Any]], int]] = {
    "krum": lambda s: 2 * s["f"] + 3,
    "multi_krum": lambda s: max(2 * s["f"] + 3, s.get("m") or 1),
    "hierarchical_clustering_krum": lambda s: max(2 * s["f"] + 3, s.get("clusters") or 1),
    "bulyan": lambda s: 4 * s["f"] + 3,
    "median_of_means": lambda s: s["groups"],
    "zeno": lambda s: s["f"] + 1,
    "sign_guard": lambda s: 3,
    "flame": lambda s: 3,
    "foolsgold": lambda s: 2,
} | dict.fromkeys(
    ("trimmed_mean", "meamed", "phocas", "cge", "mda", "smea", "dnc", "caf", "nnm", "arc"),
    lambda s: 2 * s["f"] + 1,
)
