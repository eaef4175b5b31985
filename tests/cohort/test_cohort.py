"""A cohort is its members one by one: bit for bit "off", up to float error as a stack."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clients.client_app import make_app
from clients.modes import federated
from clients.node import make_node
from experiments import stacked_clients
from fedrobust.adversarial import adversarial_objective
from fedrobust.cohort import train_cohort, unstackable
from fedrobust.cohort.memory import activations, chunk_of
from fedrobust.cohort.train import CohortError, Member, obstacle, worthwhile
from fedrobust.data import load
from fedrobust.experiment.load import from_dict
from fedrobust.flower import InProcessGrid
from fedrobust.models import ModelError, build, build_for
from fedrobust.plugins import Part, installed
from fedrobust.seeds import generator
from fedrobust.training import OPTIMIZERS, Recipe, cross_entropy, stackable, train_local
from fedrobust.vector import FlatModel
from strategies.session import run
from tests.conftest import SMALL

SIZES = (40, 17, 64, 9, 31)  # images a client: full, odd, and smaller than a batch


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def flat(digits, name="mlp"):
    shape = {"shape": digits.shape, "mean": digits.mean, "std": digits.std}
    return FlatModel(build(name, classes=10, seed=1, **shape))


def members(digits, recipes, losses=None):
    result, offset = [], 0
    for i, size in enumerate(SIZES):
        part = slice(offset, offset + size)
        offset += size
        loss = losses(i) if losses else None
        images, labels = digits.train_images[part], digits.train_labels[part]
        more = {"loss": loss} if loss else {}
        source = generator(1, "batches", client=i)
        result.append(Member(images, labels, recipes[i % len(recipes)], source, **more))
    return result


def compare(digits, recipes, *, model=None, losses=None, cohort="vmap", tolerance=2e-5, **more):
    model = model or flat(digits)
    start = model.vector.clone()
    alone = []
    for m in members(digits, recipes, losses):
        alone.append(
            train_local(
                model, start, m.images, m.labels, m.recipe, generator=m.generator, loss=m.loss
            )
        )
    own = members(digits, recipes, losses)
    together = train_cohort(model, start, own, cohort=cohort, **more)
    assert len(together) == len(SIZES)
    for (update, loss), (expected, value) in zip(together, alone, strict=True):
        if cohort == "off":
            assert torch.equal(update, expected)
        assert float((update - expected).norm()) <= tolerance * float(expected.norm()) + 1e-7
        assert loss == pytest.approx(value, rel=1e-4)


LOCAL = {"mode": "update", "batch_size": 16, "lr": 0.01}
RECIPES = [
    [Recipe(batch_size=16)],
    [Recipe(batch_size=16, weight_decay=0.1)],
    [Recipe(batch_size=16, clip=0.5)],
    [Recipe(**LOCAL, epochs=2)],
    [Recipe(**LOCAL, steps=5, momentum=0.9, weight_decay=0.01)],
    [Recipe(**LOCAL, epochs=1, clip=0.1)],
    [Recipe(**LOCAL, steps=3, augment="flip+crop")],
    [Recipe(mode="update", batch_size=8, steps=2), Recipe(mode="update", batch_size=32, steps=4)],
    [Recipe(**LOCAL), Recipe(**LOCAL, optimizer="adam"), Recipe(batch_size=4)],
]


@pytest.mark.parametrize("recipes", RECIPES)
def test_a_stack_equals_one_by_one(digits, recipes):
    compare(digits, recipes)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_in_a_stack(digits, name):
    recipe = Recipe(**LOCAL, epochs=2, optimizer=name, weight_decay=0.01, momentum=0.5)
    compare(digits, [recipe], tolerance=2e-3)  # adam divides by roots of tiny squares


@pytest.mark.parametrize("cohort", ["off", "auto"])
def test_off_is_bit_for_bit(digits, cohort):
    compare(digits, RECIPES[8], cohort=cohort)


def test_convolutions_and_group_norm(digits):
    compare(digits, [Recipe(**LOCAL, steps=3)], model=flat(digits, "cnn"), tolerance=1e-4)


def test_chunks_change_nothing(digits):
    compare(digits, [Recipe(**LOCAL, epochs=2)], budget=1)
    model = flat(digits)
    two = 2 * chunk_bytes(model, digits)
    assert chunk_of(model, digits.train_images[:1], 16, two) == 2
    compare(digits, [Recipe(**LOCAL, epochs=2)], model=model, budget=two)


def chunk_bytes(model, digits):
    return 24 * model.d + 16 * activations(model, digits.train_images[:1])


def test_activations_are_counted(digits):
    # Normalised pixels (64), hidden layer after ReLU (100 twice: for itself and the next product).
    assert 2 * 4 * (64 + 100) <= activations(flat(digits), digits.train_images[:1]) <= 8 * 400


PERTURBATIONS = [
    {"name": "fgsm", "eps": 0.1},
    {"name": "pgd", "eps": 0.1, "step_size": 0.03, "steps": 3},
    {"name": "pgd", "eps": 0.5, "step_size": 0.2, "steps": 2, "norm": "l2", "restarts": 2},
]


@pytest.mark.parametrize("loss", ["standard", "natural", "trades", "mart"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_adversarial_examples_are_each_clients_own(digits, loss, fraction):
    for perturbation in PERTURBATIONS:
        if loss == "trades":
            perturbation = {"name": "trades", "eps": 0.1, "step_size": 0.03, "steps": 2}

        def own(i, perturbation=perturbation):
            return adversarial_objective(
                perturbation=perturbation,
                loss=loss,
                fraction=fraction,
                generator=generator(1, "perturbation", client=i),
            )

        # A sign step turns float error of a gradient near zero into a whole step: few steps.
        compare(digits, [Recipe(**LOCAL, steps=2)], losses=own, tolerance=2e-2)


def smoothed(module, images, labels):
    """A loss of one's own: label smoothing and a penalty on the logits."""
    logits = module(images)
    return F.cross_entropy(logits, labels, label_smoothing=0.1) + 0.01 * logits.square().mean()


