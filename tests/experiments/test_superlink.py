"""A real SuperLink, started once: a stranger, a forger, a poisoner and a flooder in one run.

For themselves they answer as honest nodes do: the rows must be those of the simulation.
"""

import time
from collections import Counter
from pathlib import Path

import pytest

from experiments import flower_processes, flower_run
from experiments.deploy import behaviours
from experiments.deploy.behaviours import stranger
from experiments.deploy.federation import federation
from experiments.deploy.raw_nodes import RawNode
from experiments.deployment import run_on_nodes
from experiments.simulation import run_one
from fedrobust import secret
from fedrobust.experiment.load import from_dict
from fedrobust.runs.folder import RunFolder

pytestmark = pytest.mark.slow
EXPERIMENT = {
    "data": "digits",
    "model": "linear",
    "clients": 6,
    "byzantine": 1,
    "rounds": 4,
    "seed": 3,
    "rule": "median",
    "attack": "none",
    "training": {"batch_size": 16},
    "server": {"lr": 0.5, "evaluate_every": 1, "deadline": 120.0},
}
SECOND = {  # then two more nodes: one sends texts, one a million numbers
    "clients": 8,
    "rounds": 1,
    "server": {"lr": 0.5, "evaluate_every": 1, "deadline": 45.0},
}


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    """One run; returns what there is to see afterwards."""
    home, e = tmp_path_factory.mktemp("federation"), from_dict(EXPERIMENT)
    with federation(home, nodes=0, namespaces=False) as it:
        nodes: list[RawNode] = []
        kinds = [None, None, None, behaviours.forger(lambda node: nodes[:3]), behaviours.poisoner,
                 behaviours.flooder]  # fmt: skip
        it.register_all(len(kinds))
        for number, kind in enumerate(kinds):
            nodes.append(RawNode(it, number, kind, source=f"127.0.1.{number + 1}"))
        for node in nodes:
            node.start()
        it.wait_for_nodes(len(nodes))
        before, user = stranger(it), stranger(it, source="127.0.0.1")
        during = []

        def on_row(row):
            during.append(stranger(it))

        began = time.monotonic()
        rows = run_on_nodes(
            e, superlink=it.address, output=home / "results", certificates=home / "ca.crt",
            on_row=on_row,
        )  # fmt: skip
        seconds = time.monotonic() - began
        online = [entry for entry in it.nodes() if entry["status"] == "online"]
        size = sum(path.stat().st_size for path in Path(home).glob("state.db*"))
        log = it.log("superlink")
        tried = [Counter(node.tried) for node in nodes]
        second = from_dict(EXPERIMENT | SECOND)
        it.register_all(8, first=6)
        for number, kind in ((6, behaviours.malformed), (7, behaviours.talkative)):
            nodes.append(RawNode(it, number, kind, source=f"127.0.1.{number + 1}"))
            nodes[-1].start()
        it.wait_for_nodes(len(nodes))
        texts = run_on_nodes(
            second, superlink=it.address, output=home / "second", certificates=home / "ca.crt"
        )
        runs = flower_processes.flwr(["ls"], it.environment)["runs"]
        said = "\n".join(flower_run._log(str(run["run-id"]), it.environment) for run in runs)
        for node in nodes:
            node.stop()
    folder = RunFolder(home / "results", e)
    return {"e": e, "rows": rows, "nodes": nodes, "strangers": [before, *during], "user": user,
            "log": log, "online": online, "size": size, "seconds": seconds,
            "folder": folder, "texts": texts, "said": said, "tried": tried}  # fmt: skip


def test_the_run_is_that_of_the_simulation(drill):
    keys = ("accuracy", "loss", "train_loss", "rejected")

    def numbers(rows):
        return [{key: row.get(key) for key in keys} for row in rows]

    assert [row["replies"] for row in drill["rows"][1:]] == [6] * 4
    assert numbers(drill["rows"]) == numbers(run_one(drill["e"]))
    assert len(drill["online"]) == 6


def test_a_stranger_gets_nothing(drill):
    assert len(drill["strangers"]) == 6
    for answers in drill["strangers"]:
        open_to_all = answers.pop("/health")
        assert open_to_all == 200 and set(answers.values()) == {403} and len(answers) == 9


def test_tasks_are_for_the_executor_alone_not_for_users_of_the_machine(drill):
    """Who submits runs is another matter: to the gate, every user of the machine is an operator."""
    assert drill["user"]["/v1/runtime/acquire-task"] == 401
    assert drill["user"]["/v1/control/list-nodes"] == 200


def test_a_forger_is_nobody_else_and_gets_nothing_of_theirs(drill):
    tried = drill["tried"][3]
    assert tried["forged"] >= 4 * 3 * 12  # rounds, victims, 11 guesses and the true id
    assert tried["PushMessages 403"] == tried["forged"]
    assert tried["PushMessages 200"] == 5 and tried["objects of another's"] == 0


def test_a_poisoner_names_objects_that_are_never_sent(drill):
    tried = drill["tried"][4]
    assert tried["guesses"] >= 20 and tried["PushMessages 200"] == 5
    assert " 500 " not in drill["log"]


def test_a_flooder_fills_nothing(drill):
    tried = drill["tried"][5]
    assert tried["PushMessages 409"] == 4  # the second tree, each round
    assert tried["PushMessages 413"] == 4  # the wide one
    assert drill["size"] < 20 * 2**20


def test_texts_of_a_node_are_one_printable_line_in_the_row_and_in_the_log(drill):
    (lost,) = [entry for entry in drill["texts"][1]["rejected"] if entry["client"] == 6]
    assert lost["reason"].isprintable() and "round 9" in lost["reason"]
    assert "extra records: ?[31mred, <script>" in drill["said"], drill["said"]
    assert "\x1b[31mred" not in drill["said"]
    assert not any(line.startswith("INFO :") for line in drill["said"].splitlines())


def test_a_reply_beyond_every_bound_costs_its_sender_the_vote_and_the_others_nothing_more(drill):
    row = drill["texts"][1]
    assert row["replies"] == 6 and row["accuracy"] > drill["texts"][0]["accuracy"]
    (lost,) = [entry for entry in row["rejected"] if entry["client"] == 7]
    assert "no reply before the deadline" in lost["reason"] and row["seconds"] < 60
    assert drill["nodes"][7].tried["PushObject 413"] == 1


def test_the_server_has_a_secret_that_no_node_was_sent(drill):
    number = secret.held(drill["folder"].path)
    assert number is not None and number > 2**100
    for node in drill["nodes"]:
        told = " ".join(str(dict(m.content)) for m in node.seen)
        told += str([dict(c.run_config) for c in node._contexts.values()])
        assert "rule" in told and str(number) not in told and f"{number:032x}" not in told
