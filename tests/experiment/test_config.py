import dataclasses
import tomllib
from typing import get_args

import pytest
from flwr.serverapp.strategy import FedAvg

from experiments.simulation import run_one
from experiments.sweep import Sweep
from fedrobust.experiment.honoured import HONOURED, ONLY_FEDERATED, honours
from fedrobust.experiment.load import (
    REQUIRED,
    expand,
    from_dict,
    from_run_config,
    override,
    parse_spec,
    parse_value,
    read,
)
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.experiment.settings import LOCAL_STEPS
from tests.conftest import SMALL


def errors_of(document):
    with pytest.raises(ConfigError) as caught:
        from_dict(document)
    return caught.value.errors


def test_resolved_configuration_round_trips(small):
    first = from_dict(small)
    again = from_dict(tomllib.loads(first.to_toml()))
    assert again == first
    assert again.run_id == first.run_id


def test_f_is_written_out(small):
    resolved = from_dict(small | {"rule": "nnm+krum"})
    assert resolved.rule == {"name": "krum", "f": 2}
    assert resolved.pre == ({"name": "nnm", "f": 2},)
    assert resolved.defence == "nnm+krum"
    told = from_dict(small | {"rule": {"name": "krum", "f": 3}})
    assert told.rule["f"] == 3


FEDERATED = {"groups": {"fast": {"share": 0.5}}}
REDUNDANCY = {"redundancy": {"name": "aspis", "batch": 240}, "training": {}}
ENSEMBLE = {"ensemble": {"paradigm": "same", "votes": ["robust"]}, "training": {}, "server": {}}
MODES = {"federated": FEDERATED, "redundancy": REDUNDANCY, "ensemble": ENSEMBLE}


