"""``fedrobust benchmark`` and ``fedrobust recommend``: how they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from experiments import completion

Out = Annotated[Path, typer.Option(help="Runs and the row go here; finished runs are kept.")]


def benchmark(
    rule: Annotated[
        str,
        typer.Argument(
            help="RULE, as nnm+krum; or FILE.py, or FILE.py:NAME.",
            autocompletion=completion.names("rules"),
        ),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Small: minutes, one seed.")] = False,
    output: Out = Path("results/benchmark"),
    workers: Annotated[int, typer.Option(help="Processes; 0: one a core.", min=0)] = 0,
    data_root: Annotated[
        str | None, typer.Option(envvar="FEDROBUST_DATA", help="Folder of the full data sets.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The row only.")] = False,
) -> None:
    """Measure one rule by protocol 1: one JSON row, worst case first, with flags; it resumes.

    The row goes to standard output and into a file; what comes next, and how long it will take,
    to standard error.
    """
    from experiments.board.measure import Bench, bench_of, measure
    from experiments.board.protocol import FULL, QUICK
    from experiments.board.rows import write
    from experiments.commands import errors

    def say(line: str) -> None:
        if not quiet:
            errors.print(line, highlight=False, soft_wrap=True)

    budget = QUICK if quick else FULL
    bench = bench_of(rule, Bench("", budget, output, workers=workers, data_root=data_root))
    say(f"{bench.rule}: protocol 1, {budget.name}; left out: {'; '.join(budget.left_out)}")
    row = measure(bench, say=say)
    path = write(row, output)
    say(f"written: {path}")
    typer.echo(json.dumps(row, ensure_ascii=False))


def recommend(
    clients: Annotated[int, typer.Option(help="n.", min=2)],
    byzantine: Annotated[int, typer.Option(help="f, how many may be Byzantine.", min=1)],
    heterogeneity: Annotated[str, typer.Option(help="iid or mixed.")] = "mixed",
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

    found = choice.recommend(
        read(board), clients=clients, byzantine=byzantine, heterogeneity=heterogeneity,
        most_ms=most_ms,
    )  # fmt: skip
    if as_json:
        told = [asdict(one) | {"holds": one.holds} for one in found]
        typer.echo(json.dumps({"clients": clients, "byzantine": byzantine, "defences": told}))
        return
    for line in choice.spoken(found, clients=clients, byzantine=byzantine):
        typer.echo(line)
