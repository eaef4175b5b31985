"""Fuzz what nodes may send: the reader of replies and the three screens behind it.

``python -m experiments.benchmarks.fuzz --inputs 20000`` from a checkout, with Hypothesis installed,
prints one JSON line: inputs, what became of them, and findings. A finding is an exception that a
screen lets through, or a reply that passes and is not what it must be; exit code 1 if there is any.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import typer
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests import hostile

MOST_NAMED = 5


def campaign(inputs: int, start: int) -> dict[str, Any]:
    """Judge so many hostile replies by every screen; return the counts and the findings."""
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    slowest = 0.0

    @seed(start)
    @settings(
        max_examples=inputs,
        deadline=None,
        # No examples that an earlier campaign kept: one seed is one campaign.
        database=None,
        # Findings are counted, not shrunk.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile.REPLIES)
    def judge(reply: Any) -> None:
        nonlocal slowest
        began = time.perf_counter()
        message = hostile.read(*reply)
        outcomes["inputs"] += 1
        outcomes["unreadable" if isinstance(message, str) else "readable"] += 1
        for kind in () if isinstance(message, str) else hostile.SCREENS:
            try:
                found = hostile.screened(message, kind)
                outcomes[f"refused as {kind}" if isinstance(found, str) else f"{kind} passed"] += 1
                if not hostile.sound(found):
                    findings.append(f"{kind}: passes as {found!r:.200}")
            except Exception as error:
                findings.append(f"{kind}: raises {error!r:.200}")
        slowest = max(slowest, time.perf_counter() - began)

    judge()
    return {
        "inputs": outcomes.pop("inputs"),
        "findings": len(findings),
        "verdicts": dict(sorted(outcomes.items())),
        "slowest_ms": round(1000 * slowest, 1),
        "seed": start,
        "first": findings[:MOST_NAMED],
    }


def main(inputs: int = 20_000, start: int = 0) -> None:
    """Run a campaign and print what was found."""
    began = time.monotonic()
    found = campaign(inputs, start)
    typer.echo(json.dumps(found | {"seconds": round(time.monotonic() - began, 1)}))
    raise typer.Exit(1 if found["findings"] else 0)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
