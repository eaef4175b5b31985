"""The options that several commands share, each with what a shell completes for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments import completion
from fedrobust.version import __version__


def print_version(wanted: bool) -> None:
    """Print the version and end, where that is asked for."""
    if wanted:
        typer.echo(f"fedrobust {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version),
]

File = Annotated[
    Path,
    typer.Argument(
        help="Experiment: a TOML file, or one that ships, by name: quickstart.",
        autocompletion=completion.experiments,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        "-o",
        help="key=value on top of the file: -o rule.f=3",
        autocompletion=completion.overrides,
    ),
]
DataRoot = Annotated[
    str | None,
    typer.Option(envvar="FEDROBUST_DATA", help="Folder of the full data sets."),
]
Download = Annotated[bool, typer.Option(help="Fetch a missing data set.")]
Output = Annotated[Path, typer.Option(help="Parent folder of the results.")]
Seeds = Annotated[int, typer.Option(help="Repeat with this many seeds.", min=1)]
Workers = Annotated[
    int, typer.Option(help="Processes or Ray workers; 0: one a core or GPU.", min=0)
]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda (all GPUs) or cuda:N.", autocompletion=completion.words("cpu", "cuda")
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run what is finished again, too.")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        help="tensorboard, mlflow or wandb; may be repeated.",
        autocompletion=completion.words("tensorboard", "mlflow", "wandb"),
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="A tracker that fails ends the run.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object at the end.")]
Certificates = Annotated[Path | None, typer.Option(help="The CA's certificate (PEM); TLS.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="No TLS: for a machine by itself.")]
Superlink = Annotated[str, typer.Option(help="HOST:PORT of the SuperLink.")]
Use = Annotated[
    list[Path] | None,
    typer.Option(help="A Python file with a model, data, loss, rule, ... of yours; repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress: the table only.")]
Grid = Annotated[
    str,
    typer.Option(
        help="in_process, ray (workers of ours) or flower (Flower's engine, on Ray).",
        autocompletion=completion.words("in_process", "ray", "flower"),
    ),
]
On = Annotated[
    str,
    typer.Option(
        help="Where runs go: processes of this machine, or ray: a cluster's workers.",
        autocompletion=completion.words("processes", "ray"),
    ),
]
RayAddress = Annotated[
    str,
    typer.Option(
        help="The Ray cluster: local (its own), auto, HOST:PORT, or env (RAY_ADDRESS).",
        autocompletion=completion.words("local", "auto", "env"),
    ),
]
Hosts = Annotated[
    str,
    typer.Option(
        help="Host processes of grid flower: a number, or auto (one a core or GPU).",
        autocompletion=completion.words("auto"),
    ),
]
Axes = Annotated[
    list[str] | None,
    typer.Option(
        "--over",
        "-s",
        help="key=a,b,c: an axis of the sweep; may be repeated.",
        autocompletion=completion.overrides,
    ),
]
TableFormat = Annotated[
    str,
    typer.Option(
        help="text, markdown or latex.",
        autocompletion=completion.words("text", "markdown", "latex"),
    ),
]
