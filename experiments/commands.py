"""What the commands of the command line do; ``experiments.cli`` says how they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from experiments import (
    cli_output,
    keeping,
    notices,
    sampled_cohorts,
    stacked_clients,
    tables,
    weight_shares,
)
from experiments.cli_inputs import experiments_of
from experiments.coefficients import published, vectors
from experiments.failed_runs import FailedRunsError
from experiments.hosts import check_hosts, hosts_of
from experiments.outcomes import expecting_steps
from experiments.papers.transfer import node_tables, study
from experiments.progress import Live
from experiments.results import Results, load
from experiments.simulation import check_device, check_grid
from experiments.sweep import Sweep
from experiments.trackers import tracking
from fedrobust import aggregation, plugins
from fedrobust import secret as hidden
from fedrobust.attacks.members import is_searched, stand_for_auto
from fedrobust.experiment.against_data import check_against_data
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.redundancy import SCHEMES
from fedrobust.spec import suggest

NEXT = """next:
  fedrobust report {folder}
      one HTML page of all this: {folder}/report.html
  fedrobust run {file} -o attack=ipm
      one thing changed; what is finished is not run again (--fresh)
  fedrobust run {file} --grid flower
      the same rounds through Flower's engine
  fedrobust list rules
      what else there is; also: attacks, partitions, models, ..."""

console = Console()
errors = Console(stderr=True)


def run(
    file: Path,
    overrides: list[str] | None,
    *,
    data_root: str | None,
    download: bool,
    seeds: int,
    as_json: bool,
    quiet: bool,
    track: list[str] | None,
    strict: bool,
    output: Path,
    grid: str,
    hosts: str,
    secret: Path | None,
    use: list[Path] | None,
    **settings: Any,
) -> None:
    """Run an experiment, or every run of its sweep; ``settings`` are the sweep's."""
    load_files(use)
    settings["hosts"] = hosts_of(hosts)
    check_grid(grid)
    check_hosts(settings["hosts"], grid)
    check_device(settings["device"], "ray" if settings["on"] == "ray" else grid)
    experiments = experiments_of(file, overrides, seeds=seeds)
    check_against_data(experiments, data_root=data_root, download=download)
    _announce(experiments, errors, quiet=quiet)
    settings["secret"] = hidden.read(secret) if secret is not None else None
    sweep = Sweep(experiments, output / file.stem, grid, data_root, **settings)
    # With --json standard output is the object's alone.
    screen = errors if as_json else console
    results, failed = _run(sweep, screen, track, quiet=quiet, strict=strict)
    with expecting_steps(results, errors, failed):
        written = keeping.write_tables(results, sweep.output)
        if study.applies(results):
            written += study.write(results, sweep.output)
        if as_json:
            typer.echo(json.dumps(cli_output.as_json(results, sweep.folders(but=failed))))
            return
        cli_output.show(results, console)
        if study.applies(results):
            console.print(study.report(results), highlight=False, soft_wrap=True)
        if not quiet:
            cli_output.show_notices(notices.after(results), console)
            cli_output.show_written(written, console)
            told = NEXT.format(folder=sweep.output, file=file)
            console.print(told, highlight=False, soft_wrap=True, markup=False)


def sweep_over(
    file: Path,
    overrides: list[str] | None,
    over: list[str] | None,
    *,
    data_root: str | None,
    download: bool,
    seeds: int,
    table: str,
    as_json: bool,
    quiet: bool,
    track: list[str] | None,
    strict: bool,
    output: Path,
    grid: str,
    hosts: str,
    use: list[Path] | None,
    **settings: Any,
) -> None:
    """Run every combination of some settings; print the table, write the report."""
    load_files(use)
    settings["hosts"] = hosts_of(hosts)
    check_grid(grid)
    check_hosts(settings["hosts"], grid)
    check_device(settings["device"], "ray" if settings["on"] == "ray" else grid)
    experiments = experiments_of(file, overrides, seeds=seeds, over=over)
    check_against_data(experiments, data_root=data_root, download=download)
    _announce(experiments, errors, quiet=quiet)
    sweep = Sweep(experiments, output / file.stem, grid, data_root, **settings)
    # Before the runs: a misspelt format is no reason to lose their table hours later.
    resolve_one(table, list(tables.FORMATS), "format")
    # Only a table goes to standard output.
    results, failed = _run(sweep, errors, track, quiet=quiet, strict=strict)
    written = keeping.write_tables(results, sweep.output)
    from experiments.report import write as write_report  # matplotlib takes its time

    folders = sweep.folders(but=failed)
    page = write_report(folders, sweep.output / "report.html", data_root=data_root)
    with expecting_steps(results, errors, failed):
        if as_json:
            typer.echo(json.dumps(cli_output.as_json(results, folders) | {"report": str(page)}))
            return
        typer.echo(results.table(table), nl=False)
        cli_output.show_worst_cases(results.worst_cases, errors)
        if not quiet:
            cli_output.show_notices(notices.after(results), errors)
            cli_output.show_written([*written, page], errors)


