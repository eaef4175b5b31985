"""Mistakes that people make with a laboratory: in a setting, in their own code, around a run."""

import pytest
import tomli_w
import torch
from flwr.serverapp.strategy import FedAvg
from typer.testing import CliRunner

from experiments import cli, trackers
from experiments.observers import ObserverWarning
from experiments.outcomes import NoStepWarning
from fedrobust import aggregation, attacks, simulate
from fedrobust.aggregation import aggregate
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.failures import PluginError, Refusal


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
    if round == 1:
        raise ValueError("not in round 2")
    return honest.mean(0).expand(f, -1)


WRONG_ATTACKS = {
    one_vector: r"attack 'one_vector' returned tensor \(8,\) .*, expected tensor \(2, 8\)",
    as_numpy: r"attack 'as_numpy' returned ndarray \(2, 8\)",
    looks_a_key_up: r"attack 'looks_a_key_up' failed: KeyError: 'missing'",
    fails_later: r"attack 'fails_later' failed: ValueError: not in round 2",
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
    assert "server.min_replies asks for 9, got 8" in done.stderr


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
        small["training"]["mode"] = "gradient"
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
