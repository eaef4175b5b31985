"""The table of modes: each runs, resumes or says why not, and shares nothing with another run."""

import ast
import inspect
import json
import threading

import pytest
import torch
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg

from clients import modes as client_modes
from clients.client_app import app, make_app, train_together
from clients.modes import MODES as CLIENT_MODES
from clients.modes import handlers_for
from clients.registry import Registry
from experiments.simulation import run_one, simulate
from experiments.sweep import Sweep
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower import InProcessGrid
from fedrobust.runs.checkpoint import CheckpointError
from fedrobust.runs.folder import RunFolder, timeless
from strategies import session
from strategies.checkpointing import Checkpoints
from strategies.handshake import await_clients
from strategies.modes import MODES
from strategies.rounds import rounds
from tests.conftest import Stopped, stop_after

ENSEMBLE = {
    "data": "digits", "model": "mlp", "clients": 3, "byzantine": 1, "rounds": 4, "seed": 4,
    "rule": "median", "attack": "none", "server": {"evaluate_every": 2},
    "ensemble": {"paradigm": "architecture", "architectures": ["linear", "mlp"], "batch_size": 32,
                 "train_images": 300, "test_images": 60, "votes": ["soft", "robust"]},
}  # fmt: skip
REDUNDANCY = {"training": {}, "clients": 7, "byzantine": 2, "rule": "median", "attack": "alie",
              "redundancy": {"name": "aspis", "replication": 3, "q": 2, "batch": 70}}  # fmt: skip


@pytest.fixture
def every_round(monkeypatch):
    """Checkpoint after each round, whatever it costs."""
    monkeypatch.setattr(
        "experiments.simulation.Checkpoints", lambda write, saved: Checkpoints(write, saved, 0.0)
    )


def test_a_run_is_a_table_a_loop_and_a_list():
    lines, _ = inspect.getsourcelines(session.run)
    (function,) = ast.parse(inspect.cleandoc("".join(lines))).body
    body = ast.unparse(ast.Module(function.body[1:], []))  # without the docstring
    assert len(body.splitlines()) <= 40
    assert "isinstance" not in inspect.getsource(session)
    assert set(MODES) - {"stock"} == set(CLIENT_MODES) == {"federated", "redundancy", "ensemble"}


def test_an_ensemble_stopped_anywhere_ends_as_if_it_had_never_stopped(tmp_path, every_round):
    e = from_dict(ENSEMBLE)
    expected = timeless(run_one(e))
    assert [row["round"] for row in expected] == [1, 2, 3, 4]
    for last in (1, 2, 3):
        folder = RunFolder(tmp_path / str(last), e)
        with pytest.raises(Stopped):
            run_one(e, folder=folder, on_row=stop_after(last + 1))
        trained = []
        rows = run_one(e, folder=folder, resume=True, on_row=trained.append)
        assert timeless(rows) == timeless(folder.rows()) == expected
        told = json.loads((folder.path / "environment.json").read_text())
        assert told["resumed"][0]["after"] == last, "and it did not start again"


def test_an_ensemble_on_other_machines_is_not_resumed(tmp_path, every_round):
    e = from_dict(ENSEMBLE)
    with pytest.raises(Stopped):
        run_one(e, folder=RunFolder(tmp_path, e), on_row=stop_after(2))
    folder = RunFolder(tmp_path, e)
    with folder.recording(resume=True):
        elsewhere = Checkpoints(folder.save, folder.saved | {"nodes": None})
        grid = InProcessGrid(app, clients=3, run_config={"experiment": e.to_toml()})
        with pytest.raises(CheckpointError, match="models of an ensemble's members"):
            session.run(grid, e, checkpoints=elsewhere)


def test_what_cannot_be_honoured_is_refused(small, tmp_path):
    e = from_dict(ENSEMBLE)
    with pytest.raises(
        ConfigError, match="keeping the final model is not honoured in ensemble mode"
    ):
        run_one(e, on_model=print)
    with pytest.raises(ConfigError, match="keeping the final model is not honoured"):
        Sweep([from_dict(small), e], tmp_path, models=True).run(print)
    assert not list(tmp_path.iterdir()), "refused before anything was run"
    with pytest.raises(ConfigError, match="keeps its memory to itself"):
        run_one(from_dict(small), stock=FedAvg(), resume=True)
    with pytest.raises(
        ConfigError, match="not honoured in redundancy mode, only in federated mode"
    ):
        run_one(from_dict(small | REDUNDANCY), stock=FedAvg())


