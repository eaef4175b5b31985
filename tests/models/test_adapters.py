"""Low-rank adapters: which factors pair up, what a rule sees of them, and where a step leads."""

import math

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedrobust import simulate
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.models import ModelError, form_of, low_rank
from fedrobust.models.adapters import Products, pairs_in
from fedrobust.models.low_rank import LowRank
from fedrobust.vector import FlatModel, trainable

# B is written before A, and a convolution's factors have four dimensions, as those of PEFT.
SHAPES = ((7,), (5, 3), (3, 4), (2, 3, 3, 3), (6, 2, 1, 1))
FORM = Products(SHAPES, ((2, 1), (3, 4)))


def net(shape, classes):
    """Two linear layers with adapters of rank 4; nothing else is trained."""
    layers = nn.Flatten(), nn.Linear(math.prod(shape), 32), nn.ReLU(), nn.Linear(32, classes)
    return low_rank(nn.Sequential(*layers), rank=4)


@pytest.fixture
def tuned(small):
    """Ten clients that train adapters for ten steps a round."""
    recipe = {"mode": "update", "steps": 10, "batch_size": 16, "optimizer": "adam", "lr": 0.01}
    server = {"lr": 1.0, "momentum": 0.0, "evaluate_every": 1}
    return small | {"model": net, "training": recipe, "server": server, "rounds": 4}


