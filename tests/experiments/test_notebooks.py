"""Every shipped notebook runs from top to bottom; so does the Python in the README."""

import json
import re
from pathlib import Path

import pytest

from experiments.notebook_outputs import run

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))

LONG = ("own_rule", "alie_against_the_median")  # a minute and more: three seeds each
RUN = [pytest.param(path, marks=pytest.mark.exhaustive) if path.stem in LONG else path
       for path in NOTEBOOKS]  # fmt: skip


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 8


def kinds(document):
    """Return what each code cell shows, by kind: text, table, picture."""
    return [
        [sorted(output.get("data", {})) or output["output_type"] for output in cell["outputs"]]
        for cell in document["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_its_outputs(path):
    document = json.loads(path.read_text())
    assert sum(map(bool, kinds(document))) >= 3
    text = path.read_text()
    assert "Traceback" not in text and str(Path.home()) not in text and "/tmp/" not in text
    assert all(len(line) < 400_000 for line in text.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_kept(path):
    assert kinds(run(path)) == kinds(json.loads(path.read_text()))


def test_the_python_in_the_readme_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})


def test_the_toml_in_the_readme_is_an_experiment(tmp_path):
    from fedrobust.experiment.load import expand, read

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [len(expand(read(block))) for block in blocks] == [3]