def test_a_loss_of_ones_own_is_traced_for_a_stack(digits):
    compare(digits, [Recipe(**LOCAL, epochs=2)], losses=lambda i: stackable(smoothed))
    # One loss each, but equal settings: one stack; unequal settings would be two.
    asked = members(digits, [Recipe(**LOCAL)], lambda i: stackable(smoothed))
    assert worthwhile(flat(digits), asked) and not obstacle(flat(digits).module, asked[0].loss)


class Tied(nn.Module):
    """Any input shape, a shared weight and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(12, 6).requires_grad_(False)
        self.inner, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again.weight = self.inner.weight
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        return self.head(self.again(self.inner(self.frozen(x).tanh()).tanh())).squeeze(-1)


def squared(module, x, y):
    return (module(x) - y).square().mean()


def test_a_model_data_and_loss_of_ones_own(digits):
    """A regression on float tensors: equal alone and as a stack; frozen parameters stay."""
    module = build_for(Tied, digits, seed=3)
    model = FlatModel(module)
    assert model.d == 6 * 6 + 6 + 6 + 6 + 1, "the shared weight once, the frozen layer not at all"
    frozen, start = module.frozen.weight.clone(), model.vector.clone()
    source = torch.Generator().manual_seed(0)
    data = [(torch.randn(n, 12, generator=source), torch.randn(n, generator=source)) for n in SIZES]
    recipe, loss = Recipe(**LOCAL, epochs=2), stackable(squared)

    def asked():
        return [Member(x, y, recipe, generator(1, "batches", client=i), loss)
                for i, (x, y) in enumerate(data)]  # fmt: skip

    alone = train_cohort(model, start, asked(), cohort="off")
    together = train_cohort(model, start, asked(), cohort="vmap")
    for (update, value), (expected, wanted) in zip(together, alone, strict=True):
        torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-7)
        assert value == pytest.approx(wanted, rel=1e-4) and bool(update.any())
    assert torch.equal(module.frozen.weight, frozen)
    assert module.again.weight is module.inner.weight
    again = FlatModel(build_for(Tied, digits, seed=3)).vector
    assert torch.equal(again, start) and not torch.equal(
        FlatModel(build_for(Tied, digits, seed=4)).vector, start
    )


def test_a_module_that_cannot_be_trained_is_refused(digits):
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        FlatModel(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match=r"parameter 'weight' is torch\.float64"):
        FlatModel(nn.Linear(2, 2).double())
    with pytest.raises(ModelError, match="it returned str"):
        build_for(lambda: "mlp", digits, seed=1)


def batch_norm(digits):
    torch.manual_seed(0)
    return FlatModel(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.Linear(20, 10))
    )


def test_batch_norm_normalises_each_client_by_itself(digits):
    model = batch_norm(digits)
    before = [b.clone() for b in model.module.buffers()]
    recipe = Recipe(mode="update", batch_size=12, epochs=1)  # no mini-batch of a single image
    source = members(digits, [recipe])
    train_cohort(model, model.vector.clone(), source, cohort="vmap")
    assert all(torch.equal(a, b) for a, b in zip(before, model.module.buffers(), strict=True))
    compare(digits, [recipe], model=model, tolerance=1e-4)


def test_what_cannot_be_stacked_is_refused_and_auto_does_it_one_by_one(digits):
    dropout = FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)))
    attack = adversarial_objective(perturbation={"name": "fgsm", "eps": 0.1})

    def own_loss(module, images, labels):
        return F.cross_entropy(module(images), labels)

    cases = [
        (dropout, None, "dropout draws from the global generator"),
        (flat(digits), own_loss, "has no form for a stack"),
        (batch_norm(digits), attack, "running statistics"),
    ]
    for model, loss, words in cases:
        asked = members(digits, [Recipe()], (lambda i, loss=loss: loss) if loss else None)
        with pytest.raises(CohortError, match=words):
            train_cohort(model, model.vector.clone(), asked, cohort="vmap")
        assert obstacle(model.module, asked[0].loss)
        assert not worthwhile(model, asked)
    compare(digits, [Recipe()], losses=lambda i: own_loss, cohort="auto")
    with pytest.raises(ValueError, match="did you mean 'vmap'"):
        train_cohort(flat(digits), flat(digits).vector, [], cohort="vmaps")


def test_batches_that_a_client_draws_itself_are_its_own_in_every_cohort(digits):
    """A stack trained such a client on the batches of everybody, without a word."""

    def draw(count, recipe, source):
        return iter([torch.tensor([0, 1]), torch.tensor([0, 1])])

    asked, model = members(digits, [Recipe(mode="update", steps=2, lr=0.1)]), flat(digits)
    asked[1] = replace(asked[1], draw=draw)
    start = model.vector.clone()
    with pytest.raises(CohortError, match="a draw of one's own has no length"):
        train_cohort(model, start, asked, cohort="vmap")

    def anew():
        return [
            replace(m, generator=generator(1, "batches", client=i)) for i, m in enumerate(asked)
        ]

    alone = train_cohort(model, start, anew(), cohort="off")
    mixed = train_cohort(model, start, anew(), cohort="auto")
    assert torch.equal(mixed[1][0], alone[1][0])
    for own, together in zip(alone, mixed, strict=True):
        assert torch.allclose(own[0], together[0], atol=2e-5)


class Branching(nn.Module):
    """A network whose code asks for a value."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 10)

    def forward(self, images):
        found = self.out(images.flatten(1))
        return 2 * found if bool(images.mean() < 0.5) else found


