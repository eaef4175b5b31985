"""The runs of a sweep over a Ray cluster: each is one worker's, its folder is written here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from experiments.cluster.connection import connected
from experiments.cluster.pool import Done, Pool, pooled
from experiments.cluster.runner import CHECKPOINT, MODEL, ROW, Runner, Use
from experiments.failed_runs import Died, Failures, Listener, OnRow
from experiments.grids import Cluster
from experiments.simulation import recorded
from fedrobust.experiment.honoured import RESUME, refused_feature
from fedrobust.experiment.schema import Experiment
from fedrobust.runs.folder import RunFolder

OnModel = Callable[[Experiment, Tensor, Tensor | None], None]
DEATHS = 2  # a run whose workers died so often is the reason itself


@dataclass(eq=False)
class Course:
    """One run on its way.

    Attributes
    ----------
    resume
        Continue from the folder's checkpoint, if it has one.
    deaths
        How many workers died on it.
    """

    experiment: Experiment
    resume: bool
    deaths: int = 0
    folder: RunFolder | None = None
    held: ExitStack = field(default_factory=ExitStack)

    def open(self, use: Use, on_row: OnRow) -> dict[str, Any] | None:
        """Hold the run's folder; return the checkpoint to continue from."""
        self.folder, self.held = RunFolder(use.output, self.experiment), ExitStack()
        held = recorded(
            self.experiment, self.folder, use.data_root, resume=self.resume, secret=use.secret
        )
        rows, _ = self.held.enter_context(held)
        for row in rows:
            on_row(self.experiment, row)
        return self.folder.saved

    def close(self, error: Exception | None = None) -> None:
        """Let the folder go; what a run that failed has erased comes back."""
        if error is None:
            self.held.close()
            return
        with suppress(type(error)):
            self.held.__exit__(type(error), error, error.__traceback__)


@dataclass(kw_only=True)
class Runs:
    """Runs of a sweep, on their way over the workers of a pool.

    Attributes
    ----------
    on_row, on_model
        Are told of each row, and of each final model, in this process.
    """

    pool: Pool
    use: Use
    on_row: Listener
    on_model: OnModel
    waiting: deque[Course]
    failures: Failures

    def all(self) -> None:
        """Compute every run; one that fails costs nobody else's."""
        under_way: list[Course] = []
        try:
            while self.waiting or under_way:
                for number in self.pool.free():
                    if self.waiting and (begun := self._begin(number, self.waiting.popleft())):
                        under_way.append(begun)
                done = self.pool.wait() if under_way else None
                if done is not None and done.tag is not None and self._ends(done):
                    under_way.remove(done.tag)
        except BaseException as error:  # Ctrl+C, and too few workers: let every folder go
            for course in under_way:
                course.close(error if isinstance(error, Exception) else None)
            raise

    def _begin(self, number: int, course: Course) -> Course | None:
        try:
            saved = course.open(self.use, self.on_row)
        except Exception as error:  # its folder is damaged, or somebody else's
            if self.on_row.raised(error):
                raise
            self.failures.add(course.experiment, error)
            return None
        self.pool.ask(number, course, "run", course.experiment, saved, num_returns="streaming")
        return course

    def _ends(self, done: Done) -> bool:
        """Take what came of a run; return whether the run is over, or begins again."""
        course: Course = done.tag
        if done.failed is not None:
            course.close(done.failed)
            self.failures.add(course.experiment, done.failed)
        elif done.died:
            self._again(course, done.died)
        elif done.last:
            course.close()
        else:
            self._heard(course, *done.value)
            return False
        return True

    def _heard(self, course: Course, kind: str, value: Any) -> None:
        assert course.folder is not None
        if kind == ROW:
            course.folder.append(value)
            self.on_row(course.experiment, value)
        elif kind == CHECKPOINT:
            course.folder.save(value)
        elif kind == MODEL:
            self.on_model(course.experiment, *value)

    def _again(self, course: Course, reason: str) -> None:
        """Lay a run whose worker died before another one; a run that kills workers has failed."""
        error = Died(f"its worker died: {reason}")
        course.close(error)
        course.deaths += 1
        if course.deaths < DEATHS:
            course.resume = not refused_feature(course.experiment.mode, RESUME)
            self.waiting.appendleft(course)
        else:
            self.failures.add(course.experiment, error)


def spread(
    experiments: Sequence[Experiment],
    use: Use,
    cluster: Cluster,
    *,
    resume: bool,
    on_row: Listener,
    on_model: OnModel,
) -> Failures:
    """Compute runs on a Ray cluster, one a worker at a time; return what failed.

    Raises
    ------
    ConfigError
        If there is no cluster, or another version of ours on it.
    ClusterError
        If fewer than half of its workers are left.
    """
    failures = Failures()
    most, cuda = len(experiments), use.device != "cpu"
    with (
        connected(cluster.address) as ray,
        pooled(ray, Runner, use, workers=cluster.workers, most=most, cuda=cuda) as pool,
    ):
        waiting = deque(Course(e, resume) for e in experiments)
        runs = Runs(
            pool=pool, use=use, on_row=on_row, on_model=on_model, waiting=waiting, failures=failures
        )
        runs.all()
    return failures
