"""Processes on cores of their own: whose folder the locks are in."""

import os
import tempfile

import pytest

from fedrobust import cores


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the folder of the locks belongs; nothing is pinned in earnest, nor claimed before."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda who: {0, 1, 2}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda who, own: None, raising=False)
    cores.pin.cache_clear()
    cores._hold.cache_clear()
    yield tmp_path / f"fedrobust-cores-{os.getuid()}"
    cores.pin.cache_clear()
    cores._hold.cache_clear()


def test_cores_are_claimed_in_a_folder_of_the_users_own(place):
    assert cores.pin(2) == (0, 1)
    assert place.stat().st_mode & 0o777 == 0o700
    cores.pin.cache_clear()
    assert cores.pin(1) == (2,)  # the locks of the first claim are held
    cores.pin.cache_clear()
    assert cores.pin(1) == ()


def test_a_link_is_not_followed_and_no_file_is_emptied(place, tmp_path):
    """Whoever foresees the names could have files of the user's emptied."""
    precious = tmp_path / "precious"
    precious.write_text("data")
    place.mkdir(mode=0o700)
    (place / "0").symlink_to(precious)
    (place / "1").write_text("kept")
    assert cores.pin(2) == (1, 2)
    assert precious.read_text() == "data" and (place / "1").read_text() == "kept"


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file", "another's"])
def test_a_folder_that_is_not_this_users_alone_is_not_used(place, tmp_path, monkeypatch, kind):
    if kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "a file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o777 if kind == "open to others" else 0o700)
    if kind == "another's":
        owner = os.getuid()
        place.rename(tmp_path / f"fedrobust-cores-{owner + 1}")
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert cores.pin(1) == ()
    assert not list((tmp_path / "elsewhere").glob("*"))
