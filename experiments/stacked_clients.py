"""What ``fedrobust check`` says of clients that shall train as one stack: why they do not."""

from __future__ import annotations

from collections.abc import Iterable

from fedrobust import data, models
from fedrobust.cohort import unstackable
from fedrobust.experiment.schema import Experiment
from fedrobust.training.tasks import loss_of
from fedrobust.vector import FlatModel

EXAMPLES = 2  # a client's, in the trial


def sentences(experiments: Iterable[Experiment], *, data_root: str | None) -> list[str]:
    """Return one line for each model that cannot be stacked, where an experiment would stack it."""
    asked = [e for e in experiments if e.mode == "federated" and e.training.cohort != "off"]
    found = {(e.data, e.model, str(e.loss), e.training.cohort): e for e in asked}
    lines = (sentence(e, data_root) for e in found.values())
    return [line for line in lines if line]


def sentence(e: Experiment, data_root: str | None) -> str:
    """Say why the clients of one experiment train one by one; nothing where they can be stacked."""
    dataset = data.load(e.data, root=data_root)
    model = FlatModel(models.build_for(e.model, dataset, seed=e.seed))
    few = dataset.train_images[:EXAMPLES], dataset.train_labels[:EXAMPLES]
    reason = unstackable(model, loss_of(e.loss), *few)
    what = "train one by one" if e.training.cohort == "auto" else "cannot train"
    return (
        f"training.cohort = {e.training.cohort!r}: clients with {e.model!r} {what}, since {reason}"
        if reason
        else ""
    )
