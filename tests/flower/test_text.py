"""What a client writes is one printable line wherever it is read: rows, logs, pages, tables."""

import csv
import io
import json
import re

import pandas as pd
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from experiments import tables
from experiments.report import build
from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict
from fedrobust.flower import InProcessGrid, Rejected, screen
from fedrobust.flower.commit_reveal import read_digests, read_values
from fedrobust.flower.ensemble_replies import screen_answer, screen_progress
from fedrobust.flower.in_process import identify, stamp
from fedrobust.runs.folder import RunFolder, read_rows
from fedrobust.text import printable, printables
from strategies.handshake import ProtocolError, await_clients
from strategies.server_app import sentence

identify()
EVIL = [
    "a\nINFO :      round 9; accuracy 1.0",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "right \u202eto left",
    "zero\u200bwidth",
    "\r\nx\u2028y\x00z\x7f\x9b31m",
    "<script>alert(1)</script>",
    '=HYPERLINK("http://x","y")',
    "x" * 100_000,
]


def harmless(text):
    return text.isprintable() and len(text) < 500


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_every_screen_gives_one_printable_line(evil):
    asked = stamp(Message(RecordDict(), 7, "train"), "asked")
    replies = [
        Message(Error(2, evil), reply_to=asked),
        Message(RecordDict({evil: MetricRecord({evil: 1.0})}), reply_to=asked),
        Message(RecordDict({"metrics": MetricRecord({evil: 1})}), reply_to=asked),
        Message(RecordDict({"arrays": ConfigRecord({evil: evil}), evil: ConfigRecord()}),
                reply_to=asked),
    ]  # fmt: skip
    screens = (
        lambda m: screen(m, d=3, most_examples=9),
        lambda m: screen_answer(m, query="q", shape=(1,)),
        lambda m: screen_progress(m, most_examples=9),
        lambda m: read_digests(m, files=1),
        lambda m: read_values(m, ["sum"], shape=(3,), largest=1.0),
    )
    for reply in replies:
        for check in screens:
            with pytest.raises(Rejected) as refused:
                check(reply)
            assert harmless(str(refused.value))


@given(st.text())
def test_any_text_becomes_one_line(text):
    found = printable(text, limit=50)
    assert found.isprintable() and len(found) <= 50
    plain = text.isprintable() and text == " ".join(text.split()) and len(text) <= 50
    assert not plain or found == text


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_the_roll_call_quotes_no_control_characters(evil):
    def broken(message, context):
        return Message(Error(2, evil), reply_to=message)

    def foreign(message, context):
        words = ConfigRecord({"protocol": 99, "version": evil, "client": 0})
        return Message(RecordDict({"hello": words}), reply_to=message)

    for app in (broken, foreign):
        with pytest.raises(ProtocolError) as refused:
            await_clients(InProcessGrid(app, clients=2, run_config={}), expected=2, deadline=1)
        assert refused.value.args[0].isprintable() and len(str(refused.value)) < 700


def test_rows_and_their_readers(small, tmp_path):
    row = printables({
        "round": 0, "rejected": [{"client": 1, "reason": evil} for evil in EVIL], EVIL[1]: 1,
        "kept": EVIL[0], "accuracy": 0.5, "loss": 1.0,
    })  # fmt: skip
    assert all(harmless(entry["reason"][:400]) for entry in row["rejected"])
    assert sentence(row).isprintable()
    old = tmp_path / "rounds.jsonl"  # a file of before, or of somebody else's
    old.write_text(json.dumps({"round": 0, "rejected": [{"reason": EVIL[1]}], "x": (1, None)}))
    assert read_rows(old) == [
        {"round": 0, "rejected": [{"reason": "?[31mred?[0m"}], "x": [1, None]}
    ]
    assert printables({1: ("a\n",), "n": 2.5, "t": True}) == {1: ("a",), "n": 2.5, "t": True}


def test_the_page_shows_no_escape_codes(small, tmp_path):
    e = from_dict(small | {"rounds": 1})
    folder = RunFolder(tmp_path, e)
    rows = run_one(e, folder=folder)
    path = folder.path / "rounds.jsonl"
    rows[-1]["rejected"] = [{"node": 1, "client": 1, "reason": f"names: {evil}"} for evil in EVIL]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = build([folder.path])
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x9b\u202e\u200b]", html)
    assert "<script>alert" not in html


def test_tables_hold_no_formulas_and_no_markup():
    frame = pd.DataFrame({"=1+1": [*EVIL, "-0.5", "-", "+x", "@y", "a|b"]}, index=["=cmd|"] * 14)
    cells = [cell for row in csv.reader(io.StringIO(tables.csv(frame))) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+@" and cell]
    assert {"'=1+1", "'=cmd|", "-0.5", "-", "'+x", "'@y"} <= set(cells)
    assert all(cell.isprintable() for cell in cells)
    pipes = tables.pipes(frame)
    assert len(pipes.splitlines()) == 16 and "<script>" not in pipes
    for line in pipes.splitlines():
        assert line.isprintable() and len(re.findall(r"(?<!\\)\|", line)) == 3
    numbers = pd.DataFrame([[0.5, 0.25]], index=[EVIL[0]], columns=[EVIL[1], "a_b"])
    latex = tables.latex(numbers, numbers * float("nan"))
    assert "\x1b" not in latex and "accuracy 1.0" in latex and r"a\_b" in latex
    assert len(latex.splitlines()) == 7
