"""A rule around anybody's strategy and in front of anybody's grid: one core, the same numbers."""

import logging

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server import strategy as older
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    Krum,
    QFedAvg,
)

from fedrobust.failures import PluginError
from fedrobust.flower import InProcessGrid, Robust, RobustGrid, whole_rounds
from fedrobust.flower.model_replies import Refused, array_values
from fedrobust.flower.reply_metrics import own_configs, shared_metrics
from fedrobust.flower.rule_spelling import read_rule, rule_name
from fedrobust.spec import SpecError


def record(**arrays):
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def app_of(answer, *, metrics=lambda place: {"num-examples": 10}):
    """A client app whose clients answer ``answer(arrays, place) -> arrays or Message parts``."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        place = context.node_config["partition-id"]
        key, held = next(iter(message.content.array_records.items()))
        made = answer({name: a.numpy() for name, a in held.items()}, place)
        if isinstance(made, Error):
            return Message(made, reply_to=message)
        if not isinstance(made, RecordDict):
            made = RecordDict({key: record(**made), "metrics": MetricRecord(metrics(place))})
        return Message(made, reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        place = context.node_config["partition-id"]
        told = MetricRecord({"num-examples": 10, "accuracy": 0.1 * place})
        return Message(RecordDict({"metrics": told}), reply_to=message)

    return app


def lead(strategy, app, start, *, rounds=3, clients=7, wrap=lambda grid: grid):
    grid = wrap(InProcessGrid(app, clients=clients, run_config={}))
    return strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds)


def plus_one(arrays, place):
    return {**arrays, "w": arrays["w"] + np.float32(1)}


# Flower's FedAvg returns int64 buffers as float64: the third round used to be the first's.
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_])
def test_integer_buffers_do_not_freeze_the_model(dtype):
    start = record(w=np.zeros(2, np.float32), buffer=np.asarray(1, dtype))
    result = lead(Robust(FedAvg(), rule="median"), app_of(plus_one), start)
    assert np.allclose(result.arrays["w"].numpy(), 3)
    buffer = result.arrays["buffer"].numpy()
    assert buffer.dtype == dtype and buffer == 1


def torch_client(arrays, place):
    """Count as BatchNorm does: int64 comes back, whatever came."""
    counted = np.rint(arrays["bn.num_batches_tracked"]).astype(np.int64) + 1 + (place == 6) * 50
    return {
        "w": arrays["w"] + np.float32(1 + place / 10),
        "bn.running_var": np.float32(0.2) * arrays["bn.running_var"] + np.float32(0.01),
        "bn.num_batches_tracked": counted,
    }


@pytest.mark.parametrize("seam", ["wrapper", "grid"])
def test_batchnorm_goes_on_learning(seam):
    start = record(**{"w": np.zeros(3, np.float32), "bn.running_var": np.ones(1, np.float32),
                      "bn.num_batches_tracked": np.asarray(0, np.int64)})  # fmt: skip
    rule = {"rule": "trimmed_mean:f=1"}
    if seam == "wrapper":
        strategy, wrap = Robust(FedAvg(), **rule), lambda grid: grid
    else:
        strategy, wrap = FedAvg(), lambda grid: RobustGrid(grid, **rule)
    result = lead(strategy, app_of(torch_client), start, wrap=wrap)
    assert np.allclose(result.arrays["w"].numpy(), 3 * 1.3)
    assert float(result.arrays["bn.num_batches_tracked"].numpy()) == pytest.approx(3)
    if seam == "wrapper":
        assert result.arrays["bn.num_batches_tracked"].numpy().dtype == np.int64
        assert strategy.history.accepted.all() and len(strategy.history) == 21


def test_a_server_optimizer_does_not_step_on_running_statistics():
    start = record(**{"w": np.zeros(3, np.float32), "bn.running_var": np.ones(1, np.float32),
                      "bn.num_batches_tracked": np.asarray(0, np.int64)})  # fmt: skip

    def optimizer():
        return FedAvgM(server_learning_rate=1.0, server_momentum=0.9)

    plain = lead(optimizer(), app_of(torch_client), start, rounds=4)
    assert plain.arrays["bn.running_var"].numpy() < 0, "what momentum makes of a variance"
    robust = lead(Robust(optimizer(), rule="median"), app_of(torch_client), start, rounds=4)
    assert robust.arrays["bn.running_var"].numpy() > 0
    assert robust.arrays["bn.num_batches_tracked"].numpy() == 4


def spread(arrays, place):
    return {"w": arrays["w"] + np.linspace(0, 1, 4, dtype=np.float32) * place}


def hostile(arrays, place):
    if place == 0:
        return {"w": np.full(4, -1e6, np.float32)}
    return spread(arrays, place)


STRATEGIES = {
    "FedAvg": FedAvg,
    "FedAdam": lambda: FedAdam(eta=0.5),
    "FedAvgM": lambda: FedAvgM(server_momentum=0.5),
    "q-FedAvg": lambda: QFedAvg(client_learning_rate=0.1, train_loss_key="loss"),
    "FedMedian": FedMedian,
    "Krum": lambda: Krum(num_malicious_nodes=1),
    "Bulyan": lambda: Bulyan(num_malicious_nodes=1),
}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_wrapper_and_grid_give_the_same_numbers(name):
    app = app_of(hostile, metrics=lambda place: {"num-examples": 10, "loss": 1.0})
    start = record(w=np.ones(4, np.float32))
    wrapped = lead(Robust(STRATEGIES[name](), rule="nnm+trimmed_mean:f=1"), app, start)
    gridded = lead(STRATEGIES[name](), app, start,
                   wrap=lambda grid: RobustGrid(grid, rule="nnm+trimmed_mean:f=1"))  # fmt: skip
    values = wrapped.arrays["w"].numpy()
    assert np.allclose(values, gridded.arrays["w"].numpy(), rtol=1e-6)
    assert np.isfinite(values).all() and np.abs(values).max() < 100
    assert not np.allclose(values, 1), "it learns: as many replies come as the strategy counts on"


def test_several_records_of_differences_under_other_keys():
    app = ClientApp()

    @app.train()
    def train(message, context):
        assert set(message.content) == {"model", "variate", "config"}
        place = context.node_config["partition-id"]
        step = np.full(3, 1e4 if place == 0 else 1.0, np.float32)
        content = {"delta": record(w=step), "variate": record(c=step * 2),
                   "m": MetricRecord({"num-examples": 1})}  # fmt: skip
        return Message(RecordDict(content), reply_to=message)

    class Scaffold(FedAvg):
        def __init__(self):
            super().__init__(fraction_evaluate=0.0)
            self.model, self.variate = np.zeros(3, np.float32), np.zeros(3, np.float32)

        def configure_train(self, server_round, arrays, config, grid):
            content = {"model": record(w=self.model), "variate": record(c=self.variate)}
            content = RecordDict({**content, "config": config})
            return self._construct_messages(content, list(grid.get_node_ids()), "train")

        def aggregate_train(self, server_round, replies):
            self.model = self.model + np.mean([r.content["delta"]["w"].numpy() for r in replies], 0)
            controls = [r.content["variate"]["c"].numpy() for r in replies]
            self.variate = np.mean(controls, 0)
            return record(w=self.model), None

    strategy = Scaffold()
    start = record(w=np.zeros(3, np.float32))
    result = lead(Robust(strategy, rule="median"), app, start)
    assert np.allclose(result.arrays["w"].numpy(), [3, 3, 3]) and np.allclose(strategy.variate, 2)


def test_an_own_start_is_kept_and_the_rule_stands_before_it():
    class Own(FedAvg):
        def start(self, grid, initial_arrays, num_rounds=3, extra=None):
            self.extra, arrays = extra, initial_arrays
            for server_round in range(num_rounds):
                asked = self.configure_train(server_round, arrays, ConfigRecord(), grid)
                arrays, _ = self.aggregate_train(server_round, grid.send_and_receive(asked))
            return arrays

    inner = Own()
    robust = Robust(inner, rule="median")
    grid = InProcessGrid(app_of(hostile), clients=7, run_config={})
    arrays = robust.start(grid, record(w=np.zeros(4, np.float32)), num_rounds=2, extra="mine")
    assert inner.extra == "mine" and 0 < arrays["w"].numpy()[-1] < 10
    assert len(robust.history) == 14 and "aggregate_train" not in vars(inner)


def test_a_rule_that_can_never_run_is_an_error_and_no_model_is_ever_empty():
    start = record(w=np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="bulyan with f=3 needs at least 15 updates, got 10"):
        lead(Robust(FedAvg(), rule="bulyan:f=3"), app_of(spread), start, clients=10)
    robust = Robust(FedAvg(), rule="median")
    with pytest.warns(RuntimeWarning, match="no round took a step.*error reply: down"):
        result = lead(robust, app_of(lambda arrays, place: Error(code=1, reason="down")), start)
    assert np.array_equal(result.arrays["w"].numpy(), start["w"].numpy())
    assert not robust.history.accepted.any()


def test_f_malformed_replies_do_not_stop_a_rule_without_room():
    def two_broken(arrays, place):
        return {"v": np.zeros(1)} if place < 2 else spread(arrays, place)

    robust = Robust(FedAvg(), rule="krum:f=2")
    lead(robust, app_of(two_broken), record(w=np.zeros(4, np.float32)), rounds=1)
    history = robust.history
    assert history.accepted.sum() == 5 and history.weight.sum() == pytest.approx(1)
    assert set(history.reason[~history.accepted]) == {"layers missing or extra: v, w"}


def test_silent_clients_do_not_lower_f():
    def two_down(arrays, place):
        return Error(code=1, reason="down") if place < 2 else spread(arrays, place)

    robust = Robust(FedAvg(), rule="krum:f=2")
    with pytest.warns(RuntimeWarning, match="krum with f=2 needs at least 7 updates, got 5"):
        lead(robust, app_of(two_down), record(w=np.zeros(4, np.float32)), rounds=1)


def test_every_spelling_of_a_rule():
    nnm, krum = {"name": "nnm", "f": 2}, {"name": "krum", "f": 2}
    spelled = ["nnm+krum:f=2", "nnm:f=2+krum:f=2", {"name": "nnm+krum", "f": 2}]
    assert [read_rule(one) for one in spelled] == [(krum, (nnm,))] * 3
    assert read_rule(krum, ["nnm:f=2"]) == (krum, (nnm,))
    assert read_rule("multi_krum:f=2,m=5") == ({"name": "multi_krum", "f": 2, "m": 5}, ())
    assert rule_name(krum, (nnm,)) == "nnm:f=2+krum:f=2"
    for wrong, sentence in {"krun:f=2": "did you mean 'krum'", "nm+krum:f=1": "mean 'nnm'",
                            "krum": "needs the parameter 'f'", "krum:2": "name:key=value",
                            "median:f=2": "has no parameter 'f'"}.items():  # fmt: skip
        with pytest.raises(SpecError, match=sentence):
            Robust(FedAvg(), rule=wrong)


def test_a_function_is_a_rule_and_its_fault_is_not_a_refusal():
    start = record(w=np.zeros(4, np.float32))
    result = lead(Robust(FedAvg(), rule=lambda rows: rows.median(0).values), app_of(hostile), start)
    assert result.arrays["w"].numpy()[-1] == pytest.approx(9)
    wrongs = (
        (lambda rows: rows, r"returned tensor \(\d+, 4\) float32, expected tensor \(4,\)"),
        (lambda rows: torch.zeros(4)[7:][0], "failed: IndexError"),
    )
    for wrong, sentence in wrongs:
        with pytest.raises(PluginError, match=sentence):
            lead(Robust(FedAvg(), rule=wrong), app_of(spread), start)


def test_a_random_rule_draws_from_the_system_without_a_seed():
    def last(seed):
        start = record(w=np.zeros(4, np.float32))
        robust = Robust(FedAvg(), rule="bucketing:size=2+median", seed=seed)
        return lead(robust, app_of(spread), start, rounds=2).arrays["w"].numpy()[-1]

    assert last(1) == last(1)
    assert len({last(None) for _ in range(8)}) > 1, "eight equal draws of buckets"


def test_the_older_api_and_secure_aggregation_get_a_sentence():
    with pytest.raises(TypeError, match=r"older API.*RobustGrid\(grid, rule="):
        Robust(older.FedAvg(), rule="median")
    with pytest.raises(TypeError, match=r"needs a strategy of flwr\.serverapp\.strategy, got int"):
        Robust(3, rule="median")
    grid = RobustGrid(InProcessGrid(app_of(spread), clients=3, run_config={}), rule="median")
    content = RecordDict({"secaggplus_configs": ConfigRecord({"stage": "setup"})})
    with pytest.raises(ValueError, match="secure aggregation shows the server nothing but the sum"):
        grid.send_and_receive([Message(content, node, "train") for node in (1, 2, 3)])


def test_what_stands_inside_or_around_is_warned_about(caplog):
    caplog.set_level(logging.WARNING, logger="flwr")
    Robust(FedMedian(), rule="median")
    assert "FedMedian is a robust rule itself" in caplog.text
    private = {"noise_multiplier": 0.1, "clipping_norm": 1.0, "num_sampled_clients": 7}
    Robust(DifferentialPrivacyServerSideFixedClipping(FedAvg(), **private), rule="median")
    assert "epsilon that it states does not hold behind median" in caplog.text
    outer = DifferentialPrivacyServerSideFixedClipping(Robust(FedAvg(), rule="median"), **private)
    result = lead(outer, app_of(plus_one), record(w=np.zeros(4, np.float32)))
    assert "Robust is driven by another strategy or loop" in caplog.text
    assert np.isfinite(result.arrays["w"].numpy()).all()


# What one node can do to a stock run, and what is left of it.
def broken(kind):
    def answer(arrays, place):
        if place != 3:
            return spread(arrays, place)
        metrics = {"num-examples": {"huge": 10**12, "negative": -60, "none": 1}.get(kind, 10)}
        if kind == "metric":
            metrics["extra"] = 1.0
        if kind == "nan-examples":
            metrics["num-examples"] = float("nan")
        sent = {"nan": {"w": np.full(4, np.nan, np.float32)}, "shape": {"w": np.zeros(9)},
                "keys": {"v": np.zeros(4)}, "complex": {"w": np.ones(4, np.complex64)},
                "object": {}}.get(kind, spread(arrays, place))  # fmt: skip
        content = RecordDict({"arrays": record(**sent), "metrics": MetricRecord(metrics)})
        if kind == "garbage":
            content.array_records["arrays"]["w"] = Array("float32", (4,), "numpy.ndarray", b"no")
        if kind == "announced":
            head = np.asarray(np.zeros(4, np.float32))
            data = Array(head).data.replace(b"(4,)", b"(9999999999999,)"[:4])
            content.array_records["arrays"]["w"] = Array("float32", (4,), "numpy.ndarray", data)
        return {"empty": RecordDict(), "error": Error(code=1, reason="x")}.get(kind, content)

    return answer


KINDS = ["nan", "shape", "keys", "complex", "object", "garbage", "announced", "empty", "error",
         "metric", "huge", "negative", "nan-examples"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seam", ["wrapper", "grid"])
def test_no_broken_reply_ends_a_run_or_moves_the_model(kind, seam):
    start = record(w=np.zeros(4, np.float32))
    if seam == "wrapper":
        result = lead(Robust(FedAvg(), rule="median"), app_of(broken(kind)), start)
    else:
        result = lead(FedAvg(), app_of(broken(kind)), start,
                      wrap=lambda grid: RobustGrid(grid, rule="median"))  # fmt: skip
    assert 6 <= result.arrays["w"].numpy()[-1] <= 12, "three steps of the median, 2 to 4 each"


def test_nobody_answers_for_another():
    app = app_of(spread)

    def spoofing(message, context):
        reply = app(message, context)
        if context.node_id == 6 and message.metadata.message_type == "train":
            reply = Message(Error(code=1, reason="in node 5's name"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = 5
        if context.node_id == 7 and message.metadata.message_type == "train":
            reply.metadata.__dict__["_src_node_id"] = 1
            reply.content["arrays"] = record(w=np.full(4, 1e6, np.float32))
        return reply

    robust = Robust(FedAvg(), rule="mean")
    result = lead(robust, spoofing, record(w=np.zeros(4, np.float32)), rounds=1)
    assert result.arrays["w"].numpy()[-1] == pytest.approx(2), "nodes 1 to 5 alone"
    assert list(robust.history[~robust.history.accepted].node) == [6, 7]


def test_evaluations_reach_the_strategy_as_medians():
    result = lead(Robust(FedAvg(), rule="median"), app_of(spread), record(w=np.zeros(4)))
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(0.3)


def test_an_own_loop_that_pushes_and_pulls():
    grid = RobustGrid(InProcessGrid(app_of(broken("nan")), clients=7, run_config={}), rule="median")
    content = RecordDict({"arrays": record(w=np.zeros(4, np.float32)), "c": ConfigRecord()})
    ids = grid.push_messages([Message(content, node, "train") for node in grid.get_node_ids()])
    replies = grid.pull_messages(ids)
    good = [reply for reply in replies if not reply.has_error()]
    assert len(replies) == 7 and len(good) == 6, "a refused reply comes back as an error"
    assert {float(reply.content["arrays"]["w"].numpy()[-1]) for reply in good} == {3.0}
    assert grid.pull_messages(ids) == []
    assert list(grid.history[~grid.history.accepted].node) == [4]


def test_a_round_below_the_rules_minimum_is_a_step_of_zero_at_the_grid():
    def down_later(arrays, place):
        down = arrays["w"][0] > 0 and place < 4
        return Error(code=1, reason="x") if down else {"w": arrays["w"] + 1}

    result = lead(FedAvg(), app_of(down_later), record(w=np.zeros(4, np.float32)),
                  wrap=lambda grid: RobustGrid(grid, rule="krum:f=2"))  # fmt: skip
    assert np.allclose(result.arrays["w"].numpy(), 1)


def test_queries_and_blobs_pass_the_grid_as_they_are():
    app = ClientApp()

    @app.train()
    def train(message, context):
        blob = np.frombuffer(b"tree %d" % context.node_id, np.uint8)
        content = {"arrays": record(**{"0": blob}), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @app.query()
    def query(message, context):
        told = MetricRecord({"rows": context.node_id})
        return Message(RecordDict({"m": told}), reply_to=message)

    grid = RobustGrid(InProcessGrid(app, clients=3, run_config={}), rule="median")
    empty = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord()})
    trees = grid.send_and_receive([Message(empty, node, "train") for node in (1, 2, 3)])
    texts = [reply.content["arrays"]["0"].numpy().tobytes() for reply in trees]
    assert texts == [b"tree 1", b"tree 2", b"tree 3"]
    told = grid.send_and_receive([Message(RecordDict(), node, "query") for node in (1, 2)])
    assert [reply.content["m"]["rows"] for reply in told] == [1, 2]


class Older(NumPyClient):
    def __init__(self, place):
        self.place = place

    def fit(self, parameters, config):
        w = parameters[0] + (np.float32(-1e6) if self.place == 0 else np.float32(self.place))
        return [w], 10, {"loss": float("nan") if self.place == 0 else 0.5}

    def evaluate(self, parameters, config):
        return float(parameters[0][0]), 10, {"accuracy": 0.5}


class Numbered(InProcessGrid):
    """The older API asks the grid for its run."""

    @property
    def run(self):
        return type("Run", (), {"run_id": 1})()


def older_run(wrap):
    app = ClientApp(client_fn=lambda ctx: Older(ctx.node_config["partition-id"]).to_client())
    seen = []

    class Noting(older.FedAvg):
        def aggregate_fit(self, server_round, results, failures):
            seen.append(len(results))
            made = super().aggregate_fit(server_round, results, failures)
            self.last = np.load(__import__("io").BytesIO(made[0].tensors[0]))
            return made

    start = __import__("flwr.common", fromlist=["x"]).ndarrays_to_parameters([np.zeros(2, "f4")])
    strategy = Noting(initial_parameters=start)
    config = ServerConfig(num_rounds=2)
    server = ServerApp(server_fn=lambda c: ServerAppComponents(strategy=strategy, config=config))
    grid = Numbered(app, clients=7, run_config={})
    server(wrap(grid), grid.contexts[1])
    return strategy.last, seen


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_app_of_the_older_api_behind_the_grid():
    plain, _ = older_run(lambda grid: grid)
    assert plain[0] < -1e5
    with whole_rounds():
        robust, seen = older_run(lambda grid: RobustGrid(grid, rule="median"))
    assert robust[0] == pytest.approx(6) and seen == [7, 7], "twice the median of 0..6, 3"


def test_arrays_are_read_from_their_bytes_alone():
    matrix = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert np.array_equal(array_values(Array(matrix)), matrix)
    plain = Array("", (), "numpy.ndarray", Array(np.ones((2, 2), np.float32)).data)
    assert array_values(plain).shape == (2, 2)
    data = Array(np.zeros(4, np.float32)).data
    wrong = {data[:-1]: "15 bytes of numbers, the header needs 16", b"": "no npy array",
             Array(np.ones(2, np.complex64)).data: "expected real numbers"}  # fmt: skip
    for given, sentence in wrong.items():
        with pytest.raises(Refused, match=sentence):
            array_values(Array("float32", (4,), "numpy.ndarray", given))
    with pytest.raises(Refused, match="serialised as"):
        array_values(Array("float32", (4,), "pickle", data))


def test_metrics_are_medians_of_what_most_report():
    def content(**metrics):
        return RecordDict({"m": MetricRecord(metrics)})

    told = [content(n=3, loss=1.0, xs=[1.0, 5.0]), content(n=5, loss=float("nan"), xs=[2.0, 4.0]),
            content(n=10**12, loss=3.0, xs=[9.0]), content(n=4, extra=1.0),
            RecordDict()]  # fmt: skip
    made = shared_metrics(told)["m"]
    assert dict(made) == {"n": 4, "loss": 1.0, "xs": [1.0, 4.0]}
    configs = [RecordDict({"c": ConfigRecord(values)}) for values in (
        {"flag": True, "rate": 1.0, "text": "a"}, {"flag": False, "rate": 2.0, "text": "b"},
        {"flag": 7, "rate": 1e30, "text": "a", "odd": 1})]  # fmt: skip
    assert [dict(c["c"]) for c in own_configs(configs)] == [
        {"flag": True, "rate": 2.0, "text": "a"}, {"flag": False, "rate": 2.0, "text": "b"},
        {"flag": True, "rate": 2.0, "text": "a"}]  # fmt: skip
