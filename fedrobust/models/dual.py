"""Dual BatchNorm: one set of statistics and scales for clean images, one for perturbed ones.

References
----------
Xie et al., Adversarial Examples Improve Image Recognition, CVPR 2020 (auxiliary BatchNorm); Hong et
al., Federated Robustness Propagation (FedRBN), AAAI 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class DualBatchNorm(nn.Module):
    """Two BatchNorm layers of which one is used at a time; ``on_branch`` says which.

    Attributes
    ----------
    branch
        "clean" or "adversarial".
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.clean = nn.BatchNorm2d(features)
        self.adversarial = nn.BatchNorm2d(features)
        self.branch = "clean"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with the chosen branch."""
        chosen: Tensor = self.clean(x) if self.branch == "clean" else self.adversarial(x)
        return chosen


def dual(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d of a fresh model by a dual one, in place; return the model."""
    # A list: children are replaced on the way.
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, DualBatchNorm(child.num_features))
        elif not isinstance(child, DualBatchNorm):
            dual(child)
    return module


def with_policy(module: nn.Module, policy: Mapping[str, Any]) -> nn.Module:
    """Return a fresh model as an experiment's ``batchnorm`` wants it: dual, or as it is.

    A dual model starts on the branch that it serves with: "adversarial" unless the policy says
    ``serve = "clean"``.
    """
    if policy["name"] == "dual":
        select(dual(module), policy.get("serve", "adversarial"))
    return module


def select(module: nn.Module, branch: str) -> None:
    """Let every dual layer use one branch from now on."""
    for layer in module.modules():
        if isinstance(layer, DualBatchNorm):
            layer.branch = branch


@contextmanager
def on_branch(model: object, branch: str) -> Iterator[None]:
    """Use one branch of every dual layer inside the block; a plain function is left alone."""
    layers = [
        layer
        for layer in (model.modules() if isinstance(model, nn.Module) else ())
        if isinstance(layer, DualBatchNorm)
    ]
    before = [layer.branch for layer in layers]
    for layer in layers:
        layer.branch = branch
    try:
        yield
    finally:
        for layer, kept in zip(layers, before, strict=True):
            layer.branch = kept


class Routed(nn.Module):
    """A model that sends one tensor down the adversarial branch and any other down the clean one.

    Parameters
    ----------
    model
        Images to logits.
    perturbed
        The perturbed batch: recognised by identity.
    """

    def __init__(self, model: nn.Module, perturbed: Tensor) -> None:
        super().__init__()
        self.model = model
        self._perturbed = perturbed

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the branch that the images belong to."""
        # By identity: where eps is 0 both batches have equal values.
        with on_branch(self.model, "adversarial" if images is self._perturbed else "clean"):
            logits: Tensor = self.model(images)
        return logits
