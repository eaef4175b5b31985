"""What must hold before an experiment starts: names, ranges, and what the rules need."""

from __future__ import annotations

from collections.abc import Iterator

from fedrobust import adversarial, aggregation, attacks
from fedrobust.adversarial.rehearsal import rehearse
from fedrobust.attacks import threat_model
from fedrobust.data import DATASETS, PARTITIONERS
from fedrobust.data.partitions import SUPPLIED
from fedrobust.ensemble.validate import check_plan
from fedrobust.experiment.schema import Experiment
from fedrobust.experiment.settings import BATCHNORM, FINE_TUNING, OFF, SEMI, SIDES
from fedrobust.models import MODELS
from fedrobust.redundancy import rounds
from fedrobust.simulation import stragglers
from fedrobust.spec import SpecError, parameters, resolve, split, suggest
from fedrobust.training import SCHEDULES, SERVER_OPTIMIZERS
from fedrobust.training.compression import SCALES
from fedrobust.training.steps import SUPPLIED as STEP_SUPPLIED


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
    wrong = rounds.check(experiment)
    errors += wrong
    defence = () if wrong else (_defence,)  # what the rule aggregates depends on the scheme
    parts = (_partition, _placement, _attack, *defence, _adversarial, stragglers.check)
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
        *ranges(e),
    ]


def _partition(e: Experiment) -> None:
    resolve(PARTITIONERS, e.partition, kind="partition", supplied=SUPPLIED)


def _placement(e: Experiment) -> None:
    attacks.place(e.placement, clients=e.clients, byzantine=e.byzantine, seed=e.seed)


def _attack(e: Experiment) -> None:
    threat_model.check(e.attack, n=e.clients, f=e.byzantine)
    if e.redundancy.name:
        rounds.check_attack(e.attack["name"], threat_model.kind(e.attack["name"]))


def _defence(e: Experiment) -> None:
    aggregation.build(e.rule, pre=e.pre)
    if 0 <= e.byzantine < e.clients:
        operands = rounds.operands(e) if e.redundancy.name else stragglers.sample_size(e)
        aggregation.check(e.rule, n=operands, pre=e.pre)
        aggregation.rehearse(e.rule, n=operands, pre=e.pre)


def _adversarial(e: Experiment) -> None:
    resolve(adversarial.LOSSES, e.adversarial.loss, kind="loss")
    for spec in (e.adversarial.perturbation, e.pretrain.perturbation):
        if spec:
            table = adversarial.PERTURBATIONS
            resolve(table, spec, kind="perturbation", supplied=("generator", "start"))
            rehearse(spec, e.adversarial.loss)
    adversarial.evaluation_names(e.adversarial.eval_attacks)


def _server(e: Experiment) -> None:
    table = SERVER_OPTIMIZERS
    resolve(table, e.server.optimizer, kind="server optimizer", supplied=STEP_SUPPLIED)
    resolve(SCHEDULES, e.server.schedule, kind="schedule", supplied=("lr",))


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
    aggregation.check(given.get("rule", "median"), n=e.clients)


def ranges(e: Experiment) -> Iterator[tuple[bool, str]]:
    """Yield every condition on these tables with the sentence that says it."""
    c, s, p, f = e.compression, e.semi, e.pretrain, e.adversarial.federated
    yield c.bits == OFF or 2 <= c.bits <= 16, f"compression.bits needs 2..16 or 32, got {c.bits}"
    yield c.scale in SCALES, f"unknown compression.scale {c.scale!r}; {suggest(c.scale, [*SCALES])}"
    yield c.bucket >= 0, f"compression.bucket needs at least 0, got {c.bucket}"
    yield c.sides in SIDES, f"unknown compression.sides {c.sides!r}; {suggest(c.sides, [*SIDES])}"
    yield (
        not (c.replicas and e.participation < 1),
        "compression.sides = 'both' needs participation = 1",
    )
    yield s.mode in SEMI, f"unknown semi.mode {s.mode!r}; {suggest(s.mode, [*SEMI])}"
    yield 0 < s.labelled <= 1, f"semi.labelled needs (0, 1], got {s.labelled}"
    yield 0 <= s.fraction < 1, f"semi.fraction needs [0, 1), got {s.fraction}"
    yield s.teacher_rounds >= 0, f"semi.teacher_rounds needs at least 0, got {s.teacher_rounds}"
    yield (
        s.mode != "none" or (s.labelled == 1 and not s.fraction and not s.teacher_rounds),
        "semi.labelled, semi.fraction and semi.teacher_rounds need a semi.mode",
    )
    yield s.mode != "pseudo" or s.teacher_rounds > 0, "semi.mode = 'pseudo' needs teacher_rounds"
    yield (
        s.mode != "trades" or e.adversarial.loss["name"] in ("trades", "mart"),
        f"semi.mode = 'trades' needs the loss trades or mart, got {e.adversarial.loss['name']}",
    )
    yield p.rounds >= 0, f"pretrain.rounds needs at least 0, got {p.rounds}"
    wrong = suggest(p.finetune, [*FINE_TUNING])
    yield p.finetune in FINE_TUNING, f"unknown pretrain.finetune {p.finetune!r}; {wrong}"
    yield (
        p.rounds + s.teacher_rounds < e.rounds,
        f"pretrain.rounds + semi.teacher_rounds need to be below rounds = {e.rounds}, "
        f"got {p.rounds + s.teacher_rounds}",
    )
    share = f.adversarial_clients
    yield 0 <= share <= 1, f"adversarial.federated.adversarial_clients needs [0, 1], got {share}"
    yield (
        f.calibration >= 0,
        f"adversarial.federated.calibration needs at least 0, got {f.calibration}",
    )
    yield 0 <= f.slack < 1, f"adversarial.federated.slack needs [0, 1), got {f.slack}"
    top = f.slack_top
    yield 1 <= top <= e.clients, f"adversarial.federated.slack_top needs 1..{e.clients}, got {top}"
    yield (
        not f.slack or e.defence == "mean",
        "adversarial.federated.slack weighs by claimed losses: it needs the rule mean, got"
        f" {e.defence}",
    )
    yield (
        0 < f.epochs_gamma <= 1,
        f"adversarial.federated.epochs_gamma needs (0, 1], got {f.epochs_gamma}",
    )
    yield (
        f.epochs_every >= 1,
        f"adversarial.federated.epochs_every needs at least 1, got {f.epochs_every}",
    )
