"""Runs of a sweep that failed: the others go on, and at the end each is named with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fedrobust.experiment.schema import Experiment
from fedrobust.spec import InputError
from fedrobust.text import printable

OnRow = Callable[[Experiment, dict[str, Any]], None]


class Died(RuntimeError):
    """A run's process or worker died more than once, and no error says why."""


class FailedRunsError(InputError):
    """Some runs of a sweep failed; the others are finished.

    Attributes
    ----------
    experiments
        Those that failed.
    """

    exit_code = 1

    def __init__(self, failed: Sequence[tuple[Experiment, Exception]], runs: int) -> None:
        self.experiments = [experiment for experiment, _ in failed]
        lines = [f"{len(failed)} of {runs} runs failed, the others are finished and kept"]
        super().__init__("\n".join(lines + [_sentence(*one) for one in failed]))


@dataclass
class Failures:
    """What went wrong so far, run by run."""

    failed: list[tuple[Experiment, Exception]] = field(default_factory=list)

    def add(self, experiment: Experiment, error: Exception) -> None:
        """Remember a run that failed."""
        self.failed.append((experiment, error))

    @contextmanager
    def of(self, experiment: Experiment, *, but: Callable[[Exception], bool]) -> Iterator[None]:
        """Keep what the block raises as the failure of a run; not what ``but`` is true of."""
        try:
            yield
        except Exception as error:  # whatever ends a run is this run's alone
            if but(error):
                raise
            self.add(experiment, error)

    def settle(self, runs: Sequence[Experiment]) -> None:
        """Raise what failed among some runs; a single run's own error where there is no other.

        Raises
        ------
        FailedRunsError
            With every run that failed and its reason.
        """
        if not self.failed:
            return
        if len(runs) == 1:
            raise self.failed[0][1]
        ranked = sorted(self.failed, key=lambda one: runs.index(one[0]))
        raise FailedRunsError(ranked, len(runs)) from ranked[0][1]


class Listener:
    """Hands rows on, and knows which errors are its hearer's: these end a sweep."""

    def __init__(self, on_row: OnRow) -> None:
        self._on_row = on_row
        self._own: Exception | None = None

    def __call__(self, experiment: Experiment, row: dict[str, Any]) -> None:
        """Hand a row on."""
        try:
            self._on_row(experiment, row)
        except Exception as error:
            self._own = error
            raise

    def raised(self, error: Exception) -> bool:
        """Whether an error came from whoever hears the rows, not from a run."""
        return error is self._own


def _sentence(experiment: Experiment, error: Exception) -> str:
    told = printable(error, limit=500) or "no reason"
    name = f"{experiment.name} (seed {experiment.seed})"
    return f"{name}: {told}" if isinstance(error, InputError) else f"{name}: {_typed(error, told)}"


def _typed(error: Exception, told: str) -> str:
    return f"{type(error).__name__}: {told}"
