"""What the settings of an experiment ask of its data: checked before the start, with the data."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fedrobust import attacks, data, models
from fedrobust.attacks import POISONS, TRAINED, threat_model
from fedrobust.attacks.poison_checks import Victim, check_poison
from fedrobust.data import DataError, Dataset
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.spec import SpecError, split

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
    cuts: dict[tuple[str, str, int, int], Shares] = {}
    errors: dict[str, None] = {}
    for e in experiments:
        if e.data not in sets:
            sets[e.data] = data.load(e.data, root=data_root, download=download)
        key = (e.data, str(e.partition), e.clients, e.seed)
        if key not in cuts:
            cuts[key] = _cut(e, sets[e.data])
        errors |= dict.fromkeys(wrong(e, sets[e.data], cuts[key]))
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
    try:
        _attack(experiment, dataset, shares)
    except SpecError as error:
        errors.append(str(error))
    return errors


def _attack(e: Experiment, dataset: Dataset, shares: Shares) -> None:
    name, given = split(e.attack)
    if name in POISONS or name in TRAINED:
        check_poison(attacks.knowledge(e.attack)[0], _victim(e, dataset, shares))
    if (coordinate := given.get("coordinate")) is not None:
        model = models.build_for(e.model, dataset, seed=e.seed)
        d = sum(p.numel() for p in model.parameters())
        if coordinate >= d:
            raise SpecError(
                f"{name} needs a coordinate below the {d} of {e.model!r}, got {coordinate}"
            )


def _victim(e: Experiment, dataset: Dataset, shares: Shares) -> Victim:
    """Describe the attackers' data: of all rounds, where the adversary moves on."""
    rounds = range(1, e.rounds + 1) if e.placement["name"] == "window" else (1,)
    attackers = {c for turn in rounds for c in threat_model.members(e, round=turn)}
    fewest = min((len(shares[client]) for client in attackers), default=len(dataset.train_labels))
    return Victim(dataset.classes, min(dataset.shape[1:]), fewest)


def _cut(e: Experiment, dataset: Dataset) -> Shares:
    """Cut a partition; what its partitioner does not expect is a wrong setting too."""
    try:
        return data.partition(dataset.train_labels, e.partition, clients=e.clients, seed=e.seed)
    except DataError:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise ConfigError(
            [f"partition {e.partition['name']!r} over {e.clients} clients: {error}"]
        ) from error
