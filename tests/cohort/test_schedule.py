"""A stack asks its device for nothing while it trains, however many clients and steps there are."""

import warnings
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from elsewhere_device import DEVICE, Device, Elsewhere
from torch.utils._python_dispatch import TorchDispatchMode

from fedrobust import models
from fedrobust.cohort import Member, memory, schedule, train_cohort
from fedrobust.cohort.convolutions import CONVOLUTIONS, Products, convolved
from fedrobust.matrix import ON_GPU, block_values
from fedrobust.training import Recipe, train_local
from fedrobust.training.losses import IGNORED
from fedrobust.vector import FlatModel

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.is_nonzero.default,
         aten.equal.default}  # fmt: skip


class Traffic(TorchDispatchMode):
    """Counts what makes a device wait, and what is copied to it and from it."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.note(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def note(self, func, args, kwargs):
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        there = isinstance(first, Elsewhere)
        if func in WAITS and there:
            self.seen["waits"] += 1
        if func in (aten._to_copy.default, aten.copy_.default):
            target = kwargs.get("device")
            to = None if target is None else torch.device(target).type
            if func is aten.copy_.default:
                to, there = first.device.type, isinstance(args[1], Elsewhere)
            if there and to == "cpu":
                self.seen["waits"] += 1
            elif not there and to == DEVICE.type:
                self.seen["copies to it"] += 1


def shares(count, each, side=8):
    """Slices of one set, as a node holds them."""
    source = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count * each, 1, side, side), generator=source).byte()
    labels = torch.randint(0, 10, (count * each,), generator=source)
    return images, labels


def members(count, *, each=24, steps=2, device=None, augment="none", batch=8):
    images, labels = shares(count, each)
    images, labels = (x if device is None else x.to(device) for x in (images, labels))
    recipe = Recipe(mode="update", steps=steps, batch_size=batch, augment=augment)
    pairs = zip(images.split(each), labels.split(each), strict=True)
    return [
        Member(x, y, recipe, torch.Generator().manual_seed(i)) for i, (x, y) in enumerate(pairs)
    ]


def network(device=None, name="mlp"):
    shape, few = (1, 8, 8), {"classes": 10, "mean": (0.3,), "std": (0.3,), "seed": 1}
    module = models.build(name, shape=shape, **few)
    return FlatModel(module if device is None else module.to(device))


def traffic(monkeypatch, count, steps, augment="none"):
    """Return what one round of the stacked engine asks of its device."""
    with Device():
        model, cohort = network(DEVICE), members(count, steps=steps, device=DEVICE, augment=augment)
        start = model.vector.clone()
        with Traffic() as seen:
            listed = Elsewhere.tolist

            def tolist(tensor):
                seen.seen["waits"] += 1
                return listed(tensor)

            monkeypatch.setattr(Elsewhere, "tolist", tolist)
            train_cohort(model, start, cohort, cohort="vmap", budget=10**9)
            monkeypatch.setattr(Elsewhere, "tolist", listed)
    return dict(seen.seen)


@pytest.mark.parametrize("augment", ["none", "flip+crop"])
def test_neither_clients_nor_steps_add_a_wait_or_a_copy(monkeypatch, augment):
    few = traffic(monkeypatch, 2, 2, augment)
    many = traffic(monkeypatch, 7, 5, augment)
    assert few == many
    assert few["waits"] == 1, "the losses, once a round"
    assert few["copies to it"] <= 4


def test_the_count_sees_what_it_counts():
    with Device(), Traffic() as seen:
        there = torch.ones(3).to(DEVICE)
        there.sum().item()
        there.cpu()
        bool((there > 0).all())
        torch.zeros(3).copy_(there)
        there.nonzero()
    assert seen.seen == {"waits": 5, "copies to it": 1}


# The pool


def test_slices_of_one_set_are_not_copied():
    images, _ = shares(3, 4)
    found = schedule.pool(images.split(4)[1:])
    assert found.examples.data_ptr() == images.data_ptr() and found.first.tolist() == [4, 8]
    with Device():
        there = images.to(DEVICE)
        assert schedule.pool(there.split(4)).examples.data_ptr() == there.data_ptr()


@pytest.mark.parametrize(
    "parts",
    [
        lambda images: [images[:4].clone(), images[4:9].clone()],
        lambda images: [images[:4], images[4:9].clone()],
        lambda images: [images[0:8:2], images[4:9]],
        lambda images: [images[:4, :, :4], images[4:9, :, 4:]],
    ],
)
def test_other_parts_are_put_together(parts):
    given = parts(shares(3, 4)[0])
    found = schedule.pool(given)
    for first, part in zip(found.first.tolist(), given, strict=True):
        assert torch.equal(found.examples[first : first + len(part)], part)


def test_batches_of_unequal_clients_are_filled_up():
    images, labels = shares(1, 9)
    recipe = Recipe(mode="update", epochs=1, batch_size=4)
    parts = [slice(0, 6), slice(6, 9)]
    cohort = [Member(images[part], labels[part], recipe, torch.Generator()) for part in parts]
    plan = schedule.schedule(cohort)
    assert plan.sizes == [[4, 2], [3]]
    batch = plan.batch([0, 1], 0)
    assert batch.images.shape == (2, 4, 1, 8, 8) and batch.labels[1, 3] == IGNORED
    assert (batch.labels[:, :3] != IGNORED).all() and batch.draws is None
    assert plan.batch([0], 1).labels.shape == (1, 2)


@pytest.mark.parametrize("augment", ["none", "light"])
def test_a_stack_draws_what_each_client_draws_alone(augment):
    model = network()
    start = model.vector.clone()
    stacked = train_cohort(model, start, members(5, augment=augment), cohort="vmap")
    for member, (update, loss) in zip(members(5, augment=augment), stacked, strict=True):
        alone, own_loss = train_local(
            model, start, member.images, member.labels, member.recipe, generator=member.generator
        )
        torch.testing.assert_close(update, alone, rtol=1e-4, atol=1e-6)
        assert loss == pytest.approx(own_loss, rel=1e-5)


# Convolutions


@pytest.mark.parametrize("name", ["cnn", "small_plain", "small_mobile", "small_resnet"])
def test_convolutions_as_products_train_the_same_clients(name):
    model = network(name=name)
    start = model.vector.clone()
    expected = train_cohort(model, start, members(3), cohort="vmap")
    with convolved("products"):
        found = train_cohort(model, start, members(3), cohort="vmap")
    for (one, loss), (other, own_loss) in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        assert loss == pytest.approx(own_loss, rel=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Conv2d(3, 5, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
        torch.nn.Conv2d(3, 6, 3, groups=3),
        torch.nn.Conv2d(3, 4, 3, padding="same"),
    ],
)
def test_a_convolution_of_any_kind_is_the_same(layer):
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(2))
    with Products():
        found = layer(x)
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-5)


def test_an_unknown_way_to_convolve_is_an_error():
    with pytest.raises(ValueError, match="one of grouped, products, got 'fft'"), convolved("fft"):
        pass


def test_a_stack_takes_a_share_of_all_of_a_gpus_memory_whatever_is_free(monkeypatch):
    told = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: pytest.fail("varies"))
    assert memory.available(torch.device("cuda")) == 20 * 2**30
    assert memory.available(torch.device("cpu")) == memory.ON_CPU


def test_blocks_are_larger_on_a_gpu():
    assert block_values(torch.device("cpu"), 1 << 20) == 1 << 20
    assert block_values(torch.device("cuda"), 1 << 20) == ON_GPU > 1 << 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("augment", ["none", "flip+crop"])
def test_a_gpu_trains_the_stack_that_a_cpu_trains(kind, augment):
    model, there = network(name="cnn"), network("cuda", name="cnn")
    start = model.vector.clone()
    expected = train_cohort(model, start, members(6, augment=augment), cohort="vmap")
    with convolved(kind):
        cohort = members(6, augment=augment, device="cuda")
        found = train_cohort(there, start.cuda(), cohort, cohort="vmap")
    for (one, loss), (other, own_loss) in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4)
        assert loss == pytest.approx(own_loss, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_stack_on_a_gpu_never_waits_for_it_but_once():
    there, cohort = network("cuda"), members(6, device="cuda")
    start = there.vector.clone()
    train_cohort(there, start, cohort, cohort="vmap")  # what is set up once may wait
    again = members(6, device="cuda")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train_cohort(there, start, again, cohort="vmap", budget=10**9)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in told if "synchroniz" in str(one.message)]
    assert len(waits) <= 4, waits  # the losses, and what is copied there before the first step
