"""The final model for use elsewhere: a PyTorch state_dict, as safetensors or ``.pt``."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedrobust import data, models
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.models.batchnorm import load_statistics
from fedrobust.plugins import installed
from fedrobust.vector import FlatModel
from fedrobust.version import __version__


def state_dict(
    experiment: Experiment,
    vector: Tensor,
    *,
    statistics: Tensor | None = None,
    data_root: str | None = None,
) -> dict[str, Tensor]:
    """Name the parts of a flat model (d,): parameters and buffers, each with memory of its own.

    Parameters
    ----------
    statistics
        The running statistics (b,) of BatchNorm that belong to it; None leaves the initial ones,
        and is right only for models without BatchNorm.

    Raises
    ------
    ValueError
        If the vector or the statistics are not as long as the experiment's model has them.
    """
    dataset = data.load(experiment.data, root=data_root)
    module = models.build_for(experiment.model, dataset, seed=experiment.seed)
    model = FlatModel(models.with_policy(module, experiment.batchnorm))
    if vector.shape != (model.d,):
        raise ValueError(f"{experiment.model} has {model.d} parameters, got {tuple(vector.shape)}")
    model.load(vector)
    if statistics is not None:
        load_statistics(model.module, statistics)
    # Cloned: parameters are views of one vector, and safetensors refuses memory that is shared.
    return {k: v.detach().clone().contiguous() for k, v in model.module.state_dict().items()}


def of_run(results: Any, run: int, *, data_root: str | None = None) -> dict[str, Tensor]:
    """Return the final model of one run of ``Results``; see ``Results.state_dict``."""
    if not results.models:
        raise ConfigError(["no models were kept: simulate(..., keep_models=True)"])
    running = results.running[run] if results.running else None
    experiment, vector = results.runs[run][0], results.models[run]
    with ExitStack() as stack:
        for part in results.parts:
            stack.enter_context(installed(part))
        return state_dict(experiment, vector, statistics=running, data_root=data_root)


def write(path: Path, experiment: Experiment, state: dict[str, Tensor]) -> Path:
    """Write a state_dict; the suffix says how: ``.safetensors`` (with the experiment) or ``.pt``.

    Raises
    ------
    ConfigError
        For another suffix, or if safetensors is not installed.
    """
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import save_file
        except ImportError as error:
            raise ConfigError(["needs safetensors: pip install 'fedrobust[export]'"]) from error
        # The metadata of safetensors are texts alone.
        told = {"experiment": json.dumps(experiment.to_dict()), "fedrobust": __version__}
        save_file(state, path, metadata=told)
    elif path.suffix == ".pt":
        torch.save(state, path)
    else:
        raise ConfigError([f"a model is written as .safetensors or .pt, got {path.name!r}"])
    return path
