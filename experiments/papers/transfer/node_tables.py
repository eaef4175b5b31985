"""Node tables of planned systems, for ``fedrobust check``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.table import Table

from fedrobust import data
from fedrobust.ensemble import nodes_of, shares_of
from fedrobust.experiment.schema import Experiment

COLUMNS = ("node", "images", "model", "optimizer", "lr", "momentum", "weight decay",
           "schedule", "value", "values")  # fmt: skip


def tables(experiments: Iterable[Experiment], data_root: str | None) -> Iterator[Table]:
    """Yield one table a planned run: who trains what, on how many images, with which values."""
    loaded: dict[str, data.Dataset] = {}
    for e in experiments:
        if not e.ensemble.paradigm:
            continue
        if e.data not in loaded:
            loaded[e.data] = data.load(e.data, root=data_root)
        shares = shares_of(e, loaded[e.data])
        title = f"{e.run_id}: {e.ensemble.paradigm}, {e.partition['name']}, {e.data}, seed {e.seed}"
        table = Table(title=title, title_justify="left")
        for column in COLUMNS:
            table.add_column(column)
        for k, node in enumerate(nodes_of(e)):
            numbers = [f"{v:g}" for v in (node.lr, node.momentum, node.weight_decay)]
            last = f"{node.schedule_value:g}" if node.schedule_value else "-"
            own = "its own, tuned" if node.tuned else "given"
            row = [
                k,
                len(shares[k]),
                node.model,
                node.optimizer,
                *numbers,
                node.schedule,
                last,
                own,
            ]
            table.add_row(*map(str, row))
        yield table
