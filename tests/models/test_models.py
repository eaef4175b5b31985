import pytest
import torch

from fedrobust.models import MODELS, ModelError, build
from fedrobust.models.cifar import CIFAR_ZOO
from fedrobust.models.zoo import OF_TOKENS
from fedrobust.vector import FlatModel

GREY = {"shape": (1, 28, 28), "classes": 10, "mean": (0.3,), "std": (0.4,)}
COLOUR = {"shape": (3, 32, 32), "classes": 10, "mean": (0.5,) * 3, "std": (0.5,) * 3}
COUNTS = {
    ("linear", "grey"): 7_850,
    ("mlp", "grey"): 79_510,
    ("alie_cnn", "colour"): 117_706,
    ("cnn", "grey"): 38_378,
    ("cnn", "colour"): 38_666,
    ("pooled_mlp", "grey"): 6_634,
    ("pooled_mlp", "colour"): 24_938,
    ("wide_mlp", "grey"): 1_000_120,
    ("wide_mlp", "colour"): 3_878_424,
    ("tiny_cnn", "grey"): 7_946,
    ("tiny_cnn", "colour"): 10_986,
    ("bn_cnn", "grey"): 105_962,
    ("small_plain", "colour"): 52_730,
    ("small_vgg", "colour"): 90_074,
    ("small_resnet", "colour"): 102_394,
    ("small_wide", "colour"): 63_946,
    ("small_mobile", "colour"): 38_242,
    ("small_dense", "colour"): 41_658,
    ("small_patch", "colour"): 25_674,
    ("small_plain", "grey"): 52_154,
    ("small_patch", "grey"): 23_626,
}
# Millions, as the transfer-attack paper's networks have them (3x32x32, ten classes).
ZOO = {
    "vgg19": 20.04,
    "resnet18": 11.17,
    "preactresnet18": 11.17,
    "googlenet": 6.17,
    "densenet121": 6.96,
    "resnext29_2x64d": 9.13,
    "mobilenet_v2": 2.30,
    "dpn92": 34.24,
    "senet18": 11.26,
    "efficientnet_b0": 3.60,
    "regnetx_200mf": 2.32,
    "simpledla": 15.14,
}


def test_parameter_counts():
    assert {name for name, _ in COUNTS} == set(MODELS) - set(CIFAR_ZOO) - set(OF_TOKENS)
    for (name, kind), count in COUNTS.items():
        module = build(name, seed=1, **(GREY if kind == "grey" else COLOUR))
        assert FlatModel(module).d == count
        images = torch.rand(2, *(GREY if kind == "grey" else COLOUR)["shape"])
        assert module(images).shape == (2, 10)


def test_the_zoo_has_its_published_sizes():
    assert set(CIFAR_ZOO) == set(ZOO)
    assert len(ZOO) == 12
    for name, millions in ZOO.items():
        with torch.device("meta"):
            module = CIFAR_ZOO[name]((3, 32, 32), 10)
            assert module(torch.empty(2, 3, 32, 32)).shape == (2, 10)
            assert CIFAR_ZOO[name]((1, 28, 28), 10)(torch.empty(2, 1, 28, 28)).shape == (2, 10)
        count = sum(p.numel() for p in module.parameters())
        assert abs(count / 1e6 - millions) <= 0.0051, (name, count)


@pytest.mark.parametrize("name", ["regnetx_200mf", "small_dense", "small_mobile", "small_patch"])
def test_a_step_lowers_the_loss(name):
    module = build(name, seed=1, **COLOUR).train()
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    step = torch.optim.SGD(module.parameters(), lr=0.02)
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        losses.append(float(loss.detach()))
        step.zero_grad()
        loss.backward()
        step.step()
    assert losses[-1] < losses[0]


def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (FlatModel(build("mlp", seed=s, **GREY)).vector for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_only_the_batchnorm_networks_have_running_statistics():
    for name in MODELS.keys() - {"bn_cnn", *OF_TOKENS, *ZOO}:
        module = build(name, seed=1, **COLOUR)
        assert not module.state_dict().keys() - dict(module.named_parameters()).keys()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="did you mean 'mlp'"):
        build("mpl", seed=1, **GREY)
    with pytest.raises(ModelError, match=r"needs images of shape \(3, 32, 32\)"):
        build("alie_cnn", seed=1, **GREY)


@pytest.mark.parametrize("sides", [(28, 28), (28, 16), (16, 28), (40, 16), (32, 32)])
def test_images_are_padded_to_32_along_each_side(sides):
    """The padding was the height's for both sides: 28 x 16 became 32 x 20, too small to pool."""
    given = GREY | {"shape": (1, *sides)}
    module = build("vgg19", seed=1, **given).eval()
    with torch.inference_mode():
        assert module(torch.rand(2, 1, *sides)).shape == (2, 10)


def test_flat_model_is_a_view():
    flat = FlatModel(build("mlp", seed=1, **GREY))
    flat.load(torch.zeros(flat.d))
    assert all(not p.any() for p in flat.module.parameters())
    flat.module(torch.rand(2, 1, 28, 28)).sum().backward()
    grads = torch.cat([p.grad.reshape(-1) for p in flat.module.parameters()])
    assert torch.equal(flat.gradient, grads)
    assert grads.any()
