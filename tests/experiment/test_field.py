"""Mistakes that people make with a laboratory: in a setting, in their own code, around a run."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import tomli_w
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import FedAvg, FedTrimmedAvg
from flwr.superlink.grid.http_grid import HttpGrid
from typer.testing import CliRunner

from experiments import cli, trackers
from experiments.observers import ObserverWarning
from experiments.outcomes import NoStepWarning
from experiments.plugin_identity import Numbers, mark
from experiments.results import Results
from fedrobust import aggregation, attacks, simulate
from fedrobust.aggregation import aggregate
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.failures import PluginError, Refusal
from fedrobust.flower import CohortGrid, InProcessGrid, serve_cohort
from strategies import server_app


# A user's code that is wrong: it ends the run under its name, and is never a round's refusal.
def unpacks(updates, *, f):
    a, _ = updates
    return a


def misses_a_name(updates):
    return undefined_name


def returns_numpy(updates):
    return updates.double().mean(0).numpy()


def returns_float64(updates):
    return updates.double().mean(0)


def returns_a_row(updates):
    return updates.mean(0, keepdim=True)


def returns_nothing(updates):
    updates.mean(0)


WRONG_RULES = {
    unpacks: r"rule 'unpacks' failed: ValueError: too many values to unpack",
    misses_a_name: r"rule 'misses_a_name' failed: NameError: name 'undefined_name'",
    returns_numpy: r"'returns_numpy' returned ndarray \(650,\) float64, expected tensor \(650,",
    returns_float64: r"returned tensor \(650,\) float64, expected tensor \(650,\) float32",
    returns_a_row: r"returned tensor \(1, 650\) float32, expected tensor \(650,\) float32",
    returns_nothing: r"'returns_nothing' returned NoneType, expected tensor \(650,\) float32",
}


@pytest.mark.parametrize("rule", WRONG_RULES, ids=lambda rule: rule.__name__)
def test_a_mistake_in_a_users_rule_ends_the_run_under_its_name(small, rule):
    with pytest.raises(PluginError, match=WRONG_RULES[rule]):
        simulate(small, rule=rule)


def test_a_users_weights_are_checked_too(small):
    def per_pair(updates):
        return torch.ones(len(updates) + 1) / len(updates)

    record = aggregation.Rule(name="per_pair", compute=per_pair, kind="weights")
    with pytest.raises(PluginError, match=r"returned tensor \(11,\) float32, expected .*\(10,\)"):
        simulate(small, rule=record)


def one_vector(honest, *, n, f):
    return honest.mean(0)


def as_numpy(honest, *, n, f):
    return honest.mean(0).expand(f, -1).numpy()


def looks_a_key_up(honest, *, n, f):
    return {}["missing"]


def fails_later(honest, *, n, f, round):
    if round == 2:
        raise ValueError("not in round 3")
    return honest.mean(0).expand(f, -1)


WRONG_ATTACKS = {
    one_vector: r"attack 'one_vector' returned tensor \(8,\) .*, expected tensor \(2, 8\)",
    as_numpy: r"attack 'as_numpy' returned ndarray \(2, 8\)",
    looks_a_key_up: r"attack 'looks_a_key_up' failed: KeyError: 'missing'",
    fails_later: r"attack 'fails_later' failed: ValueError: not in round 3",
}


@pytest.mark.parametrize("attack", WRONG_ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("knowledge", ["omniscient", "own"])
def test_a_mistake_in_a_users_attack_ends_the_run_under_its_name(small, attack, knowledge):
    record = attacks.Attack(name=attack.__name__, craft=attack, knowledge=knowledge)
    with pytest.raises(PluginError, match=WRONG_ATTACKS[attack]):
        simulate(small, attack=record)


def test_the_declared_fault_stays_a_fault(small):
    (_, rows) = simulate(small, attack="exception").runs[0]
    assert [len(row["rejected"]) for row in rows[1:]] == [2] * 3
    assert "kept" not in str(rows)


def test_attackers_whose_own_training_diverged_end_nothing(small):
    small["training"] |= {"lr": 1e30, "mode": "update"}
    with pytest.warns(NoStepWarning):
        (_, rows) = simulate(small, attack="alie", rule="median").runs[0]
    assert len(rows) == 4


class Misspelt(FedAvg):
    def aggregate_train(self, server_round, replies):
        return undefined_name


class AsksNobody(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        raise LookupError("no clients")


@pytest.mark.parametrize("strategy", [Misspelt, AsksNobody])
def test_a_mistake_in_a_users_strategy_ends_the_run_under_its_name(small, strategy):
    with pytest.raises(PluginError, match=f"strategy '{strategy.__name__}' failed: "):
        simulate(small, rule=strategy())


def test_a_stock_strategy_overrun_by_an_attack_keeps_the_model(small):
    class Overflows(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            for value in arrays.values():
                value.data = type(value)(value.numpy() * float("inf")).data
            return arrays, metrics

    with pytest.warns(NoStepWarning, match="not finite"):
        simulate(small, rule=Overflows())


# What the caller has set in PyTorch.
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_whatever_the_caller_has_switched_off(small, mode):
    usual = simulate(small)
    with mode():
        inside = simulate(small)
        assert not torch.is_grad_enabled()
    assert inside.accuracy == pytest.approx(usual.accuracy, abs=1e-9)
    assert inside.accuracy > 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_type_is_refused_in_one_sentence(small, dtype):
    torch.set_default_dtype(dtype)
    try:
        with pytest.raises(ConfigError, match=r"default dtype is .*set_default_dtype"):
            simulate(small)
    finally:
        torch.set_default_dtype(torch.float32)


def test_another_default_device_is_refused_in_one_sentence(small):
    torch.set_default_device("meta")
    try:
        with pytest.raises(ConfigError, match="default device is 'meta'"):
            simulate(small)
    finally:
        torch.set_default_device(None)


# Own plug-ins that differ in anything are different runs, and no run is lost without a word.
def scaled(updates, *, k=1.0, f=0):
    return k * updates.sort(dim=0).values[f : len(updates) - f].mean(dim=0)


def both(small, first, second, key="rule", **more):
    results = simulate(small, **{key: first}, **more).compare(
        simulate(small, **{key: second}, **more)
    )
    labels = results.table().index if key == "rule" else results.table().columns
    return results, [str(label) for label in labels if label != "worst"]


def test_two_partials_of_one_rule_are_two_rows(small):
    small["rounds"] = 1
    two = partial(scaled, k=0.5), partial(partial(scaled, k=2.0), f=1)
    results, rows = both(small | {"sweep": {"seed": [1, 2]}}, *two)
    assert len(results.runs) == 4
    assert sorted(rows) == ["scaled k=0.5 f=2", "scaled k=2.0 f=1"]
    assert [e.rule for e, _ in results.runs[::2]] == [
        {"name": "scaled", "k": 0.5, "f": 2}, {"name": "scaled", "k": 2.0, "f": 1},
    ]  # fmt: skip


def test_the_same_partial_twice_is_one_run(small):
    small["rounds"] = 1
    results, rows = both(small, partial(scaled, k=0.5), partial(scaled, k=0.5))
    assert [len(results.runs), rows] == [1, ["scaled"]]


def closing_over(k):
    def rule(updates):
        return k * updates.mean(dim=0)

    return rule


class Scaling:
    def __init__(self, k, note=""):
        self.k, self.note = k, note

    def __call__(self, updates, *, f):
        return self.k * updates.mean(dim=0)

    def method(self, updates):
        return self.k * updates.mean(dim=0)


DIFFERENT = {
    "lambdas": (lambda u: u.mean(0), lambda u: u.mean(0) / 2),
    "closures": (closing_over(1.0), closing_over(0.5)),
    "tensors": (
        partial(lambda u, *, w: w * u.mean(0), w=torch.ones(())),
        partial(lambda u, *, w: w * u.mean(0), w=torch.ones(()) / 2),
    ),
    "objects": (Scaling(1.0), Scaling(0.5)),
    "methods": (Scaling(1.0).method, Scaling(0.5).method),
    "strategies": (FedTrimmedAvg(beta=0), FedTrimmedAvg(beta=0.3)),
    "default and not": (FedTrimmedAvg(), FedTrimmedAvg(beta=0.3)),
    "records": tuple(
        aggregation.Rule(name="scaled", compute=partial(scaled, k=k)) for k in (1.0, 0.5)
    ),
}


@pytest.mark.parametrize("pair", DIFFERENT)
def test_own_rules_that_differ_are_two_rows(small, pair):
    results, rows = both(small | {"rounds": 1}, *DIFFERENT[pair])
    assert [len(results.runs), len(rows), len(set(rows))] == [2, 2, 2]


def test_settings_stand_in_the_labels(small):
    small["rounds"] = 1
    assert both(small, *DIFFERENT["strategies"])[1] == [
        "FedTrimmedAvg beta=0", "FedTrimmedAvg beta=0.3",
    ]  # fmt: skip
    assert both(small, *DIFFERENT["objects"])[1] == ["Scaling k=1.0", "Scaling k=0.5"]


def test_namesakes_are_numbered_in_order_of_appearance():
    numbers = Numbers()
    first, second = closing_over(1.0), closing_over(2.0)
    again = closing_over(1.0)
    names = [numbers.named("rule", mark(one, {})) for one in (first, second, again)]
    assert names == ["rule", "rule#2", "rule"]


def test_a_lambda_that_reads_a_global_is_another_when_the_global_is(small):
    rules = eval("[lambda u: k * u.mean(0)]", space := {"k": 1.0})
    first = simulate(small, rule=rules[0], rounds=1)
    space["k"] = 0.5
    again = simulate(small, rule=rules[0], rounds=1)
    assert len(first.compare(again).runs) == 2


def pushed(honest, *, n, f, scale=1.0):
    return (-scale * honest.mean(dim=0)).expand(f, -1)


def test_own_attacks_that_differ_are_two_columns(small):
    small["rounds"] = 1
    two = partial(pushed, scale=1.0), partial(pushed, scale=9.0)
    assert both(small, *two, key="attack")[1] == ["pushed scale=1.0", "pushed scale=9.0"]
    two = (lambda h, *, n, f: -h.mean(0).expand(f, -1), lambda h, *, n, f: h.mean(0).expand(f, -1))
    columns = both(small, *two, key="attack")[1]
    assert len(set(columns)) == 2 and all(c.startswith("function") for c in columns)


def test_equal_settings_with_other_rows_are_both_kept_and_said(small):
    first = simulate(small, rounds=1, keep_models=True)
    (experiment, rows) = first.runs[0]
    other = replace(first, runs=((experiment, [{**row, "loss": 0.0} for row in rows]),))
    with pytest.warns(UserWarning, match="ran twice, to other rows: both are kept"):
        compared = first.compare(other)
    assert [len(compared.runs), len(compared.models)] == [2, 2]
    slower = replace(first, runs=((experiment, [{**row, "seconds": 9.9} for row in rows]),))
    assert len(first.compare(slower).runs) == 1


def test_settings_that_no_label_shows_are_not_averaged(small):
    one = {"redundancy": {"name": "detox", "replication": 5, "batch": 40}, "rule": "mean"}
    runs = [from_dict(small | one | {"training": {"mode": "gradient"}, "seed": s}) for s in (1, 2)]
    larger = {**one["redundancy"], "batch": 80}
    runs.append(from_dict(small | one | {"training": {"mode": "gradient"}, "redundancy": larger}))
    results = Results(tuple((e, [{"round": 0, "accuracy": 0.5}]) for e in runs))
    assert len(set(results.table().index)) == 2


# Settings of rules: refused before the start, not a refusal in each round.
@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("norm_clipping:bound=-1", "norm_clipping needs bound > 0, got -1"),
        ("dnc:c=6", "dnc of 10 updates needs c f < 10"),
        ("centered_clipping:tau=0", "centered_clipping needs tau > 0"),
        ("krum:variant=epfll", "did you mean 'epfl'"),
        ("flame:noise=-0.1", "flame needs noise >= 0"),
    ],
)
def test_a_rules_settings_are_checked_before_the_start(small, rule, sentence):
    with pytest.raises(ConfigError, match=sentence):
        from_dict(small | {"rule": rule})


def test_refusals_of_ours_are_the_class_that_keeps_a_model():
    rows = torch.ones(3, 4)
    for updates, spec in ((rows, {"name": "krum", "f": 1}), (rows * float("nan"), "median")):
        with pytest.raises(Refusal):
            aggregate(updates, spec)


def test_a_run_without_one_step_ends_with_exit_code_1(small, tmp_path):
    file = tmp_path / "stuck.toml"
    small |= {"attack": "silence", "rounds": 2}
    small["server"] |= {"min_replies": 9}
    file.write_text(tomli_w.dumps(small))
    done = CliRunner().invoke(cli.app, ["run", str(file), "--output", str(tmp_path), "-q"])
    assert done.exit_code == 1
    assert "not one of 2 rounds took a step" in done.stderr
    assert "min_replies asks for 9, got 8" in done.stderr


# Settings that the data set, or n, does not bear: wrong input, never an attack that was withstood.
@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        ("backdoor:target=12", r"backdoor needs a whole target within 0\.\.9, got 12"),
        ("backdoor:target=-1", "needs a whole target of at least 0, got -1"),
        ("backdoor:target=0.5", "needs a whole target of at least 0, got 0.5"),
        ("backdoor:share=2", "backdoor needs share > 0 and <= 1, got 2"),
        ("backdoor:share=0", "backdoor needs share > 0 and <= 1, got 0"),
        ("backdoor:size=9", r"backdoor needs a whole size within 1\.\.8, got 9"),
        ("backdoor:value=256", r"value .*0\.\.255, got 256"),
        ("sample_backdoor:index=100000", r"needs a whole index within 0\.\.1\d\d, got 100000"),
        ("sample_backdoor:modulo=11", r"needs a whole modulo within 2\.\.10, got 11"),
        ("alie_backdoor:target=10", r"alie_backdoor needs a whole target within 0\.\.9, got 10"),
        ("alie_backdoor:value=1001", r"needs a whole value within 0\.\.1000, got 1001"),
        ("alie_backdoor:train_images=-1", "needs a whole train_images of at least 0, got -1"),
        ("alie_backdoor:measured_on=trian", "did you mean 'train'"),
        ("alie_backdoor:epochs=0.5", "alie_backdoor needs a whole epochs of at least 1"),
        ("label_flip:mode=pairs", "did you mean 'pair'"),
        ("finite_norm:norm=2,coordinate=650", "coordinate below the 650 of 'linear', got 650"),
    ],
)
def test_an_attack_that_the_data_do_not_bear_is_refused(small, attack, sentence):
    with pytest.raises(ConfigError, match=sentence):
        simulate(small, attack=attack)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"partition": {"name": "shards", "per_client": 0}}, "partition 'shards' over 10 clients"),
        ({"partition": {"name": "shards", "per_client": "x"}}, "partition 'shards' over 10 cl"),
        ({"partition": {"name": "dirichlet", "alpha": "x"}}, "partition 'dirichlet' over 10"),
        ({"placement": {"name": "fixed", "ids": [0.5, 1]}}, r"needs a whole id within 0\.\.9"),
        ({"placement": {"name": "fixed", "ids": "ab"}}, "needs a list of ids, got 'ab'"),
        ({"placement": {"name": "window", "length": 0.5}}, "needs a whole length of at least 1"),
        ({"adversarial": {"perturbation": "pgd:eps=0.1,step_size=-1,steps=2"}}, "'pgd': step_size"),
        ({"adversarial": {"perturbation": "pgd:eps=0.1,step_size=0.1,steps=1.5"}}, "'pgd': "),
        ({"adversarial": {"perturbation": "fgsm:eps=0.1,norm=l3"}}, "unknown norm 'l3'"),
        ({"server": {"root_images": 99999}}, "server.root_images needs at most the 1438 training"),
        (
            {"redundancy": {"name": "detox", "replication": 5, "batch": 2000}},
            "redundancy.batch needs at most the 1438 training images, got 2000",
        ),
    ],
)
def test_any_other_setting_that_the_data_do_not_bear_is_refused(small, change, sentence):
    if "redundancy" in change:
        del small["training"]  # files are what a worker computes
        small["rule"] = "mean"
    with pytest.raises(ConfigError, match=sentence):
        simulate(small | change | {"server": {**small["server"], **change.get("server", {})}})


@pytest.mark.parametrize("command", ["check", "run"])
def test_an_attack_that_the_data_do_not_bear_ends_with_exit_code_2(
    small, tmp_path, monkeypatch, capsys, command
):
    file = tmp_path / "absent.toml"
    file.write_text(tomli_w.dumps(small | {"attack": "backdoor:target=12"}))
    monkeypatch.setattr("sys.argv", ["fedrobust", command, str(file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "backdoor needs a whole target within 0..9, got 12" in capsys.readouterr().err


@pytest.mark.parametrize("attack", ["backdoor", "sample_backdoor", "alie_backdoor", "rop"])
def test_what_the_data_bear_runs(small, attack):
    (_, rows) = simulate(small, attack=attack, rounds=2).runs[0]
    assert not rows[-1]["rejected"]


def test_poisons_that_fail_in_a_run_end_it(small, monkeypatch):
    def broken(images, labels, *, classes=None, generator=None):
        raise IndexError("past the end")

    monkeypatch.setitem(attacks.POISONS, "broken", broken)
    with pytest.raises(PluginError, match="attack 'broken' failed: IndexError: past the end"):
        simulate(small, attack="broken")


def test_an_attacks_mistake_on_a_host_reaches_the_server_that_trusts_it():
    def client(message, context):
        if context.node_config["partition-id"] == 2:
            raise PluginError("attack 'mine' failed: KeyError: 'missing'")
        return Message(RecordDict(), reply_to=message)

    hosts = InProcessGrid(partial(serve_cohort, client), clients=1, run_config={})
    grid = CohortGrid(hosts, clients=4)
    asked = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
    replies = {r.metadata.src_node_id: r for r in grid.send_and_receive(asked)}
    assert len(replies) == 4
    reasons = [r.error.reason for r in replies.values() if r.has_error()]
    row = {"round": 1, "rejected": [{"reason": f"error reply: {reasons[0]}"}]}
    with pytest.raises(PluginError, match=r"^attack 'mine' failed: KeyError: 'missing'$"):
        server_app.end_on_mistakes(row)
    server_app.end_on_mistakes({"round": 1, "rejected": [{"reason": "error reply: RuntimeError"}]})


def test_the_log_says_which_superlink_a_run_went_to(monkeypatch):
    monkeypatch.setenv("FLWR_HOME", "/somewhere")
    context = SimpleNamespace(run_id=17)
    grid = HttpGrid("127.0.0.1:39091", insecure=True, token="any")
    said = server_app.whereabouts(grid, context)
    assert said == "run 17 of the SuperLink at 127.0.0.1:39091, Flower home: /somewhere"


# Trackers and callbacks.
def fails_from(start):
    def on_row(experiment, row):
        if row["round"] >= start:
            raise ConnectionError("tracker away")

    return on_row


def test_a_callback_that_raises_is_one_warning_and_the_run_goes_on(small):
    with pytest.warns(ObserverWarning, match="on_row failed at round 2.*tracker away") as caught:
        (_, rows) = simulate(small, on_row=fails_from(2)).runs[0]
    assert len([w for w in caught if w.category is ObserverWarning]) == 1
    assert [row["round"] for row in rows] == [0, 1, 2, 3]


def test_a_callback_cannot_change_a_row(small):
    (_, rows) = simulate(small, on_row=lambda experiment, row: row.clear()).runs[0]
    assert [row["round"] for row in rows] == [0, 1, 2, 3]


def test_strict_gives_the_callbacks_error(small):
    with pytest.raises(ConnectionError, match="tracker away"):
        simulate(small, on_row=fails_from(2), strict=True)


def _broken_end():
    raise OSError("disk full")


def test_a_tracker_that_raises_leaves_the_others_alone(small, tmp_path, monkeypatch):
    seen = []
    table = trackers.TRACKERS
    monkeypatch.setitem(table, "away", lambda folder: (fails_from(1), _broken_end))
    monkeypatch.setitem(table, "here", lambda folder: ((lambda e, r: seen.append(r)), lambda: None))
    with (
        pytest.warns(ObserverWarning) as caught,
        trackers.tracking(["away", "here"], tmp_path) as on_row,
    ):
        simulate(small, on_row=on_row)
    assert len(seen) == 4
    said = [str(w.message) for w in caught if w.category is ObserverWarning]
    assert ["round 1" in said[0], "its end: OSError: disk full" in said[1], len(said)] == [1, 1, 2]
    monkeypatch.setitem(table, "away", lambda folder: (fails_from(1), lambda: None))
    with (
        pytest.raises(ConnectionError),
        trackers.tracking(["away"], tmp_path, strict=True) as on_row,
    ):
        simulate(small, on_row=on_row, strict=True)


def test_a_tracker_that_cannot_start_is_wrong_input(tmp_path, monkeypatch):
    def unreachable(folder):
        raise ConnectionError("no server")

    monkeypatch.setitem(trackers.TRACKERS, "away", unreachable)
    with (
        pytest.raises(ConfigError, match="tracker 'away' cannot start: ConnectionError: no server"),
        trackers.tracking(["away"], tmp_path),
    ):
        pass


def test_compare_keeps_the_running_statistics_of_each_model(small):
    experiment = from_dict(small)
    first, second = (
        Results(((experiment, [{"round": 1, "loss": loss}]),), (torch.ones(2),), (running,))
        for loss, running in ((0.5, None), (0.25, torch.zeros(3)))
    )
    with pytest.warns(UserWarning, match="ran twice"):
        compared = first.compare(second)
    assert [None if one is None else one.tolist() for one in compared.running] == [None, [0, 0, 0]]
