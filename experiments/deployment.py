"""Real machines: start a node with its own data, send an experiment to a running SuperLink."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w
import typer

from experiments import flower_processes, flower_run
from experiments.cli_inputs import experiments_of
from experiments.flower_processes import FlowerRunError
from experiments.flower_run import QUIET, Row
from experiments.simulation import check_device
from fedrobust import plugins
from fedrobust.data.own import load_own
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.runs.folder import RunFolder
from strategies.federated import UNATTESTED

PLAIN = ["flower-supernode"]
POLL = 3.0  # seconds, as Flower's own SuperNode
LONGEST_POLL = 60.0


def run_node(
    superlink: str,
    *,
    partition: int,
    data: Path | None,
    data_root: Path | None,
    certificates: Path | None,
    key: Path | None,
    insecure: bool,
    malicious: bool,
    port: int,
    device: str,
    check: str,
    plain: bool = False,
    poll: float = POLL,
    use: list[Path] | None = None,
) -> None:
    """Become a SuperNode with this node's own configuration, warm unless ``plain``."""
    config: dict[str, Any] = {
        "partition-id": partition,
        "role": "malicious" if malicious else "honest",
    }
    for path in use or []:
        plugins.use(path)
    if use:
        config["use"] = plugins.used()
    if check and data is not None:
        plugins.provide({"data": check})
        # Read here, for its errors alone: else they show when the node is asked to train.
        load_own(data, name=check, root=data_root)
    check_device(device)
    if device != "cpu":
        config["device"] = device
    if data is not None:
        config["data"] = str(_there(data).resolve())
    if data_root is not None:
        config["data-root"] = str(_there(data_root).resolve())
    command = node_command(
        superlink, config, certificates=certificates, key=key, insecure=insecure, port=port,
        warm=warm_here() and not plain, poll=poll,
    )  # fmt: skip
    # This environment's program: PATH may know another Flower first.
    program = shutil.which(command[0], path=Path(sys.executable).parent) or command[0]
    # In the place of this process: signals and the exit code are then the SuperNode's.
    os.execve(program, command, os.environ | QUIET | _with_path(os.environ.get("PATH", "")))


