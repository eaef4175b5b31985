"""ByzFL (0.0.11): its class names as our specs, its JSON benchmark files as our experiments.

The rules, pre-aggregators and attacks named here give ByzFL's numbers (``byzfl_values.json`` holds
some, computed by ByzFL itself), except where randomness is in play: ``Bucketing`` and ``Gaussian``
draw otherwise, ``CAF`` and ``SMEA`` take one power iteration from a random vector there and the
eigenvector here, and the optimal attacks search another grid of values.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedrobust.experiment.schema import ConfigError
from fedrobust.spec import suggest

Spec = dict[str, Any]
Settings = Mapping[str, Any]


def _with_f(name: str, **fixed: Any) -> Callable[[Settings], Spec]:
    return lambda given: {"name": name, "f": given.get("f", 0), **fixed}


RULES: dict[str, Callable[[Settings], Spec]] = {
    "Average": lambda given: {"name": "mean"},
    "Median": lambda given: {"name": "median"},
    "TrMean": _with_f("trimmed_mean"),
    "GeometricMedian": lambda given: {
        "name": "rfa",
        "iterations": given.get("T", 3),
        "nu": given.get("nu", 0.1),
        # As there: after T steps another start has other numbers.
        "start": "zero",
    },
    "Krum": _with_f("krum", variant="byzfl"),
    "MultiKrum": _with_f("multi_krum", variant="byzfl"),
    "CenteredClipping": lambda given: {
        "name": "centered_clipping",
        "tau": given.get("tau", 100.0),
        "iterations": given.get("L", 1),
    },
    "MDA": _with_f("mda"),
    "Meamed": _with_f("meamed"),
    "CAF": _with_f("caf"),
    "SMEA": _with_f("smea"),
}
PREAGGREGATORS: dict[str, Callable[[Settings], Spec]] = {
    "NNM": _with_f("nnm"),
    "ARC": _with_f("arc"),
    "Clipping": lambda given: {"name": "clip", "bound": given.get("c", 2.0)},
    "Bucketing": lambda given: {"name": "bucketing", "size": given.get("s", 1)},
}
EVERYTHING = {"knowledge": "omniscient"}  # ByzFL's attacks see every honest vector
ATTACKS: dict[str, Callable[[Settings], Spec]] = {
    # Minus the mean of all honest vectors, which is IPM at 1.
    "SignFlipping": lambda given: {"name": "ipm", "epsilon": 1.0, **EVERYTHING},
    "InnerProductManipulation": lambda given: {
        "name": "ipm",
        "epsilon": given.get("tau", 2.0),
        **EVERYTHING,
    },
    "ALittleIsEnough": lambda given: {
        "name": "alie",
        "z": given.get("tau", 1.5),
        "sign": 1,
        # Its standard deviation divides by n - 1.
        "ddof": 1,
        **EVERYTHING,
    },
    "Optimal_InnerProductManipulation": lambda given: {
        "name": "opt_ipm",
        "evaluations": given.get("evals", 20),
    },
    "Optimal_ALittleIsEnough": lambda given: {
        "name": "opt_alie",
        "sign": 1,
        "ddof": 1,
        "evaluations": given.get("evals", 20),
    },
    "Mimic": lambda given: {"name": "mimic", "target": given.get("epsilon", 0)},
    "Inf": lambda given: {"name": "inf"},
    "Gaussian": lambda given: {"name": "gaussian", "std": given.get("sigma", 1.0)},
    "LabelFlipping": lambda given: {"name": "label_flip"},
}
PARTITIONS: dict[str, Callable[[Any], Spec]] = {
    "iid": lambda value: {"name": "iid"},
    "dirichlet_niid": lambda value: {"name": "dirichlet", "alpha": float(value)},
    "gamma_similarity_niid": lambda value: {"name": "similarity", "gamma": float(value)},
    "extreme_niid": lambda value: {"name": "similarity", "gamma": 0.0},
}
MODELS = {"cnn_mnist": "cnn", "cnn_cifar": "cnn", "fc_mnist": "mlp", "logreg_mnist": "linear"}
WHOLE = ("pre_aggregators", "milestones")  # lists that are one value, not a choice


def rule(name: str, **parameters: Any) -> Spec:
    """Return our spec of a ByzFL aggregator: ``rule("Krum", f=2)``.

    Raises
    ------
    ConfigError
        For a name that ByzFL does not have, or that has no counterpart here.
    """
    return _mapped(RULES, name, parameters, "aggregator")


def preaggregator(name: str, **parameters: Any) -> Spec:
    """Return our spec of a ByzFL pre-aggregator; raises as ``rule``."""
    return _mapped(PREAGGREGATORS, name, parameters, "pre-aggregator")


def attack(name: str, **parameters: Any) -> Spec:
    """Return our spec of a ByzFL attack; raises as ``rule``."""
    return _mapped(ATTACKS, name, parameters, "attack")


def read(path: Path) -> list[dict[str, Any]]:
    """Read a ByzFL benchmark file as our configurations, one a combination and seed.

    Names of architectures map to ours of that kind, not to equal layers; its data seeds are our
    seeds; there the Byzantine clients hold no data, here every client holds a share.

    Raises
    ------
    ConfigError
        If the file cannot be read, or asks for what has no counterpart here.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot read {str(path)!r}: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigError([f"malformed JSON in {str(path)!r}: {error}"]) from error
    missing = [
        k for k in ("benchmark_config", "model", "aggregator", "attack") if k not in document
    ]
    if missing:
        raise ConfigError([f"{str(path)!r} is no ByzFL file: it has no {', '.join(missing)}"])
    return documents(document)


