"""Which versions are tried: the bounds of pyproject.toml, read and not copied."""

from pathlib import Path

from experiments import versions

PROJECT = versions.ROOT / "pyproject.toml"


def test_every_watched_package_has_a_lower_bound():
    found = versions.oldest(PROJECT.read_text(encoding="utf-8"))
    assert [line.split("==")[0] for line in found] == sorted(versions.WATCHED)
    assert all(line.endswith(".*") for line in found)


def test_bounds_are_read_with_extras_and_upper_bounds():
    text = '[project]\ndependencies = ["torch>=2.6,<3", "flwr[simulation]>=1.41", "rich>=13"]'
    assert versions.oldest(text) == ["torch==2.6.*", "flwr==1.41.*"]


def test_the_subset_exists_and_a_misspelt_set_is_refused(capsys):
    assert all((versions.ROOT / Path(file)).is_file() for file in versions.SUBSET)
    assert versions.main(["oldset"]) == 2
    assert "unknown set oldset; choose from oldest, newest" in capsys.readouterr().out
