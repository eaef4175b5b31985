"""What must hold of an experiment beyond types and ranges: names, and what goes together.

Every check here needs the tables of plug-ins; the types and ranges stand in ``schema``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set

import torch

from fedrobust import adversarial, aggregation, attacks
from fedrobust.adversarial.rehearsal import rehearse
from fedrobust.attacks import threat_model
from fedrobust.data import DATASETS, PARTITIONERS
from fedrobust.data.partitions import SUPPLIED
from fedrobust.ensemble import validate as ensemble
from fedrobust.experiment.schema import CLASSES, Experiment
from fedrobust.experiment.settings import Server
from fedrobust.experiment.validate_phases import phases, slack
from fedrobust.models import MODELS
from fedrobust.redundancy import rounds
from fedrobust.simulation import stragglers
from fedrobust.simulation.sampled import check_cohort
from fedrobust.spec import SpecError, parameters, resolve, split, suggest
from fedrobust.training import METRICS, SCHEDULES, TASK_LOSSES
from fedrobust.training.optimizers import lacking_momentum
from fedrobust.training.steps import StepState, resolve_optimizer, take_step
from fedrobust.training.tasks import classifies

BATCHNORM = ("average", "local", "dual")
Check = Callable[[Experiment], Iterator[str] | None]  # yields sentences, or raises one


def rule_needs_f(name: str) -> bool:
    """Whether a rule has a parameter f."""
    return name in aggregation.RULES and "f" in parameters(aggregation.RULES[name])


def pre_needs_f(name: str) -> bool:
    """Whether a pre-aggregator has a parameter f."""
    table = aggregation.PREAGGREGATORS
    return name in table and "f" in parameters(table[name])


def check(experiment: Experiment, broken: Set[str] = frozenset()) -> list[str]:
    """Return everything that is wrong with an experiment's values, beyond types and ranges.

    Parameters
    ----------
    broken
        Keys whose attributes are not there, since they are missing or of a wrong type. A check
        that reads one of them ends there: the key has its own sentence already.
    """
    errors: list[str] = []
    for part in CHECKS:
        try:
            for sentence in part(experiment) or ():
                errors.append(sentence)
        except AttributeError as error:
            # Any other attribute is a mistake in a check of ours, which must not pass for a broken
            # key.
            if error.obj is not experiment or error.name not in broken:
                raise
        except (SpecError, ValueError, TypeError) as error:
            errors += str(error).splitlines()
    return list(dict.fromkeys(errors))  # a rehearsal meets what a check before it met


def _data(e: Experiment) -> Iterator[str]:
    if e.data not in DATASETS:
        yield _lacking("data set", e.data, list(DATASETS))


def _model(e: Experiment) -> Iterator[str]:
    if e.model not in MODELS:
        yield _lacking("model", e.model, list(MODELS))


def _lacking(kind: str, name: str, allowed: list[str]) -> str:
    """Say that there is none of a name, and where it was looked for: a node may lack a plug-in."""
    hint = suggest(name, allowed)
    where = "no plug-in of that name is here, from --use FILE.py or from an installed package"
    return f"unknown {kind} {name!r}; {hint}" + ("" if hint.startswith("did") else f"; {where}")


def _task(e: Experiment) -> Iterator[str]:
    """Check loss and metrics, and what else needs one class an example."""
    resolve(TASK_LOSSES, e.loss, kind="loss")
    for name in e.metrics:
        if name not in METRICS:
            yield _lacking("metric", name, list(METRICS))
        elif e.mode == "ensemble" and METRICS[name].by_client:
            yield f"metric {name!r} is of one global model, and an ensemble has none"
    if not classifies(e.loss):
        told = e.loss["name"]
        yield from (f"{key} needs the loss {CLASSES!r}, got {told!r}" for key in _of_classes(e))


def _of_classes(e: Experiment) -> Iterator[str]:
    """Yield the settings that mean something for classes alone."""
    adversary, variant = e.adversarial, e.adversarial.federated
    given = {
        "adversarial.perturbation": adversary.perturbation,
        "adversarial.eps": adversary.eps,
        "adversarial.federated.calibration": variant.calibration,
        "[semi]": e.semi.mode != "none",
        "[pretrain]": e.pretrain.rounds,
        "[transfer]": e.transfer.attacks and e.mode != "ensemble",  # there is a vote on classes
        f"attack {e.attack['name']!r}": threat_model.kind(e.attack["name"])
        in ("poison", "trained"),
    }
    yield from (key for key, value in given.items() if value)


def _byzantine(e: Experiment) -> Iterator[str]:
    last = e.clients - 1
    if not 0 <= e.byzantine <= last:
        yield f"byzantine must be in 0..clients-1 = 0..{last}, got {e.byzantine}"


def _partition(e: Experiment) -> None:
    resolve(PARTITIONERS, e.partition, kind="partition", supplied=SUPPLIED)


def _placement(e: Experiment) -> None:
    attacks.place(e.placement, clients=e.clients, byzantine=e.byzantine, seed=e.seed)


def _attack_name(e: Experiment) -> None:
    kind = threat_model.kind(e.attack["name"])
    if e.mode == "redundancy":
        rounds.check_attack(e.attack["name"], kind)


def _attack(e: Experiment) -> None:
    if e.mode != "ensemble":  # what its members do to answers is checked with the ensemble
        threat_model.check(e.attack, n=e.clients, f=e.byzantine)


def _rule(e: Experiment) -> None:
    if e.rule:
        aggregation.build(e.rule)


def _pre(e: Experiment) -> None:
    for spec in e.pre:
        # A chain needs a rule at its end, and the mean has no needs of its own.
        aggregation.build("mean", pre=(spec,))


def _operands(e: Experiment) -> Iterator[str]:
    """Check that the rule gets enough vectors: files of a batch, or clients that are asked."""
    if e.mode == "redundancy":
        wrong = rounds.check(e)
        yield from wrong
        if wrong:
            return
    # A number of attackers out of its range has its own sentence, in ``_byzantine``.
    if e.mode != "ensemble" and e.rule and 0 <= e.byzantine < e.clients:
        files = e.mode == "redundancy"
        n = rounds.operands(e) if files else stragglers.sample_size(e)
        told = {"clients": e.clients, "byzantine": e.byzantine, "turns": e.rounds}
        if files:
            aggregation.check(e.rule, n=n, pre=e.pre)
        else:
            check_cohort(e.rule, pre=e.pre, cohort=n, **told)
        aggregation.rehearse(e.rule, n=n, pre=e.pre)


def _weights(e: Experiment) -> Iterator[str]:
    name, given = split(e.weights)
    aggregation.resolve_weights(e.weights)
    if name == "equal":
        return
    aggregation.check_weights(e.weights, rule=e.rule, pre=e.pre)
    if e.adversarial.federated.slack:
        yield f"weights {name!r} and adversarial.federated.slack exclude each other"
    if "share" in given:
        least = given["f"] / stragglers.sample_size(e)
        if not least < given["share"] < 1:
            yield (
                f"weights {name!r} need a share above f / n = {least:g} of those that are asked"
                f" and below 1, got {given['share']:g}"
            )
    if "table" in given:
        yield from _table(e, given["table"])


def _table(e: Experiment, table: dict[str, float]) -> Iterator[str]:
    """Check that the operator's table names every client, and that the rule bears its weights."""
    clients = [str(client) for client in range(e.clients)]
    if odd := sorted(set(table) ^ set(clients)):
        yield (
            f"weights 'attested' need one weight for each client 0..{e.clients - 1}, missing or"
            f" unknown: {', '.join(odd[:8])}"
        )
    elif e.participation == 1:
        weigh = aggregation.weighing(e.weights, rule=e.rule, pre=e.pre)
        given = weigh(range(e.clients), [None] * e.clients)
        aggregation.rehearse(e.rule, n=e.clients, pre=e.pre, weights=given)


