"""What ``fedrobust check`` says of weighted clients: how much the heaviest hold together."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.cli_output import defence
from fedrobust import data
from fedrobust.aggregation import weighing
from fedrobust.aggregation.weighting import heaviest, shares
from fedrobust.experiment.schema import Experiment


def sentences(experiments: Iterable[Experiment], *, data_root: str | None) -> list[str]:
    """Return one line for each distinct defence with weighted clients; none without."""
    found = [sentence(e, data_root) for e in experiments if e.weights["name"] != "equal"]
    return list(dict.fromkeys(found))


def sentence(e: Experiment, data_root: str | None) -> str:
    """Say what the f heaviest clients hold: a weighted rule's breakdown is in weight."""
    name, f = e.weights["name"], e.rule.get("f", e.byzantine)
    if name == "claimed":
        return f"{defence(e)}: clients count by what they claim; one claim may own the result"
    if name == "truncated":
        share = e.weights["share"]
        return f"{defence(e)}: no {e.weights['f']} clients hold more than {share:.0%} of the weight"
    spec = e.weights | {"table": table_of(e, data_root)}
    given = weighing(spec, rule=e.rule, pre=e.pre)(range(e.clients), [None] * e.clients)
    held = heaviest(shares(given, e.clients), f) if given is not None else 0.0
    kept = "less" if held < 0.5 else "NOT less"
    return (
        f"{defence(e)}: the {f} heaviest of {e.clients} clients hold {held:.0%} of the weight,"
        f" {kept} than half"
    )


def table_of(e: Experiment, data_root: str | None) -> dict[str, float]:
    """Return client -> weight: the operator's, or the sizes of the partition's shares."""
    if "table" in e.weights:
        return dict(e.weights["table"])
    dataset = data.load(e.data, root=data_root)
    cut = data.cut(dataset, e.partition, clients=e.clients, seed=e.seed)
    return {str(client): float(len(share)) for client, share in enumerate(cut)}
