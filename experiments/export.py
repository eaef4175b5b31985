"""The final model for use elsewhere: a PyTorch state_dict, as safetensors or ``.pt``."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from fedrobust import data, models
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.vector import FlatModel
from fedrobust.version import __version__


def state_dict(
    experiment: Experiment, vector: Tensor, *, data_root: str | None = None
) -> dict[str, Tensor]:
    """Name the parts of a flat model (d,): parameters and buffers, each with memory of its own.

    Raises
    ------
    ValueError
        If the vector is not as long as the experiment's model.
    """
    dataset = data.load(experiment.data, root=data_root)
    model = FlatModel(models.build_for(experiment.model, dataset, seed=experiment.seed))
    if vector.shape != (model.d,):
        raise ValueError(f"{experiment.model} has {model.d} parameters, got {tuple(vector.shape)}")
    model.load(vector)
    return {k: v.detach().clone().contiguous() for k, v in model.module.state_dict().items()}


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
        told = {"experiment": json.dumps(experiment.to_dict()), "fedrobust": __version__}
        save_file(state, path, metadata=told)
    elif path.suffix == ".pt":
        torch.save(state, path)
    else:
        raise ConfigError([f"a model is written as .safetensors or .pt, got {path.name!r}"])
    return path
