"""The command line: ``fedrobust run | sweep | list | check | report | distortion``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from experiments import cli_output, deployment, listing, tables
from experiments.cli_inputs import experiments_of
from experiments.outcomes import expecting_steps
from experiments.papers.transfer import node_tables, study
from experiments.progress import Live
from experiments.results import Results, load
from experiments.simulation import check_device, check_grid
from experiments.sweep import Sweep
from experiments.trackers import tracking
from fedrobust import secret as hidden
from fedrobust.data import DataError
from fedrobust.experiment.against_data import check_against_data
from fedrobust.experiment.schema import ConfigError
from fedrobust.failures import PluginError
from fedrobust.models import ModelError
from fedrobust.runs.checkpoint import CheckpointError
from fedrobust.runs.folder import FolderError, WriteError
from fedrobust.secret import SecretError
from fedrobust.spec import SpecError, suggest

EXIT_CODES = (
    "Exit codes: 0 done; 1 a run failed; 2 the configuration or the call is wrong; 130 interrupted."
)
NEXT = """next:
  fedrobust report results/NAME           one HTML page of all this
  fedrobust check FILE                    your own TOML, checked (model: quickstart.toml)
  fedrobust run FILE -o attack=ipm        one thing changed
  fedrobust run FILE --grid flower        the same rounds through Flower's engine
  flwr run . --stream                     the default app on Flower, live
  fedrobust list                          every rule, attack, partition, with its paper
  experiments/notebooks/                  the same from Python"""
WRONG_INPUT = (
    CheckpointError,
    ConfigError,
    DataError,
    FolderError,
    ModelError,
    SecretError,
    SpecError,
)

app = typer.Typer(
    help="What happens to federated training when clients lie, and which defence holds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

File = Annotated[Path, typer.Argument(help="Experiment: a TOML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", help="key=value on top of the file: -o rule.f=3"),
]
DataRoot = Annotated[
    str | None,
    typer.Option(envvar="FEDROBUST_DATA", help="Folder of the full data sets."),
]
Download = Annotated[bool, typer.Option(help="Fetch a missing data set.")]
Output = Annotated[Path, typer.Option(help="Parent folder of the results.")]
Seeds = Annotated[int, typer.Option(help="Repeat with this many seeds.", min=1)]
Workers = Annotated[int, typer.Option(help="Processes; 0: one a core, or one a GPU.", min=0)]
Device = Annotated[str, typer.Option(help="cpu, cuda (all GPUs) or cuda:N.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints.")]
Track = Annotated[
    list[str] | None, typer.Option(help="tensorboard, mlflow or wandb; may be repeated.")
]
Strict = Annotated[bool, typer.Option("--strict", help="A tracker that fails ends the run.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object at the end.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress: the table only.")]


@app.command(epilog=EXIT_CODES)
def run(
    file: File,
    override: Overrides = None,
    data_root: DataRoot = None,
    download: Download = False,
    grid: Annotated[str, typer.Option(help="in_process or flower (Ray).")] = "in_process",
    device: Device = "cpu",
    output: Output = Path("results"),
    seeds: Seeds = 1,
    workers: Workers = 0,
    resume: Resume = False,
    track: Track = None,
    strict: Strict = False,
    save_model: Annotated[bool, typer.Option(help="Keep each final model (safetensors).")] = False,
    secret: Annotated[Path | None, typer.Option(help="Repeat a server's draws: its file.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment, or every run of its sweep; finished runs are not run again."""
    check_grid(grid)
    check_device(device)
    experiments = experiments_of(file, override, seeds=seeds)
    check_against_data(experiments, data_root=data_root, download=download)
    parent = output / file.stem
    sweep = Sweep(experiments, parent, grid, data_root, workers, save_model, resume, device,
                  hidden.read(secret) if secret is not None else None)  # fmt: skip
    results = _run(sweep, errors if as_json else console, track, quiet=quiet, strict=strict)
    with expecting_steps(results, errors):
        written = cli_output.write_summary(results, sweep.output)
        if study.applies(results):
            written += study.write(results, sweep.output)
        if as_json:
            typer.echo(json.dumps(cli_output.as_json(results, sweep)))
            return
        cli_output.show(results, console)
        if study.applies(results):
            console.print(study.report(results), highlight=False, soft_wrap=True)
        if not quiet:
            cli_output.show_written(written, console)
            console.print(NEXT, highlight=False, soft_wrap=True)


