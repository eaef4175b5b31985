import tomllib

import pytest

from fedrobust.experiment.load import (
    expand,
    from_dict,
    from_run_config,
    override,
    parse_spec,
    parse_value,
    read,
)
from fedrobust.experiment.schema import ConfigError


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


def test_run_id_changes_with_every_field(small):
    base = from_dict(small).run_id
    for change in ({"seed": 4}, {"rule": "mean"}, {"server": {"lr": 0.4}}, {"clients": 11}):
        assert from_dict(small | change).run_id != base


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
        ({"byzantine": 10}, "byzantine must lie in 0..clients-1 = 0..9, got 10"),
        ({"rule": {"name": "krum", "f": 4}}, "krum with f=4 needs at least 11 updates, got 10"),
        ({"server": {"lr": -1.0}}, "server.lr needs a positive number"),
        ({"training": {"mode": "gradients"}}, "did you mean 'gradient'?"),
        ({"training": {"optimizer": "sdg"}}, "did you mean 'sgd'?"),
        ({"server": 3}, "server: needs a table, got 3"),
    ],
)
def test_each_mistake_gets_its_sentence(small, change, sentence):
    assert any(sentence in line for line in errors_of(small | change)), errors_of(small | change)


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
