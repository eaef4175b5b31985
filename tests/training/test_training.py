import copy

import pytest
import torch
from torch.nn import functional as F

from fedrobust.data import load
from fedrobust.evaluation import evaluate
from fedrobust.models import build
from fedrobust.seeds import generator
from fedrobust.training import OPTIMIZERS, Recipe, build_optimizer, train_local
from fedrobust.training.local import batches
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
