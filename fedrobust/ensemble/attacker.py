"""The transfer attacker: trains surrogates of its own, and makes each image once.

It sees its own share of the training data and the test images, and nothing of the defenders. What
it leaves are images; its surrogates' weights are not kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedrobust import models
from fedrobust.adversarial.evaluation import robustness
from fedrobust.adversarial.frozen import Model, predict
from fedrobust.adversarial.images import quantise_images
from fedrobust.adversarial.objective import perturb_on_surrogates
from fedrobust.adversarial.probes import loss_gradient
from fedrobust.data import Dataset
from fedrobust.ensemble import member as training
from fedrobust.ensemble.plan import PLAIN
from fedrobust.ensemble.shares import attacker_share
from fedrobust.evaluation import pixels
from fedrobust.experiment.schema import Experiment, NodeSettings, Transfer
from fedrobust.seeds import derive

VERSION = 1  # of how images are made: a change makes old ones stale
PROBES = 64  # images whose surrogate gradient is kept
CHUNK = 100


@dataclass(frozen=True)
class Crafted:
    """The attacker's images.

    Attributes
    ----------
    clean, labels
        The first test images, uint8 (B, C, H, W), and their labels.
    images
        Attack -> images of the same shape, at most ``levels`` away in each pixel.
    gradient
        Loss gradient of the summed surrogate logits on the first images, float32.
    facts
        Settings, surrogates, and how the attacks do on the surrogates themselves.
    """

    clean: Tensor
    labels: Tensor
    images: dict[str, Tensor]
    gradient: Tensor
    facts: dict[str, Any]


def key_of(experiment: Experiment) -> str:
    """Hash everything that decides the attacker's images: not the defender, nor its seed."""
    settings = {
        "version": VERSION,
        "data": experiment.data,
        "train_images": experiment.ensemble.train_images,
        **asdict(experiment.transfer),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def make(
    experiment: Experiment,
    dataset: Dataset,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Crafted:
    """Train the surrogates and attack the test images.

    Parameters
    ----------
    device
        Where to compute; what is returned is on the CPU.
    say
        Told what is being done.
    """
    transfer, dataset = experiment.transfer, dataset.to(device)
    clean = dataset.test_images[: transfer.images]
    labels = dataset.test_labels[: transfer.images]
    share = attacker_share(experiment, dataset)
    surrogates = []
    for place, name in enumerate(transfer.surrogates):
        say(f"surrogate {place + 1} of {len(transfer.surrogates)}: {name}")
        surrogates.append(_surrogate(transfer, dataset, share, name, place))
    images = {}
    for attack in transfer.attacks:
        say(f"{attack} on {len(clean)} images")
        images[attack] = attack_all(surrogates, clean, labels, transfer, attack)
    # Kept beside the images, for the defenders' similarity: the surrogates are not kept.
    first, given = pixels(clean[:PROBES]), labels[:PROBES]
    gradient = loss_gradient(_summed(surrogates), first, given).float()
    facts = {
        "key": key_of(experiment),
        "data": experiment.data,
        "attacker_images": len(share),
        "settings": asdict(transfer),
        "surrogates": _white_box(surrogates, transfer, clean, images, labels),
    }
    there = {name: found.cpu() for name, found in images.items()}
    return Crafted(clean.cpu(), labels.cpu(), there, gradient.cpu(), facts)


def attack_all(
    surrogates: list[nn.Module], clean: Tensor, labels: Tensor, transfer: Transfer, attack: str
) -> Tensor:
    """Attack uint8 images in chunks and return uint8 images within the radius."""
    spec = {"name": attack, "eps": transfer.eps, "steps": transfer.steps,
            "step_scaling": transfer.step_scaling}  # fmt: skip
    parts = []
    for images, given in zip(clean.split(CHUNK), labels.split(CHUNK), strict=True):
        start = pixels(images)
        found = perturb_on_surrogates(surrogates, start, given, spec)
        found = quantise_images(found, reference=start, eps=transfer.eps)
        # Rounded all the same: the cast cuts off, and one digit too few would be a level less.
        parts.append((found * 255).round().to(torch.uint8))
    return torch.cat(parts)


def _surrogate(
    transfer: Transfer, dataset: Dataset, share: Tensor, name: str, place: int
) -> nn.Module:
    seed = derive(transfer.seed, "surrogate", client=place)
    module = models.build_for(name, dataset, seed=seed).to(dataset.train_images.device)
    momentum = 0.0 if transfer.optimizer == PLAIN else transfer.momentum
    node = NodeSettings(
        name, transfer.optimizer, transfer.lr, momentum, transfer.weight_decay, "cosine"
    )
    # The attacker has no validation part: it trains for the epochs it is given.
    nothing = share[:0]
    data = training.TrainValSplit(
        dataset.train_images[share], dataset.train_labels[share],
        dataset.train_images[nothing], dataset.train_labels[nothing],
    )  # fmt: skip
    settings = training.EpochSettings(
        epochs=transfer.epochs,
        batch_size=transfer.batch_size,
        augment=transfer.augment,
        seed=seed,
        client=place,
    )
    member = training.init_member(module, node)
    for _ in range(transfer.epochs):
        training.train_epoch(member, node, data, settings)
    return module.eval()


def _summed(surrogates: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.stack([model(z) for model in surrogates]).sum(0)


def _white_box(
    surrogates: list[nn.Module],
    transfer: Transfer,
    clean: Tensor,
    images: dict[str, Tensor],
    labels: Tensor,
) -> list[dict[str, Any]]:
    """Measure each surrogate, and all of them as one, on the images made with them."""
    alone: list[dict[str, Any]] = [
        {"model": name, "place": k, "parameters": sum(p.numel() for p in model.parameters())}
        for k, (name, model) in enumerate(zip(transfer.surrogates, surrogates, strict=True))
    ]
    rows = [*alone, {"model": "all, summed logits"}]
    seen: list[Model] = [*surrogates, _summed(surrogates)]
    for row, model in zip(rows, seen, strict=True):
        before = predict(model, pixels(clean))
        row["clean"] = float((before == labels).double().mean())
        row["white_box"] = {
            attack: asdict(robustness(before, predict(model, pixels(found)), labels))
            for attack, found in images.items()
        }
    return rows
