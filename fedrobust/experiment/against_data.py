"""What the settings of an experiment ask of its data: checked before the start, with the data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from fedrobust import attacks, data, models, plugins
from fedrobust.aggregation import rehearse as rehearse_rule
from fedrobust.aggregation import weighing
from fedrobust.attacks import POISONS, TRAINED, threat_model
from fedrobust.attacks.data import boosted
from fedrobust.attacks.poison_checks import Victim, check_poison
from fedrobust.data import DataError, Dataset
from fedrobust.ensemble.plan import nodes_of
from fedrobust.evaluation import outputs_of, pixels
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.spec import InputError, SpecError, split
from fedrobust.training.tasks import METRICS, classifies, loss_of, number
from fedrobust.vector import FlatModel, trainable

Shares = list[Tensor]


def check_against_data(
    experiments: Iterable[Experiment], *, data_root: str | None = None, download: bool = False
) -> None:
    """Load each data set and cut each partition once, and check every run against them.

    Raises
    ------
    DataError
        If a data set is not there, or a partition cannot be cut.
    ConfigError
        With every setting that the data do not bear, each once.
    """
    sets: dict[str, Dataset] = {}
    cuts: dict[tuple[str, str, int, int, float], Shares] = {}
    errors: dict[str, None] = {}
    for e in experiments:
        if e.data not in sets:
            sets[e.data] = data.load(e.data, root=data_root, download=download)
        dataset = data.set_aside(sets[e.data], e.server.validation, seed=e.seed)
        # A spec as text: a table is no key of another one.
        key = (e.data, str(e.partition), e.clients, e.seed, e.server.validation)
        if key not in cuts:
            cuts[key] = _cut(e, dataset)
        errors |= dict.fromkeys(wrong(e, dataset, cuts[key]))
    if errors:
        raise ConfigError(list(errors))


def wrong(experiment: Experiment, dataset: Dataset, shares: Shares) -> list[str]:
    """Return what the data set does not bear of one experiment's settings."""
    errors = []
    examples, scheme = len(dataset.train_labels), experiment.redundancy
    if scheme.name and scheme.batch > examples:
        errors.append(
            f"redundancy.batch needs at most the {examples} training images, got {scheme.batch}"
        )
    if (count := experiment.server.root_images) > examples:
        errors.append(
            f"server.root_images needs at most the {examples} training images, got {count}"
        )
    errors += _task(experiment, dataset)
    # What follows would stumble over the same settings, and say so in worse words.
    if errors:
        return errors
    try:
        _weights(experiment, shares)
        if experiment.adapters != models.adapters.FACTORS:
            models.form_of(
                experiment.adapters,
                models.build_for(experiment.model, dataset, seed=experiment.seed),
            )
        _attack(experiment, dataset, shares)
        if not (classifies(experiment.loss) and dataset.holds_images) or _foreign(experiment):
            for model in _models(experiment):
                rehearse(experiment, dataset, model)
    except InputError as error:
        errors.append(str(error))
    return errors


def _weights(e: Experiment, shares: Shares) -> None:
    """Check that the rule bears the sizes of the shares, where these are the clients' weights.

    Raises
    ------
    SpecError
        With the weight of the heaviest clients.
    """
    if e.weights["name"] != "attested" or "table" in e.weights or e.participation < 1:
        return
    table = {str(client): float(len(share)) for client, share in enumerate(shares)}
    weigh = weighing(e.weights | {"table": table}, rule=e.rule, pre=e.pre)
    given = weigh(range(e.clients), [None] * e.clients)
    rehearse_rule(e.rule, n=e.clients, pre=e.pre, weights=given)


def _task(e: Experiment, dataset: Dataset) -> list[str]:
    """Say what needs classes, or images, that the data have not."""
    errors, name = [], e.attack["name"]
    if e.mode == "ensemble" and not dataset.holds_classes:
        errors.append(f"an ensemble votes on one class an example, {e.data!r} has none")
    elif classifies(e.loss) and not dataset.holds_classes:
        labels = dataset.train_labels
        kind, shape = str(labels.dtype).removeprefix("torch."), ("N", *labels.shape[1:])
        others = "token_cross_entropy" if kind == "int64" else "mse, huber or binary_cross_entropy"
        errors.append(
            f"loss {e.loss['name']!r} needs one class an example, the targets of {e.data!r} are"
            f" {kind} of shape ({', '.join(map(str, shape))}): set loss to {others}, or one of"
            " your own"
        )
    if not dataset.holds_images:
        given = {
            "training.augment": e.training.augment != "none",
            "adversarial.perturbation": e.adversarial.perturbation,
            "adversarial.eps": e.adversarial.eps,
            "[pretrain]": e.pretrain.rounds,
            "[transfer]": e.transfer.attacks,
            f"attack {name!r}": (name in POISONS and name != "label_flip") or name in TRAINED,
        }
        what = f"images, {e.data!r} has inputs of shape {dataset.shape}"
        errors += [f"{key} needs {what}" for key, value in given.items() if value]
    return errors


