"""The command line: ``fedrobust run | list | check | distortion``.

Exit codes: 0 done, 1 a run failed, 2 the configuration or the call is wrong, 130 interrupted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from experiments import listing
from experiments.progress import Live
from experiments.results import Results, load
from experiments.simulation import check_grid, resolve
from experiments.sweep import Sweep
from fedrobust import data
from fedrobust.config import ConfigError, Experiment, parse_value
from fedrobust.data import DataError
from fedrobust.models import ModelError
from fedrobust.rundir import FolderError
from fedrobust.spec import SpecError, suggest

NEXT = """next:
  fedrobust check FILE                    your own TOML, checked (model: quickstart.toml)
  fedrobust run FILE -o attack=ipm        one thing changed
  fedrobust run FILE --grid flower        the same rounds through Flower's engine
  flwr run . --stream                     the default app on Flower, live
  fedrobust list                          every rule, attack, partition, with its paper
  experiments/notebooks/compare_strategies.ipynb       the same from Python"""
WRONG_INPUT = (ConfigError, DataError, FolderError, ModelError, SpecError)

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


@app.command()
def run(
    file: File,
    override: Overrides = None,
    data_root: DataRoot = None,
    download: Annotated[bool, typer.Option(help="Fetch a missing data set.")] = False,
    grid: Annotated[str, typer.Option(help="in_process or flower (Ray).")] = "in_process",
    output: Annotated[Path, typer.Option(help="Parent folder of the results.")] = Path("results"),
    seeds: Annotated[int, typer.Option(help="Repeat with this many seeds.", min=1)] = 1,
    workers: Annotated[int, typer.Option(help="Processes; 0: one a core.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Run an experiment, or every run of its sweep; finished runs are not run again."""
    check_grid(grid)
    experiments = _experiments(file, override, seeds)
    _check_data(experiments, data_root, download)
    sweep = Sweep(experiments, output / file.stem, grid, data_root, workers)
    live = Live(errors if as_json else console, experiments)
    with live:
        sweep.run(live.row)
    results = load(sweep.folders())
    written = write_summary(results, sweep.output)
    if as_json:
        typer.echo(json.dumps(_as_json(results, sweep)))
    else:
        _show(results, written)
        console.print(NEXT, highlight=False, soft_wrap=True)


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
    experiments = _experiments(file, override, 1)
    _check_data(experiments, data_root, download=False)
    table = Table(title=f"{len(experiments)} run(s)", title_justify="left")
    for column in ("run", "attack", "defence", "n", "byzantine", "tolerated f", "rounds", "seed"):
        table.add_column(column, overflow="fold")
    for e in experiments:
        row = [e.run_id, _spec(e.attack), listing.defence(e), e.clients, e.byzantine]
        table.add_row(*map(str, [*row, listing.tolerated(e), e.rounds, e.seed]))
    console.print(table)


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

    if scheme not in SCHEMES:
        raise ConfigError([f"unknown scheme {scheme!r}; {suggest(scheme, list(SCHEMES))}"])
    return scheme


def main() -> None:
    """Enter here: wrong input ends with its sentence and exit code 2, never with a traceback."""
    try:
        app()
    except WRONG_INPUT as error:
        for line in str(error).splitlines():
            errors.print(f"[bold red]error:[/] {line}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        errors.print("interrupted; finished runs are kept and will not be run again")
        raise SystemExit(130) from None


def write_summary(results: Results, output: Path) -> list[Path]:
    """Write the table (Markdown, CSV) and the picture; return what was written."""
    table = (results.table() * 100).round(2)
    (output / "table.csv").write_text(table.to_csv())
    (output / "table.md").write_text(markdown(table))
    picture = output / ("heat_map.png" if len(results.runs) > 1 else "accuracy.png")
    results.plot().savefig(picture, dpi=150)
    return [output / "table.md", output / "table.csv", picture]


def markdown(table: Any) -> str:
    """Return a frame as a Markdown table."""
    head = ["", *map(str, table.columns)]
    body = [[str(name), *(f"{v:.1f}" for v in row)] for name, row in table.iterrows()]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _experiments(file: Path, override: list[str] | None, seeds: int) -> list[Experiment]:
    pairs = {}
    for item in override or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError([f"an override is key=value, got {item!r}"])
        pairs[key.strip()] = parse_value(value.strip())
    experiments = resolve(file, pairs)
    if seeds > 1:
        experiments = [
            run
            for e in experiments
            for i in range(seeds)
            for run in resolve(e, {"seed": e.seed + i})
        ]
    return experiments


def _check_data(experiments: list[Experiment], data_root: str | None, download: bool) -> None:
    """Load each data set and cut each partition once, so that errors come before the first run."""
    for name in dict.fromkeys(e.data for e in experiments):
        loaded = data.load(name, root=data_root, download=download)
        shares = {(str(e.partition), e.clients): e for e in experiments if e.data == name}
        for e in shares.values():
            labels = loaded.train_labels
            data.partition(labels, e.partition, clients=e.clients, seed=e.seed)


def _spec(spec: dict[str, Any]) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in spec.items() if k != "name")
    return f"{spec['name']}({settings})" if settings else spec["name"]


def _show(results: Results, written: list[Path]) -> None:
    table = results.table() * 100
    shown = Table(title="final test accuracy (%)", title_justify="left")
    shown.add_column("defence")
    for column in table.columns:
        shown.add_column(str(column), justify="right")
    for name, row in table.iterrows():
        shown.add_row(str(name), *(f"{value:.1f}" for value in row))
    console.print(shown)
    console.print("[dim]worst: the lowest of the row, the score of a defence[/]")
    for path in written:
        console.print(f"written: {path}", soft_wrap=True)


def _as_json(results: Results, sweep: Sweep) -> dict[str, Any]:
    return {
        "table": json.loads(results.table().to_json(orient="index")),
        "runs": [
            {"run": e.run_id, "name": e.name, "seed": e.seed, "folder": str(path)}
            for (e, _), path in zip(results.runs, sweep.folders(), strict=True)
        ],
    }


if __name__ == "__main__":
    main()
