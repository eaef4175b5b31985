"""A user's own rule, attack, strategy or Flower app beside ours; the final model taken away."""

import functools
import importlib.util
import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedTrimmedAvg, Krum

from experiments import export, trackers
from experiments.outcomes import NoStepWarning
from experiments.user_plugins import name_of
from fedrobust import aggregation, attacks, data, models, simulate
from fedrobust.aggregation import aggregate, tables
from fedrobust.evaluation import evaluate
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower import InProcessGrid, Robust
from fedrobust.flower.layers import from_layers, read_layers, to_layers
from fedrobust.models.batchnorm import read_statistics
from fedrobust.spec import SpecError


def middle(updates, *, f):
    """Trimmed mean, written by a user."""
    return updates.sort(dim=0).values[f : len(updates) - f].mean(dim=0)


def shout(honest, *, n, f, factor=-10.0):
    """Send the honest mean, turned round and ten times as long."""
    return (factor * honest.mean(dim=0)).expand(f, -1)


def accuracies(results):
    return [row["accuracy"] for _, rows in results.runs for row in rows]


def test_an_own_rule_runs_like_a_built_in_one(small):
    ours, own = simulate(small), simulate(small, rule=middle)
    name = own.runs[0][0].rule["name"]  # numbered where another function of that name ran before
    assert name.partition("#")[0] == "middle" and list(own.table().index) == [name]
    assert own.runs[0][0].rule == {"name": name, "f": 2}
    assert accuracies(own) == pytest.approx(accuracies(ours), abs=1e-3)
    assert name not in aggregation.RULES
    assert list(ours.compare(own).table().index) == ["trimmed_mean", name]


def test_an_own_attack_is_felt(small):
    quiet = simulate(small, rule="mean").accuracy
    loud = simulate(small, rule="mean", attack=shout).accuracy
    assert loud < quiet - 0.2
    assert simulate(small, attack=functools.partial(shout, factor=-1e6)).accuracy > loud
    assert "shout" not in attacks.ATTACKS


def test_an_own_rule_is_known_to_an_attacker_who_tunes_against_it(small):
    seen = []

    def watched(updates):
        seen.append(len(updates))
        return updates.mean(dim=0)

    simulate(small, rule=watched, attack="opt_ipm", rounds=1)
    assert len(seen) > 2, "one call is the server's; the others are the attacker's rehearsals"


def test_own_objects_are_refused_where_they_cannot_work(small):
    with pytest.raises(ConfigError, match="runs in process, or on grid 'ray'"):
        simulate(small, rule=FedAvg(), grid="flower")
    with pytest.raises(ConfigError, match="there is a rule 'mean' already"):
        simulate(small, rule=tables.RULES["mean"])
    with pytest.raises(ConfigError, match="needs a name, a table or a function, got 3"):
        simulate(small, rule=3)
    assert name_of(lambda updates: updates[0]) == "function"
    assert name_of(functools.partial(middle, f=1)) == "middle"


def test_settings_without_a_star_are_settings(small):
    """``def mine(updates, f)``, as most people write it."""

    def starred(updates, *, f, k=1.0):
        return updates.sort(dim=0).values[f : len(updates) - f].mean(dim=0) * k

    def plain(updates, f, k=1.0):
        return starred(updates, f=f, k=k)

    def crafted(honest, n, f):
        return -honest.mean(dim=0).expand(f, -1)

    given = {"attack": crafted}
    assert accuracies(simulate(small, rule=plain, **given)) == accuracies(
        simulate(small, rule=starred, **given)
    )


def test_a_rule_that_refuses_ends_nothing(small):
    def moody(updates):
        raise aggregation.Refusal("not today")

    with pytest.warns(NoStepWarning, match=r"not one of 3 rounds took a step.*3 x not today"):
        (_, rows) = simulate(small, rule=moody).runs[0]
    assert [row.get("kept") for row in rows[1:]] == ["not today"] * 3