def load_files(use: list[Path] | None) -> None:
    """Load files with plug-ins of the user's."""
    for path in use or []:
        plugins.use(path)


def check(
    file: Path,
    overrides: list[str] | None,
    data_root: str | None,
    *,
    delta: float,
    use: list[Path] | None = None,
) -> None:
    """Check an experiment without running it; print every run, fully resolved, and its limits."""
    load_files(use)
    if not 0 < delta < 1:
        raise ConfigError([f"--delta needs a probability in (0, 1), got {delta:g}"])
    experiments = experiments_of(file, overrides)
    check_against_data(experiments, data_root=data_root)
    table = Table(title=f"{len(experiments)} run(s)", title_justify="left")
    for column in ("run", "attack", "defence", "n", "byzantine", "tolerated f", "kappa", "rounds",
                   "seed"):  # fmt: skip
        table.add_column(column, overflow="fold")
    for e in experiments:
        row = [e.run_id, _spec(e.attack), cli_output.defence(e), e.clients, e.byzantine]
        table.add_row(*map(str, [*row, tolerated(e), coefficient(e), e.rounds, e.seed]))
    console.print(table)
    cli_output.show_notices(notices.before(experiments), console)
    if stand_for_auto(experiments):
        from experiments.expected_time import expected

        console.print(expected(experiments, data_root=data_root), soft_wrap=True)
    told = sampled_cohorts.sentences(experiments, delta=delta)
    told += weight_shares.sentences(experiments, data_root=data_root)
    for line in [*told, *stacked_clients.sentences(experiments, data_root=data_root)]:
        console.print(line, highlight=False, soft_wrap=True)
    for nodes in node_tables.tables(experiments, data_root):
        console.print(nodes)


def _announce(experiments: list[Experiment], terminal: Console, *, quiet: bool) -> None:
    """Say before the start what is many runs, and what is no attack."""
    cli_output.show_notices(notices.before(experiments), terminal)
    if not quiet and any(is_searched(e.attack) for e in experiments):
        terminal.print(f"{len(experiments)} runs; fedrobust check says how long they will take")


def tolerated(experiment: Experiment) -> str:
    """Return the largest f that the defence admits at its n; "-" where it takes none."""
    if not experiment.rule:
        return "-"
    most = aggregation.tolerated(experiment.rule, n=vectors(experiment), pre=experiment.pre)
    return "-" if most is None else str(most)


def coefficient(experiment: Experiment) -> str:
    """Return the defence's published kappa at its n and f, or "-"."""
    found = published(experiment)
    return "-" if found is None else f"{found:.3g}"


def distortion(
    schemes: list[str], *, workers: int, replication: int, picture: Path | None, as_json: bool
) -> None:
    """Print how many files q Byzantine workers can make wrong, by scheme."""
    from experiments import distortion as study

    names = [resolve_one(name, list(SCHEMES), "scheme") for name in schemes]
    try:
        frame = study.table(names, workers=workers, replication=replication)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if picture is not None:
        study.figure(frame).savefig(picture, dpi=150)
    typer.echo(frame.to_json(orient="records") if as_json else study.markdown(frame), nl=False)


def resolve_one(name: str, allowed: list[str], kind: str) -> str:
    """Refuse a name that is not allowed.

    Raises
    ------
    ConfigError
        With what was meant.
    """
    if name not in allowed:
        raise ConfigError([f"unknown {kind} {name!r}; {suggest(name, allowed)}"])
    return name


def _run(
    sweep: Sweep, terminal: Console, trackers: list[str] | None, *, quiet: bool, strict: bool
) -> tuple[Results, FailedRunsError | None]:
    """Run what is not finished; return all that is, and what failed.

    Raises
    ------
    FailedRunsError
        If every run failed: there is nothing to show.
    """
    waiting, failed = sweep.waiting(), None
    if (done := len(sweep.experiments) - len(waiting)) and not quiet:
        terminal.print(
            f"{done} of {len(sweep.experiments)} runs are already finished in {sweep.output}"
            " (--fresh runs them again)",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
    with (
        Live(
            terminal, waiting, quiet=quiet or not waiting, sent=sweep.grid != "in_process"
        ) as live,
        cli_output.telling_workers(terminal, quiet=quiet),
        tracking(trackers or [], sweep.output, live.row, strict=strict) as on_row,
    ):
        try:
            sweep.run(on_row)
        except FailedRunsError as error:
            failed = error
    if failed is not None and len(failed.experiments) == len(sweep.experiments):
        raise failed
    return load(sweep.folders(but=failed)), failed


def _spec(spec: dict[str, Any]) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in spec.items() if k != "name")
    return f"{spec['name']}({settings})" if settings else spec["name"]
