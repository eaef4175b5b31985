import pytest

from fedrobust.seeds import derive, generator
from fedrobust.spec import SpecError, parameters, resolve, split, suggest


def plug(x, *, f: int, scale: float = 1.0, generator=None):
    return x


TABLE = {"plug": plug}


def test_a_name_is_a_spec():
    assert split("plug") == ("plug", {})
    assert split({"name": "plug", "f": 2}) == ("plug", {"f": 2})


@pytest.mark.parametrize("bad", [3, {"f": 1}, None, {"name": 4}])
def test_anything_else_is_not(bad):
    with pytest.raises(SpecError, match="a spec is a name"):
        split(bad)


def test_unknown_name_says_what_was_meant():
    with pytest.raises(SpecError, match="unknown rule 'plugg'; did you mean 'plug'"):
        resolve(TABLE, "plugg", kind="rule")


def test_unknown_parameter_says_what_was_meant():
    with pytest.raises(SpecError, match="no parameter 'scael'; did you mean 'scale'"):
        resolve(TABLE, {"name": "plug", "f": 1, "scael": 2}, kind="rule", supplied=("generator",))


def test_required_parameter_is_asked_for():
    with pytest.raises(SpecError, match="needs the parameter 'f'"):
        resolve(TABLE, "plug", kind="rule", supplied=("generator",))


def test_supplied_parameters_are_not_the_specs():
    with pytest.raises(SpecError, match="no parameter 'generator'"):
        resolve(
            TABLE, {"name": "plug", "f": 1, "generator": 0}, kind="rule", supplied=("generator",)
        )
    assert resolve(TABLE, {"name": "plug", "f": 1}, kind="rule")[1] == {"f": 1}


def test_suggest_lists_what_is_allowed_when_nothing_is_near():
    assert suggest("zzz", ["b", "a"]) == "choose from a, b"


def test_settings_are_the_keyword_only_parameters():
    assert list(parameters(plug)) == ["f", "scale", "generator"]


def test_seeds_depend_on_every_argument_and_nothing_else():
    seeds = {derive(s, p, round=r, client=c) for s in (1, 2) for p in "ab" for r in (0, 1)
             for c in (0, 1)}  # fmt: skip
    assert len(seeds) == 16
    assert derive(1, "a") == derive(1, "a")
    assert generator(1, "a").initial_seed() == derive(1, "a")
