"""Each headline of the papers has a verdict, a command that is there, and no open cause untried."""

import re
from pathlib import Path

import pytest

from experiments.docs import hooks
from experiments.papers import verdicts

ROOT = Path(__file__).parents[2]
GOOD = {
    "claim": "a", "paper": "1", "measured": "2", "seeds": 1, "verdict": "holds", "cause": "c",
    "command": "python -m experiments.listing", "machine": "m",
}  # fmt: skip


@pytest.mark.parametrize("paper", verdicts.PAPERS)
def test_every_claim_is_decided_and_can_be_measured_anew(paper):
    claims = verdicts.read(paper)
    assert len(claims) >= 3
    for one in claims:
        module = re.match(r"python -m ([\w.]+)", one.command)
        named = re.findall(r"(?:experiments|tests)/[\w/]+\.(?:toml|py)", one.command)
        if module and module[1] != "pytest":
            assert (ROOT / module[1].replace(".", "/")).with_suffix(".py").is_file(), one.command
        else:
            assert named, one.command
        assert all((ROOT / path).is_file() for path in named), one.command
        # What has a seed says how many; a count or a closed form has none.
        assert one.seeds or one.verdict == verdicts.UNMEASURED or one.machine == "any", one.claim


def test_every_folder_of_a_paper_takes_part():
    folders = {p.parent.name for p in (ROOT / "experiments/papers").glob("*/README.md")}
    assert folders == set(verdicts.PAPERS) and len(folders) == 5


@pytest.mark.parametrize("paper", verdicts.PAPERS)
def test_no_page_leaves_a_cause_open(paper):
    text = " ".join((ROOT / "experiments/papers" / paper / "README.md").read_text().split())
    assert verdicts.OPEN not in text


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"verdict": "probably"}, "needs a verdict among holds, holds in part"),
        ({"seeds": -1}, "whole number of seeds, got -1"),
        ({"seeds": "3"}, "whole number of seeds, got '3'"),
        ({"command": " "}, "needs words for 'command'"),
        ({"why": "x"}, "does not know 'why'"),
        ({"cause": "not established", "tried": ["z", "m"]}, "after 3 causes"),
    ],
)
def test_a_fault_is_named(change, fault):
    (found,) = verdicts.faults_of(GOOD | change)
    assert fault in found


def test_an_open_cause_needs_three_that_were_tried():
    assert not verdicts.faults_of(GOOD)
    assert not verdicts.faults_of(GOOD | {"cause": "not established", "tried": ["z", "m", "lr"]})
    assert verdicts.faults_of({"claim": "a"})[0].startswith("needs 'cause'")


def test_the_pages_hold_the_tables():
    whole = hooks.on_page_markdown("<!-- make: claims -->")
    alone = hooks.on_page_markdown("<!-- make: claims alie -->")
    rows = [line for line in alone.splitlines() if "**" in line]
    assert len(rows) == len(verdicts.read("alie")) and all(row in whole for row in rows)
    assert all(row.replace("\\|", "").count("|") == 6 for row in rows)
    assert "fedrobust run experiments/papers/alie/table1_cifar10.toml" in alone
    for paper in verdicts.PAPERS:
        page = ROOT / "experiments/docs/pages/papers" / f"{paper}.md"
        assert page.read_text().rstrip().endswith(f"<!-- make: claims {paper} -->")