# One step of FedAvg over models w - lr g, equal shares, is one step of the mean over the g.
def test_flowers_fedavg_leads_as_our_mean_does(small):
    small["server"]["momentum"] = 0.0
    small["clients"], small["partition"] = 8, "iid"
    ours, flower = simulate(small, rule="mean"), simulate(small, rule=FedAvg())
    assert list(flower.table().index) == ["FedAvg"]
    assert accuracies(flower) == pytest.approx(accuracies(ours), abs=0.02)
    rows = flower.runs[0][1]
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert all(row["replies"] == 8 for row in rows[1:])


@pytest.mark.parametrize(
    "strategy",
    [FedMedian(), FedTrimmedAvg(beta=0.2), FedAdam(), Krum(num_malicious_nodes=2)],
    ids=lambda s: type(s).__name__,
)
def test_stock_strategies_run_under_attack(small, strategy):
    results = simulate(small, rule=strategy, attack={"name": "sign_flip", "scale": 4.0})
    rows = results.runs[0][1]
    assert len(rows) == 4 and "kept" not in str(rows)
    assert rows[1]["byzantine"] and rows[1]["impact"]["deviation"] >= 0
    again = simulate(small, rule=strategy, attack={"name": "sign_flip", "scale": 4.0})
    assert accuracies(again) == accuracies(results), "one object can lead many runs"


def test_a_malformed_reply_does_not_reach_a_stock_strategy(small):
    (_, rows) = simulate(small, rule=FedAvg(), attack="nan").runs[0]
    assert {r["reason"] for r in rows[1]["rejected"]} == {"update holds values that are not finite"}
    assert rows[-1]["accuracy"] > 0.3


