"""The records of all rules and pre-aggregators, and the tables of functions derived from them.

A new rule is one function in a file of this folder and one record here. A plain function put into
``RULES`` works too; it then has the properties of a record that says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from fedrobust.aggregation import (
    alignment,
    bounds,
    bulyan,
    clusters,
    columns,
    detector,
    filtering,
    geometry,
    history,
    pre,
    projection,
    recent,
    selection,
    spectral,
    subsets,
    trust,
)
from fedrobust.aggregation.record import (
    FROM_SERVER,
    PreAggregator,
    Rule,
    always,
    angles,
    distances,
    from_the_rows,
    lengths,
    majority,
    signs,
)
from fedrobust.spec import Spec, split

_RULES = (
    Rule(
        name="mean", compute=columns.mean_weights, kind="weights",
        follows_scale=True, follows_shift=True, follows_rotation=always,
    ),
    Rule(
        name="median", compute=columns.median, coordinate_wise=True,
        follows_scale=True, follows_shift=True, bounded=True,
        kappa=bounds.median, kappa_source=bounds.MIXING,
    ),
    Rule(
        name="trimmed_mean", compute=columns.trimmed_mean, coordinate_wise=True, minimum=majority,
        follows_scale=True, follows_shift=True, bounded=True,
        kappa=bounds.trimmed_mean, kappa_source=bounds.MIXING,
    ),
    Rule(
        name="meamed", compute=columns.meamed, coordinate_wise=True, minimum=majority,
        follows_scale=True, follows_shift=True, bounded=True,
    ),
    Rule(
        name="phocas", compute=columns.phocas, coordinate_wise=True, minimum=majority,
        follows_scale=True, follows_shift=True, bounded=True,
    ),
    Rule(
        name="sign_majority", compute=columns.sign_majority, coordinate_wise=True, bounded=True,
        looks_at=signs,
    ),
    Rule(
        name="krum", compute=selection.krum_weights, kind="weights",
        minimum=selection.krum_minimum, follows_scale=True, follows_shift=True, bounded=True,
        kappa=bounds.krum, kappa_source=bounds.MIXING, looks_at=distances, follows_rotation=always,
    ),
    Rule(
        name="multi_krum", compute=selection.multi_krum_weights, kind="weights",
        minimum=selection.multi_krum_minimum, follows_scale=True, follows_shift=True, bounded=True,
        follows_rotation=always, looks_at=distances,
    ),
    Rule(
        name="bulyan", compute=bulyan.bulyan, minimum=lambda s: 4 * s["f"] + 3, order_matters=True,
        follows_scale=True, follows_shift=True, bounded=True, looks_at=distances,
    ),
    Rule(
        name="cge", compute=selection.cge_weights, kind="weights", minimum=majority,
        follows_scale=True, bounded=True, looks_at=lengths, follows_rotation=always,
    ),
    Rule(
        name="mda", compute=subsets.mda_weights, kind="weights", minimum=majority,
        follows_scale=True, follows_shift=True, bounded=True, looks_at=distances,
        follows_rotation=always,
    ),
    Rule(
        name="smea", compute=subsets.smea_weights, kind="weights", minimum=majority,
        follows_scale=True, follows_shift=True, bounded=True,
        kappa=bounds.smea, kappa_source=bounds.TRILEMMA, looks_at=distances,
        follows_rotation=always,
    ),
    Rule(
        name="geometric_median", compute=geometry.geometric_median_weights, kind="weights",
        follows_scale=True, follows_shift=True, bounded=True,
        kappa=bounds.median, kappa_source=bounds.MIXING, looks_at=distances,
        follows_rotation=always,
    ),
    Rule(
        name="rfa", compute=geometry.rfa_weights, kind="weights", follows_shift=True,
        follows_rotation=from_the_rows,
    ),
    Rule(
        name="centered_clipping", compute=geometry.centered_clipping_step, kind="outcome",
        bounded=True, follows_rotation=from_the_rows,
    ),
    Rule(
        name="norm_clipping", compute=geometry.norm_clipping_weights, kind="weights", bounded=True,
        follows_rotation=always, looks_at=lengths,
    ),
    Rule(
        name="median_of_means", compute=geometry.median_of_means_step, kind="outcome",
        minimum=geometry.groups_of, follows_scale=True, follows_shift=True, bounded=True,
        order_matters=True,
        follows_rotation=lambda s: s.get("inner", "geometric_median") == "geometric_median",
    ),
    Rule(
        name="dnc", compute=spectral.dnc_weights, kind="weights", minimum=majority,
        follows_scale=True, follows_shift=True, looks_at=spectral.looks_at,
        follows_rotation=lambda s: s.get("coordinates") is None,
    ),
    Rule(
        name="caf", compute=spectral.caf_weights, kind="weights", minimum=majority,
        follows_scale=True, follows_shift=True, bounded=True, looks_at=distances,
        follows_rotation=always,
    ),
    Rule(
        name="sign_guard", compute=clusters.sign_guard_weights, kind="weights",
        minimum=lambda s: 3, follows_scale=True, bounded=True, looks_at=lengths,
    ),
    Rule(
        name="fltrust", compute=trust.fltrust_step, kind="outcome", bounded=True, looks_at=lengths,
    ),
    Rule(
        name="zeno", compute=trust.zeno_weights, kind="weights", minimum=lambda s: s["f"] + 1,
        bounded=True, looks_at=lengths,
    ),
    Rule(name="rsa", compute=trust.rsa, bounded=True, looks_at=signs),
    Rule(
        name="foolsgold", compute=history.foolsgold_step, kind="outcome", minimum=lambda s: 2,
        follows_rotation=always,
    ),
    Rule(
        name="safeguard", compute=history.safeguard_step, kind="outcome", bounded=True,
        follows_rotation=lambda s: not s.get("noise"),
    ),
    Rule(
        name="clipped_clustering", compute=history.clipped_clustering_step, kind="outcome",
        bounded=True, looks_at=angles,
    ),
    Rule(
        name="flame", compute=clusters.flame_step, kind="outcome", minimum=lambda s: 3,
        follows_scale=True, bounded=True, looks_at=angles,
        follows_rotation=lambda s: s.get("noise") == 0,
    ),
    Rule(
        name="hierarchical_clustering_krum", kind="weights",
        compute=clusters.hierarchical_clustering_krum_weights,
        minimum=lambda s: max(2 * s["f"] + 3, s.get("clusters") or 1),
        follows_scale=True, follows_shift=True, bounded=True, looks_at=distances,
        follows_rotation=always,
    ),
    Rule(
        name="fldetector", compute=detector.fldetector_step, kind="outcome", follows_shift=True,
        bounded=True,
    ),
    Rule(
        name="projected", compute=projection.projected_weights, kind="weights",
        minimum=projection.minimum, follows_scale=True, follows_shift=True, bounded=True,
    ),
    Rule(name="rlr", compute=recent.rlr, coordinate_wise=True, follows_scale=True),
    Rule(
        name="fednga", compute=recent.fednga_weights, kind="weights", bounded=True,
        follows_rotation=always, looks_at=lengths,
    ),
    Rule(
        name="fedrdf", compute=recent.fedrdf, follows_scale=True, follows_shift=True, bounded=True,
    ),
    Rule(name="lasa", compute=alignment.lasa, follows_scale=True, bounded=True, looks_at=lengths),
    Rule(
        name="alignins", compute=alignment.alignins_weights, kind="weights", follows_scale=True,
        looks_at=lengths,
    ),
    Rule(
        name="filtering", compute=filtering.filtering, minimum=majority, follows_shift=True,
        bounded=True,
    ),
    Rule(
        name="randeigen", compute=filtering.randeigen_weights, kind="weights", minimum=majority,
        follows_scale=True, follows_shift=True, bounded=True,
    ),
    Rule(
        name="huber", compute=recent.huber_weights, kind="weights", follows_shift=True,
        bounded=True, looks_at=distances, follows_rotation=always,
    ),
)  # fmt: skip

_PREAGGREGATORS = (
    PreAggregator(
        name="nnm", compute=pre.nnm_mixing, minimum=majority, keeps_weights=True,
        kappa=bounds.with_nnm, kappa_source=bounds.MIXING, looks_at=distances,
        follows_rotation=True,
    ),
    PreAggregator(
        name="bucketing", compute=pre.bucketing_mixing, leaves=pre.buckets, follows_rotation=True,
    ),
    PreAggregator(
        name="clip", compute=pre.clip_mixing, follows_scale=False, keeps_weights=True,
        follows_rotation=True, looks_at=lengths,
    ),
    PreAggregator(
        name="arc", compute=pre.arc_mixing, minimum=majority, follows_rotation=True,
        looks_at=lengths,
    ),
    PreAggregator(
        name="foundation", compute=pre.foundation_mixing,
        leaves=lambda n, s: n + pre.copies_of(n, s.get("synthetic")),
    ),
)  # fmt: skip

RULE_RECORDS = {record.name: record for record in _RULES}
PREAGGREGATOR_RECORDS = {record.name: record for record in _PREAGGREGATORS}
RULES: dict[str, Callable[..., Tensor]] = {name: r.function() for name, r in RULE_RECORDS.items()}
PREAGGREGATORS: dict[str, Callable[..., Tensor]] = {
    name: r.function() for name, r in PREAGGREGATOR_RECORDS.items()
}


# Taken at import, before a user's rule can stand in the table.
_BUILT_IN = frozenset(RULES)


def is_built_in(name: str) -> bool:
    """Whether a rule is one of ours, rather than a user's that stands in the table for a while."""
    return name in _BUILT_IN


