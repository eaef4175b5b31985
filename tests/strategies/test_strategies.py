"""Strategies made from values: with anybody's model, data and ClientApp."""

import ast
import importlib.util
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from torch import nn

from experiments import flower_run
from fedrobust.failures import PluginError
from fedrobust.flower import InProcessGrid
from fedrobust.spec import SpecError
from strategies import RobustStrategy

PAGE = Path(__file__).parents[2] / "experiments" / "docs" / "pages" / "howto" / "strategies.md"
START = {
    "w": np.arange(4, dtype=np.float32).reshape(2, 2),
    "bn.running_mean": np.zeros(2, np.float32),
    "bn.num_batches_tracked": np.array(7, np.int64),
}


def page():
    """Return the page's snippets up to the one that runs them."""
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [text for text in code if "InProcessGrid" not in text]


def record(values):
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def reply(message, values, **metrics):
    metrics = MetricRecord({"num-examples": 1, **metrics})
    return Message(RecordDict({"arrays": record(values), "metrics": metrics}), reply_to=message)


def client(moves):
    """Return an app whose client i answers with its model moved by moves[i], or misbehaves."""

    def train(message, context):
        move = moves[context.node_config["partition-id"]]
        sent = {k: a.numpy() for k, a in message.content["arrays"].items()}
        if callable(move):
            return move(message, sent)
        return reply(message, {
            "w": sent["w"] + np.float32(move),
            "bn.running_mean": np.full(2, move, np.float32),
            "bn.num_batches_tracked": np.array(7 + int(move), np.int64),
        }, loss=float(move))  # fmt: skip

    return train


def start(moves, *, rounds=1, values=START, app=None, **settings):
    settings = {"rule": "median", "min_available_nodes": 1} | settings
    strategy = RobustStrategy(**settings)
    grid = InProcessGrid(app or client(moves), clients=len(moves))
    result = strategy.start(grid=grid, initial_arrays=record(values), num_rounds=rounds)
    return strategy, {k: a.numpy() for k, a in result.arrays.items()}, result


def test_the_server_of_the_page_has_at_most_twenty_lines():
    (server,) = [text for text in page() if "ServerApp" in text]
    body = ast.unparse(ast.parse(server))
    assert len(body.splitlines()) <= 20


