"""Help, the listing and a wrong call import no heavy package; foreign packages are named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fedrobust
from experiments import catalogue, listing
from fedrobust.packages import BESIDE, ShadowError, check_packages

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "ray", "flwr", "pandas", "matplotlib", "numba", "scipy", "optuna")
OLD = "a source of the tables has changed: run python -m experiments.listing"
CALL = """
import json, sys
sys.argv = ["fedrobust", *json.loads(sys.argv[1])]
try:
    from experiments.cli import main
    main()
except SystemExit as end:
    code = end.code
loaded = sorted({name.split(".")[0] for name in sys.modules})
print("\\n" + json.dumps({"code": code or 0, "loaded": loaded}))
"""


def called(*arguments):
    """Run the command line in a process of its own; return exit code and top-level modules."""
    command = [sys.executable, "-c", CALL, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        (("run", "--help"), 0),
        (("list",), 0),
        (("list", "rules", "--json"), 0),
        (("list", "rule"), 2),
        (("lsit",), 2),
        (("run", "--overide", "x=1"), 2),
    ],
)
def test_nothing_heavy_is_imported(arguments, code):
    if arguments[0] == "list":
        assert listing._kept() is not None, OLD
    end = called(*arguments)
    assert end["code"] == code
    assert not set(HEAVY) & set(end["loaded"])
    assert "typer" in end["loaded"]


def test_a_run_does_import_them(tmp_path):
    """The list of heavy packages names what this repository really loads."""
    end = called("check", "experiments/quickstart.toml")
    assert end["code"] == 0
    assert {"torch", "flwr", "pandas", "numba"} <= set(end["loaded"])


def test_the_kept_listing_is_that_of_the_tables():
    assert listing._kept() is not None, OLD
    assert listing._kept() == catalogue.tables()


def test_an_old_listing_is_not_shown(tmp_path, monkeypatch):
    old = tmp_path / "listing.json"
    old.write_text(json.dumps({"digest": "of yesterday", "tables": {"rules": []}}))
    monkeypatch.setattr(listing, "FILE", old)
    assert len(listing.tables("rules")["rules"]) > 20
    monkeypatch.setattr(listing, "FILE", tmp_path / "absent.json")
    assert len(listing.tables("rules")["rules"]) > 20
    listing.write(tmp_path / "absent.json")
    assert listing._kept() == catalogue.tables()


@pytest.mark.parametrize("name", BESIDE)
def test_a_foreign_package_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    program = "from fedrobust.packages import check_packages; check_packages()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"the package {name!r} that Python finds is {tmp_path / name}" in done.stderr
    others = set(BESIDE) - {name}
    assert not any(f"the package {other!r}" in done.stderr for other in others)


def test_simulate_refuses_a_foreign_package(tmp_path):
    (tmp_path / "experiments.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "import fedrobust; fedrobust.simulate({})"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ShadowError" in done.stderr
    assert str(tmp_path / "experiments.py") in done.stderr


def test_a_missing_package_is_named(tmp_path):
    check_packages()
    with pytest.raises(ShadowError, match="'no_such_package' is missing: it belongs into"):
        check_packages(["no_such_package"], home=tmp_path)


def test_the_version_is_that_of_the_project():
    assert f'version = "{fedrobust.__version__}"' in (ROOT / "pyproject.toml").read_text()
