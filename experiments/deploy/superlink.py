"""Start Flower's SuperLink behind the gate: ``python -m experiments.deploy.superlink ARGUMENTS``.

All arguments of ``flower-superlink`` pass through. The gate's own, each also an environment
variable: ``--operators`` (FEDROBUST_OPERATORS), ``--reply-mib`` (FEDROBUST_REPLY_MIB) and
``--objects`` (FEDROBUST_OBJECTS).

Tasks are given out to an executor that knows a secret, made at the start and on no disk; with an
``--isolation`` or a ``--superexec-auth-secret-file`` among the arguments, executors are the
operator's own matter.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence

from experiments.deploy.gate import OPERATORS, Gate, network
from experiments.deploy.gate_ledger import MIB, Limits
from experiments.deploy.supernode import readable
from fedrobust.flower import _compat as flower
from fedrobust.flower._compat_processes import run_superlink

SECRET = "--superexec-auth-secret-file"
NO_INSTALLATION = "--disable-runtime-dependency-installation"
FORWARDED = "FORWARDED_ALLOW_IPS"  # by whom uvicorn lets a client's address be stated


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the gate's settings, and run the SuperLink with the rest."""
    given, rest = _parser().parse_known_args(arguments)
    try:
        settings = settings_of(given)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    log = own_log()
    if flower.version() not in flower.TRIED:
        tried = ", ".join(flower.TRIED)
        log.warning("the gate was tried with flwr %s, this is %s", tried, flower.version())
    log.info("operators: %s", ", ".join(given.operators))
    secret = secrets.token_bytes(32)
    if (command := executor_of(rest)) is not None:
        end = readable(secret)
        command += ["--parent-pid", str(os.getpid()), SECRET, f"/dev/fd/{end}"]
        subprocess.Popen(command, pass_fds=(end,), start_new_session=True)
        os.close(end)
        rest += ["--isolation", "process", SECRET, f"/dev/fd/{readable(secret)}"]
    run_superlink(rest, Gate, **settings)


def executor_of(arguments: Sequence[str]) -> list[str] | None:
    """Return the command of the executor that Flower would start itself, without a secret.

    None where the arguments say who executes, or nobody does.
    """
    # No abbreviations: one could be an argument of Flower's own.
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("--isolation", SECRET, "--ssl-ca-certfile"):
        parser.add_argument(name)
    for name in ("--simulation", "--insecure", "--help", "-h", "--version", "-V", NO_INSTALLATION):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="8000")
    told = vars(parser.parse_known_args(arguments)[0])
    said = ("isolation", "superexec_auth_secret_file", "help", "h", "version", "V")
    if any(told[name] for name in said):
        return None
    certificates = ["--root-certificates", os.path.expanduser(told["ssl_ca_certfile"] or "")]
    command = ["flower-superexec", "--runtime-api-address", reached(told["host"], told["port"])]
    command += ["--insecure"] if told["insecure"] else certificates
    installs = not told["disable_runtime_dependency_installation"]
    if installs and os.environ.get("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION") != "1":
        command += ["--allow-runtime-dependency-installation"]
    return command


def reached(host: str, port: str) -> str:
    """Return the address at which this machine reaches a server that listens on a host."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{here}]:{port}" if ":" in here else f"{here}:{port}"


def own_log() -> logging.Logger:
    """Let the gate's lines appear beside Flower's, whose own loggers stay as they are."""
    log = logging.getLogger("fedrobust.gate")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s : gate: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # a handler at the root would print all of Flower's debugging
    return log


def settings_of(given: argparse.Namespace) -> dict[str, object]:
    """Check the settings and return them as the gate takes them.

    Raises
    ------
    ValueError
        With one sentence about the first that is wrong.
    """
    for text in given.operators:
        network(text)
    if given.reply_mib < 1 or given.objects < 8:
        raise ValueError("--reply-mib needs at least 1 and --objects at least 8")
    if "*" in os.environ.get(FORWARDED, ""):
        raise ValueError(f"{FORWARDED}=* lets anybody state an operator's address: name the proxy")
    limits = Limits(objects=given.objects, reply_bytes=given.reply_mib * MIB)
    return {"operators": tuple(given.operators), "limits": limits}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="superlink", description=__doc__, allow_abbrev=False, add_help=False
    )
    words = os.environ.get("FEDROBUST_OPERATORS", "")
    parser.add_argument(
        "--operators",
        type=lambda text: [word for word in text.split(",") if word],
        default=[word for word in words.split(",") if word] or list(OPERATORS),
        help="Addresses or networks, by commas, that may submit runs and register nodes.",
    )
    mib = os.environ.get("FEDROBUST_REPLY_MIB", str(Limits.reply_bytes // MIB))
    parser.add_argument("--reply-mib", type=int, default=mib, help="Most MiB of a reply.")
    objects = os.environ.get("FEDROBUST_OBJECTS", str(Limits.objects))
    parser.add_argument("--objects", type=int, default=objects, help="Most objects of one.")
    return parser


if __name__ == "__main__":
    main()
