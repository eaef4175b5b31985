"""The command line: how each command is called; what it does stands in ``experiments.commands``.

Nothing here imports torch, Ray, Flower or pandas: a command imports what it needs when it is
called, so that help, the listing and a wrong call are quick.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments import aggregate_command, completion
from experiments.audit import command as audit_command
from experiments.board import command as board_command
from experiments.cli_options import (
    Axes,
    Certificates,
    DataRoot,
    Device,
    Download,
    File,
    Fresh,
    Grid,
    Hosts,
    Insecure,
    Json,
    On,
    Output,
    Overrides,
    Quiet,
    RayAddress,
    Resume,
    Seeds,
    Strict,
    Superlink,
    TableFormat,
    Track,
    Use,
    Version,
    Workers,
)  # fmt: skip
from fedrobust.failures import PluginError
from fedrobust.packages import check_packages
from fedrobust.spec import InputError

EXIT_CODES = (
    "Exit codes: 0 done; 1 a run failed; 2 the configuration or the call is wrong; 130 interrupted."
)
app = typer.Typer(
    no_args_is_help=True,
    # Typer's own tracebacks print local variables: data, and secrets among them.
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True)


@app.command(epilog=EXIT_CODES)
def run(
    file: File,
    override: Overrides = None,
    data_root: DataRoot = None,
    download: Download = False,
    grid: Grid = "in_process",
    hosts: Hosts = "auto",
    device: Device = "cpu",
    output: Output = Path("results"),
    seeds: Seeds = 1,
    workers: Workers = 0,
    on: On = "processes",
    ray_address: RayAddress = "local",
    resume: Resume = False,
    fresh: Fresh = False,
    track: Track = None,
    strict: Strict = False,
    save_model: Annotated[bool, typer.Option(help="Keep each final model (safetensors).")] = False,
    secret: Annotated[Path | None, typer.Option(help="Repeat a server's draws: its file.")] = None,
    use: Use = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment, or every run of its sweep; finished runs are not run again."""
    from experiments import commands

    commands.run(
        file, override, data_root=data_root, download=download, grid=grid, hosts=hosts,
        device=device, output=output, seeds=seeds, workers=workers, on=on, ray_address=ray_address,
        resume=resume, fresh=fresh, track=track, strict=strict, models=save_model, secret=secret,
        use=use, as_json=as_json, quiet=quiet,
    )  # fmt: skip


