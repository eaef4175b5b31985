"""Our attacks give an independent library's images (torchattacks 3.5.1), to rounding."""

import json

import pytest
import torch

from experiments.interop import torchattacks_values as peer
from fedrobust.adversarial import apgd, apgd_targeted, fgsm, mi_fgsm, pgd, predict, square

GIVEN = json.loads(peer.PLACE.read_text())
THEIRS = {k: torch.tensor(v, dtype=torch.float64) for k, v in GIVEN["attacked"].items()}
MODEL = peer.network(GIVEN["weights"])
IMAGES = torch.tensor(GIVEN["levels"]).double() / 255
LABELS = torch.tensor(GIVEN["labels"])
CLIMB = {"eps": peer.EPS, "step_size": peer.STEP, "steps": 10}


def seeded():
    return torch.Generator().manual_seed(peer.SEED)


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("fgsm", lambda: fgsm(MODEL, IMAGES, LABELS, eps=peer.EPS, step_size=peer.EPS,
                              random_start=False)),
        ("pgd", lambda: pgd(MODEL, IMAGES, LABELS, random_start=False, **CLIMB)),
        ("pgd_random", lambda: pgd(MODEL, IMAGES, LABELS, generator=seeded(), **CLIMB)),
        ("mi_fgsm", lambda: mi_fgsm(MODEL, IMAGES, LABELS, decay=1.0, **CLIMB)),
    ],
)  # fmt: skip
def test_the_images_are_equal_to_rounding(name, attack):
    torch.testing.assert_close(attack(), THEIRS[name], rtol=0, atol=1e-12)
    assert float((THEIRS[name] - IMAGES).abs().max()) > 0.09


@pytest.mark.parametrize(
    ("name", "attack", "settings"),
    [
        ("apgd_ce", apgd, {"steps": 40}),
        ("apgd_dlr", apgd, {"steps": 40, "loss": "dlr"}),
        ("apgd_targeted", apgd_targeted, {"steps": 40, "targets": 4}),
    ],
)
def test_auto_pgd_takes_the_same_steps(name, attack, settings):
    """The library gives back the clean image where it does not fool the model."""
    ours = attack(MODEL, IMAGES, LABELS, eps=peer.NARROW, generator=seeded(), **settings)
    wrong, theirs = predict(MODEL, ours) != LABELS, predict(MODEL, THEIRS[name]) != LABELS
    assert torch.equal(wrong, theirs) and 0 < int(wrong.sum()) < len(LABELS)
    torch.testing.assert_close(ours[wrong], THEIRS[name][wrong], rtol=0, atol=1e-12)


def test_square_fools_what_the_librarys_fools():
    """Its squares are drawn in another order, so that the images differ."""
    ours = square(MODEL, IMAGES, LABELS, eps=peer.NARROW, queries=300, generator=seeded())
    wrong, theirs = (predict(MODEL, z) != LABELS for z in (ours, THEIRS["square"]))
    assert bool(wrong[theirs].all()) and int(theirs.sum()) > 0
    assert float((ours - IMAGES).abs().max()) <= peer.NARROW + 1e-12
