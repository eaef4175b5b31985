"""What an experiment asks for by name, and what there is of it here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from fedrobust import data, models
from fedrobust.data.given import digest_of
from fedrobust.plugins.files import in_files
from fedrobust.plugins.kinds import KINDS, PlugInError
from fedrobust.plugins.packages import offered
from fedrobust.plugins.room import ROOM


def provide(document: Mapping[str, Any]) -> None:
    """Put in what an experiment asks for by name and no table holds, where somebody offers it.

    What nobody offers is left to the checks, which say what there is.

    Raises
    ------
    PlugInError
        If what is offered cannot be loaded.
    """
    for kind, name in asked(document):
        if name in KINDS[kind].table or (kind, name) in ROOM.parts:
            continue
        part = in_files(kind, name) or offered(kind, name)
        if part is not None:
            ROOM.put(part)


def lacking(document: Mapping[str, Any]) -> list[str]:
    """Name what an experiment asks for and nobody here offers: ``the model 'net'``."""
    provide(document)
    missing = [
        pair for pair in dict.fromkeys(asked(document)) if pair[1] not in KINDS[pair[0]].table
    ]
    return [f"the {kind} {name!r}" for kind, name in missing]


def names_in(path: str | Path, kind: str) -> set[str]:
    """Return the names of one kind that have come from a file so far."""
    name = Path(path).expanduser().resolve().name
    return {n for (k, n), (part, _) in ROOM.parts.items() if k == kind and part.origin == name}


def asked(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the kinds and names of plug-ins that an experiment's document asks for."""
    ensemble, transfer = document.get("ensemble"), document.get("transfer")
    places = [
        ("model", document.get("model")),
        ("data", document.get("data")),
        ("loss", document.get("loss")),
        ("partition", document.get("partition")),
        ("attack", document.get("attack")),
    ]
    places += [("metric", one) for one in _listed(document.get("metrics"))]
    for name in _names(document.get("rule")):
        places += [("rule", one) for one in name.split("+")]
    if isinstance(ensemble, Mapping):
        places += [("model", one) for one in _listed(ensemble.get("architectures"))]
    if isinstance(transfer, Mapping):
        places += [("model", one) for one in _listed(transfer.get("surrogates"))]
    return [(kind, name) for kind, value in places for name in _names(value)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _names(value: Any) -> list[str]:
    """Return the name in a spec, if there is one."""
    name = value.get("name") if isinstance(value, Mapping) else value
    # A rule may be text with its settings behind it: "krum:f=2".
    return [name.partition(":")[0].strip()] if isinstance(name, str) else []


def identities(document: Mapping[str, Any], *, root: str | None = None) -> dict[str, str]:
    """Return "kind name" -> origin and digest of each plug-in of others that an experiment uses.

    Of a data set the digest of its examples goes with it, of a model that of the names, shapes and
    types of its parameters: what a run that continues must find again.
    """
    found = {}
    for kind, name in dict.fromkeys(asked(document)):
        if (kind, name) not in ROOM.parts:
            continue
        told = ROOM.parts[kind, name][0].told
        if kind == "data":
            told += f" {digest_of(data.load(name, root=root))}"
        elif kind == "model":
            told += f" {_layout(name, data.load(str(document['data']), root=root))}"
        found[f"{kind} {name}"] = told
    return found


def _layout(name: str, dataset: data.Dataset) -> str:
    """Return the digest of a model's state: names, shapes and types, no values."""
    state = models.build_for(name, dataset, seed=0).state_dict()
    lines = [f"{key} {value.dtype} {tuple(value.shape)}" for key, value in state.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def value_digest(kind: str, value: Any) -> str:
    """Return the digest of what an object holds: a module's parameters, a data set's examples."""
    if isinstance(value, data.Dataset):
        return digest_of(value)
    if kind == "model" and isinstance(value, nn.Module):
        if any(isinstance(p, UninitializedParameter) for p in value.parameters()):
            raise PlugInError(
                f"the model {type(value).__name__} has lazy layers: run one batch through it first"
            )
        # With its layers in words: parameters alone do not tell one activation from another.
        found = hashlib.sha256(repr(value).encode())
        for key, tensor in value.state_dict().items():
            found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).numpy().tobytes())
        return found.hexdigest()[:12]
    return ""
