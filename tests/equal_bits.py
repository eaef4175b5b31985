"""Four experiments that amplify rounding, and calls that must not change their numbers.

``python tests/equal_bits.py NAME ...`` runs the named ones in a fresh process, in this order, and
prints one JSON object: name -> outcome. With ``--fork`` they run in a child that is forked after
every compiled rule was called.
"""

import hashlib
import json
import os
import random
import sys

import numba
import numpy as np
import threadpoolctl
import torch

from experiments.benchmarks.kills import BASE
from experiments.benchmarks.rules import spec_of
from experiments.simulation import run_one
from fedrobust.aggregation import PREAGGREGATORS, RULES, aggregate, preaggregate
from fedrobust.experiment.load import from_dict
from fedrobust.flower import tensor_of
from fedrobust.redundancy import distortion
from fedrobust.runs import folder
from fedrobust.training import quantize
from strategies.session import run

FEDERATED = BASE | {"rounds": 4}
ENSEMBLE = {
    "data": "fashionmnist-sample", "model": "mlp", "clients": 3, "rounds": 1, "seed": 4,
    "byzantine": 0, "attack": "none", "rule": "median",
    "ensemble": {
        "paradigm": "same", "train_images": 300, "test_images": 200, "batch_size": 32,
        "architectures": ["linear", "mlp", "small_wide"], "votes": ["soft", "robust"],
    },
    "transfer": {
        "attacks": ["mi_fgsm"], "surrogates": ["linear"], "epochs": 1, "images": 30, "steps": 2,
        "data": "share", "parts": 4,
    },
}  # fmt: skip
CASES = {
    # Weights follow from cosines that are nearly equal.
    "foolsgold": FEDERATED | {"rule": "foolsgold"},
    # Attackers who send the last aggregate and a trace of noise have nearly equal scores.
    "krum": FEDERATED | {
        "rule": {"name": "krum", "f": 4}, "byzantine": 4,
        "attack": {"name": "free_rider", "std": 1e-7},
    },
    "redundancy": FEDERATED | {
        "clients": 7, "byzantine": 2, "attack": "alie", "rule": "median", "rounds": 2,
        "training": {"mode": "gradient"}, "redundancy": {"name": "aspis", "batch": 700},
    },
    "ensemble": ENSEMBLE,
}  # fmt: skip


def experiment(name, **changes):
    return from_dict(CASES[name] | changes)


def outcome(name, on_row=lambda row: None):
    """Return a run's rows without their times, and the bits of its final model."""
    models = []
    e = experiment(name)
    # An ensemble's models stay with its nodes.
    keep = None if e.mode == "ensemble" else lambda model, _: models.append(model)
    rows = run_one(e, on_row=on_row, on_model=keep)
    return {"rows": timeless(rows), "model": bits(*models)}


def over(grid, name):
    """Return the outcome of a run over another grid."""
    rows = []
    final = run(grid, experiment(name), on_row=rows.append)
    models = [tensor_of(final["model"])] if "model" in final else []
    return {"rows": timeless(rows), "model": bits(*models)}


def timeless(rows):
    return json.loads(
        json.dumps(folder.timeless(rows))
    )  # as a row is read from a file: keys are text


def bits(*models):
    return [hashlib.sha256(model.numpy().tobytes()).hexdigest() for model in models]


def updates():
    """A matrix that two threads share in every compiled kernel."""
    return torch.randn(20, 40_000, generator=torch.Generator().manual_seed(1))


def every_rule():
    matrix = updates()
    for name in RULES:
        rows = matrix[:, :500] if name in ("mda", "smea") else matrix  # these search subsets
        aggregate(rows, spec_of(name, rows))


def every_preaggregator():
    matrix = updates()
    for name in PREAGGREGATORS:
        preaggregate(matrix, spec_of(name, matrix))


def other_compiled_loops():
    source = torch.Generator().manual_seed(1)
    quantize(updates()[0], generator=source).dequantize()
    distortion("byzshield_mols", workers=15, replication=3, q=3)


@numba.njit(parallel=True)
def total(x):
    result = 0.0
    for i in numba.prange(len(x)):
        result += x[i]
    return result


def numbas_own_threads():
    """What a user's own parallel loop does: it sets OpenMP's limit, torch's with it."""
    total(np.ones(1000))


def limits_left(count):
    threadpoolctl.threadpool_limits(count)


def global_seeds():
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    torch.rand(3)


def another_model():
    run_one(from_dict(FEDERATED | {"model": "linear", "clients": 5, "byzantine": 1}))


class Stopped(Exception):
    """The run is stopped here."""


def a_run_that_stopped():
    def stop(row):
        raise Stopped

    try:
        run_one(experiment("foolsgold", seed=9), on_row=stop)
    except Stopped:
        return
    raise AssertionError("the run was not stopped")


def products_of_many_threads():
    torch.set_num_threads(8)
    matrix = updates()
    (matrix @ matrix.T).sum()
    torch.linalg.svdvals(matrix[:, :300])


POLLUTIONS = {
    "every rule": every_rule,
    "every pre-aggregator": every_preaggregator,
    "quantiser and search": other_compiled_loops,
    "numba's own threads": numbas_own_threads,
    "torch on 2 threads": lambda: torch.set_num_threads(2),
    "products on 8 threads": products_of_many_threads,
    "all limits at 1": lambda: limits_left(1),
    "all limits at 2": lambda: limits_left(2),
    "numba on 1 thread": lambda: numba.set_num_threads(1),
    "global seeds": global_seeds,
    "the same run, another seed": lambda: run_one(experiment("foolsgold", seed=8)),
    "another model": another_model,
    "a run that stopped": a_run_that_stopped,
}


def forked(names):
    """Run in a child that is forked after every rule: numba's own threads would end it."""
    every_rule()
    here, there = os.pipe()
    child = os.fork()
    if not child:
        with os.fdopen(there, "w") as pipe:
            json.dump({name: outcome(name) for name in names}, pipe)
        os._exit(0)
    os.close(there)
    with os.fdopen(here) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(text)


if __name__ == "__main__":
    asked = [name for name in sys.argv[1:] if name != "--fork"]
    found = forked(asked) if "--fork" in sys.argv else {name: outcome(name) for name in asked}
    print(json.dumps(found))