def other(value, allowed):
    """Return another value of a setting."""
    if allowed:
        return next(a for a in allowed if a and a != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {**value, "changed": 1} if value else {"name": "changed"}
    if isinstance(value, tuple):
        return value[::-1] if len(set(value)) > 1 else (*value, *(value or ("changed",)))
    return value + "changed" if isinstance(value, str) else value * 0.5 + 0.3


def changes(settings):
    """Yield (dotted key, the same settings with that one changed)."""
    for key, field in type(settings).__pydantic_fields__.items():
        value = getattr(settings, key)
        if dataclasses.is_dataclass(value):
            for inner, changed in changes(value):
                yield f"{key}.{inner}", dataclasses.replace(settings, **{key: changed})
        elif key != "groups":
            options = get_args(field.annotation) if "Literal" in str(field.annotation) else ()
            new = other(value, options)
            new = max(round(new), 2) + (value == 2) if type(value) is int else new
            if key == "nodes":
                new = ({"lr": 0.5},)
            if new != value:
                yield key, dataclasses.replace(settings, **{key: new})


@pytest.mark.parametrize("mode", MODES)
def test_run_id_changes_with_every_setting_that_the_mode_honours(small, mode):
    base = from_dict(small | MODES[mode])
    assert base.mode == mode
    ids = {base.run_id: "nothing"}
    seen = 0
    for key, changed in changes(base):
        top = key.split(".")[0]
        chooses = key in ("redundancy.name", "ensemble.paradigm")
        if chooses or not honours(mode, key) or (top == "ensemble" and mode == "federated"):
            continue
        seen += 1
        assert changed.run_id not in ids, (key, ids[changed.run_id])
        ids[changed.run_id] = key
    assert seen >= {"federated": 75, "redundancy": 55, "ensemble": 50}[mode]


@pytest.mark.parametrize("mode", MODES)
def test_a_resolved_mode_round_trips(small, mode):
    first = from_dict(small | MODES[mode])
    assert from_dict(tomllib.loads(first.to_toml())) == first
    assert {"federated", "redundancy", "ensemble"} - first.to_dict().keys() >= (
        {"redundancy", "ensemble"} - {mode}
    )


def given(key):
    """Return a table that gives a dotted key its default value."""
    *path, last = key.split(".")
    settings = from_dict(SMALL)
    for part in path:
        settings = getattr(settings, part)
    value = getattr(settings, last)
    if dataclasses.is_dataclass(value):
        inner = next(iter(type(value).__pydantic_fields__))
        value = {inner: getattr(value, inner)}
        key += f".{inner}"
    elif isinstance(value, tuple):
        value = list(value)
    for part in [last, *reversed(path)]:
        value = {part: value}
    return value, key


@pytest.mark.parametrize("mode", ["redundancy", "ensemble"])
def test_a_key_of_another_mode_is_an_error_even_at_its_default(small, mode):
    """Whatever federated mode honours and this one does not, and all that [federated] may hold."""
    leaves = [key for key, _ in changes(from_dict(SMALL))]
    foreign = [k for k in leaves if not honours(mode, k) and honours("federated", k)]
    foreign = [k for k in foreign if k.split(".")[0] not in ("redundancy", "ensemble")]
    assert len(foreign) >= {"redundancy": 30, "ensemble": 50}[mode]
    for name in (*foreign, "groups"):
        table, key = given(name)
        with pytest.raises(ConfigError) as caught:
            from_dict(small | MODES[mode] | table)
        sentence = f"{key} is not honoured in {mode} mode, only in federated"
        assert any(line.startswith(sentence) for line in caught.value.errors), key


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_honours_what_it_says(small, mode):
    assert set(ONLY_FEDERATED) <= set(HONOURED["federated"])
    assert mode == "federated" or not any(honours(mode, key) for key in ONLY_FEDERATED)
    known = {key for key, _ in changes(from_dict(small | MODES["federated"]))} | {"groups"}
    tops = {key.split(".")[0] for key in known}
    for key in HONOURED[mode]:
        assert key in known | tops, f"{key} is no setting"


def test_the_federated_table_is_lifted(small):
    inside = from_dict(small | {"federated": {"worker_momentum": 0.5, "semi": {"mode": "none"}}})
    assert inside == from_dict(small | {"worker_momentum": 0.5})
    with pytest.raises(ConfigError, match="participation is given twice"):
        from_dict(small | {"participation": 0.5, "federated": {"participation": 0.5}})
    with pytest.raises(ConfigError, match=r"unknown key 'federated.rule'; it stands at the top"):
        from_dict(small | {"federated": {"rule": "mean"}})
    with pytest.raises(ConfigError, match=r"worker_momentum is not honoured in ensemble mode"):
        from_dict(small | ENSEMBLE | {"federated": {"worker_momentum": 0.5}})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scheme": {"name": "aspis"}}, "[scheme] is now [redundancy]"),
        ({"plan": {"paradigm": "same"}}, "[plan] is now [ensemble]"),
        ({"federated": {"adversarial_clients": 0.5}},
         "[federated] adversarial_clients is now [adversarial.federated] adversarial_clients"),
        ({"transfer": {"reading": "a"}}, "transfer.reading is now transfer.step_scaling"),
        ({"scheme": {"together": 8}}, "redundancy.together is now redundancy.vmap_files"),
        ({"plan": {"lie": "flip"}}, "ensemble.lie is now attack"),
        ({"redundancy": {"batch": 70}}, "the key 'redundancy.name' is missing"),
        ({"ensemble": {"trials": 0}}, "the key 'ensemble.paradigm' is missing"),
        ({"redundancy": "aspis", "ensemble": {"paradigm": "same"}},
         "[redundancy] and [ensemble] exclude each other"),
        ({"ensemble": {"paradigm": "same"}}, "rule is not honoured in ensemble mode without"),
        (ENSEMBLE | {"rule": "nnm+krum"}, "a robust vote aggregates by the rule alone"),
        (ENSEMBLE | {"attack": "alie"}, "unknown attack 'alie' on answers"),
        ({"attack": "stale"}, "attack 'stale' changes the answers of members: it needs [ensemble]"),
        ({"transfer": {"data": "disjoint"}}, "it needs [ensemble]"),
        ({"server": {"lr": float("inf")}}, "server.lr: needs a finite number, got inf"),
        ({"pre": 3}, "pre: needs a list, got 3"),
        ({"ensemble": {"paradigm": "same", "tune_epochs": [3]}}, "ensemble.tune_epochs"),
    ],
)  # fmt: skip
def test_old_and_exclusive_keys_are_errors(small, change, sentence):
    assert any(sentence in line for line in errors_of(small | change)), errors_of(small | change)


