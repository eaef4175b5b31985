"""How an ensemble is evaluated: the members' vote on clean and on attacked images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedrobust import data
from fedrobust.ensemble import combine, scores
from fedrobust.ensemble.attacker import PROBES, Crafted
from fedrobust.ensemble.lies import spelled_out
from fedrobust.ensemble.measures import CLEAN, by_member, by_vote
from fedrobust.ensemble.similarity import cotangent, mean_logit, similarities
from fedrobust.ensemble.votes import NO_LABEL
from fedrobust.evaluation import pixels
from fedrobust.experiment.schema import Experiment
from fedrobust.spec import Spec
from fedrobust.training.tasks import METRICS, number
from strategies.base import Row
from strategies.ensemble.query import Heard, ask

TEST = "test"  # what the query about the test images is called


@dataclass(frozen=True)
class Vote:
    """The evaluator of an ensemble: the members vote on clean and on attacked images.

    Attributes
    ----------
    clients
        Node id -> member.
    images
        The attacker's images.
    """

    grid: Grid
    experiment: Experiment
    dataset: data.Dataset
    clients: Mapping[int, int]
    images: Callable[[], Crafted]

    def __call__(self, server_round: int, model: None) -> dict[str, Any]:
        """Ask the members, and measure what the votes make of their answers."""
        crafted = self.images() if self.experiment.transfer.attacks else None
        where = (self.grid, self.experiment, self.dataset, self.clients)
        return vote(*where, server_round, crafted)


def vote(
    grid: Grid,
    experiment: Experiment,
    dataset: data.Dataset,
    clients: Mapping[int, int],
    server_round: int,
    crafted: Crafted | None,
) -> dict[str, Any]:
    """Ask the members about the test images and the attacker's, and combine what they answer."""
    plan = experiment.ensemble
    count = plan.test_images or len(dataset.test_labels)
    labels = dataset.test_labels[:count]

    def asked(name: str, images: Tensor) -> Heard:
        return ask(
            grid,
            clients,
            pixels(images),
            name=f"{server_round}/{name}",
            what=plan.answer,
            classes=dataset.classes,
            batch_size=plan.query_images,
            deadline=experiment.server.deadline,
        )

    whole = asked(TEST, dataset.test_images[:count])
    if not whole.clients:
        return {"rejected": whole.missing, "kept": "no member answered"}
    decide = spelled_out(experiment)
    heard_of_all = whole.among(len(clients))
    right = {k: combine(heard_of_all, v) == labels for k, v in decide.items()}
    metrics: dict[str, Any] = {
        "accuracy": round(float(right[plan.votes[0]].double().mean()), 6),
        "clean": {k: round(float(v.double().mean()), 6) for k, v in right.items()},
        "voters": len(whole.clients),
    }
    metrics |= _measured(experiment, heard_of_all, decide[plan.votes[0]], labels)
    missing = list(whole.missing)
    if crafted is not None:
        heard = {CLEAN: asked(CLEAN, crafted.clean)}
        heard |= {name: asked(name, images) for name, images in crafted.images.items()}
        metrics |= _transfer(heard, crafted.labels, decide, len(clients))
        missing += [entry for each in heard.values() for entry in each.missing]
        # Once, at the end: every image costs each member gradients, not only a forward pass.
        if plan.probe_images and server_round == experiment.rounds:
            metrics["probes"] = probe(grid, experiment, dataset, clients, crafted)
    # Backwards, so that the first reason of a client is the one that stays.
    named = {entry["client"]: entry for entry in reversed(missing)}
    return metrics | {"rejected": [named[c] for c in sorted(named)]}


def probe(
    grid: Grid,
    experiment: Experiment,
    dataset: data.Dataset,
    clients: Mapping[int, int],
    crafted: Crafted,
) -> dict[str, float]:
    """Measure gradient similarity and curvature through queries; weights stay where they are."""
    count = min(experiment.ensemble.probe_images, PROBES, len(crafted.labels))
    images, labels = pixels(crafted.clean[:count]), crafted.labels[:count]
    settings: dict[str, Any] = {"deadline": experiment.server.deadline, "classes": dataset.classes}
    logits = ask(grid, clients, images, name="probe/logits", what="logits", **settings)
    there = logits.clients
    rows = dict(zip(there, torch.nan_to_num(logits.answers), strict=True))
    shared = {c: {"cotangent": cotangent(mean_logit(logits.answers), labels)} for c in there}
    own = {c: {"cotangent": cotangent(rows[c], labels)} for c in there}
    given = {c: {"labels": labels.float()} for c in there}

    def gathered(what: str, name: str, extra: Mapping[int, Mapping[str, Tensor]]) -> Heard:
        only = {node: c for node, c in clients.items() if c in there}
        return ask(grid, only, images, name=f"probe/{name}", what=what, extra=extra, **settings)

    system = gathered("gradient", "system", shared)
    alone = gathered("gradient", "own", own)
    bends = gathered("curvature", "curvature", given)
    found = similarities(
        crafted.gradient[:count],
        torch.nan_to_num(system.answers).mean(0),
        list(torch.nan_to_num(alone.answers)),
        dict(zip(bends.clients, torch.nan_to_num(bends.answers), strict=True)),
    )
    return {name: round(value, 6) for name, value in asdict(found).items()}


def _transfer(
    heard: Mapping[str, Heard], labels: Tensor, decide: Mapping[str, Spec], members: int
) -> Row:
    """Measure the votes, and each member that answered every query, on the attacker's images."""
    if not all(each.clients for each in heard.values()):
        return {}
    always = [c for c in heard[CLEAN].clients if all(c in each.clients for each in heard.values())]
    alone = {
        name: each.answers[[each.clients.index(c) for c in always]] for name, each in heard.items()
    }
    answers = {name: each.among(members) for name, each in heard.items()}
    own = by_member(alone, labels)
    return {
        "votes": by_vote(answers, labels, decide),
        "members": {str(c): cells for c, cells in zip(always, own, strict=True)},
    }


def _measured(experiment: Experiment, answers: Tensor, vote: Spec, labels: Tensor) -> Row:
    """Measure the scores of a vote; images that nobody answered are left out."""
    known = combine(answers, vote) != NO_LABEL
    outputs, held = scores(answers, vote)[known].float(), labels.cpu()[known]
    names = [name for name in experiment.metrics if name != "accuracy"]  # there already
    return {name: number(name, METRICS[name].compute(outputs, held)) for name in names}
