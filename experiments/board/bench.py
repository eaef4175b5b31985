"""What is to be measured: a rule of ours, or a function of a file, and where its runs go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.board.protocol import Budget
from experiments.sweep import Sweep
from fedrobust import plugins
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.runs.folder import RunFolder, read_rows
from fedrobust.spec import parse_spec

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """One measurement: what, how much of it, where its runs go.

    Attributes
    ----------
    rule
        As a configuration writes it: ``krum``, ``nnm+krum``, or a function of a file in use.
    origin
        "fedrobust", or the file's name and digest.
    on, ray_address, device
        As a sweep's: "ray" runs on the workers of a cluster.
    against, external
        An attack of a file in use that runs beside the members, and the file's name and digest.
    """

    rule: str
    budget: Budget
    output: Path
    origin: str = "fedrobust"
    workers: int = 0
    data_root: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    on: str = "processes"
    ray_address: str = "local"
    device: str = "cpu"
    against: str = ""
    external: str = ""

    def spec(self) -> dict[str, Any]:
        """Return the rule's spec with its settings."""
        return {"name": self.rule, **dict(self.settings)}

    def run(self, experiments: Sequence[Experiment], on_row: Callable[..., None]) -> None:
        """Run what is not finished."""
        Sweep(
            list(experiments),
            self.output,
            data_root=self.data_root,
            workers=self.workers,
            device=self.device,
            on=self.on,
            ray_address=self.ray_address,
        ).run(on_row)

    def rows_of(self, experiment: Experiment) -> list[Row]:
        """Read a finished run."""
        return read_rows(RunFolder(self.output, experiment).path / "rounds.jsonl")


def bench_of(source: str, bench: Bench) -> Bench:
    """Return the measurement of ``RULE`` or ``FILE.py[:NAME]``.

    Raises
    ------
    ConfigError
        If a file holds no function, or several and none is named.
    """
    if ".py" not in source:
        chosen = parse_spec(source)
        settings = {key: value for key, value in chosen.items() if key != "name"}
        return replace(bench, rule=chosen["name"], settings=settings)
    name, origin = _in_file(source, "rule")
    return replace(bench, rule=name, origin=origin)


def attacked_by(source: str, bench: Bench) -> Bench:
    """Return the measurement with an attack of ``FILE.py[:NAME]`` beside the members of ``auto``.

    Raises
    ------
    ConfigError
        As ``bench_of``, or if ``source`` is no file.
    """
    if ".py" not in source:
        raise ConfigError([f"--against needs FILE.py or FILE.py:NAME, got {source!r}"])
    name, origin = _in_file(source, "attack")
    return replace(bench, against=name, external=f"{origin} {name}")


def _in_file(source: str, kind: str) -> tuple[str, str]:
    """Take a file into use; return the name of its function, and the file's name and digest."""
    path, _, name = source.partition(".py")
    file = Path(path + ".py")
    found = plugins.use(file)
    names = [part.name for part in found if part.kind == kind] or plugins.functions_in(file)
    wanted = name.removeprefix(":")
    if wanted:
        names = [wanted]
    if len(names) != 1:
        had = ", ".join(names) or "none"
        raise ConfigError([f"{file} holds {had}: name the {kind}, {file}:NAME"])
    return names[0], f"{file.name} {plugins.digest(file)}"