def deploy(file: Path, overrides: list[str] | None, **settings: Any) -> None:
    """Run one experiment on connected nodes; ``settings`` are those of ``run_on_nodes``."""
    for path in settings.pop("use", None) or []:
        plugins.use(path)
    experiments = experiments_of(file, overrides, seeds=1)
    if len(experiments) != 1:
        raise ConfigError([f"one run at a time on real nodes, {file} has {len(experiments)}"])
    weights = experiments[0].weights
    if weights["name"] == "attested" and "table" not in weights:
        raise ConfigError([UNATTESTED])
    try:
        run_on_nodes(experiments[0], on_row=lambda row: typer.echo(json.dumps(row)), **settings)
    except FlowerRunError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def run_on_nodes(
    experiment: Experiment,
    *,
    superlink: str,
    output: Path,
    data_root: str = "",
    certificates: Path | None = None,
    insecure: bool = False,
    resume: bool = False,
    hosts: int = 0,
    secret: str = "",
    server: str = flower_run.SERVER,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Submit one experiment to a SuperLink, follow it, and return its rows.

    Parameters
    ----------
    output, data_root
        Paths on the SuperLink's machine, where the server runs; the files of ``plugins.use`` are
        there as here. Rows are seen here if that is this
        machine; otherwise they are there, and in ``flwr log``.
    certificates, insecure
        The CA's certificate, or plain text.
    hosts
        Not 0: the nodes are this many cohort hosts instead of one client each.
    secret
        A file on the SuperLink's machine from which the server takes its secret; empty: a new one.
    server
        The server app, MODULE:ATTRIBUTE, installed on the SuperLink's machine or ours.

    Raises
    ------
    FlowerRunError
        If the run ends in any other state than completed.
    ConfigError
        For a secret with cohort hosts: they are a simulation, whose draws follow from the seed.
    """
    if hosts and secret:
        raise ConfigError(["secret is not honoured with cohort hosts: their draws are the seed's"])
    config = {
        "experiment": experiment.to_toml(),
        "output": str(output.resolve()),
        "data-root": data_root,
        "nodes": "hosts" if hosts else "clients",
        "hosts": hosts,
        "resume": resume,
        "use": plugins.used(),
        "secret-file": secret,  # its name alone: all of this goes to every node
    }
    with tempfile.TemporaryDirectory(prefix="fedrobust-deploy-") as temporary:
        home = Path(temporary)
        app = flower_run.write_app(home / "app", config, server=server)
        environment = connection(home, superlink, certificates=certificates, insecure=insecure)
        target = RunFolder(output.resolve(), experiment)
        before = () if resume else target.rows()
        answer = flower_processes.flwr(["run", str(app)], environment)
        if "run-id" not in answer:
            told = flower_processes.refusal(answer)
            raise FlowerRunError(f"the SuperLink did not accept the run: {told}")
        run_id = str(answer["run-id"])
        return flower_run.follow(run_id, environment, target, on_row, before=before)


def connection(
    home: Path, superlink: str, *, certificates: Path | None = None, insecure: bool = False
) -> dict[str, str]:
    """Write the ``flwr`` command's configuration of one SuperLink; return its environment."""
    place: dict[str, Any] = {"address": superlink}
    if insecure:
        place["insecure"] = True
    elif certificates is not None:
        place["root-certificates"] = str(trusted(certificates).resolve())
    else:
        raise ConfigError(["TLS needs --root-certificates; --insecure does without"])
    settings = {"superlink": {"default": "own", "own": place}}
    (home / "config.toml").write_text(tomli_w.dumps(settings))
    own = QUIET | {"FLWR_HOME": str(home)}
    return os.environ | own | _with_path(os.environ.get("PATH", ""))


def node_command(
    superlink: str,
    config: dict[str, Any],
    *,
    certificates: Path | None,
    key: Path | None,
    insecure: bool,
    port: int,
    warm: bool = False,
    poll: float = POLL,
) -> list[str]:
    """Return the command of one node.

    Parameters
    ----------
    warm
        ``experiments.deploy.supernode`` instead of ``flower-supernode``.
    poll
        Seconds between two looks for a message, at most; Flower's own way has 3 always.

    Raises
    ------
    ConfigError
        If neither a certificate nor ``insecure`` is given, or a file is not there.
    """
    if insecure == (certificates is not None):
        raise ConfigError(["a node needs --root-certificates, or --insecure and no certificate"])
    words = " ".join(f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in config.items())
    command = [*(warm_supernode(poll) if warm else PLAIN)]
    command += ["--superlink", superlink, "--node-config", words]
    command += ["--port", str(port)]
    if certificates is not None:
        command += ["--root-certificates", str(trusted(certificates))]
    if key is not None:
        command += ["--auth-supernode-private-key", str(_there(key))]
    return [*command, "--insecure"] if insecure else command


def warm_supernode(poll: float) -> list[str]:
    """Return the command of the SuperNode that answers at once."""
    if not 0 < poll <= LONGEST_POLL:
        raise ConfigError([f"--poll is in (0, {LONGEST_POLL:g}] seconds, got {poll:g}"])
    # -P: what is in the folder of the caller must not stand in for our packages.
    return [sys.executable, "-P", "-m", "experiments.deploy.supernode", "--poll", f"{poll:g}"]


def warm_here() -> bool:
    """Whether processes can be forked safely here: on Linux."""
    return sys.platform == "linux"


def trusted(path: Path) -> Path:
    """Check that a file holds a certificate that TLS can trust; return its path.

    Flower reads it in a thread: what is none ends there, and the process stays without a word.

    Raises
    ------
    ConfigError
        If it is not there, or holds no certificate in PEM.
    """
    try:
        text = _there(path).read_bytes()
    except OSError as error:
        raise ConfigError([f"cannot read {str(path)!r}: {error.strerror}"]) from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text.decode("ascii"))
    except (ssl.SSLError, ValueError):  # ValueError: empty, or bytes that are no ASCII
        raise ConfigError([_no_certificate(path, text)]) from None
    return path


def _no_certificate(path: Path, text: bytes) -> str:
    found = "it is empty" if not text.strip() else "it is DER or damaged"
    if b"PRIVATE KEY" in text:
        found = "it is a private key, which belongs to nobody but its owner"
    elif text.startswith(b"-----BEGIN"):
        found = "it begins like PEM, but holds no whole certificate"
    return f"--root-certificates {str(path)!r} is no certificate in PEM: {found}"


def _there(path: Path) -> Path:
    if not path.exists():
        raise ConfigError([f"there is no {str(path)!r}"])
    return path


def _with_path(path: str) -> dict[str, str]:
    """Let Flower's processes find their own programs."""
    return {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{path}"}
