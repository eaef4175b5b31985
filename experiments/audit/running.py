"""Run one cell in this process: the app's server against its clients, watched."""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.serverapp import Grid

from experiments.audit.application import Application
from experiments.audit.cell import CLEAN, FINISHED, GRID, RAISED, WRAPPER, Cell, Run
from experiments.audit.hooks import Seen, watch
from experiments.audit.recorder import CopyingGrid, Recorder, ask, is_finite
from fedrobust.flower import Attackers, RobustGrid, whole_rounds
from fedrobust.flower._compat import load_app
from fedrobust.flower.attackers import COLUMNS
from fedrobust.flower.in_process import new_context
from fedrobust.flower.model_replies import Refused, array_values
from fedrobust.flower.rule_spelling import read_spec

ARRAYS = "final.npz"
# Libraries that start no thread when they are imported. PyTorch's optimizers import torch._dynamo
# at their first use, which takes longer than the training of a small app.
SAFE = ("numpy", "scipy", "sklearn", "sklearn.datasets", "sklearn.linear_model", "pandas",
        "torchvision", "torch._dynamo")  # fmt: skip


class NotLoaded(RuntimeError):
    """An app whose modules cannot be imported."""


def run(application: Application, cell: Cell, folder: Path, scratch: Path) -> Run:
    """Run a cell; whatever the app raises is part of its outcome.

    Parameters
    ----------
    folder
        The copy of the app's folder to load it from: the working directory of the run.
    scratch
        Where the final arrays are written.
    """
    start = time.monotonic()
    _prepare(cell.seed)
    os.chdir(folder)
    stage: dict[str, Any] = {}
    try:
        status, error = FINISHED, ""
        if cell.engine == "flower":
            from experiments.audit.flower_engine import lead  # imports Ray

            lead(application, cell, folder, stage, lead_server)
        else:
            client = _load(application.client, folder)
            server = _load(application.server, folder)
            grid = CopyingGrid(client, clients=application.nodes, run_config=application.run_config)
            lead_server(server, grid, application, cell, stage)
    except (Exception, SystemExit) as raised:  # the app's own end, whatever it is
        status, error = RAISED, _told(raised)
        stage["loaded"] = not isinstance(raised, NotLoaded)
    seconds = time.monotonic() - start
    facts = {"loaded": stage.get("loaded", True)}
    if "recorder" in stage:
        facts |= _facts(stage, scratch)
    return Run(cell, status, error, round(seconds, 3), facts)


def lead_server(
    server: Any, grid: Grid, application: Application, cell: Cell, stage: dict[str, Any]
) -> None:
    """Let a ServerApp lead a grid, with the cell's attackers and defence between."""
    recorder = Recorder(grid)
    outer: Grid = recorder
    byzantine = tuple(sorted(grid.get_node_ids())[-cell.k :]) if cell.k else ()
    stage |= {"recorder": recorder, "byzantine": byzantine, "nodes": sorted(grid.get_node_ids())}
    if cell.attack != CLEAN:
        spec = read_spec(cell.attack, "attack")
        outer = stage["attackers"] = Attackers(outer, attack=spec, nodes=byzantine, seed=cell.seed)
    if cell.defence != CLEAN and cell.seam == GRID:
        outer = stage["robust"] = RobustGrid(outer, rule=cell.defence, seed=cell.seed)
    rule = cell.defence if cell.defence != CLEAN and cell.seam == WRAPPER else None
    stage["seen"] = watch(rule, cell.seed)
    context: Context = new_context(0, application.nodes, application.run_config)
    # A server app has no node's configuration: reading one has to fail here as it would there.
    context.node_config.clear()
    with whole_rounds():
        server(outer, context)
    stage["asked"] = _answers(stage)  # while the grid is there


def _load(reference: str, folder: Path) -> Any:
    try:
        return load_app(reference, NotLoaded, folder)
    except NotLoaded:
        raise
    except (Exception, SystemExit) as error:
        raise NotLoaded(_told(error)) from error


def _prepare(seed: int) -> None:
    sys.dont_write_bytecode = True
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the app's own draws, not ours
    torch.manual_seed(seed)
    torch.set_num_threads(1)


def _told(error: BaseException) -> str:
    """Name an error and the last line of the app's own code that it came through."""
    text = str(error) if isinstance(error, NotLoaded) else f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(os.getcwd() + os.sep)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{text[:600]}{place}"


