"""Every headline of the reproduced papers, and what became of it: data, checks, tables.

``python -m experiments.papers.verdicts [PAPER...]`` prints the tables; the documentation shows the
same. A claim is one ``[[claim]]`` of ``experiments/papers/PAPER/verdicts.toml``, see ``Claim``.
"""

from __future__ import annotations

import argparse
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAPERS = {
    "alie": "A Little Is Enough",
    "seesaw": "Seesaw",
    "aspis": "Aspis, Aspis+",
    "dat": "Distributed Adversarial Training",
    "transfer": "Distributed learning against transfer attacks",
}
HOLDS, PARTLY, FAILS = "holds", "holds in part", "does not hold"
PROGRAM, UNMEASURED = "the released program does not give it", "not measured"
VERDICTS = (HOLDS, PARTLY, FAILS, PROGRAM, UNMEASURED)
OPEN = "not established"
LEAST_TRIED = 3  # causes that were excluded by measurement before a cause may be called open


@dataclass(frozen=True)
class Claim:
    """One headline of a paper.

    Attributes
    ----------
    claim, paper
        What is claimed, and the paper's figure or words; "not available" where it is unknown.
    measured
        Our figure with its interval, or with each seed's value.
    seeds
        How many; 0 for what has no seed (a count, a closed form) or was not measured.
    verdict
        One of ``VERDICTS``.
    cause
        Why it does not hold, or on what it rests; for what was not measured the hours it needs.
    command
        What measures it anew, from the repository's root.
    machine
        Where the figure was measured, or where it would be.
    tried
        Causes that were tried and excluded, each with its figure.
    """

    claim: str
    paper: str
    measured: str
    seeds: int
    verdict: str
    cause: str
    command: str
    machine: str
    tried: tuple[str, ...] = ()


def read(paper: str) -> list[Claim]:
    """Return a paper's claims, checked.

    Raises
    ------
    ValueError
        With every fault of the file, one a line.
    """
    path = HERE / paper / "verdicts.toml"
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
    faults = [f"{path.name} of {paper}, claim {i + 1}: {fault}"
              for i, entry in enumerate(entries) for fault in faults_of(entry)]  # fmt: skip
    if faults:
        raise ValueError("\n".join(faults))
    return [Claim(**entry | {"tried": tuple(entry.get("tried", ()))}) for entry in entries]


def faults_of(entry: dict[str, Any]) -> list[str]:
    """Return what is wrong with an entry, one sentence each."""
    known = {field.name for field in fields(Claim)}
    needed = known - {"tried"}
    wrong = [f"needs {key!r}" for key in sorted(needed - set(entry))]
    wrong += [f"does not know {key!r}" for key in sorted(set(entry) - known)]
    if wrong:
        return wrong
    empty = [k for k in sorted(needed - {"seeds"}) if not str(entry[k]).strip()]
    wrong += [f"needs words for {key!r}" for key in empty]
    if entry["verdict"] not in VERDICTS:
        wrong.append(f"needs a verdict among {', '.join(VERDICTS)}, got {entry['verdict']!r}")
    if not isinstance(entry["seeds"], int) or entry["seeds"] < 0:
        wrong.append(f"needs a whole number of seeds, got {entry['seeds']!r}")
    if OPEN in entry["cause"] and len(entry.get("tried", ())) < LEAST_TRIED:
        wrong.append(f"may be {OPEN!r} after {LEAST_TRIED} causes that were tried only")
    return wrong


def markdown(claims: Iterable[Claim]) -> str:
    """Write claims as a Markdown table, and below it with what each was measured."""
    lines = [
        "| claim | paper | measured (seeds) | verdict | cause |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in claims:
        seeds = f" ({one.seeds})" if one.seeds else ""
        tried = "".join(f" Tried: {each}." for each in one.tried)
        cells = [one.claim, one.paper, one.measured + seeds, f"**{one.verdict}**",
                 one.cause + tried]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def measured_with(claims: Iterable[Claim]) -> str:
    """Write the commands and machines of the claims, each pair once."""
    pairs = dict.fromkeys((one.command, one.machine) for one in claims)
    lines = ["| command | machine |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{command}` | {where} |" for command, where in pairs)]) + "\n"


def page(papers: Iterable[str]) -> str:
    """Write the tables of several papers, and how many claims have which verdict."""
    found = {paper: read(paper) for paper in papers}
    counted = Counter(one.verdict for claims in found.values() for one in claims)
    said = ", ".join(f"{verdict}: {counted[verdict]}" for verdict in VERDICTS)
    parts = [f"{sum(counted.values())} claims. {said[0].upper()}{said[1:]}.\n"]
    for paper, claims in found.items():
        parts += [f"## {PAPERS[paper]}\n", markdown(claims), measured_with(claims)]
    return "\n".join(parts)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("papers", nargs="*", choices=[*PAPERS, []], metavar="PAPER")
    print(page(parser.parse_args().papers or PAPERS))


if __name__ == "__main__":
    main()