def drawn(seed, *size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def products(vector):
    """Return B A of both adapters and the bias, from the definition."""
    bias, up, down, kernels, mix = (
        part.view(shape) for part, shape in zip(vector.split(FORM.sizes), SHAPES, strict=True)
    )
    return [bias, up @ down, torch.einsum("or,rchw->ochw", mix[:, :, 0, 0], kernels)]


def test_a_row_is_the_global_product_minus_the_clients_own():
    start, updates = drawn(0, sum(FORM.sizes)), 0.3 * drawn(1, 6, sum(FORM.sizes))
    rows = FORM.seen(updates, start)
    assert [math.prod(shape) for shape in FORM.layout] == [7, 5 * 4, 6 * 27]
    assert rows.shape == (6, 7 + 20 + 162)
    for row, update in zip(rows, updates, strict=True):
        pairs = zip(products(start), products(start - update), strict=True)
        expected = torch.cat([(before - own).flatten() for before, own in pairs])
        assert torch.allclose(row, expected, atol=1e-5)
    assert not FORM.seen(torch.zeros_like(updates), start).any(), "nothing trained, nothing seen"


def test_a_step_leads_to_the_product_that_was_aggregated():
    start, update = drawn(2, sum(FORM.sizes)), 0.3 * drawn(3, 1, sum(FORM.sizes))
    step = FORM.sent(FORM.seen(update, start)[0], start)
    pairs = zip(products(start - step), products(start - update[0]), strict=True)
    for reached, wanted in pairs:
        assert torch.allclose(reached, wanted, atol=1e-5)
    assert not FORM.sent(torch.zeros(189), start).any(), "no aggregate, no step"


def test_of_several_products_the_nearest_of_the_rank_is_taken():
    form = Products(((2, 9), (8, 2)), ((0, 1),))
    start = drawn(4, 34)
    mean = form.seen(0.5 * drawn(5, 5, 34), start).mean(0)
    down, up = (start - form.sent(mean, start)).split((18, 16))
    target = start[18:].view(8, 2) @ start[:18].view(2, 9) - mean.view(8, 9)
    u, s, v = torch.linalg.svd(target)
    best = u[:, :2] * s[:2] @ v[:2]
    assert torch.allclose(up.view(8, 2) @ down.view(2, 9), best, atol=1e-5)
    assert s[2] > 0.1, "the mean of five products has a higher rank than each"
    gram = down.view(2, 9) @ down.view(2, 9).T
    assert torch.allclose(gram, gram.trace() / 2 * torch.eye(2), atol=1e-4)
    assert float(gram.trace()) == pytest.approx(float(start[:18].square().sum()), rel=1e-4)


def test_a_small_change_of_the_product_is_a_small_step_of_the_factors():
    form = Products(((2, 9), (8, 2)), ((0, 1),))
    start = drawn(6, 34)
    change = form.seen(drawn(7, 1, 34), start)[0]
    balanced = start - form.sent(1e-6 * change, start)  # rows of A are orthogonal from here on
    steps = [form.sent(size * change, balanced).norm() for size in (1e-2, 1e-3)]
    assert float(steps[0]) < 0.2 and float(steps[0] / steps[1]) == pytest.approx(10, rel=0.05)


def test_a_new_adapter_keeps_its_directions_where_nothing_is_learned():
    """With B = 0 a client that learned one direction leaves the others for the rounds to come."""
    form = Products(((3, 9), (8, 3)), ((0, 1),))
    start = torch.cat([drawn(8, 27), torch.zeros(24)])
    update = torch.zeros(1, 51)
    update[0, 27::3] = drawn(9, 8)  # the first column of B
    reached = start - form.sent(form.seen(update, start)[0], start)
    before, after = (one[:27].view(3, 9) for one in (start, reached))
    residual = before - before @ torch.linalg.pinv(after) @ after
    assert residual.abs().max() < 1e-5, "A spans what it spanned before"


def test_pairs_are_found_by_name_and_frozen_factors_are_none():
    model = net((1, 8, 8), 10)
    named = trainable(model)
    assert list(named) == ["1.lora_A", "1.lora_B", "3.lora_A", "3.lora_B"]
    assert list(pairs_in(named)) == [(0, 1), (2, 3)]
    model[1].lora_A.requires_grad_(False)
    assert list(pairs_in(trainable(model))) == [(1, 2)], "FFA-LoRA: B alone is linear already"
    assert form_of("factors", model) is None
    with pytest.raises(ModelError, match=r"lora_A and lora_B, Linear has none"):
        form_of("product", nn.Linear(3, 2))


def test_our_adapter_begins_at_the_base_and_leaves_it_alone():
    base = nn.Linear(6, 4)
    adapted, x = LowRank(base, rank=2, alpha=3.0), drawn(10, 5, 6)
    assert torch.equal(adapted(x), base(x))
    adapted.lora_B.data = drawn(11, 4, 2)
    weight = base.weight + 1.5 * adapted.lora_B @ adapted.lora_A
    assert torch.allclose(adapted(x), x @ weight.T + base.bias, atol=1e-5)
    body = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3)))
    model = low_rank(body, rank=1, layers=["0"], trained=["1.1"])
    assert set(trainable(model)) == {"0.lora_A", "0.lora_B", "1.0.lora_A", "1.0.lora_B",
                                     "1.1.weight", "1.1.bias"}  # fmt: skip
    with pytest.raises(ModelError, match=r"finds no layer 'q_proj' among 0, 1\.0"):
        low_rank(nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 5))), layers=["q_proj"])
    with pytest.raises(ModelError, match="a rank of at least 1, got 0"):
        low_rank(nn.Linear(2, 2), rank=0)


@pytest.mark.parametrize("adapters", ["factors", "product"])
def test_adapters_alone_are_trained_under_attack(tuned, adapters):
    results = simulate(tuned, adapters=adapters, attack="sign_flip", rounds=10, keep_models=True)
    assert results.accuracy > 0.35 > 2 * results.runs[0][1][0]["accuracy"]
    state = results.state_dict()
    fresh = FlatModel(net((1, 8, 8), 10))
    assert len(results.models[0]) == fresh.d == 4 * (64 + 32) + 4 * (32 + 10)
    assert sum(name.endswith(("lora_A", "lora_B")) for name in state) == 4