def test_the_app_of_the_page_learns_in_process(tmp_path):
    (tmp_path / "page.py").write_text("\n".join(page()))
    spec = importlib.util.spec_from_file_location("page", tmp_path / "page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = module.main(InProcessGrid(module.client_app, clients=5), None)
    told = [metrics["accuracy"] for metrics in result.evaluate_metrics_serverapp.values()]
    assert len(told) == 4 and told[-1] > told[0] + 0.2
    expected = module.make_model().state_dict()
    state = result.arrays.to_torch_state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and state[name].shape == value.shape
    assert int(state["1.num_batches_tracked"]) == 15, "five steps in each of three rounds"


@pytest.mark.slow
def test_the_app_of_the_page_learns_in_flowers_simulation(tmp_path, monkeypatch):
    """As ``flwr run`` starts it, on Ray: one node a client, and no word of ours in the client."""
    told = tmp_path / "accuracies.json"
    app = tmp_path / "app"
    app.mkdir()
    (app / "page.py").write_text("\n".join(page()) + RECORDED.format(path=str(told)))
    components = {"serverapp": "page:recorded", "clientapp": "page:client_app"}
    project = {"name": "page", "version": "1", "dependencies": []}
    flower = {"app": {"publisher": "page", "components": components}}
    (app / "pyproject.toml").write_text(
        tomli_w.dumps({"project": project, "tool": {"flwr": flower}})
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    home = tmp_path / "home"
    home.mkdir()
    with flower_run._superlink(home) as environment:
        run = flower_run._submit(app, environment, 5, "cpu")
        status, end = "", time.monotonic() + 500
        while not status.startswith("finished") and time.monotonic() < end:
            time.sleep(3)
            status, _ = flower_run._status(run, environment)
        assert status == "finished:completed", flower_run._log(run, environment)
    accuracies = json.loads(told.read_text())
    assert len(accuracies) == 4 and accuracies[-1] > accuracies[0] + 0.2


RECORDED = """
import json
from pathlib import Path

recorded = ServerApp()


@recorded.main()
def write(grid, context):
    result = main(grid, context)
    told = [metrics["accuracy"] for metrics in result.evaluate_metrics_serverapp.values()]
    Path({path!r}).write_text(json.dumps(told))
"""


def test_weights_become_the_aggregate_and_the_rest_the_median():
    strategy, arrays, result = start([1, 2, 3, 2, 100])
    assert np.allclose(arrays["w"], START["w"] + 2)
    assert arrays["bn.running_mean"].tolist() == [2, 2]
    assert arrays["bn.num_batches_tracked"] == 9 and arrays["bn.num_batches_tracked"].dtype == "i8"
    assert result.train_metrics_clientapp[1]["loss"] == 2
    assert strategy.history[0]["replies"] == 5 and not strategy.history[0]["rejected"]


def test_updates_are_what_they_say():
    def differences(move):
        return lambda message, sent: reply(message, {
            "w": np.full((2, 2), move, np.float32),
            "bn.running_mean": np.full(2, move, np.float32),
            "bn.num_batches_tracked": np.array(move, np.int64),
        })  # fmt: skip

    _, arrays, _ = start([differences(m) for m in (1, 2, 3)], replies="updates", rounds=2)
    assert np.allclose(arrays["w"], START["w"] + 4)
    assert arrays["bn.running_mean"].tolist() == [4, 4]
    assert arrays["bn.num_batches_tracked"] == 11


def test_the_servers_step_has_a_rate_and_a_momentum():
    _, arrays, _ = start([1, 1, 1], rounds=2, server_lr=0.5, server_momentum=0.5)
    # Moves of 1 each round: steps of 0.5 and of 0.5 (1 + 0.5).
    assert np.allclose(arrays["w"], START["w"] + 0.5 + 0.75)


def test_types_of_layers_are_kept():
    values = {"a": np.ones(3, np.float64), "b": np.ones(2, np.float16)}
    tiny = 1e-12  # vanishes in float32 beside 1

    def train(message, context):
        sent = {k: a.numpy() for k, a in message.content["arrays"].items()}
        return reply(message, {"a": sent["a"] + tiny, "b": sent["b"] + np.float16(1)})

    _, arrays, _ = start([0, 0, 0], values=values, app=train)
    assert arrays["a"].dtype == np.float64 and arrays["b"].dtype == np.float16
    assert np.allclose(arrays["a"] - 1, tiny, rtol=1e-3)
    assert arrays["b"].tolist() == [2, 2]


def raising(message, sent):
    raise RuntimeError("on purpose")


def without_a_layer(message, sent):
    return reply(message, {"w": sent["w"]})


def of_another_shape(message, sent):
    return reply(message, {**sent, "w": sent["w"].reshape(-1)})


def not_finite(message, sent):
    return reply(message, {**sent, "w": sent["w"] * np.float32("nan")})


def enormous(message, sent):
    return reply(message, {**sent, "w": sent["w"] + np.float32(1e20)})


def two_records(message, sent):
    return Message(RecordDict({"a": record(sent), "b": record(sent)}), reply_to=message)


def no_record(message, sent):
    return Message(RecordDict(), reply_to=message)


def an_error(message, sent):
    return Message(Error(code=2, reason="broken"), reply_to=message)


def silent(message, sent):
    return None


def garbage(message, sent):
    answer = reply(message, sent)
    answer.content["arrays"]["w"] = Array("float32", (2, 2), "numpy.ndarray", b"\x93NUMPY no")
    return answer


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (raising, "on purpose"),
        (without_a_layer, "layers missing or extra"),
        (of_another_shape, "'w' is float32 (4,), expected float32 (2, 2)"),
        (not_finite, "not finite"),
        (enormous, "magnitude 1e+20, beyond 1e+10"),
        (two_records, "2 array records, expected one"),
        (no_record, "0 array records, expected one"),
        (an_error, "broken"),
        (silent, "no reply before the deadline"),
        (garbage, "unreadable"),
    ],
)
def test_a_bad_reply_costs_its_sender_the_vote_and_nothing_else(bad, reason):
    strategy, arrays, _ = start([1, bad, 3, 2])
    assert np.allclose(arrays["w"], START["w"] + 2)
    (entry,) = strategy.history[0]["rejected"]
    assert entry["node"] == 2 and reason in entry["reason"]


def test_claims_weigh_nothing():
    def boasting(message, sent):
        moved = {**sent, "w": sent["w"] + np.float32(50)}
        answer = reply(message, moved, loss=0.0)
        answer.content["metrics"]["num-examples"] = 10**9
        return answer

    _, arrays, result = start([1, 1, boasting, 1], rule="mean")
    assert np.allclose(arrays["w"], START["w"] + 53 / 4)
    assert result.train_metrics_clientapp[1]["num-examples"] == 1


def test_too_few_replies_keep_the_model_and_say_so(caplog):
    strategy, arrays, _ = start([1, silent, silent, 1, 1], rule="krum:f=1", rounds=2)
    assert all(np.array_equal(arrays[name], value) for name, value in START.items())
    assert [row["kept"] for row in strategy.history] == [
        "krum with f=1 needs at least 5 updates, got 3"
    ] * 2
    assert start([1, 1], min_replies=3)[0].history[0]["kept"] == "min_replies asks for 3, got 2"