def test_values_are_checked_where_other_keys_are_missing(small):
    for key in ("byzantine", "clients", "seed"):
        del small[key]
    wrong = {"rule": "nmn+krumm", "attack": "ali", "model": "cnnn", "server": {"optimizer": "sdg"}}
    found = errors_of(small | wrong)
    for sentence in ("unknown pre-aggregator 'nmn'", "unknown attack 'ali'", "unknown model 'cnnn'",
                     "did you mean 'sgd'", "the key 'seed' is missing"):  # fmt: skip
        assert any(sentence in line for line in found), found
    del small["rule"]
    small["clients"] = "ten"
    assert not any("needs the parameter 'f'" in line for line in errors_of(small))


def test_no_check_fails_on_any_missing_or_broken_key(small):
    """Whatever is missing or of a wrong type, every sentence is about that key."""
    for key in Experiment.__pydantic_fields__:
        if key in ("redundancy", "ensemble"):
            continue  # they choose the mode, and so what else is honoured
        broken = errors_of({**small, key: 3.5 if key != "worker_momentum" else "x"})
        assert len(broken) == 1 and key in broken[0], (key, broken)
        if key in REQUIRED:
            left = {k: v for k, v in small.items() if k != key}
            assert errors_of(left) == [f"the key {key!r} is missing"]


@pytest.mark.parametrize("mode", ["redundancy", "ensemble"])
def test_features_that_a_mode_does_not_honour_are_refused(small, mode, tmp_path):
    e = from_dict(small | MODES[mode])
    with pytest.raises(ConfigError, match="a stock Flower strategy is not honoured"):
        run_one(e, stock=FedAvg())
    if mode == "ensemble":
        with pytest.raises(ConfigError, match="is not honoured in ensemble mode, only in fed"):
            Sweep([e], tmp_path, workers=1, models=True).run(lambda e, row: None)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rle": "mean"}, "unknown key 'rle'; did you mean 'rule'?"),
        ({"server": {"learning_rate": 1.0}}, "unknown key 'server.learning_rate'"),
        ({"rule": "trimed_mean"}, "unknown rule 'trimed_mean'; did you mean 'trimmed_mean'?"),
        ({"rule": "nmn+krum"}, "unknown pre-aggregator 'nmn'; did you mean 'nnm'?"),
        ({"attack": "aliee"}, "unknown attack 'aliee'; did you mean 'alie'?"),
        ({"attack": "alie:zz=1"}, "has no parameter 'zz'; did you mean 'z'?"),
        ({"attack": "alie:knowledge=omnicient"}, "did you mean 'omniscient'?"),
        ({"attack": "silence:x=1"}, "attack 'silence' has no parameters"),
        ({"data": "cifar"}, "unknown data set 'cifar'; did you mean 'cifar10'?"),
        ({"model": "cnnn"}, "unknown model 'cnnn'; did you mean 'cnn'?"),
        ({"partition": "dirichlet"}, "needs the parameter 'alpha'"),
        ({"clients": "many"}, "clients: needs a whole number, got 'many'"),
        ({"clients": True}, "clients: needs a whole number"),
        ({"byzantine": 10}, "byzantine must be in 0..clients-1 = 0..9, got 10"),
        ({"rule": {"name": "krum", "f": 4}}, "krum with f=4 needs at least 11 updates, got 10"),
        ({"server": {"lr": -1.0}}, "server.lr needs a positive number"),
        ({"training": {"mode": "gradients"}}, "did you mean 'gradient'?"),
        ({"training": {"optimizer": "sdg"}}, "did you mean 'sgd'?"),
        ({"training": {"lr": 0.3}}, "training.lr is not honoured with training.mode = 'gradient'"),
        (
            {"groups": {"slow": {"share": 0.5, "training": {"epochs": 2}}}},
            "groups.slow.epochs is not honoured with training.mode = 'gradient'",
        ),
        ({"server": 3}, "server: needs a table, got 3"),
    ],
)
def test_each_mistake_gets_its_sentence(small, change, sentence):
    assert any(sentence in line for line in errors_of(small | change)), errors_of(small | change)


