"""The public conformance checks: our tables pass; what is broken gets the right sentence."""

import pytest
import torch

from fedrobust.aggregation import PREAGGREGATORS, RULES, Outcome, PreAggregator, Rule
from fedrobust.aggregation.tables import RULE_RECORDS
from fedrobust.attacks import ATTACKS, Attack, Crafted
from fedrobust.testing import check_attack, check_preaggregator, check_rule

NEEDED = {
    "centered_clipping": {"tau": 2.0}, "norm_clipping": {"bound": 3.0},
    "median_of_means": {"groups": 7}, "flame": {"noise": 0.0}, "fltrust": {"root": torch.ones(24)},
    "zeno": {"loss": lambda step: float((step - 1).double().square().sum()), "rho": 0.001},
    "safeguard": {
        "window": 6, "threshold": 20.0, "short_window": 3, "short_threshold": 20.0,
    },
    "rlr": {"threshold": 4}, "huber": {"threshold": 3.0}, "filtering": {"variance": 2.0},
    "bucketing": {"size": 2}, "clip": {"bound": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("f", [1, 3])
def test_our_rules_conform(name, f):
    check_rule(name, f=f, **NEEDED.get(name, {}))


@pytest.mark.parametrize("name", PREAGGREGATORS)
def test_our_preaggregators_conform(name):
    check_preaggregator(name, **NEEDED.get(name, {}))


@pytest.mark.parametrize("name", ATTACKS)
def test_our_attacks_conform(name):
    check_attack(name)


@pytest.mark.parametrize("name", [n for n, r in RULE_RECORDS.items() if not r.bounded])
def test_a_rule_that_says_it_is_not_bounded_is_not(name):
    """Taken for bounded, the checks find it out: no property is claimed too little either."""
    if name == "foolsgold":
        pytest.skip("it weighs by likeness: a single far row may get any weight")
    if name == "alignins":
        pytest.skip("it takes more attackers than here: see test_recent_rules.py")
    record = RULE_RECORDS[name]
    claimed = Rule(name=name, compute=record.compute, kind=record.kind, bounded=True)
    with pytest.raises(AssertionError, match="is carried away"):
        check_rule(claimed, f=3, **NEEDED.get(name, {}))


def median(updates):
    return updates.median(0).values


def test_a_sound_rule_of_somebody_passes():
    check_rule(median, f=3)
    check_rule(Rule(name="median", compute=median, bounded=True), f=3)


def changes_its_input(updates):
    updates -= updates.median(0).values
    return updates.median(0).values


def gives_a_matrix(updates):
    return updates[:1]


def gives_no_tensor(updates):
    return updates.median(0).values.tolist()


def always_double(updates):
    return updates.double().median(0).values


def gives_nan(updates):
    return updates.median(0).values * float("nan")


def takes_the_first(updates):
    return updates[0].clone()


def clips_absolutely(updates):
    return updates.median(0).values.clamp(-1, 1)


def squares(updates):
    centre = updates.median(0).values
    return centre * centre.norm()


def gives_a_view(updates):
    return updates[updates.norm(dim=1).argmin()]


def goes_beyond(updates):
    return updates.median(0).values + 5 * (updates.amax(0) - updates.amin(0))


def is_the_mean(updates):
    return updates.mean(0)


def draws_globally(updates):
    return updates[torch.randperm(len(updates))[:9]].median(0).values


def follows_no_translation(updates):
    return updates.median(0).values * 0.5


class Hidden:
    """A rule that remembers in itself."""

    def __init__(self):
        self.last = 0.0

    def __call__(self, updates):
        self.last = 0.5 * self.last + 0.5 * updates.median(0).values
        return self.last


BROKEN = [
    (changes_its_input, "changes_its_input changed the rows that it was given"),
    (gives_a_matrix, r"gives_a_matrix returned shape \(1, 24\) for \(15, 24\) rows, not \(24,\)"),
    (gives_no_tensor, "gives_no_tensor returned list, no tensor"),
    (always_double, "always_double returned torch.float64 for rows of torch.float32"),
    (gives_nan, "gives_nan returned NaN or Inf from finite rows"),
    (takes_the_first, "takes_the_first depends on the order of the clients"),
    (squares, "squares does not follow the scale"),
    (clips_absolutely, "does not follow the scale"),
    (follows_no_translation, "follows_no_translation does not follow a translation"),
    (gives_a_view, "gives_a_view returned a view of the rows"),
    (goes_beyond, "goes_beyond without Byzantine rows is .* from the mean, farther than any row"),
    (is_the_mean, "is_the_mean is carried away by 3 of 15 rows at 10000"),
    (draws_globally, "draws_globally returned two results for the same rows"),
    (Hidden(), "returned two results for the same rows"),
]


@pytest.mark.parametrize(("rule", "sentence"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_a_broken_rule_gets_its_sentence(rule, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_rule(rule, f=3)


def test_memory_must_be_a_value():
    def spoils(updates, *, memory=None):
        if memory is None:
            memory = torch.zeros_like(updates[0])
        memory += updates.median(0).values
        return Outcome(memory.clone(), memory, None)

    record = Rule(name="spoils", compute=spoils, kind="outcome")
    with pytest.raises(AssertionError, match="spoils changed the memory that it was given"):
        check_rule(record)


def test_a_broken_preaggregator_gets_its_sentence():
    with pytest.raises(AssertionError, match=r"returned shape \(24,\) .* not \('m', 24\)"):
        check_preaggregator(median)
    with pytest.raises(AssertionError, match="a pre-aggregator averages or shortens rows"):
        check_preaggregator(lambda updates: updates * 3)
    with pytest.raises(AssertionError, match="changed the rows"):
        check_preaggregator(lambda updates: updates.mul_(0.5))
    twice = PreAggregator(
        name="twice", compute=lambda updates: 2 * torch.eye(len(updates)).double()
    )
    with pytest.raises(AssertionError, match="twice returned a row of length"):
        check_preaggregator(twice)


def one_row(honest, *, n, f):
    return honest.mean(0)[None]


def in_place(honest, *, n, f):
    return honest.mul_(-1)[:1].expand(f, -1)


def global_noise(honest, *, n, f):
    return torch.randn(1, honest.shape[1]).to(honest).expand(f, -1) * 0 + honest.mean(0)


def overflowing(honest, *, n, f):
    return (honest.mean(0) / 0).expand(f, -1)


def needs_a_crowd(honest, *, n, f):
    return (honest.std(0) * 1.5).expand(f, -1)


BAD_ATTACKS = [
    (one_row, r"one_row returned shape \(1, 24\) .* not \(3, 24\)"),
    (in_place, "in_place changed the rows that it was given"),
    (global_noise, "global_noise draws from torch's global generator"),
    (overflowing, "overflowing returned NaN or Inf from finite rows"),
    (needs_a_crowd, r"needs_a_crowd returned NaN or Inf"),
]


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize(
    ("attack", "sentence"), BAD_ATTACKS, ids=lambda v: getattr(v, "__name__", "")
)
def test_a_broken_attack_gets_its_sentence(attack, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_attack(attack)


def test_an_attacks_state_must_be_a_value():
    def spoils(honest, *, n, f, state=None):
        size = torch.ones(1) if state is None else state["size"].mul_(2)
        return Crafted((-size.to(honest) * honest.mean(0)).expand(f, -1), {"size": size})

    with pytest.raises(AssertionError, match="spoils changed the state that it was given"):
        check_attack(Attack(name="spoils", craft=spoils))


def test_what_is_no_plug_in_is_refused():
    for check in (check_rule, check_preaggregator, check_attack):
        with pytest.raises(TypeError, match="needs a function, a record or a spec, got 3"):
            check(3)