def rule_record(name: str) -> Rule:
    """Return a rule's record; a plain one for a function that stands in ``RULES`` alone."""
    return RULE_RECORDS.get(name) or Rule(name=name, compute=RULES[name])


def needs_own_data(name: str) -> bool:
    """Whether a rule cannot do without data of the server's own; False for an unknown name."""
    return name in RULES and any(key in FROM_SERVER for key in rule_record(name).needs)


def is_coordinate_wise(name: str) -> bool:
    """Whether a rule treats each coordinate by itself; False for an unknown name."""
    return name in RULES and rule_record(name).coordinate_wise


def follows_rotation(spec: Spec, pre: Sequence[Spec] = ()) -> bool:
    """Whether a rule behind its pre-aggregators reads its rows through their products alone."""
    name, settings = split(spec)
    return (
        name in RULES
        and rule_record(name).follows_rotation(settings)
        and all(preaggregator_record(split(one)[0]).follows_rotation for one in pre)
    )


def preaggregator_record(name: str) -> PreAggregator:
    """Return a pre-aggregator's record.

    Raises
    ------
    KeyError
        For a name without one.
    """
    return PREAGGREGATOR_RECORDS[name]


@contextmanager
def installed(record: Rule) -> Iterator[None]:
    """Let a rule stand in the tables inside the block, like any of ours.

    Raises
    ------
    ValueError
        If there is a rule of that name.
    """
    if record.name in RULES:
        raise ValueError(f"there is a rule {record.name!r} already: rename your own")
    RULE_RECORDS[record.name], RULES[record.name] = record, record.function()
    try:
        yield
    finally:
        del RULE_RECORDS[record.name], RULES[record.name]
