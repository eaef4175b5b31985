"""Start Flower's SuperLink behind the gate: ``python -m experiments.deploy.superlink ARGUMENTS``.

All arguments of ``flower-superlink`` pass through. The gate's own, each also an environment
variable: ``--operators`` (FEDROBUST_OPERATORS), ``--reply-mib`` (FEDROBUST_REPLY_MIB) and
``--objects`` (FEDROBUST_OBJECTS).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from experiments.deploy.gate import OPERATORS, Gate, network
from experiments.deploy.gate_ledger import MIB, Limits
from fedrobust.flower import _compat as flower

FORWARDED = "FORWARDED_ALLOW_IPS"  # by whom uvicorn lets a client's address be stated


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the gate's settings, and run the SuperLink with the rest."""
    given, rest = _parser().parse_known_args(arguments)
    try:
        settings = settings_of(given)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    logging.basicConfig(level=logging.INFO, format="%(levelname)s : [%(name)s] %(message)s")
    if flower.version() not in flower.TRIED:
        tried = ", ".join(flower.TRIED)
        logging.warning("the gate was tried with flwr %s, this is %s", tried, flower.version())
    logging.getLogger("fedrobust.gate").info("operators: %s", ", ".join(given.operators))
    flower.run_superlink(rest, Gate, **settings)


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
    mib = os.environ.get("FEDROBUST_REPLY_MIB", Limits.reply_bytes // MIB)
    parser.add_argument("--reply-mib", type=int, default=int(mib), help="Most MiB of a reply.")
    objects = os.environ.get("FEDROBUST_OBJECTS", Limits.objects)
    parser.add_argument("--objects", type=int, default=int(objects), help="Most objects of one.")
    return parser


if __name__ == "__main__":
    main()