def _foreign(e: Experiment) -> bool:
    """Whether the model, the data, the loss or a metric is a user's own."""
    return any(
        (kind, name) in plugins.ROOM.parts
        for kind, name in plugins.asked(e.to_dict())
        if kind in ("model", "data", "loss", "metric")
    )


def _models(e: Experiment) -> list[str]:
    """Return the networks that are trained: members of an ensemble may have several."""
    if e.mode != "ensemble":
        return [e.model]
    return list(dict.fromkeys(node.model for node in nodes_of(e)))


def rehearse(e: Experiment, dataset: Dataset, model: str) -> None:
    """Take one step of two examples with a model, the loss and the metrics, and forget it.

    Raises
    ------
    ConfigError
        If they do not fit one another; with what each was given.
    """
    module = models.build_for(model, dataset, seed=e.seed)
    if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
        raise ConfigError([f"model {model!r} has lazy layers: run one batch through it first"])
    try:
        FlatModel(module)
    except ValueError as error:
        raise ConfigError([f"model {model!r}: {error}"]) from error
    x, y = pixels(dataset.train_images[:2]), dataset.train_labels[:2]
    given = f"inputs {_shaped(x)}"
    with _told(f"model {model!r} does not take {given} of {e.data!r}"):
        outputs = outputs_of(module.eval(), dataset.train_images[:2])
    given = f"outputs {_shaped(outputs)} and targets {_shaped(y)}"
    with _told(f"loss {e.loss['name']!r} does not take {given}"), warnings.catch_warnings():
        warnings.filterwarnings("error", "Using a target size")  # (B, 1) against (B,): (B, B)
        value = loss_of(e.loss)(module, x, y)
        value.backward()  # a scalar, of a graph
    held = outputs.detach() if isinstance(outputs, Tensor) else outputs
    if any(METRICS[name].by_client for name in e.metrics):
        data.examples_of(e, dataset)
    for name in (name for name in e.metrics if not METRICS[name].by_client):
        with _told(f"metric {name!r} does not take {given}"):
            number(name, METRICS[name].compute(held, y))


def _shaped(value: Any) -> str:
    """Describe a tensor, or name another type."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


@contextmanager
def _told(sentence: str) -> Iterator[None]:
    """Turn whatever a user's model, loss or metric raises into a sentence."""
    try:
        yield
    except Exception as error:  # foreign code
        raise ConfigError([f"{sentence}: {type(error).__name__}: {error}"[:400]]) from error


def _attack(e: Experiment, dataset: Dataset, shares: Shares) -> None:
    name, given = split(e.attack)
    if name in POISONS or name in TRAINED:
        plain = e.attack if name in TRAINED else boosted(e.attack)[0]
        check_poison(attacks.knowledge(plain)[0], _victim(e, dataset, shares))
    if (coordinate := given.get("coordinate")) is not None:
        model = models.build_for(e.model, dataset, seed=e.seed)
        d = sum(p.numel() for p in trainable(model).values())
        if coordinate >= d:
            raise SpecError(
                f"{name} needs a coordinate below the {d} of {e.model!r}, got {coordinate}"
            )


def _victim(e: Experiment, dataset: Dataset, shares: Shares) -> Victim:
    """Describe the attackers' data: of all rounds, where the adversary moves on."""
    rounds = range(1, e.rounds + 1) if e.placement["name"] == "window" else (1,)
    attackers = {c for turn in rounds for c in threat_model.members(e, round=turn)}
    fewest = min((len(shares[client]) for client in attackers), default=len(dataset.train_labels))
    side = min(dataset.shape[1:]) if dataset.holds_images else 0  # of the attacks on images alone
    labels = dataset.train_labels
    held = [labels[shares[client]].unique().tolist() for client in attackers if labels.dim() == 1]
    return Victim(dataset.classes, side, fewest, frozenset().union(*held) if held else None)


def _cut(e: Experiment, dataset: Dataset) -> Shares:
    """Cut a partition; what its partitioner does not expect is a wrong setting too."""
    try:
        return data.cut(dataset, e.partition, clients=e.clients, seed=e.seed)
    except DataError:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise ConfigError(
            [f"partition {e.partition['name']!r} over {e.clients} clients: {error}"]
        ) from error
