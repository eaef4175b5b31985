"""``fedrobust benchmark`` and ``fedrobust recommend``: how they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments import completion
from experiments.cli_options import On, RayAddress

Out = Annotated[Path, typer.Option(help="Runs and the row go here; finished runs are kept.")]


def benchmark(
    rule: Annotated[
        str,
        typer.Argument(
            help="RULE, as nnm+krum; or FILE.py, or FILE.py:NAME.",
            autocompletion=completion.names("rules"),
        ),
    ],
    budget: Annotated[
        str,
        typer.Option(
            help="quick: minutes, one seed; full: hours.",
            autocompletion=completion.words("quick", "full"),
        ),
    ] = "full",
    quick: Annotated[bool, typer.Option("--quick", help="As --budget quick.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say how long it takes; no row.")] = False,
    output: Out = Path("results/benchmark"),
    workers: Annotated[int, typer.Option(help="Processes; 0: one a core.", min=0)] = 0,
    data_root: Annotated[
        str | None, typer.Option(envvar="FEDROBUST_DATA", help="Folder of the full data sets.")
    ] = None,
    on: On = "processes",
    ray_address: RayAddress = "local",
    device: Annotated[str, typer.Option(help="cpu, cuda, or cuda:N.")] = "cpu",
    against: Annotated[
        str, typer.Option(help="An attack of yours beside auto's: FILE.py, or FILE.py:NAME.")
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The row only.")] = False,
) -> None:
    """Measure one rule by the board's protocol: one JSON row with flags; it resumes.

    The row goes to standard output and into a file; what comes next, and how long it will take,
    to standard error.
    """
    from experiments.board.bench import Bench, attacked_by, bench_of
    from experiments.board.measure import forecast, measure
    from experiments.board.measure import plan as planned
    from experiments.board.protocol import PROTOCOL, budget_of
    from experiments.board.rows import write
    from experiments.commands import errors

    def say(line: str) -> None:
        if not quiet:
            errors.print(line, highlight=False, soft_wrap=True)

    size = budget_of("quick" if quick else budget)
    empty = Bench(
        "",
        size,
        output,
        workers=workers,
        data_root=data_root,
        on=on,
        ray_address=ray_address,
        device=device,
    )
    bench = bench_of(rule, attacked_by(against, empty) if against else empty)
    say(f"{bench.rule}: protocol {PROTOCOL}, {size.name}; left out: {'; '.join(size.left_out)}")
    if plan:
        typer.echo(forecast(bench, planned(bench, {})))
        return
    row = measure(bench, say=say)
    path = write(row, output)
    say(f"written: {path}")
    typer.echo(json.dumps(row, ensure_ascii=False))


def recommend(
    clients: Annotated[int, typer.Option(help="n.", min=2)],
    byzantine: Annotated[int, typer.Option(help="f, how many may be Byzantine.", min=1)],
    heterogeneity: Annotated[str, typer.Option(help="iid or mixed.")] = "mixed",
    training: Annotated[
        str | None, typer.Option(help="gradients, or 'local steps'; both, unless given.")
    ] = None,
    most_ms: Annotated[
        float | None, typer.Option(help="Most milliseconds to aggregate 20 x 100,000.")
    ] = None,
    board: Annotated[Path | None, typer.Option(help="Rows; those that ship, unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say which defence the board speaks for: the evidence, the cost, the command; or that none."""
    from dataclasses import asdict

    from experiments.board import recommend as choice
    from experiments.board.rows import read

    rows = read(board)
    asked: dict[str, Any] = {
        "clients": clients, "byzantine": byzantine, "heterogeneity": heterogeneity,
        "training": training, "most_ms": most_ms,
    }  # fmt: skip
    found = choice.recommend(rows, **asked)
    if as_json:
        told = [asdict(one) | {"holds": one.holds} for one in found]
        typer.echo(json.dumps({"clients": clients, "byzantine": byzantine, "defences": told}))
        return
    for line in choice.spoken(found, clients=clients, byzantine=byzantine):
        typer.echo(line)
    held = bool(found) and found[0].holds
    if not held and (hint := choice.instead(rows, **asked)):
        typer.echo(hint)
