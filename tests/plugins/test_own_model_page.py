"""The page "Bring your own model": its files and its commands, as they stand there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.datasets import load_wine

PAGE = Path(__file__).parents[2] / "experiments" / "docs" / "pages" / "howto" / "own_model.md"
BLOCKS = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def folder(tmp_path):
    """Write the page's files, and a csv of wines for the public examples and for two nodes."""
    for block in BLOCKS:
        name, _, text = block.partition("\n")
        if name.startswith("# task."):
            (tmp_path / name.removeprefix("# ")).write_text(text)
    wines = load_wine(as_frame=True).frame.sample(frac=1, random_state=0)
    for name, part in (("public", wines[:60]), ("a", wines[60:120]), ("b", wines[120:])):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def commands(start):
    """Return the page's commands that begin with some words."""
    lines = [line.split(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
    return [line for line in lines if line.startswith(start)]


def run(line, folder):
    words = [sys.executable, "-m", "experiments.cli", *line.split()[1:], "--json"]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)["table"]["mean"]["none"]


@pytest.mark.slow
def test_the_commands_of_the_page_run_to_one_number(folder):
    lines = commands("fedrobust run")
    assert len(lines) == 2 and lines[1].endswith("--grid flower")
    here = run(lines[0], folder)
    assert here > 0.7
    assert run(lines[1], folder) == pytest.approx(here)


def test_the_page_names_what_two_nodes_need(folder):
    nodes = commands("fedrobust node")
    assert len(nodes) == 2 and all("--use task.py --check sensors" in line for line in nodes)
    assert {re.search(r"--data (\S+)", line)[1] for line in nodes} <= {
        path.name for path in folder.iterdir()
    }