def _root(e: Experiment) -> Iterator[str]:
    if e.rule and aggregation.needs_own_data(e.rule["name"]) and not e.server.root_images:
        yield f"{e.rule['name']} needs data of the server's own: set server.root_images"


def _ensemble(e: Experiment) -> Iterator[str]:
    yield from ensemble.check(e)


def _groups(e: Experiment) -> None:
    stragglers.check(e)


def _losses(e: Experiment) -> None:
    resolve(adversarial.LOSSES, e.adversarial.loss, kind="loss")
    adversarial.evaluation_names(e.adversarial.eval_attacks)


def _perturbations(e: Experiment) -> None:
    for spec in (e.adversarial.perturbation, e.pretrain.perturbation):
        if spec:
            adversarial.check_perturbation(spec)
            rehearse(spec, e.adversarial.loss)


def _server(e: Experiment) -> None:
    function, _ = resolve_optimizer(e.server.optimizer)
    # Its default is no error: a resolved document, which is read again, holds it too.
    if "momentum" not in parameters(function) and e.server.momentum not in (0.0, Server.momentum):
        raise SpecError(lacking_momentum("server.", e.server.optimizer["name"]))
    _one_step(e)
    resolve(SCHEDULES, e.server.schedule, kind="schedule", supplied=("lr",))


def _one_step(e: Experiment) -> None:
    """Take one step of one coordinate: what an optimizer checks of its settings it checks there."""
    take_step(
        torch.zeros(1), torch.ones(1), StepState(), optimizer=e.server.optimizer, lr=e.server.lr,
        momentum=e.server.momentum, schedule="constant", warmup=0, shapes=[(1,)],
    )  # fmt: skip


def _batchnorm(e: Experiment) -> None:
    name, given = split(e.batchnorm)
    if name not in BATCHNORM:
        raise SpecError(f"unknown batchnorm {name!r}; {suggest(name, [*BATCHNORM])}")
    for key in given:
        allowed = ["rule", "serve"] if name == "dual" else ["rule"]
        if key not in allowed:
            raise SpecError(f"batchnorm {name!r} has no parameter {key!r}; {suggest(key, allowed)}")
    if (serve := given.get("serve", "clean")) not in ("clean", "adversarial"):
        wrong = suggest(str(serve), ["clean", "adversarial"])
        raise SpecError(f"unknown batchnorm serve {serve!r}; {wrong}")
    rule = given.get("rule", "median")
    aggregation.check(rule, n=e.clients)
    aggregation.check_unaided(rule, "the rule of batchnorm's statistics")


def _adapters(e: Experiment) -> Iterator[str]:
    if e.adapters == "product" and e.training.mode != "update":
        yield (
            "adapters = 'product' needs training.mode = 'update': a gradient at the global model"
            " has no product"
        )


def _compression(e: Experiment) -> Iterator[str]:
    if e.compression.replicas and e.participation < 1:
        yield "compression.sides = 'both' needs participation = 1"


CHECKS: tuple[Check, ...] = (
    _data, _model, _task, _byzantine, _partition, _placement, _attack_name, _attack, _rule, _pre,
    _operands, _weights, _root, _ensemble, _groups, _losses, _perturbations, _server, _batchnorm,
    _adapters, _compression, phases, slack,
)  # fmt: skip
