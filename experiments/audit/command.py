"""``fedrobust audit``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fedrobust.spec import InputError, parse_value

CODES = (
    "Exit codes: 0 the app holds; 1 it is weak; 2 the call is wrong; 3 it could not be audited; "
    "130 interrupted. Nothing is written into the app's folder."
)
Many = list[str] | None
INTERRUPTED = 130  # 128 + SIGINT


def audit(
    folder: Annotated[Path, typer.Argument(help="A Flower app: the folder of its pyproject.toml.")],
    attack: Annotated[
        Many, typer.Option(help="Try these only: sign_flip:scale=4.0, auto; repeatable.")
    ] = None,
    defence: Annotated[
        Many, typer.Option(help="Try these rules: nnm+trimmed_mean, or one of --use; repeatable.")
    ] = None,
    f: Annotated[
        int | None, typer.Option("--f", help="Most Byzantine nodes; default a fifth.", min=1)
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="The number to judge by: NAME, NAME:max or NAME:min.")
    ] = None,
    override: Annotated[
        Many, typer.Option("--override", "-o", help="key=value of the app's run configuration.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes to simulate.", min=3)] = None,
    seeds: Annotated[int, typer.Option(help="Clean runs, for the spread.", min=1)] = 3,
    grid: Annotated[
        str, typer.Option(help="flower: repeat the clean and the worst cell in Flower's engine.")
    ] = "in_process",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer attacks and defences.")] = False,
    fail_under: Annotated[
        float, typer.Option(help="Share of attacks to withstand.", min=0.0, max=1.0)
    ] = 1.0,
    tolerance: Annotated[float, typer.Option(help="Fall of quality that is accepted.")] = 0.05,
    time_limit: Annotated[float | None, typer.Option(help="Seconds a cell.", min=1.0)] = None,
    workers: Annotated[int | None, typer.Option(help="Cells at a time.", min=1)] = None,
    cell: Annotated[
        str | None, typer.Option(help="Repeat one cell, as the report names it.")
    ] = None,
    use: Annotated[
        list[Path] | None,
        typer.Option(help="A Python file with rules or attacks of yours; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Write audit.json, audit.html and the card, audit.svg, here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Report what happens to a Flower app when some of its clients are Byzantine."""
    terminal = Console(stderr=True)
    settings: dict[str, Any] = {
        "attacks": attack, "defences": defence, "f": f, "metric": metric, "seeds": seeds,
        "grid": grid, "quick": quick, "fail_under": fail_under, "tolerance": tolerance,
        "nodes": nodes, "time_limit": time_limit, "workers": workers, "cell": cell,
        "use": use or (),
    }  # fmt: skip
    if output is not None and _inside(output, folder):
        raise InputError(f"the audit writes nothing into the app's folder: --output {output}")
    made = _conducted(terminal, folder, _overrides(override), settings, quiet=as_json)
    from experiments.audit.card import picture, show  # what takes its time is imported

    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        made.to_json(output / "audit.json")
        made.to_html(output / "audit.html")
        (output / "audit.svg").write_text(picture(made))
    if as_json:
        typer.echo(made.to_json())
    else:
        console = Console()
        show(made, console)
        if output is not None:
            files = " ".join(str(output / f"audit.{kind}") for kind in ("json", "html", "svg"))
            console.print(f"written: {files}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(made.exit_code)


def _conducted(
    terminal: Console,
    folder: Path,
    overrides: dict[str, object],
    settings: dict[str, Any],
    *,
    quiet: bool,
) -> Any:
    """Conduct the audit, show its progress, and say in a sentence what an interrupt leaves."""
    count = TextColumn("{task.completed}/{task.total}")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    ran = 0
    try:
        from experiments.audit.conduct import audit as conduct  # torch and Flower take their time
        from experiments.audit.plan import ABOUT

        with Progress(*columns, console=terminal, transient=True, disable=quiet) as progress:
            task = progress.add_task("audit", total=None)

            def say(done: int, planned: int, text: str) -> None:
                nonlocal ran
                ran = done
                if text.startswith(ABOUT):
                    progress.console.print(text)
                progress.update(task, completed=done, total=planned, description=escape(text)[:60])

            return conduct(folder, overrides=overrides, say=say, **settings)
    except KeyboardInterrupt:
        told = f"interrupted after {ran} cells; their results are dropped, nothing was written"
        terminal.print(told, highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def _inside(output: Path, folder: Path) -> bool:
    # Resolved: a link may lead into the app's folder.
    return output.resolve().is_relative_to(folder.resolve())


def _overrides(items: list[str] | None) -> dict[str, object]:
    pairs = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"an override is key=value, got {item!r}")
        pairs[key.strip()] = parse_value(value.strip())
    return pairs
