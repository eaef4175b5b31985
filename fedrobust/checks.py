"""What must hold before an experiment starts: names, ranges, and what the rules need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrobust import adversarial, adversary, aggregation, attacks, fleet, options, scheme
from fedrobust.data import DATASETS, PARTITIONERS
from fedrobust.data.partitions import SUPPLIED
from fedrobust.distributed.checking import check_plan
from fedrobust.models import MODELS
from fedrobust.spec import SpecError, parameters, resolve, split, suggest
from fedrobust.training import SCHEDULES, SERVER_OPTIMIZERS
from fedrobust.training.steps import SUPPLIED as STEP_SUPPLIED

if TYPE_CHECKING:
    from fedrobust.config import Experiment


def rule_needs_f(name: str) -> bool:
    """Whether a rule has a parameter f."""
    return name in aggregation.RULES and "f" in parameters(aggregation.RULES[name])


def pre_needs_f(name: str) -> bool:
    """Whether a pre-aggregator has a parameter f."""
    table = aggregation.PREAGGREGATORS
    return name in table and "f" in parameters(table[name])


def check(experiment: Experiment, errors: list[str]) -> None:
    """Append everything that is wrong with the experiment's values to ``errors``."""
    for condition, sentence in _ranges(experiment):
        if not condition:
            errors.append(sentence)
    for name, table, kind in (
        (experiment.data, DATASETS, "data set"),
        (experiment.model, MODELS, "model"),
    ):
        if name not in table:
            errors.append(f"unknown {kind} {name!r}; {suggest(name, list(table))}")
    errors += check_plan(experiment)
    wrong = scheme.check(experiment)
    errors += wrong
    defence = () if wrong else (_defence,)  # what the rule aggregates depends on the scheme
    parts = (_partition, _placement, _attack, *defence, _adversarial, fleet.check)
    for part in (*parts, _server, _batchnorm):
        try:
            part(experiment)
        except (SpecError, ValueError, TypeError) as error:
            errors += str(error).splitlines()


def _ranges(e: Experiment) -> list[tuple[bool, str]]:
    t, s, a = e.training, e.server, e.adversarial
    modes = ["gradient", "update"]
    return [
        (e.clients >= 1, f"clients needs at least 1, got {e.clients}"),
        (
            0 <= e.byzantine < e.clients,
            f"byzantine must lie in 0..clients-1 = 0..{e.clients - 1}, got {e.byzantine}",
        ),
        (e.rounds >= 1, f"rounds needs at least 1, got {e.rounds}"),
        (0 <= e.worker_momentum < 1, f"worker_momentum needs [0, 1), got {e.worker_momentum}"),
        (t.mode in modes, f"unknown training.mode {t.mode!r}; {suggest(t.mode, modes)}"),
        (t.lr > 0, f"training.lr needs a positive number, got {t.lr}"),
        (0 <= t.momentum < 1, f"training.momentum needs [0, 1), got {t.momentum}"),
        (s.lr > 0, f"server.lr needs a positive number, got {s.lr}"),
        (0 <= s.momentum < 1, f"server.momentum needs [0, 1), got {s.momentum}"),
        (s.evaluate_every >= 1, f"server.evaluate_every needs at least 1, got {s.evaluate_every}"),
        (0 <= a.fraction <= 1, f"adversarial.fraction needs [0, 1], got {a.fraction}"),
        (0 <= a.eps <= 1, f"adversarial.eps needs [0, 1], got {a.eps}"),
        (a.eval_steps >= 1, f"adversarial.eval_steps needs at least 1, got {a.eval_steps}"),
        (a.eval_images >= 1, f"adversarial.eval_images needs at least 1, got {a.eval_images}"),
        (s.root_images >= 0, f"server.root_images needs at least 0, got {s.root_images}"),
        (
            s.root_images > 0 or not aggregation.needs_own_data(e.rule["name"]),
            f"{e.rule['name']} needs data of the server's own: set server.root_images",
        ),
        (s.deadline > 0, f"server.deadline needs a positive number, got {s.deadline}"),
        (s.warmup >= 0, f"server.warmup needs at least 0, got {s.warmup}"),
        (s.bandwidth >= 0, f"server.bandwidth needs at least 0, got {s.bandwidth}"),
        (
            a.eval_restarts >= 1,
            f"adversarial.eval_restarts needs at least 1, got {a.eval_restarts}",
        ),
        (a.probe_images >= 0, f"adversarial.probe_images needs at least 0, got {a.probe_images}"),
        *options.ranges(e),
    ]


def _partition(e: Experiment) -> None:
    resolve(PARTITIONERS, e.partition, kind="partition", supplied=SUPPLIED)


def _placement(e: Experiment) -> None:
    attacks.place(e.placement, clients=e.clients, byzantine=e.byzantine, seed=e.seed)


def _attack(e: Experiment) -> None:
    adversary.check(e.attack, n=e.clients, f=e.byzantine)
    if e.scheme.name:
        scheme.check_attack(e.attack["name"], adversary.kind(e.attack["name"]))


def _defence(e: Experiment) -> None:
    aggregation.build(e.rule, pre=e.pre)
    if 0 <= e.byzantine < e.clients:
        operands = scheme.operands(e) if e.scheme.name else fleet.sample_size(e)
        aggregation.check(e.rule, n=operands, pre=e.pre)


def _adversarial(e: Experiment) -> None:
    resolve(adversarial.LOSSES, e.adversarial.loss, kind="loss")
    for spec in (e.adversarial.perturbation, e.pretrain.perturbation):
        if spec:
            table = adversarial.PERTURBATIONS
            resolve(table, spec, kind="perturbation", supplied=("generator", "start"))
    adversarial.evaluation_names(e.adversarial.eval_attacks)


def _server(e: Experiment) -> None:
    table = SERVER_OPTIMIZERS
    resolve(table, e.server.optimizer, kind="server optimizer", supplied=STEP_SUPPLIED)
    resolve(SCHEDULES, e.server.schedule, kind="schedule", supplied=("lr",))


def _batchnorm(e: Experiment) -> None:
    name, given = split(e.batchnorm)
    if name not in options.BATCHNORM:
        raise SpecError(f"unknown batchnorm {name!r}; {suggest(name, [*options.BATCHNORM])}")
    for key in given:
        allowed = ["rule", "serve"] if name == "dual" else ["rule"]
        if key not in allowed:
            raise SpecError(f"batchnorm {name!r} has no parameter {key!r}; {suggest(key, allowed)}")
    if (serve := given.get("serve", "clean")) not in ("clean", "adversarial"):
        wrong = suggest(str(serve), ["clean", "adversarial"])
        raise SpecError(f"unknown batchnorm serve {serve!r}; {wrong}")
    aggregation.check(given.get("rule", "median"), n=e.clients)
