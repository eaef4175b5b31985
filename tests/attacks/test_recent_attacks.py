"""HIDRA, MPAF, edge cases, several triggers, replaced models: equations, effects, bad settings."""

import pytest
import textbook_attacks as textbook
import torch

from fedrobust import attacks
from fedrobust.aggregation import aggregate
from fedrobust.attacks.backdoors import rare
from fedrobust.attacks.data import boosted
from fedrobust.attacks.poison_checks import Victim, check_poison
from fedrobust.attacks.threat_model import patterns, tail
from fedrobust.seeds import generator
from fedrobust.spec import SpecError

LAYERS = (("weight", (5, 4)), ("empty", (0,)), ("bias", (7,)))


def sample(h=9, d=27, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(h, d, generator=source, dtype=torch.float64) + 0.3


@pytest.mark.parametrize("sigma", [None, 0.4])
@pytest.mark.parametrize("layers", [None, LAYERS])
def test_hidra_agrees_with_its_equation(sigma, layers):
    honest = sample()
    whole = [(0, 8), (8, 16), (16, 24), (24, 27)]
    by_layer = [(0, 8), (8, 16), (16, 20), (20, 27)]
    wanted = textbook.hidra(honest, 12, 3, sigma, 9.0, whole if layers is None else by_layer)
    spec = {"name": "hidra", "expansion": 9.0, "chunk": 8, "variance": sigma}
    sent = attacks.craft(honest, spec, n=12, f=3, layers=layers)
    assert torch.allclose(sent, torch.from_numpy(wanted).expand(3, -1))


def test_hidra_worked():
    """Mean 1, sigma 1, e = 1/2: sqrt((2 - 1) / (1/4 + 1/8)) = 1.632993 against it."""
    honest = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    sent = attacks.craft(honest, {"name": "hidra", "expansion": 4.0}, n=4, f=2)
    assert sent.flatten().tolist() == pytest.approx([1 - 1.632993] * 2, abs=1e-6)
    still = torch.zeros(3, 4)
    assert not attacks.craft(still, "hidra", n=4, f=1).any()


def test_hidra_gains_with_the_number_of_groups_on_a_filter_by_groups():
    """Four groups, each let through: the bias doubles; one filter over all of them stops it."""
    honest = sample(24, 400, seed=2)
    sigma = float(torch.linalg.eigvalsh(torch.cov(honest.T, correction=0))[-1])
    given = {"name": "filtering", "f": 6, "variance": sigma}

    def bias(chunk, filtered):
        attack = {"name": "hidra", "variance": sigma, "chunk": chunk}
        rows = torch.cat([honest, attacks.craft(honest, attack, n=30, f=6)])
        found = aggregate(rows, given | {"chunk": filtered})
        return float((found - honest.mean(0)).norm())

    one, four = bias(400, 400), bias(100, 100)
    assert four == pytest.approx(2 * one, rel=0.15)
    assert bias(100, 400) < four / 3  # what passed by groups does not pass as a whole


def test_mpaf_pulls_to_one_model_in_all_rounds():
    honest, model = sample(), torch.linspace(-1, 1, 27, dtype=torch.float64)
    spec = {"name": "mpaf", "factor": 10.0, "std": 0.5}
    first = attacks.step(honest, spec, n=12, f=3, model=model, generator=generator(1, "craft"))
    base = first.state["base"].double()
    assert torch.allclose(first.updates, (10 * (model - base)).expand(3, -1), atol=1e-5)
    moved = model + 0.1
    second = attacks.step(honest, spec, n=12, f=3, round=1, model=moved, state=first.state)
    assert torch.equal(second.state["base"], first.state["base"])
    assert torch.allclose(second.updates[0], 10 * (moved - base), atol=1e-5)
    # The plain mean over 3 of 12 with factor 4 lands on the base, but for the honest steps.
    rows = attacks.craft(
        torch.zeros(9, 27), {"name": "mpaf", "factor": 4.0}, n=12, f=3, model=model,
        generator=generator(1, "craft"),
    )  # fmt: skip
    landed = model - torch.cat([torch.zeros(9, 27), rows]).mean(0).double()
    assert not torch.allclose(landed, model) and float(landed.std()) < 2 * float(model.std())


def test_mpaf_draws_its_model_layer_by_layer_where_layers_are_known():
    honest = sample()
    model = torch.cat([torch.linspace(-9, 9, 20), torch.zeros(7)])
    sent = attacks.craft(honest, {"name": "mpaf", "factor": 1.0}, n=12, f=3, model=model,
                         layers=LAYERS)  # fmt: skip
    assert not sent[:, 20:].any() and sent[:, :20].abs().min() > 0
    with pytest.raises(ValueError, match="mpaf needs the global model"):
        attacks.craft(honest, "mpaf", n=12, f=3)
    with pytest.raises(ValueError, match="27 values in all, got 5"):
        attacks.craft(honest, "hidra", n=12, f=3, layers=(("w", (5,)),))
    with pytest.raises(ValueError, match=r"a finite model of shape \(27,\)"):
        attacks.craft(honest, "mpaf", n=12, f=3, model=torch.zeros(3))


def test_an_attack_that_asks_a_rule_by_its_spec_tells_it_of_the_model():
    honest, told = sample(), {"layers": LAYERS, "model": torch.ones(27)}
    for rule in ("lasa", "alignins"):
        spec = {"name": "opt_ipm", "evaluations": 3}
        sent = attacks.craft(honest, spec, n=12, f=3, rule=rule, **told)
        assert torch.isfinite(sent).all()
        with pytest.raises(ValueError, match=f"{rule} needs"):
            attacks.craft(honest, spec, n=12, f=3, rule=rule)


def pictures(count=40):
    source = generator(0, "images")
    pixels = torch.randint(0, 200, (count, 1, 8, 9), generator=source, dtype=torch.uint8)
    return pixels, torch.arange(count) % 10


def test_edge_cases_are_the_rarest_of_their_class():
    pixels, labels = pictures()
    pixels[17] = 255  # of class 7, far from 7, 27 and 37
    spec = {"name": "edge_case", "source": 7, "target": 1, "tail": 0.25}
    marked, changed = attacks.poison(pixels, labels, spec, classes=10)
    assert torch.equal(marked, pixels)
    assert (changed != labels).nonzero().flatten().tolist() == [17] and changed[17] == 1
    assert rare(pixels, labels, 7, 0.5).tolist()[0] == 17 and len(rare(pixels, labels, 7, 0.5)) == 2
    assert len(rare(pixels, labels, 11, 0.5)) == 0
    none = attacks.poison(pixels, labels.clamp(max=3), spec, classes=10)
    assert torch.equal(none[1], labels.clamp(max=3))
    assert tail(spec) == {"source": 7, "target": 1, "tail": 0.25} and tail({"name": "ipm"}) is None


def test_each_trigger_has_its_corner_and_its_class():
    pixels, labels = pictures(41)
    spec = {"name": "many_triggers", "triggers": 4, "target": 8, "size": 2, "share": 1.0}
    marked, changed = attacks.poison(pixels, labels, spec, classes=10)
    corners = [(slice(2), slice(2)), (slice(2), slice(-2, None)), (slice(-2, None), slice(2)),
               (slice(-2, None), slice(-2, None))]  # fmt: skip
    for wanted, (rows, columns) in zip((8, 9, 0, 1), corners, strict=True):
        shown = (marked[:, 0, rows, columns] == 255).flatten(1).all(1)
        assert 10 <= int(shown.sum()) <= 11 and bool((changed[shown] == wanted).all())
    assert int((marked != pixels).flatten(1).any(1).sum()) == 41
    assert patterns(spec, 10) == [
        {"size": 2, "value": 255, "target": (8 + j) % 10, "corner": j} for j in range(4)
    ]
    assert len(patterns({"name": "many_triggers", "triggers": 2}, 10)) == 2
    assert patterns({"name": "backdoor", "target": 3}, 10) == [{"target": 3}]
    assert patterns({"name": "label_flip"}, 10) == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"name": "edge_case", "source": 7, "target": 7}, "other than its source"),
        ({"name": "edge_case", "source": 12}, "source within 0..9"),
        ({"name": "edge_case", "tail": 0.0}, "tail > 0"),
        ({"name": "edge_case", "source": 4}, "attackers with images of class 4"),
        ({"name": "many_triggers", "triggers": 5}, "triggers within 1..4"),
        ({"name": "many_triggers", "target": 10}, "target within 0..9"),
        ({"name": "many_triggers", "size": 9}, "size within 1..8"),
    ],
    ids=str,
)
def test_poisons_that_mean_nothing_are_refused_before_the_start(bad, words):
    with pytest.raises(SpecError, match=words):
        check_poison(bad, Victim(10, 8, 4, frozenset({7, 3})))