def documents(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Expand a ByzFL configuration as ByzFL does: every list is a choice, but chains stay whole."""
    found: list[dict[str, Any]] = []
    for setting in _combinations(document):
        bench = setting["benchmark_config"]
        if bench.get("tolerated_f", bench["f"]) < bench["f"]:
            continue  # ByzFL drops these too
        found += [_experiment(setting, seed) for seed in range(bench.get("nb_training_seeds", 1))]
    return found


def _experiment(setting: Mapping[str, Any], repeat: int) -> dict[str, Any]:
    """Write one combination in our words."""
    bench, model, honest = (setting[k] for k in ("benchmark_config", "model", "honest_clients"))
    _refuse_what_has_no_counterpart(bench, model)
    f = bench["f"]
    known = {"f": bench.get("tolerated_f", f)}
    clients = bench.get("nb_honest_clients", 10)
    if not bench.get("set_honest_clients_as_clients", False):
        clients += f
    algorithm = bench.get("training_algorithm", {"name": "DSGD"})
    spread = bench["data_distribution"]
    return {
        "data": model["dataset_name"],
        "model": MODELS.get(model["name"], model["name"]),
        "clients": clients,
        "byzantine": f,
        "rounds": bench["nb_steps"],
        "seed": bench.get("training_seed", 0) + repeat,
        "rule": rule(setting["aggregator"]["name"], **_settings(setting["aggregator"]), **known),
        "pre": [
            preaggregator(p["name"], **_settings(p), **known)
            for p in setting.get("pre_aggregators", [])
        ],
        "attack": attack(setting["attack"]["name"], **_settings(setting["attack"])),
        "partition": _mapped(
            PARTITIONS, spread["name"], spread.get("distribution_parameter"), "data distribution"
        ),
        "worker_momentum": honest.get("momentum", 0.0),
        "training": _training(algorithm, honest),
        "server": {
            "lr": model["learning_rate"],
            "momentum": 0.0,
            "evaluate_every": setting.get("evaluation_and_results", {}).get("evaluation_delta", 50),
        },
    }


def _training(algorithm: Mapping[str, Any], honest: Mapping[str, Any]) -> dict[str, Any]:
    shared = {
        "batch_size": honest["batch_size"],
        "weight_decay": float(honest.get("weight_decay", 0.0)),
    }
    if algorithm["name"] == "DSGD":
        return {"mode": "gradient", **shared}
    return {"mode": "update", "steps": algorithm["parameters"]["local_steps_per_client"], **shared}


def _refuse_what_has_no_counterpart(bench: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    share = bench.get("training_algorithm", {}).get("parameters", {})
    wrong = []
    if model.get("milestones") and model.get("learning_rate_decay", 1.0) != 1.0:
        wrong.append("model.milestones: the server's learning rate is constant here")
    if share.get("proportion_selected_clients", 1.0) != 1.0:
        wrong.append("proportion_selected_clients: every client takes part in every round here")
    if wrong:
        raise ConfigError(wrong)


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.get("parameters", {}).items() if k != "f"}


def _mapped(table: Mapping[str, Callable[[Any], Spec]], name: str, given: Any, kind: str) -> Spec:
    if name not in table:
        hint = suggest(name, list(table))
        raise ConfigError([f"no counterpart of ByzFL's {kind} {name!r}; {hint}"])
    return table[name](given)


def _combinations(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every choice of one value from each list, to any depth."""
    choices = [list(_choices(key, value)) for key, value in table.items()]
    for values in itertools.product(*choices):
        # ``product`` hands the same tables out again and again: no two combinations may share one.
        yield dict(zip(table, copy.deepcopy(values), strict=True))


def _choices(key: str, value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from _combinations(value)
    elif isinstance(value, list) and value and (key not in WHOLE or isinstance(value[0], list)):
        for item in value:
            yield from _combinations(item) if isinstance(item, Mapping) else [item]
    else:
        yield value