class FromElsewhere(FedAvg):
    """A strategy that asks nodes it was told of elsewhere, clients or not."""

    def configure_train(self, server_round, arrays, config, grid):
        asked = super().configure_train(server_round, arrays, config, grid)
        return [*asked, Message(asked[0].content, 12, "train")]


@pytest.mark.parametrize(
    ("strategy", "replies"),
    [(FedAvg(), 10), (FedAvg(fraction_train=0.5), 5), (FromElsewhere(), 10)],
)
def test_a_stock_strategy_samples_among_the_clients_alone(small, strategy, replies):
    """Two nodes more than the run has clients are connected: each round was a KeyError."""
    e, rows = from_dict(small | {"rounds": 2}), []
    own = handlers_for(e)
    nodes = InProcessGrid(make_app(lambda context: own), clients=12, together=own.together)
    session.run(nodes, e, stock=strategy, on_row=rows.append)
    assert [row["replies"] for row in rows[1:]] == [replies] * 2
    assert not any(row["rejected"] for row in rows[1:])


def test_a_stock_strategys_run_writes_no_checkpoint_and_takes_none(small):
    written, e = [], from_dict(small)
    own = handlers_for(e)

    def nodes():
        return InProcessGrid(make_app(lambda context: own), clients=10, together=own.together)

    session.run(nodes(), e, stock=FedAvg(), checkpoints=Checkpoints(written.append, share=0.0))
    assert written == []
    session.run(nodes(), e, checkpoints=Checkpoints(written.append, share=0.0))
    assert [tree["round"] for tree in written] == [0, 1, 2, 3]
    saved = Checkpoints(written.append, written[2])
    with pytest.raises(CheckpointError, match="keeps its memory to itself"):
        session.run(nodes(), e, stock=FedAvg(), checkpoints=saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"mode": "update", "steps": 4, "batch_size": 16, "lr": 0.1}, "rounds": 15},
        REDUNDANCY | {"rounds": 5},
    ],
)
def test_two_threads_of_one_table_share_nothing(small, changes):
    """A scratch model shared by both made each train the other's parameters."""
    e, seen = from_dict(small | changes), {}
    alone = timeless(run_one(e))
    ready = threading.Barrier(3)

    def work(number):
        ready.wait()
        seen[number] = timeless(simulate(e).runs[0][1])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 3
    for rows in seen.values():
        assert rows == alone


def start_of(grid, e):
    """Return an iterator over the rounds of an experiment on a grid."""
    clients = await_clients(grid, expected=e.clients)
    dataset = session.data.load(e.data)
    setup = session.Setup(grid=grid, experiment=e, dataset=dataset, clients=clients, secret=e.seed)
    mode = session.build(setup)
    return rounds(mode.strategy, mode.grid, mode.arrays, last=e.rounds, timeout=60.0)


def test_two_runs_taking_turns_set_nothing_up_again(small, monkeypatch):
    """Each message of the other run threw the data, the model and the buffers away."""
    made, real = [], client_modes.make_node
    monkeypatch.setattr(client_modes, "make_node", lambda *a: made.append(a) or real(*a))
    runs = []
    for seed in (1, 2):
        e = from_dict(small | {"seed": seed})
        config = {"experiment": e.to_toml()}
        grid = InProcessGrid(app, clients=10, run_config=config, together=train_together)
        runs.append(start_of(grid, e))
    turns = list(zip(*runs, strict=True))
    assert len(turns) == 4 and len(made) == 2
    first, second = (arrays["model"].numpy() for _, arrays in turns[-1])
    assert not (first == second).all()


def test_a_registry_keeps_the_last_few_and_makes_each_once():
    kept, made = Registry(most=2), []

    def get(key):
        return kept.get(key, lambda: made.append(key) or object())

    one, two = get("a"), get("b")
    assert get("a") is one and get("b") is two and made == ["a", "b"]
    get("c")
    assert get("b") is two and made == ["a", "b", "c"]
    assert get("a") is not one and made == ["a", "b", "c", "a"]
    threads = [threading.Thread(target=get, args=("d",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.count("d") == 1


def test_a_forged_report_does_not_speak_for_another_member():
    """Votes and reports took whatever answered a message, whoever had sent it."""
    e = from_dict(ENSEMBLE | {"rounds": 1})
    own = handlers_for(e)

    def train(message, context):
        reply = make_app(lambda context: own)(message, context)
        if context.node_config["partition-id"] == 2 and message.metadata.message_type != "train":
            reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    rows = []
    session.run(InProcessGrid(train, clients=3), e, on_row=rows.append)
    assert rows[-1]["voters"] == 2
    assert [entry["client"] for entry in rows[-1]["rejected"]] == [2]
    assert torch.isfinite(torch.tensor(rows[-1]["accuracy"]))
