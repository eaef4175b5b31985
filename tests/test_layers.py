"""Dependencies point one way, from the top floor down; no two files import each other in a circle.

The floors stand in ``experiments/benchmarks/floors.py``; the measures of the house use them too.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks.floors import ROOT, circles, floor, graph, imports, modules, upward

FILES = modules(ROOT)
EDGES = graph(ROOT)


def test_it_saw_every_file():
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tracked.returncode:
        pytest.skip("needs a git checkout")
    rooms = ("fedrobust/", "strategies/", "clients/", "experiments/")
    expected = {n for n in tracked.stdout.splitlines() if n.startswith(rooms)}
    expected = {name for name in expected if (ROOT / name).exists()}
    assert {str(path.relative_to(ROOT)) for path in FILES.values()} == expected
    assert len(expected) >= 225
    assert sum(map(len, EDGES.values())) > 800


def test_the_tests_mirror_the_packages():
    """A folder of tests is named after a package; what stands above them spans several."""
    packages = {Path(*module.split(".")).name for module, file in FILES.items()
                if file.name == "__init__.py"}  # fmt: skip
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert len(folders) >= 15
    assert folders <= packages
    assert not list((ROOT / "tests").glob("*/*/test_*.py"))


def test_every_package_stands_on_a_floor():
    assert {floor(module) for module in FILES} == set(range(8))
    with pytest.raises(ValueError, match=r"fedrobust\.cellar stands on no floor"):
        floor("fedrobust.cellar")


def test_no_upward_import():
    assert upward(EDGES) == []


def test_no_circle_of_files():
    assert circles(EDGES) == []


@pytest.mark.parametrize(
    "text",
    [
        "import fedrobust.flower",
        "from fedrobust import flower",
        "from fedrobust.flower import screening",
        "def f():\n    from fedrobust import flower",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fedrobust import flower",
    ],
)
def test_every_form_of_import_is_seen(tmp_path, text):
    file = tmp_path / "core.py"
    file.write_text(text + "\n")
    found = imports(file, FILES) & FILES.keys()
    assert any(name.startswith("fedrobust.flower") for name in found)
    assert upward({"fedrobust.seeds": found}) != []


def test_upward_imports_neighbours_and_circles_are_found():
    edges = {"fedrobust.seeds": {"fedrobust.aggregation"}, "clients.node": {"strategies.session"}}
    assert len(upward(edges)) == 2
    below = {"strategies.session": {"fedrobust.flower"}, "fedrobust.flower": {"fedrobust.seeds"}}
    assert upward(below) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", FILES)
def test_flower_and_ray_stay_at_the_edge(module):
    top = {name.split(".")[0] for name in imports(FILES[module], FILES)}
    if module.startswith("fedrobust") and not module.startswith("fedrobust.flower"):
        assert "flwr" not in top
    if module.startswith("fedrobust"):
        assert "ray" not in top
    assert "pickle" not in top


def test_the_metrics_run_on_this_tree():
    command = [sys.executable, "-m", "experiments.benchmarks.house"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| circles of files | [] |" in done.stdout
    assert "| upward imports | 0 |" in done.stdout
