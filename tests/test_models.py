import pytest
import torch

from fedrobust.models import MODELS, ModelError, build
from fedrobust.vector import FlatModel

GREY = {"shape": (1, 28, 28), "classes": 10, "mean": (0.3,), "std": (0.4,)}
COLOUR = {"shape": (3, 32, 32), "classes": 10, "mean": (0.5,) * 3, "std": (0.5,) * 3}
COUNTS = {
    ("linear", "grey"): 7_850,
    ("mlp", "grey"): 79_510,
    ("alie_cnn", "colour"): 117_706,
    ("cnn", "grey"): 38_378,
    ("cnn", "colour"): 38_666,
    ("tiny_cnn", "grey"): 7_946,
    ("tiny_cnn", "colour"): 10_986,
    ("bn_cnn", "grey"): 105_962,
    ("preact_resnet18", "colour"): 11_171_146,
}


def test_parameter_counts():
    assert {name for name, _ in COUNTS} == set(MODELS)
    for (name, kind), count in COUNTS.items():
        module = build(name, seed=1, **(GREY if kind == "grey" else COLOUR))
        assert FlatModel(module).d == count
        images = torch.rand(2, *(GREY if kind == "grey" else COLOUR)["shape"])
        assert module(images).shape == (2, 10)


def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (FlatModel(build("mlp", seed=s, **GREY)).vector for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_only_the_batchnorm_networks_have_running_statistics():
    for name in MODELS.keys() - {"bn_cnn", "preact_resnet18"}:
        module = build(name, seed=1, **COLOUR)
        assert not module.state_dict().keys() - dict(module.named_parameters()).keys()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="did you mean 'mlp'"):
        build("mpl", seed=1, **GREY)
    with pytest.raises(ModelError, match=r"needs images of shape \(3, 32, 32\)"):
        build("alie_cnn", seed=1, **GREY)


def test_flat_model_is_a_view():
    flat = FlatModel(build("mlp", seed=1, **GREY))
    flat.load(torch.zeros(flat.d))
    assert all(not p.any() for p in flat.module.parameters())
    flat.module(torch.rand(2, 1, 28, 28)).sum().backward()
    grads = torch.cat([p.grad.reshape(-1) for p in flat.module.parameters()])
    assert torch.equal(flat.gradient, grads)
    assert grads.any()