def test_a_boost_is_no_setting_of_the_poison():
    spec = {"name": "backdoor", "boost": 5.0, "target": 2}
    assert boosted(spec) == ({"name": "backdoor", "target": 2}, 5.0)
    assert boosted("backdoor") == ({"name": "backdoor"}, 1.0)
    for bad in (0, -1.0, "much", float("inf")):
        with pytest.raises(SpecError, match="boost > 0"):
            boosted({"name": "backdoor", "boost": bad})
    pixels, labels = pictures()
    both = [attacks.poison(pixels, labels, s, classes=10) for s in (spec, boosted(spec)[0])]
    assert torch.equal(both[0][0], both[1][0])


SETTING = {
    "data": "digits", "model": "linear", "clients": 10, "byzantine": 2, "rounds": 8, "seed": 1,
    "rule": "mean", "server": {"lr": 1.0, "evaluate_every": 8},
    "training": {"mode": "update", "epochs": 2, "batch_size": 16, "lr": 0.3},
}  # fmt: skip


def success(attack, **changes):
    from fedrobust import simulate

    frame = simulate(SETTING | {"attack": attack} | changes).frame
    return float(frame["attack_success"].iloc[-1]), float(frame["accuracy"].iloc[-1])


def test_a_boost_replaces_the_model_and_norm_clipping_stops_it():
    """Two of ten attackers: with boost n / f their model is what the mean ends at."""
    poison = {"name": "many_triggers", "triggers": 2, "size": 3, "share": 0.5}
    soon = {"rounds": 3, "server": SETTING["server"] | {"evaluate_every": 3}}
    plain, _ = success(poison, **soon)
    replaced, accuracy = success(poison | {"boost": 5.0}, **soon)
    assert replaced > plain + 0.4 and accuracy > 0.85
    clip = {"name": "norm_clipping", "bound": 0.5}
    clipped, kept = success(poison | {"boost": 5.0}, rule=clip, **soon)
    assert clipped < replaced - 0.4 and kept > 0.8


def test_edge_cases_are_measured_on_the_tail_of_the_test_images():
    attack = {"name": "edge_case", "source": 9, "target": 4, "tail": 0.5}
    poisoned, accuracy = success(attack | {"boost": 5.0})
    honest, _ = success(attack | {"boost": 1e-6})  # attackers who send next to nothing
    assert poisoned > honest + 0.1 and accuracy > 0.6