def test_a_strategy_without_a_model_ends_nothing(small):
    class Silent(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, None

    with pytest.warns(NoStepWarning, match="Silent"):
        (_, rows) = simulate(small, rule=Silent()).runs[0]
    assert [row.get("kept") for row in rows[1:]] == ["the strategy returned no model"] * 3


def test_layers_there_and_back():
    shapes = {"w": (2, 3), "b": (3,), "s": ()}
    vector = torch.arange(10.0)
    record = to_layers(vector, shapes)
    assert torch.equal(from_layers(record, shapes), vector)
    with pytest.raises(ValueError, match="missing or extra: b"):
        from_layers(record, {"w": (2, 3), "s": ()})
    with pytest.raises(ValueError, match="is float32 \\(2, 3\\), expected float32 \\(3, 2\\)"):
        from_layers(record, shapes | {"w": (3, 2)})
    padded = Array("float32", (3,), "numpy.ndarray", record["b"].data + b"\0" * 9999)
    with pytest.raises(ValueError, match=r"layer 'b': 10011 bytes of numbers, the header needs 12"):
        read_layers(ArrayRecord({"b": padded}), {"b": ("float32", (3,))})


def test_a_layer_whose_header_claims_a_terabyte_takes_no_memory():
    """Flower's own reader makes the array first, of the size that the sender's header claims."""
    data = Array(np.zeros(3, np.float32)).data
    bomb = data.replace(b"(3,), }".ljust(30), b"(250000000000,), }".ljust(30))
    assert len(bomb) == len(data) and bomb != data
    record = ArrayRecord({"b": Array("float32", (3,), "numpy.ndarray", bomb)})
    with pytest.raises(ValueError, match="layer 'b': 12 bytes of numbers, the header needs 10000"):
        read_layers(record, {"b": ("float32", (3,))})
    plain = ArrayRecord({"b": Array("float32", (3,), "pickle", data)})
    with pytest.raises(ValueError, match="layer 'b': serialised as 'pickle'"):
        read_layers(plain, {"b": ("float32", (3,))})


# A user's Flower app: a client that answers with its whole model, as in Flower's quickstart.
DISTORTED = {
    "nan": lambda arrays: {
        k: v + 0 if v.dtype.kind == "i" else v * np.float32("nan") for k, v in arrays.items()
    },
    "huge": lambda arrays: {k: v + 1e6 for k, v in arrays.items()},
    "shape": lambda arrays: {k: np.zeros((99,), v.dtype) for k, v in arrays.items()},
    "keys": lambda arrays: {"other": np.zeros(3, np.float32)},
}


def user_app(fault=None, attackers=()):
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = {k: v.numpy() for k, v in message.content["arrays"].items()}
        place = context.node_config["partition-id"]
        arrays["fc.weight"] = arrays["fc.weight"] + np.float32(1 + place**2 / 50)
        arrays["bn.running_mean"] = arrays["bn.running_mean"] + np.float32(place)
        arrays["bn.num_batches_tracked"] = arrays["bn.num_batches_tracked"] + 1
        claim = 10
        if place in attackers:
            if fault == "error":
                return Message(Error(code=1, reason="broken"), reply_to=message)
            arrays, claim = DISTORTED[fault](arrays), 10**9
        metrics = MetricRecord({"num-examples": claim, "loss": float(place)})
        record = ArrayRecord({k: Array(np.asarray(v)) for k, v in arrays.items()})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def initial():
    return ArrayRecord({
        "fc.weight": Array(np.zeros((2, 3), np.float32)),
        "bn.running_mean": Array(np.zeros(3, np.float32)),
        "bn.num_batches_tracked": Array(np.array(0, np.int64)),
    })  # fmt: skip


def lead(strategy, app, rounds=2):
    grid = InProcessGrid(app, clients=7, run_config={})
    return strategy.start(grid=grid, initial_arrays=initial(), num_rounds=rounds)


@pytest.mark.parametrize("fault", [*sorted(DISTORTED), "error"])
def test_three_lines_make_a_users_app_robust(fault):
    app = user_app(fault, attackers=(5, 6))
    strategy = Robust(FedAvg(), rule={"name": "trimmed_mean", "f": 2})
    result = lead(strategy, app)
    weight = result.arrays["fc.weight"].numpy()
    assert np.isfinite(weight).all() and (weight >= 2).all() and (weight <= 3.5).all()
    assert result.arrays["bn.num_batches_tracked"].numpy() >= 2
    assert result.evaluate_metrics_clientapp[2]["accuracy"] == pytest.approx(0.5)


def test_the_rule_in_a_users_app_is_ours_and_the_metrics_are_medians():
    result = lead(Robust(FedAvg(), rule={"name": "krum", "f": 1}), user_app(),
                  rounds=1)  # fmt: skip
    updates = torch.stack([torch.full((6,), 1 + i**2 / 50) for i in range(7)])
    expected = aggregate(updates, {"name": "krum", "f": 1}).view(2, 3).numpy()
    assert np.allclose(result.arrays["fc.weight"].numpy(), expected)
    assert np.array_equal(result.arrays["bn.running_mean"].numpy(), [3.0, 3.0, 3.0])
    told = result.train_metrics_clientapp[1]
    assert told["loss"] == pytest.approx(3.0), "an average of seven equal numbers rounds"
    assert (told["robust-accepted"], told["robust-refused"]) == (7, 0)


def test_a_server_optimizer_takes_its_step_from_the_robust_aggregate():
    plain = lead(FedAdam(eta=0.5), user_app())
    robust = lead(Robust(FedAdam(eta=0.5), rule="median"), user_app("huge", attackers=(6,)))
    assert np.isfinite(robust.arrays["fc.weight"].numpy()).all()
    assert np.abs(robust.arrays["fc.weight"].numpy() - plain.arrays["fc.weight"].numpy()).max() < 1


def test_too_few_votes_keep_the_model_in_a_users_app():
    strategy = Robust(FedAvg(), rule={"name": "krum", "f": 2})
    with pytest.warns(RuntimeWarning, match="no round took a step.*krum with f=2 needs at least 7"):
        result = lead(strategy, user_app("nan", attackers=(4, 5, 6)))
    for name, array in initial().items():
        assert np.array_equal(result.arrays[name].numpy(), array.numpy()), "the initial model"
    with pytest.raises(SpecError, match="did you mean 'krum'"):
        Robust(FedAvg(), rule="krun")


def test_the_final_model_can_be_taken_away(small, tmp_path):
    results = simulate(small, keep_models=True)
    state = results.state_dict()
    vector = torch.cat([value.reshape(-1) for value in state.values()])
    assert torch.equal(vector, results.models[0])
    written = export.write(tmp_path / "model.pt", results.runs[0][0], state)
    loaded = torch.load(written, weights_only=True)
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    with pytest.raises(ConfigError, match=r"\.safetensors or \.pt, got 'model.onnx'"):
        export.write(tmp_path / "model.onnx", results.runs[0][0], state)
    with pytest.raises(ConfigError, match="keep_models=True"):
        simulate(small, rounds=1).state_dict()
    with pytest.raises(ValueError, match="parameters, got"):
        export.state_dict(results.runs[0][0], vector[:-1])


@pytest.mark.parametrize("policy", ["average", "dual"])
def test_batch_statistics_go_with_the_final_model(small, policy):
    """What is taken away scores what the server measured in the last round."""
    table = small | {"model": "bn_cnn", "clients": 3, "byzantine": 0, "rounds": 2, "rule": "mean",
                     "attack": "none", "batchnorm": policy}  # fmt: skip
    results = simulate(table, keep_models=True)
    e, rows = results.runs[0]
    state, dataset = results.state_dict(), data.load(e.data)
    fresh = models.with_policy(models.build_for(e.model, dataset, seed=e.seed), e.batchnorm)
    initial = read_statistics(fresh)
    fresh.load_state_dict(state)
    assert not torch.equal(read_statistics(fresh), initial)
    score = evaluate(fresh, dataset.test_images, dataset.test_labels)
    assert score.accuracy == pytest.approx(rows[-1]["accuracy"])
    assert score.loss == pytest.approx(rows[-1]["loss"])


def test_the_final_model_as_safetensors(small, tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="needs fedrobust[export]")
    results = simulate(small, rounds=1, keep_models=True)
    path = export.write(tmp_path / "m.safetensors", results.runs[0][0], results.state_dict())
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["experiment"])["rule"]["name"] == "trimmed_mean"
        assert set(file.keys()) == set(results.state_dict())