def test_why_a_users_model_is_not_stacked(digits):
    few = digits.train_images[:2], digits.train_labels[:2]
    assert unstackable(flat(digits), cross_entropy, *few) == ""
    branching = FlatModel(Branching())
    start = branching.vector.clone()
    assert "vmap" in unstackable(branching, cross_entropy, *few)
    assert torch.equal(branching.vector, start), "a trial trains nothing"
    lines = stacked_clients.sentences(
        [from_dict(SMALL | {"training": {"cohort": cohort}}) for cohort in ("off", "auto", "vmap")],
        data_root=None,
    )
    assert lines == []
    with installed(Part("model", "branching", Branching, "this test")):
        told = [from_dict(SMALL | {"model": "branching", "training": {"cohort": cohort}})
                for cohort in ("off", "auto", "vmap")]  # fmt: skip
        first, second = stacked_clients.sentences(told, data_root=None)
    assert "'auto': clients with 'branching' train one by one, since RuntimeError" in first
    assert "'vmap': clients with 'branching' cannot train, since RuntimeError" in second


def test_a_run_that_cannot_stack_says_so_once_and_trains_one_by_one(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    table = SMALL | {"training": {"batch_size": 16, "cohort": "auto"}, "clients": 4, "byzantine": 1}
    results = {}
    for cohort in ("off", "auto"):
        table["training"] = {"batch_size": 16, "cohort": cohort}
        with installed(Part("model", "branching", Branching, "this test")):
            e = from_dict(table | {"model": "branching"})
            node = make_node(e)
            own = federated(node)
            grid = InProcessGrid(make_app(lambda c, own=own: own), clients=4, together=own.together)
            rows = []
            run(grid, e, on_row=rows.append)
            results[cohort] = [row["loss"] for row in rows]
            told = [r.getMessage() for r in caplog.records if "one by one" in r.getMessage()]
            assert len(told) == (cohort == "auto"), told
    assert results["auto"] == results["off"]
    assert "clients with branching train one by one: RuntimeError" in told[0]


def test_updates_land_where_they_are_wanted(digits):
    model, rows = flat(digits), torch.empty(len(SIZES), flat(digits).d)
    for cohort in ("off", "vmap"):
        asked = [
            Member(m.images, m.labels, m.recipe, m.generator, out=row)
            for m, row in zip(members(digits, [Recipe(**LOCAL)]), rows, strict=True)
        ]
        rows.zero_()
        results = train_cohort(model, model.vector.clone(), asked, cohort=cohort)
        assert [u.data_ptr() for u, _ in results] == [row.data_ptr() for row in rows]
        assert bool(rows.any(1).all())


def test_bf16_is_coarser_and_off_by_default(digits):
    model = flat(digits)
    start = model.vector.clone()
    updates = []
    for name in ("float32", "tf32", "bf16"):
        asked = members(digits, [Recipe(batch_size=16, precision=name)])
        updates.append(train_cohort(model, start, asked, cohort="vmap")[0][0])
    assert Recipe().precision == "float32"
    assert torch.equal(updates[0], updates[1])  # a CPU has no TF32
    error = float((updates[2] - updates[0]).norm() / updates[0].norm())
    assert 1e-6 < error < 0.05
    assert updates[2].dtype == torch.float32
