import copy
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from fedrobust.attacks.alie_backdoor import taken_for
from fedrobust.cohort import train as cohort_train
from fedrobust.cohort.train import Member
from fedrobust.data import load
from fedrobust.evaluation import evaluate, outputs_of
from fedrobust.models import build
from fedrobust.seeds import generator
from fedrobust.training import OPTIMIZERS, Recipe, build_optimizer, local, train_local
from fedrobust.training.local import batches
from fedrobust.training.precision import precision
from fedrobust.vector import FlatModel


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture
def model(digits):
    shape = {"shape": digits.shape, "mean": digits.mean, "std": digits.std}
    return FlatModel(build("mlp", classes=10, seed=1, **shape))


def train(model, digits, recipe, seed=1):
    start = model.vector.clone()
    images, labels = digits.train_images[:50], digits.train_labels[:50]
    source = generator(seed, "batches")
    result = train_local(model, start, images, labels, recipe, generator=source)
    model.load(start)
    return result


def test_gradient_mode_is_the_gradient_of_one_batch(model, digits):
    update, loss = train(model, digits, Recipe(batch_size=16, weight_decay=0.1))
    batch = next(batches(50, Recipe(batch_size=16), generator(1, "batches")))
    module = copy.deepcopy(model.module)
    images = digits.train_images[:50][batch].float() / 255
    expected = F.cross_entropy(module(images), digits.train_labels[:50][batch])
    grads = torch.autograd.grad(expected, list(module.parameters()))
    flat = torch.cat([g.reshape(-1) for g in grads]) + 0.1 * model.vector
    assert torch.allclose(update, flat, atol=1e-6)
    assert loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_mode_equals_plain_torch(model, digits, name):
    recipe = Recipe(
        mode="update", batch_size=16, epochs=2, optimizer=name, lr=0.01, weight_decay=0.01,
        momentum=0.5,
    )  # fmt: skip
    update, _ = train(model, digits, recipe)
    module = copy.deepcopy(model.module)
    for p in module.parameters():
        p.grad = None
    optimizer = build_optimizer(name, module.parameters(), lr=0.01, momentum=0.5, weight_decay=0.01)
    for batch in batches(50, recipe, generator(1, "batches")):
        optimizer.zero_grad()
        images = digits.train_images[:50][batch].float() / 255
        F.cross_entropy(module(images), digits.train_labels[:50][batch]).backward()
        optimizer.step()
    end = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    assert torch.allclose(model.vector - update, end, atol=1e-6)


def test_momentum_reaches_sgd(model, digits):
    plain = Recipe(mode="update", steps=4, momentum=0.0)
    heavy = Recipe(mode="update", steps=4, momentum=0.9)
    assert not torch.equal(train(model, digits, plain)[0], train(model, digits, heavy)[0])


def test_same_seed_same_update(model, digits):
    for recipe in (Recipe(), Recipe(mode="update", steps=3)):
        first, again = (train(model, digits, recipe)[0] for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, train(model, digits, recipe, seed=2)[0])


def test_batches_are_shuffled_passes():
    recipe = Recipe(mode="update", batch_size=4, epochs=2)
    seen = list(batches(10, recipe, generator(1, "x")))
    assert [len(b) for b in seen] == [4, 4, 2, 4, 4, 2]
    assert sorted(torch.cat(seen[:3]).tolist()) == list(range(10))
    assert len(list(batches(10, Recipe(batch_size=4, steps=5), generator(1, "x")))) == 5
    assert len(next(batches(3, Recipe(batch_size=64), generator(1, "x")))) == 3


def test_evaluate_counts_and_leaves_the_mode(model, digits):
    model.module.train()
    whole = evaluate(model.module, digits.test_images, digits.test_labels)
    parts = evaluate(model.module, digits.test_images, digits.test_labels, batch_size=7)
    assert whole.accuracy == parts.accuracy
    assert whole.loss == pytest.approx(parts.loss, rel=1e-5)
    assert model.module.training


class Failing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3).eval()  # kept in eval by its owner

    def forward(self, x):
        raise RuntimeError("no images of this size")


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x, y: evaluate(m, x, y),
        lambda m, x, y: outputs_of(m, x),
        lambda m, x, y: taken_for(m, x, 1),
    ],
    ids=["evaluate", "outputs_of", "taken_for"],
)
def test_a_model_that_fails_keeps_the_mode_of_each_part(call):
    module = Failing()
    with pytest.raises(RuntimeError, match="no images of this size"):
        call(module, torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
    assert module.training and not module.norm.training


def both_passes(name, monkeypatch):
    """Return whether TF32 and autocast are on in the forward pass, and in the backward pass."""
    seen = []

    def look(passed):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.is_autocast_enabled("cpu")))

    def where(name, device, **more):  # what a GPU would be told, and a CPU is not
        return precision(name, torch.device("cuda" if name == "tf32" else "cpu"), **more)

    class Looking(torch.nn.Linear):
        def forward(self, x):
            look(x)
            y = super().forward(x)
            y.register_hook(look)
            return y

    monkeypatch.setattr(local, "precision", where)
    flat = FlatModel(Looking(4, 3))
    x, y, recipe = torch.ones(2, 4), torch.zeros(2, dtype=torch.long), Recipe(precision=name)
    train_local(flat, flat.vector.clone(), x, y, recipe, generator=generator(1, "x"))
    return seen


@pytest.mark.parametrize("name", ["float32", "tf32", "bf16"])
def test_tf32_is_on_in_both_passes_and_autocast_in_the_forward_pass(name, monkeypatch):
    """The products of the backward pass, two of three, were float32 under "tf32"."""
    forward, backward = both_passes(name, monkeypatch)
    assert forward == (name == "tf32", name == "bf16")
    assert backward == (name == "tf32", False)


@pytest.mark.parametrize("name", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("backward", [False, True])
def test_convolutions_and_products_have_one_precision(name, backward, monkeypatch):
    """PyTorch's own switches are on for convolutions, off for products."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = [one.allow_tf32 for one in switches]
    monkeypatch.setattr(torch, "autocast", lambda *given: nullcontext())  # there is no GPU
    with precision(name, torch.device("cuda"), backward=backward):
        assert [one.allow_tf32 for one in switches] == [name == "tf32"] * 2
    assert [one.allow_tf32 for one in switches] == before
    with precision(name, torch.device("cpu"), backward=True):
        assert [one.allow_tf32 for one in switches] == before


@pytest.mark.parametrize("name", ["float32", "tf32", "bf16"])
def test_a_stack_has_the_same_precision_in_both_passes(name, monkeypatch):
    blocks = []

    def noted(name, device, *, backward=False):
        blocks.append((name, backward))
        return precision(name, device, backward=backward)

    monkeypatch.setattr(cohort_train, "precision", noted)
    flat = FlatModel(torch.nn.Linear(4, 3))
    x, y = torch.ones(2, 4), torch.zeros(2, dtype=torch.long)
    asked = [Member(x, y, Recipe(precision=name), generator(1, "x")) for _ in range(2)]
    cohort_train.train_cohort(flat, flat.vector.clone(), asked, cohort="vmap")
    assert blocks == [(name, False), (name, True)]