def test_a_rule_that_can_never_run_is_an_error():
    with pytest.raises(ValueError, match="krum with f=2 needs at least 7 updates, got 3"):
        start([1, 1, 1], rule={"name": "krum", "f": 2})
    with pytest.raises(SpecError, match="did you mean 'krum'"):
        RobustStrategy(rule="krumm:f=2")
    with pytest.raises(ValueError, match="did you mean 'weights'"):
        RobustStrategy(rule="mean", replies="weight")
    with pytest.raises(ValueError, match="server_lr needs a positive number, got 0; min_replies"):
        RobustStrategy(rule="mean", server_lr=0, min_replies=0)
    with pytest.raises(ValueError, match="fraction_train needs a share"):
        RobustStrategy(rule="mean", fraction_train=0)
    with pytest.raises(TimeoutError, match="min_available_nodes asks for 9, 2 are connected"):
        start([1, 1], min_available_nodes=9, deadline=0.01)
    with pytest.raises(ValueError, match="needs a floating layer to train"):
        start([1, 1], values={"n": np.array(1)})


def test_krum_weighs_nodes_and_a_share_of_them_is_drawn_anew():
    strategy, arrays, _ = start([1, 1, 1, 1, 90], rule="krum:f=1")
    weights = strategy.history[0]["weights"]
    assert weights[5] == 0 and sum(weights.values()) == 1
    assert np.allclose(arrays["w"], START["w"] + 1)
    strategy, _, _ = start([1] * 8, rounds=6, fraction_train=0.5, rule="mean", seed=1)
    asked = [tuple(row["weights"]) for row in strategy.history]
    assert all(len(nodes) == 4 for nodes in asked) and len(set(asked)) > 1


def test_malformed_replies_cannot_freeze_the_model():
    """Seven clients and krum with f=2: two Byzantine ones that send garbage are out already."""
    strategy, arrays, _ = start([1, 1, 1, 1, 1, garbage, garbage], rule="krum:f=2")
    assert "kept" not in strategy.history[0] and np.allclose(arrays["w"], START["w"] + 1)
    strategy, _, _ = start([1, 1, 1, 1, 1, silent, silent], rule="krum:f=2")
    assert "needs at least 7 updates, got 5" in strategy.history[0]["kept"], "silence is no proof"


def test_a_rule_of_the_users_own():
    _, arrays, _ = start([1, 2, 30], rule=lambda rows: rows.sort(dim=0).values[1])
    assert np.allclose(arrays["w"], START["w"] + 2)
    nothing = start([1, 2, 3], rule=lambda rows: rows[0] * float("nan"))[0]
    assert nothing.history[0]["kept"] == "the rule returned values that are not finite"

    def faulty(rows):
        raise ValueError("a fault of my own")

    with pytest.raises(PluginError, match="rule 'faulty' failed: ValueError: a fault of my own"):
        start([1, 2, 3], rule=faulty)
    chain = start([1, 1, 1, 1, 90], rule="nnm+krum:f=1")[1]
    assert np.allclose(chain["w"], START["w"] + 1)


def test_a_deadline_is_the_rounds_timeout():
    def slow(message, sent):
        time.sleep(0.3)
        return reply(message, sent)

    strategy, _, _ = start([1, slow, 1, 1], deadline=0.2)
    assert [entry["node"] for entry in strategy.history[0]["rejected"]] == [3, 4]


def test_rules_with_memory_know_each_client_by_its_place():
    strategy, arrays, _ = start([1, 1, 1, 1], rounds=3, rule="foolsgold")
    assert len(strategy.history) == 3 and np.isfinite(arrays["w"]).all()
    tree = strategy.snapshot()
    other = RobustStrategy(rule="foolsgold", min_available_nodes=1)
    other.restore(tree)
    assert other.snapshot()["step"] == tree["step"] == 3


def test_two_strategies_in_two_threads_share_nothing():
    alone, results = start([1, 2, 3, 2], rounds=20)[1], {}

    def work(number):
        results[number] = start([1, 2, 3, 2], rounds=20)[1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for arrays in results.values():
        assert all(np.array_equal(arrays[name], value) for name, value in alone.items())
    assert len(results) == 3


def test_a_users_module_with_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.two = nn.Linear(3, 3)
            self.two.weight = self.one.weight

    state = {name: value.numpy() for name, value in Tied().state_dict().items()}

    def train(message, context):
        sent = {k: a.numpy() for k, a in message.content["arrays"].items()}
        return reply(message, {name: value + np.float32(1) for name, value in sent.items()})

    _, arrays, _ = start([0, 0, 0], values=state, app=train)
    Tied().load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    assert all(np.allclose(arrays[name], value + 1) for name, value in state.items())