@app.command("sweep", epilog=EXIT_CODES)
def sweep_over(
    file: File,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", "-s", help="key=a,b,c: an axis of the sweep; may be repeated."),
    ] = None,
    override: Overrides = None,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "cpu",
    output: Output = Path("results"),
    seeds: Seeds = 1,
    workers: Workers = 0,
    resume: Resume = False,
    track: Track = None,
    strict: Strict = False,
    table: Annotated[str, typer.Option(help="text, markdown or latex.")] = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run every combination of some settings; print the table, write the report.

    A cell is the mean over the seeds with its 95 % interval; the score of a defence is its worst
    attack.
    """
    check_device(device)
    experiments = experiments_of(file, override, seeds=seeds, over=over)
    check_against_data(experiments, data_root=data_root, download=download)
    settings: dict[str, Any] = {"workers": workers, "resume": resume, "device": device}
    sweep = Sweep(experiments, output / file.stem, "in_process", data_root, **settings)
    resolve_one(table, list(tables.FORMATS), "format")
    results = _run(sweep, errors, track, quiet=quiet, strict=strict)  # only a table on stdout
    written = cli_output.write_summary(results, sweep.output)
    from experiments.report import write as write_report  # matplotlib takes its time

    page = write_report(sweep.folders(), sweep.output / "report.html", data_root=data_root)
    with expecting_steps(results, errors):
        if as_json:
            typer.echo(json.dumps(cli_output.as_json(results, sweep) | {"report": str(page)}))
            return
        typer.echo(results.table(table), nl=False)
        if not quiet:
            cli_output.show_written([*written, page], errors)


@app.command(epilog=EXIT_CODES)
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or that of a whole sweep.")],
    output: Annotated[Path | None, typer.Option(help="Write the page here.")] = None,
    data_root: DataRoot = None,
) -> None:
    """Write one self-contained HTML page about a run or a sweep: FOLDER/report.html."""
    from experiments.report import folders_in
    from experiments.report import write as write_report

    page = write_report(folders_in(folder), output or folder / "report.html", data_root=data_root)
    typer.echo(f"written: {page}")


app.command(epilog=EXIT_CODES)(deployment.deploy)
app.command()(deployment.node)


@app.command("list")
def list_plugins(
    kind: Annotated[str | None, typer.Argument(help="One kind only, such as rules.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List every plug-in: what it does, its parameters, its paper."""
    tables = listing.tables(kind)
    if as_json:
        typer.echo(json.dumps(tables))
        return
    for title, entries in tables.items():
        table = Table(title=title, title_justify="left", show_lines=False)
        for column in ("name", "what it does", "parameters", "paper"):
            table.add_column(column, overflow="fold")
        for entry in entries:
            table.add_row(entry["name"], entry["what"], entry["parameters"], entry["paper"])
        console.print(table)


@app.command()
def check(file: File, override: Overrides = None, data_root: DataRoot = None) -> None:
    """Check an experiment without running it; print every run, fully resolved, and its limits."""
    experiments = experiments_of(file, override)
    check_against_data(experiments, data_root=data_root)
    table = Table(title=f"{len(experiments)} run(s)", title_justify="left")
    for column in ("run", "attack", "defence", "n", "byzantine", "tolerated f", "rounds", "seed"):
        table.add_column(column, overflow="fold")
    for e in experiments:
        row = [e.run_id, _spec(e.attack), listing.defence(e), e.clients, e.byzantine]
        table.add_row(*map(str, [*row, listing.tolerated(e), e.rounds, e.seed]))
    console.print(table)
    for nodes in node_tables.tables(experiments, data_root):
        console.print(nodes)


@app.command()
def distortion(
    scheme: Annotated[list[str], typer.Option(help="A redundancy scheme; may be repeated.")],
    workers: Annotated[int, typer.Option(help="K, the number of workers.", min=1)] = 15,
    replication: Annotated[int, typer.Option(help="r, copies of each file.", min=1)] = 3,
    picture: Annotated[Path | None, typer.Option(help="Draw it here (PNG, SVG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Print how many files q Byzantine workers can make wrong, by scheme."""
    from experiments import distortion as study

    names = [resolve_name(name) for name in scheme]
    try:
        frame = study.table(names, workers=workers, replication=replication)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if picture is not None:
        study.figure(frame).savefig(picture, dpi=150)
    typer.echo(frame.to_json(orient="records") if as_json else study.markdown(frame), nl=False)


def resolve_name(scheme: str) -> str:
    """Refuse a scheme that is in no table.

    Raises
    ------
    ConfigError
        With what was meant.
    """
    from fedrobust.redundancy import SCHEMES

    return resolve_one(scheme, list(SCHEMES), "scheme")


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


def main() -> None:
    """Enter here: wrong input ends with its sentence and exit code 2, never with a traceback."""
    try:
        app()
    except WRONG_INPUT as error:
        for line in str(error).splitlines():
            errors.print(f"[bold red]error:[/] {line}", highlight=False, soft_wrap=True)
        raise SystemExit(1 if isinstance(error, WriteError) else 2) from None
    except PluginError as error:
        errors.print(f"[bold red]run failed:[/] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        errors.print("interrupted; finished runs are kept and will not be run again")
        raise SystemExit(130) from None


def _run(
    sweep: Sweep, terminal: Console, trackers: list[str] | None, *, quiet: bool, strict: bool
) -> Results:
    with (
        Live(terminal, sweep.experiments, quiet=quiet) as live,
        tracking(trackers or [], sweep.output, live.row, strict=strict) as on_row,
    ):
        sweep.run(on_row)
    return load(sweep.folders())


def _spec(spec: dict[str, Any]) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in spec.items() if k != "name")
    return f"{spec['name']}({settings})" if settings else spec["name"]


if __name__ == "__main__":
    main()