def _answers(stage: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Ask the honest nodes to evaluate the final model, and the one before training."""
    recorder, seen = stage["recorder"], stage["seen"]
    question = _question(recorder, _final_arrays(seen))
    if recorder.secure or question is None or recorder.first_train is None:
        return {}
    honest = [node for node in stage["nodes"] if node not in stage["byzantine"]]
    told = ask(recorder.inner, question, honest)
    return {"last": told, "first": ask(recorder.inner, recorder.first_train, honest)}


def _facts(stage: dict[str, Any], scratch: Path) -> dict[str, Any]:
    recorder, seen = stage["recorder"], stage.get("seen", Seen())
    facts = recorder.facts(stage["byzantine"])
    final = _final_arrays(seen)
    sent = _last_sent(recorder)
    held = _plain(final) if final else _plain(_arrays_in(sent))
    np.savez(scratch / ARRAYS, **held)  # type: ignore[arg-type]
    attackers, robust = stage.get("attackers"), stage.get("robust")
    refused = [r.history for r in (robust, *seen.robust) if r is not None]
    legacy = bool(seen.histories) or "fitins.parameters" in (sent or {})
    return facts | {
        "loaded": True,
        "strategies": seen.strategies,
        "legacy": legacy,
        "final": "result" if final else ("last message" if sent else "none"),
        "arrays_finite": all(np.isfinite(v).all() for v in held.values() if v.dtype.kind == "f"),
        "replaced": attackers.replaced if attackers else 0,
        "untouched": _first(attackers.history[COLUMNS[-1]]) if attackers else "",
        "refused": int(sum((~h.accepted.astype(bool)).sum() for h in refused)),
        "refused_honest": _refused_honest(refused, stage["byzantine"]),
        "defended": bool(seen.robust) or (robust is not None and len(robust.history) > 0),
        "server": _server_metrics(seen),
        "asked": stage.get("asked", {}).get("last", {}),
        "asked_first": stage.get("asked", {}).get("first", {}),
        "modules": [name for name in SAFE if name in sys.modules],
    }


def _first(reasons: Any) -> str:
    told = [reason for reason in reasons if reason]
    return str(told[0])[:200] if told else ""


def _refused_honest(histories: list[Any], byzantine: tuple[int, ...]) -> str:
    """Return why an honest node's reply was refused, if one was."""
    for history in histories:
        rows = history[~history.accepted.astype(bool) & ~history.node.isin(byzantine)]
        if len(rows):
            return str(rows.reason.iloc[0])[:200]
    return ""


def _final_arrays(seen: Seen) -> ArrayRecord | None:
    return next((r.arrays for r in reversed(seen.results) if r.arrays), None)


def _last_sent(recorder: Recorder) -> RecordDict | None:
    """Return the content that carried the newest model to the nodes."""
    for kind in ("evaluate", "train"):
        for name, content in reversed(recorder.last.items()):
            if name.split(".")[0] == kind and any(content.array_records.values()):
                return content
    return None


def _arrays_in(content: RecordDict | None) -> ArrayRecord | None:
    return next((r for r in content.array_records.values() if r), None) if content else None


def _plain(record: ArrayRecord | None) -> dict[str, np.ndarray]:
    held = {}
    for i, array in enumerate((record or ArrayRecord()).values()):
        try:
            held[str(i)] = np.asarray(array_values(array))
        except Refused:
            continue
    return held


def _question(recorder: Recorder, final: ArrayRecord | None) -> RecordDict | None:
    """Return an evaluation of the final model, in the form that the app's nodes know."""
    form = _last_sent(recorder)
    if form is None:
        return None
    content = RecordDict()
    for name, held in form.items():
        content[name] = ConfigRecord(dict(held)) if isinstance(held, ConfigRecord) else held
    if final is not None:
        names = [name for name, record in form.array_records.items() if record]
        same = [n for n in names if set(form.array_records[n]) == set(final)]
        content[(same or names)[0]] = final
    return content if is_finite(content) else None


def _server_metrics(seen: Seen) -> list[dict[str, float]]:
    """Return what the server's own evaluation says, by round from 0."""
    for result in reversed(seen.results):
        if result.evaluate_metrics_serverapp:
            rounds = sorted(result.evaluate_metrics_serverapp.items())
            return [
                {"round": r, **{k: float(v) for k, v in told.items() if isinstance(v, int | float)}}
                for r, told in rounds
            ]
    for history in reversed(seen.histories):
        table: dict[int, dict[str, float]] = {}
        for r, loss in history.losses_centralized:
            table.setdefault(r, {})["loss"] = float(loss)
        for name, told in history.metrics_centralized.items():
            for r, value in told:
                if isinstance(value, int | float):
                    table.setdefault(r, {})[name] = float(value)
        if table:
            return [{"round": r, **table[r]} for r in sorted(table)]
    return []