@app.command("sweep", epilog=EXIT_CODES)
def sweep_over(
    file: File,
    over: Axes = None,
    override: Overrides = None,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "cpu",
    grid: Grid = "in_process",
    hosts: Hosts = "auto",
    output: Output = Path("results"),
    seeds: Seeds = 1,
    workers: Workers = 0,
    on: On = "processes",
    ray_address: RayAddress = "local",
    resume: Resume = False,
    fresh: Fresh = False,
    track: Track = None,
    strict: Strict = False,
    table: TableFormat = "text",
    use: Use = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run every combination of some settings; print the table, write the report.

    A cell is the mean over the seeds with its 95 % interval; the score of a defence is its worst
    attack.
    """
    from experiments import commands

    commands.sweep_over(
        file, override, over, data_root=data_root, download=download, grid=grid, hosts=hosts,
        device=device, output=output, seeds=seeds, workers=workers, on=on, ray_address=ray_address,
        resume=resume, fresh=fresh, track=track, strict=strict, table=table, use=use,
        as_json=as_json, quiet=quiet,
    )  # fmt: skip


@app.command(epilog=EXIT_CODES)
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or that of a whole sweep.")],
    output: Annotated[Path | None, typer.Option(help="Write the page here.")] = None,
    data_root: DataRoot = None,
    use: Use = None,
) -> None:
    """Write one self-contained HTML page about a run or a sweep: FOLDER/report.html."""
    from experiments import commands
    from experiments.report import folders_in
    from experiments.report import write as write_report

    commands.load_files(use)
    page = write_report(folders_in(folder), output or folder / "report.html", data_root=data_root)
    typer.echo(f"written: {page}")


@app.command(epilog=EXIT_CODES)
def deploy(
    file: Annotated[Path, typer.Argument(help="Experiment: a TOML file, without a sweep.")],
    superlink: Superlink,
    output: Annotated[Path, typer.Option(help="Results, on the SuperLink's machine.")],
    override: Overrides = None,
    data_root: Annotated[str, typer.Option(help="Data sets, on the SuperLink's machine.")] = "",
    root_certificates: Certificates = None,
    insecure: Insecure = False,
    resume: Resume = False,
    secret: Annotated[str, typer.Option(help="A run's secret file there: repeat its draws.")] = "",
    use: Annotated[list[Path] | None, typer.Option(help="Plug-ins of yours, also there.")] = None,
) -> None:
    """Run an experiment on the nodes that are connected to a SuperLink: each is one client."""
    from experiments import deployment

    deployment.deploy(
        file, override, superlink=superlink, output=output, data_root=data_root,
        certificates=root_certificates, insecure=insecure, resume=resume, secret=secret, use=use,
    )  # fmt: skip


@app.command()
def node(
    superlink: Superlink,
    partition: Annotated[int, typer.Option(help="Which client this is, from 0.", min=0)],
    data: Annotated[Path | None, typer.Option(help="Own data: npz, csv, parquet, images.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Public data sets; own share.")] = None,
    root_certificates: Certificates = None,
    key: Annotated[Path | None, typer.Option(help="This node's private key (ECDSA).")] = None,
    insecure: Insecure = False,
    malicious: Annotated[bool, typer.Option("--malicious", help="For drills: attack.")] = False,
    port: Annotated[int, typer.Option(help="Local port, one a node of a machine.")] = 9094,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
    check: Annotated[str, typer.Option(help="Check --data against this data set first.")] = "",
    plain: Annotated[bool, typer.Option("--plain", help="Flower's own slow SuperNode.")] = False,
    poll: Annotated[float, typer.Option(help="Longest seconds between two looks.")] = 3.0,
    use: Use = None,
) -> None:
    """Be one client of a federation on this machine, until stopped."""
    from experiments import deployment

    deployment.run_node(
        superlink, partition=partition, data=data, data_root=data_root, key=key,
        certificates=root_certificates, insecure=insecure, malicious=malicious, port=port,
        device=device, check=check, plain=plain, poll=poll, use=use,
    )  # fmt: skip


app.command(epilog=audit_command.CODES)(audit_command.audit)
app.command(epilog=EXIT_CODES)(aggregate_command.aggregate)
app.command(epilog=EXIT_CODES)(board_command.benchmark)
app.command(epilog=EXIT_CODES)(board_command.recommend)


@app.command("list")
def list_plugins(
    kind: Annotated[
        str | None,
        typer.Argument(help="One kind in full, such as rules.", autocompletion=completion.kinds),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    use: Use = None,
) -> None:
    """List every plug-in in a line; of one kind settings, what it needs and bears, its paper."""
    from experiments import listing, listing_page

    tables = listing.with_others(kind, use or [])
    if as_json:
        typer.echo(json.dumps(tables))
        return
    try:
        for line in listing_page.page(tables, full=kind is not None):
            typer.echo(line)
        sys.stdout.flush()
    except BrokenPipeError:  # `fedrobust list | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command()
def check(
    file: File,
    override: Overrides = None,
    data_root: DataRoot = None,
    delta: Annotated[float, typer.Option(help="How often f may be exceeded, in (0, 1).")] = 0.01,
    use: Use = None,
) -> None:
    """Check an experiment without running it; print every run, fully resolved, and its limits.

    Where a round asks only some clients: with which probability more than f of them are Byzantine
    in some round, and the smallest f and the smallest cohort for which it is below --delta.
    """
    from experiments import commands

    commands.check(file, override, data_root, delta=delta, use=use)


@app.command()
def distortion(
    scheme: Annotated[list[str], typer.Option(help="A redundancy scheme; may be repeated.")],
    workers: Annotated[int, typer.Option(help="K, the number of workers.", min=1)] = 15,
    replication: Annotated[int, typer.Option(help="r, copies of each file.", min=1)] = 3,
    picture: Annotated[Path | None, typer.Option(help="Draw it here (PNG, SVG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Print how many files q Byzantine workers can make wrong, by scheme."""
    from experiments import commands

    commands.distortion(
        scheme, workers=workers, replication=replication, picture=picture, as_json=as_json
    )


@app.callback()
def about(version: Version = False) -> None:
    """What happens to federated training when clients are Byzantine, and which defence holds."""


def main() -> None:
    """Enter here: wrong input ends with its sentence and exit code 2, never with a traceback."""
    try:
        check_packages()
        completion.rejoin(os.environ)
        app()
    except InputError as error:
        for line in str(error).splitlines():
            errors.print(f"[bold red]error:[/] {line}", highlight=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except PluginError as error:
        errors.print(f"[bold red]run failed:[/] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        errors.print("interrupted; finished runs are kept and will not be run again")
        raise SystemExit(130) from None  # 128 + SIGINT, as shells have it


if __name__ == "__main__":
    main()
