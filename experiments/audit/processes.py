"""Run cells in processes of their own, several at a time, each under a time limit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from experiments.audit.application import Application, copy
from experiments.audit.cell import EXITED, HUNG, Cell, Run
from experiments.audit.host import OUTPUT, RESULT
from experiments.audit.running import ARRAYS

ROOT = Path(__file__).parents[2]
TAIL = 400  # characters of a cell's output that are kept where its process ended by itself
ENVIRONMENT = {
    "MPLBACKEND": "Agg",  # no windows
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # nothing is written beside the app's sources
    # One thread: several cells run at once, and a host with threads could not be forked.
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "NUMBA_THREADING_LAYER": "workqueue",  # the layer that may be forked
}


class Cells:
    """Processes for the cells of one audit; a context manager.

    Parameters
    ----------
    application
        The app.
    limit
        Seconds that a cell may take.
    workers
        Cells at a time; None is one a core.
    use
        Files with rules and attacks of the user's, for ``plugins.use`` in every cell.
    """

    def __init__(
        self,
        application: Application,
        *,
        limit: float,
        workers: int | None = None,
        use: Sequence[str] = (),
    ) -> None:
        self.application, self.limit = application, limit
        self.use = [str(Path(file).expanduser().resolve()) for file in use]
        # The cores that this process may use: in a container they are fewer than the machine's.
        self.workers = workers or len(os.sched_getaffinity(0))
        self._scratch = Path(tempfile.mkdtemp(prefix="fedrobust-audit-"))
        self._known: dict[Cell, Run] = {}
        self._numbers = count(1)
        self.arrays: dict[Cell, dict[str, np.ndarray]] = {}
        environment = {**os.environ, **ENVIRONMENT}
        # The host starts in another folder, and has to find this project all the same.
        path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        self._host = subprocess.Popen(
            [sys.executable, "-m", "experiments.audit.host"],
            cwd=self._scratch, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, bufsize=1,
        )  # fmt: skip

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *_: object) -> None:
        """End the host, which ends its cells, and remove what they wrote."""
        assert self._host.stdin is not None
        self._host.terminate()
        self._host.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def switch(self, application: Application) -> None:
        """Go on with another app, in the same processes' host."""
        self.application = application
        self._known.clear()
        self.arrays.clear()

    def warm(self, modules: Iterable[str], rules: Iterable[str] = ()) -> None:
        """Let the host import what the app imports, where that is safe, so that cells need not."""
        self._tell({"warm": list(modules), "rules": list(rules)})

    def run(
        self, cells: Iterable[Cell], on_run: Callable[[Run], None] = lambda run: None
    ) -> dict[Cell, Run]:
        """Run cells that have not run yet; return all that were asked for.

        Raises
        ------
        RuntimeError
            If the processes' host is gone.
        """
        wanted = list(dict.fromkeys(cells))
        waiting = [cell for cell in wanted if cell not in self._known]
        started: dict[int, tuple[Cell, Path, float]] = {}
        while waiting or started:
            while waiting and len(started) < self.workers:
                cell, number = waiting.pop(0), next(self._numbers)
                started[number] = (cell, self._order(number, cell), time.monotonic())
            answer = self._answer()
            cell, scratch, begun = started.pop(answer["id"])
            run = self._collected(cell, scratch, answer, time.monotonic() - begun)
            self._known[cell] = run
            on_run(run)
        return {cell: self._known[cell] for cell in wanted}

    def _order(self, number: int, cell: Cell) -> Path:
        scratch = self._scratch / str(number)
        scratch.mkdir()
        folder = copy(self.application.folder, scratch / "app")
        application = {**asdict(self.application), "folder": str(self.application.folder)}
        self._tell({
            "id": number, "application": application, "cell": asdict(cell), "folder": str(folder),
            "scratch": str(scratch), "limit": self.limit, "use": self.use,
        })  # fmt: skip
        return scratch

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._host.stdin is not None
        try:
            self._host.stdin.write(json.dumps(order) + "\n")
            self._host.stdin.flush()
        except BrokenPipeError as error:
            raise RuntimeError("the audit's process host is gone") from error

    def _answer(self) -> dict[str, Any]:
        assert self._host.stdout is not None
        line = self._host.stdout.readline()
        if not line:
            raise RuntimeError("the audit's process host is gone")
        return dict(json.loads(line))

    def _collected(self, cell: Cell, scratch: Path, answer: dict[str, Any], seconds: float) -> Run:
        """Read what a cell left; its folder goes."""
        result = scratch / RESULT
        if answer["hung"]:
            run = Run(cell, HUNG, f"no end within {self.limit:.0f} s", round(seconds, 3))
        elif result.is_file():
            run = Run.from_table(json.loads(result.read_text()))
        else:
            output = scratch / OUTPUT
            said = output.read_text(errors="replace")[-TAIL:] if output.is_file() else ""
            error = f"the process ended by itself, code {answer['code']}: {said}"
            run = Run(cell, EXITED, error, round(seconds, 3))
        if (scratch / ARRAYS).is_file():
            with np.load(scratch / ARRAYS, allow_pickle=False) as held:
                self.arrays[cell] = {name: held[name] for name in held.files}
        shutil.rmtree(scratch, ignore_errors=True)
        return run