def test_a_tracker_sees_every_row_and_is_ended(small, tmp_path, monkeypatch):
    seen, ended = [], []

    def fake(folder):
        return (lambda e, row: seen.append((e.seed, row["round"]))), (lambda: ended.append(folder))

    monkeypatch.setitem(trackers.TRACKERS, "fake", fake)
    with trackers.tracking(["fake"], tmp_path) as on_row:
        simulate(small | {"sweep": {"seed": [1, 2]}}, on_row=on_row)
    assert seen == [(seed, r) for seed in (1, 2) for r in range(4)]
    assert ended == [tmp_path]
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        trackers.tracking(["tensorbord"], tmp_path).__enter__()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_says_how(name, tmp_path):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(ConfigError, match=rf"pip install 'fedrobust\[{name}\]'"):
        trackers.tracking([name], tmp_path).__enter__()


def test_tensorboard_holds_the_rows(small, tmp_path):
    pytest.importorskip("tensorboard", reason="needs fedrobust[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with trackers.tracking(["tensorboard"], tmp_path) as on_row:
        results = simulate(small, attack="sign_flip", on_row=on_row)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    written = [e.value for e in events.Scalars("accuracy")]
    assert written == pytest.approx(accuracies(results))
    assert "impact/cosine" in events.Tags()["scalars"]


def test_numbers_of_a_row():
    row = {"round": 3, "accuracy": 0.5, "impact": {"cosine": 1}, "rejected": [], "kept": "why",
           "loss": float("nan"), "flag": True}  # fmt: skip
    assert trackers.numbers(row) == {"accuracy": 0.5, "impact/cosine": 1.0}