def test_the_two_choices_are_two_experiments_and_one_client_is_the_same_in_both(tuned):
    chosen = {form: simulate(tuned, adapters=form) for form in ("factors", "product")}
    rows = {form: found.runs[0][1] for form, found in chosen.items()}
    assert rows["factors"][0]["loss"] == rows["product"][0]["loss"]
    assert rows["factors"][-1]["loss"] != rows["product"][-1]["loss"]
    ids = {found.runs[0][0].run_id for found in chosen.values()}
    assert len(ids) == 2
    assert "adapters" not in chosen["factors"].runs[0][0].to_dict()
    alone = {form: simulate(tuned, adapters=form, clients=1, byzantine=0, rounds=1, rule="mean")
             for form in chosen}  # fmt: skip
    losses = [found.runs[0][1][-1]["loss"] for found in alone.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), "another factorisation of one product"


def test_an_attacker_foresees_the_rule_as_it_is_shown_the_updates(tuned):
    results = simulate(tuned, adapters="product", attack="opt_alie")
    for row in results.runs[0][1][1:]:
        assert row["search"]["deviation"] == pytest.approx(row["impact"]["deviation"], rel=1e-3)
        assert row["impact"]["deviation"] > 0.1


@pytest.mark.parametrize("rule", ["fltrust", "zeno:f=2", "flame", "centered_clipping:tau=1.0"])
def test_rules_with_data_of_the_servers_or_a_memory_see_products(tuned, rule):
    tuned["server"] |= {"root_images": 100}
    rows = simulate(tuned, adapters="product", rule=rule, attack="sign_flip").runs[0][1]
    assert rows[-1]["loss"] < rows[0]["loss"] and "kept" not in rows[-1]


def test_where_products_mean_nothing_a_sentence_says_so(tuned, small):
    with pytest.raises(ConfigError, match=r"needs training\.mode = 'update'"):
        simulate(small, adapters="product", model=net)
    with pytest.raises((ConfigError, ModelError), match="needs a model with trainable factors"):
        simulate(tuned, adapters="product", model="linear")
    with pytest.raises(ConfigError, match="unknown adapters 'both'; choose from factors, product"):
        simulate(tuned, adapters="both")
    with pytest.raises(ConfigError, match="a stock Flower strategy sees factors"):
        simulate(tuned, adapters="product", rule=FedAvg())
    table = {"name": "aspis", "replication": 3, "batch": 60}
    with pytest.raises(ConfigError, match="adapters is not honoured in redundancy mode"):
        from_dict(small | {"adapters": "factors", "redundancy": table, "training": {}})


# ---- PEFT


@pytest.fixture
def gpt2():
    """A tiny GPT-2 from a configuration, with adapters of PEFT: nothing is fetched."""
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from experiments.tasks.adapters import gpt2

    return gpt2


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_a_transformer_of_peft_sends_its_adapters_and_nothing_else(gpt2):
    model = gpt2((32,), 69)
    named = trainable(model)
    form = form_of("product", model)
    pairs = [(list(named)[a], list(named)[b]) for a, b in form.pairs]
    assert len(pairs) == 4 and all(a.replace("lora_A", "lora_B") == b for a, b in pairs)
    rest = [name for name in named if "lora_" not in name]
    assert len(rest) == 1 and "lm_head.modules_to_save" in rest[0]
    total = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in named.values()) < 0.2 * total


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("adapters", ["factors", "product"])
def test_a_transformer_of_peft_learns_under_attack(gpt2, adapters):
    setting = {"data": "docstrings", "model": gpt2, "loss": "token_cross_entropy",
               "partition": "natural", "clients": 8, "byzantine": 2, "rounds": 4, "seed": 1,
               "rule": "trimmed_mean", "attack": "sign_flip:scale=3.0", "adapters": adapters,
               "training": {"mode": "update", "steps": 5, "optimizer": "adam", "lr": 0.01,
                            "batch_size": 16},
               "server": {"lr": 1.0, "momentum": 0.0, "evaluate_every": 4}}  # fmt: skip
    rows = simulate(setting).runs[0][1]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5 and rows[-1]["replies"] == 8