@pytest.mark.parametrize("key", LOCAL_STEPS)
def test_local_steps_are_settings_of_update_mode(small, key):
    given = {"epochs": 2, "steps": 3, "optimizer": "adam", "lr": 0.3, "momentum": 0.5,
             "schedule": "cosine"}[key]  # fmt: skip
    wrong = f"training.{key} is not honoured with training.mode = 'gradient'"
    assert any(wrong in line for line in errors_of(small | {"training": {key: given}}))
    if key != "schedule":  # its own table has more to say
        from_dict(small | {"training": {"mode": "update", key: given}})


def test_all_mistakes_at_once(small):
    found = errors_of(small | {"rule": "krm", "attack": "ali", "clients": 0})
    assert len(found) >= 3


@pytest.mark.parametrize("key", ["rule", "attack", "seed", "byzantine", "clients", "rounds"])
def test_what_decides_the_result_has_no_default(small, key):
    del small[key]
    assert f"the key {key!r} is missing" in errors_of(small)


def test_sweep_expands_and_reports_all_errors(small):
    sweep = {"rule": ["mean", "krum"], "server.lr": [0.1, 0.2], "attack": ["none"]}
    runs = expand(small | {"sweep": sweep})
    assert [(r.rule["name"], r.server.lr) for r in runs] == [
        ("mean", 0.1),
        ("mean", 0.2),
        ("krum", 0.1),
        ("krum", 0.2),
    ]
    with pytest.raises(ConfigError) as caught:
        expand(small | {"sweep": {"rule": ["mena", "krun"]}})
    assert len(caught.value.errors) == 2
    with pytest.raises(ConfigError, match="needs a list"):
        expand(small | {"sweep": {"rule": "mean"}})


def test_nested_sweep_tables_and_seeds(small):
    runs = expand(small | {"sweep": {"server": {"lr": [0.1, 0.2]}}}, seeds=3)
    assert [(r.server.lr, r.seed) for r in runs][:4] == [(0.1, 3), (0.1, 4), (0.1, 5), (0.2, 3)]


def test_an_override_leaves_the_sweep(small):
    document = override(small | {"sweep": {"rule": ["mean", "krum"]}}, {"rule": "median"})
    assert [r.rule["name"] for r in expand(document)] == ["median"]
    assert override({"rule": "krum"}, {"rule.f": 2}) == {"rule": {"name": "krum", "f": 2}}


def test_spec_notations_are_one():
    table = {"name": "alie", "z": 1.5, "knowledge": "own"}
    assert parse_spec("alie:z=1.5,knowledge=own") == parse_spec(table) == table
    assert parse_value("0.5") == 0.5
    assert parse_value("krum") == "krum"
    assert parse_value("[1, 2]") == [1, 2]


@pytest.mark.parametrize("table", ["server", "training", "groups.slow"])
def test_a_momentum_that_no_optimizer_reads_is_an_error(small, table):
    """It was ignored without a word: only "sgd" and its kin have a velocity."""
    recipe = {"training.mode": "update", "training.steps": 2, "groups.slow.share": 0.5}
    adam = recipe | {f"{table}.optimizer": "adam", f"{table}.lr": 0.01, f"{table}.momentum": 0.5}
    with pytest.raises(ConfigError) as told:
        from_dict(override(small, adam))
    assert f"{table}.momentum is not honoured by {table}.optimizer 'adam'" in str(told.value)
    for momentum in (0.0, 0.5):
        allowed = {f"{table}.optimizer": "adam" if not momentum else "sgd"}
        from_dict(override(small, adam | allowed | {f"{table}.momentum": momentum}))


def test_a_resolved_document_with_another_server_optimizer_is_read_again(small):
    """It holds the default momentum, which nobody asked for."""
    e = from_dict(override(small, {"server.optimizer": "adam", "server.momentum": 0.9}))
    assert from_dict(read(e.to_toml())) == e


def test_malformed_toml_names_the_line(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("rule = \n")
    with pytest.raises(ConfigError, match=r"malformed TOML in .*bad.toml.*line 1"):
        read(bad)
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path / "none.toml")


def test_flower_run_config_overrides_the_text(small):
    text = from_dict(small).to_toml()
    run_config = {"experiment": text, "rule": "krum", "server.lr": 0.25, "attack": "", "hosts": 2}
    experiment = from_run_config(run_config)
    assert experiment.rule["name"] == "krum"
    assert experiment.server.lr == 0.25
    assert experiment.attack["name"] == "none"
