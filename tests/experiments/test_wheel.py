"""The wheel, installed into an empty folder: whole, beside whatever a user has there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


def run(*command, cwd, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FEDROBUST_DATA")}
    kept |= {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd, env=kept, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from the files of the checkout alone: no build folder of an earlier one."""
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tracked.returncode:
        pytest.skip("needs a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        if name.startswith("tests/") or not (ROOT / name).is_file():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).symlink_to(ROOT / name)
    made = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    done = run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", made,
               source, cwd=made)  # fmt: skip
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip(f"needs setuptools >= 77 here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = made.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the folder of an installation without the checkout; what it needs comes from here."""
    target = tmp_path_factory.mktemp("installed")
    done = run(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q",
               "--no-deps", "--no-index", "--target", target, wheel, cwd=target)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return target


ENTRY = "import sys; sys.path.insert(0, sys.argv.pop(1)); from experiments.cli import main; main()"


def fedrobust(installed, *words, cwd):
    """Call the command line of the installation, as its script does: the folder first."""
    return run(sys.executable, "-P", "-c", ENTRY, installed, *words, cwd=cwd)


SMALL = ["-o", "rounds=1", "-o", "clients=5", "-o", "byzantine=1", "-o", "rule=median",
         "-o", "attack=ipm", "--workers", "1"]  # fmt: skip


def test_everything_that_is_read_at_run_time_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in ("fedrobust/py.typed", "fedrobust/data/fashionmnist_sample.npz",
                   "experiments/quickstart.toml", "experiments/listing.json",
                   "experiments/docs/formulas.toml", "experiments/report/page.html",
                   "experiments/report/page.css", "experiments/report/page.js",
                   "experiments/notebooks/own_rule.ipynb"):  # fmt: skip
        assert needed in names
    assert any(n.startswith("experiments/board/") and n.endswith(".json") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "build/", "results/"))]
    meta = next(n for n in names if n.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(meta).decode()
    assert "Requires-Python: >=3.11" in text and "# fedrobust" in text


def test_it_runs_in_an_empty_folder(installed, tmp_path):
    where = fedrobust(installed, "--version", cwd=tmp_path)
    assert where.returncode == 0, where.stderr[-2000:]
    done = fedrobust(installed, "run", "quickstart", *SMALL, "-o", "sweep={}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "final test accuracy" in done.stdout
    done = fedrobust(installed, "report", "results/quickstart", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "<svg" in (tmp_path / "results" / "quickstart" / "report.html").read_text()
    listed = fedrobust(installed, "list", "rules", cwd=tmp_path)
    assert "n >= 2 f + 3" in listed.stdout, listed.stderr[-2000:]
    origin = "import experiments.listing as l; print(l.__file__, l._kept() is not None)"
    found = run(sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); "
                f"{origin}", cwd=tmp_path)  # fmt: skip
    file, kept = found.stdout.split()
    assert Path(file).is_relative_to(installed) and kept == "True", "the listing is not read anew"


@pytest.mark.parametrize("name", ["experiments", "clients", "strategies"])
def test_a_folder_of_the_users_does_no_harm_or_is_named(installed, tmp_path, name):
    own = tmp_path / name
    own.mkdir()
    (own / "mine.py").write_text("raise RuntimeError('foreign code ran')\n")
    (own / "mine.toml").write_text("rounds = 1\n")
    done = fedrobust(installed, "--version", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("fedrobust "), done.stderr
    (own / "__init__.py").write_text("raise RuntimeError('foreign code ran')\n")
    # As a script of the user's in that folder: it stands first on the path, and is named.
    code = "import sys; sys.path.insert(1, sys.argv[1]); sys.path.insert(0, '.'); import fedrobust"
    code += "; fedrobust.simulate('quickstart')"
    done = run(sys.executable, "-P", "-c", code, installed, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert f"the package '{name}' that Python finds is" in done.stderr, done.stderr[-1500:]
    assert "foreign code ran" not in done.stderr and "rename it" in last
