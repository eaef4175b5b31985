"""Write ``torchattacks_values.json``: what torchattacks makes of a small network's images.

``python -m experiments.interop.torchattacks_values`` in an environment with torchattacks 3.5.1. It
wants requests 2.25, which Flower's packages refuse, so that both cannot be installed together:
its numbers are kept, and ``tests/adversarial/test_torchattacks.py`` compares ours with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EPS, STEP, SEED = 0.1, 0.03, 3
NARROW = 0.06  # at which some of the images stay right
PLACE = Path(__file__).with_name("torchattacks_values.json")


def network(weights: list[list[Any]]) -> nn.Module:
    """Return the network of some weights, float64: 25 pixels, 12 hidden units, 5 classes."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(25, 12), nn.ReLU(), nn.Linear(12, 5)).double()
    for parameter, values in zip(module.parameters(), weights, strict=True):
        parameter.data = torch.tensor(values, dtype=torch.float64)
    return module.eval()


def drawn() -> dict[str, Any]:
    """Draw weights, images on the grid of 1/255, and take the network's own labels."""
    source = torch.Generator().manual_seed(1)
    shapes = ((12, 25), (12,), (5, 12), (5,))
    weights = [
        torch.randn(*s, generator=source).mul(0.5).double().round(decimals=4) for s in shapes
    ]
    levels = torch.randint(0, 256, (8, 1, 5, 5), generator=source)
    listed = [weight.tolist() for weight in weights]
    labels = network(listed)(levels.double() / 255).argmax(1)
    return {"weights": listed, "levels": levels.tolist(), "labels": labels.tolist()}


def attacked(given: dict[str, Any]) -> dict[str, Tensor]:
    """Attack the images by torchattacks, each attack from one seed."""
    import torchattacks as peer

    torch.set_default_dtype(torch.float64)  # its starts are drawn in the default type
    model, images = network(given["weights"]), torch.tensor(given["levels"]).double() / 255
    labels = torch.tensor(given["labels"])
    climb = {"eps": EPS, "alpha": STEP, "steps": 10}
    auto = {"eps": NARROW, "steps": 40, "seed": SEED}
    attacks = {
        "fgsm": peer.FGSM(model, eps=EPS),
        "pgd": peer.PGD(model, random_start=False, **climb),
        "pgd_random": peer.PGD(model, random_start=True, **climb),
        "mi_fgsm": peer.MIFGSM(model, decay=1.0, **climb),
        "apgd_ce": peer.APGD(model, loss="ce", **auto),
        "apgd_dlr": peer.APGD(model, loss="dlr", **auto),
        "apgd_targeted": peer.APGDT(model, n_classes=5, **auto),
        "square": peer.Square(model, eps=NARROW, n_queries=300, seed=SEED),
    }
    found = {}
    for name, attack in attacks.items():
        torch.manual_seed(SEED)
        found[name] = attack(images, labels)
    return found


def main() -> None:
    """Write the file."""
    given = drawn()
    found = {name: images.tolist() for name, images in attacked(given).items()}
    PLACE.write_text(json.dumps({**given, "attacked": found}) + "\n", encoding="utf-8")
    print(f"written: {PLACE}")


if __name__ == "__main__":
    main()
