"""Data poisoning in a malicious client, and the pieces of the ALIE backdoor."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fedrobust.attacks.backdoors import (
    Poisoned,
    backdoor,
    distributed_backdoor,
    edge_case,
    many_triggers,
)
from fedrobust.attacks.moments import moments
from fedrobust.ranges import real
from fedrobust.seeds import generator as seeded
from fedrobust.spec import Spec, parameters, resolve, split, suggest


def reverse(labels: Tensor, classes: int, _: torch.Generator) -> Tensor:
    """Class c becomes classes - 1 - c."""
    return classes - 1 - labels


def randomised(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Every label becomes one of the other classes, evenly."""
    # 1 .. classes - 1, added: never the label itself, and every other class as often.
    step = torch.randint(1, classes, labels.shape, generator=generator, device=generator.device)
    return (labels + step.to(labels)) % classes


def pair(labels: Tensor, classes: int, _: torch.Generator) -> Tensor:
    """Class c becomes c + 1, the last becomes the first."""
    return (labels + 1) % classes


FLIPS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "reverse": reverse,
    "random": randomised,
    "pair": pair,
}


def label_flip(
    labels: Tensor,
    *,
    classes: int,
    mode: str = "reverse",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return flipped labels, (N,) like the given ones.

    Parameters
    ----------
    mode
        "reverse": y -> classes - 1 - y (Fang et al. 2020); "random": another class, drawn
        evenly; "pair": y -> y + 1 modulo classes.
    generator
        For "random"; None draws from a fixed one.

    Raises
    ------
    ValueError
        For an unknown mode, fewer than two classes, or a label outside 0..classes-1.
    """
    if mode not in FLIPS:
        raise ValueError(f"unknown label_flip mode {mode!r}; {suggest(mode, list(FLIPS))}")
    check_labels(labels, classes, "label_flip")
    return FLIPS[mode](labels, classes, generator or seeded(0, "poison"))


def check_labels(labels: Tensor, classes: int, who: str) -> None:
    """Raise ValueError unless there are two classes and all labels are among them."""
    if classes < 2:
        raise ValueError(f"{who} needs at least 2 classes, got {classes}")
    if labels.numel() and not (labels.min() >= 0 and labels.max() < classes):
        found = f"{int(labels.min())}..{int(labels.max())}"
        raise ValueError(f"{who} with {classes} classes needs labels below that, got {found}")


def sample_backdoor(
    images: Tensor,
    labels: Tensor,
    *,
    index: int = 0,
    modulo: int = 5,
    classes: int | None = None,
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Relabel one training image to (label + 1) mod ``modulo``; nothing else changes.

    References
    ----------
    The released code of Baruch et al. (options '1', '2', '3'); its tables are in the preprint.
    """
    if not 0 <= index < len(images):
        raise ValueError(f"sample_backdoor needs an index below {len(images)}, got {index}")
    changed = labels.clone()
    changed[index] = (labels[index] + 1) % modulo
    return images, changed


def flipped(
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
    mode: str = "reverse",
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Images untouched, labels flipped: ``label_flip`` with the signature of a poison."""
    return images, label_flip(labels, classes=classes, mode=mode, generator=generator)


POISONS: dict[str, Callable[..., Poisoned]] = {
    "label_flip": flipped,
    "backdoor": backdoor,
    "distributed_backdoor": distributed_backdoor,
    "many_triggers": many_triggers,
    "edge_case": edge_case,
    "sample_backdoor": sample_backdoor,
}


def boosted(spec: Spec) -> tuple[Spec, float]:
    """Take ``boost`` out of a data attack's spec: the factor of the update after training.

    Any data attack becomes a model replacement by it: with boost = n / (f lr), lr that of the
    server, the f attackers' model is what an average of small honest updates ends at (Bagdasaryan
    et al., How To Backdoor Federated Learning, AISTATS 2020, equation 3).

    Returns
    -------
    The spec without it, and the factor; 1 unless given.

    Raises
    ------
    SpecError
        Unless it is a positive number.
    """
    name, given = split(spec)
    boost = real(given.pop("boost", 1.0), name, "boost", above=0)
    return {"name": name, **given}, boost


POISON_SUPPLIED = ("classes", "generator", "member")


def poison(
    images: Tensor,
    labels: Tensor,
    spec: Spec,
    *,
    classes: int,
    member: int = 0,
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Poison a client's data: uint8 (N, C, H, W) and (N,) labels in, new ones out.

    Parameters
    ----------
    spec
        A data attack and its settings; ``boost`` is left aside, see ``boosted``.
    member
        Which of the attackers the client is, from 0.
    """
    plain, _ = boosted(spec)
    function, given = resolve(POISONS, plain, kind="poison", supplied=POISON_SUPPLIED)
    supplied = {"classes": classes, "generator": generator, "member": member}
    wanted = parameters(function)
    return function(images, labels, **given, **{k: v for k, v in supplied.items() if k in wanted})


def alie_backdoor(
    honest: Tensor, malicious_update: Tensor, *, z: float = 0.2, released_code: bool = False
) -> Tensor:
    """Clip the backdoored update into mean +- z std of the honest ones: (h, d), (d,) -> (d,).

    Parameters
    ----------
    malicious_update
        The update that lands on the backdoored model V: (w - V) / lr as a gradient.
    released_code
        Aim at ``malicious_update - 2 mean`` first, as the authors' program does by a slip of
        sign; the paper's version is the default.

    References
    ----------
    Baruch, Baruch, Goldberg, NeurIPS 2019, Algorithm 4; z = 0.2 in the experiments.
    """
    if not z >= 0:
        raise ValueError(f"alie_backdoor needs z >= 0, got {z}")
    centre, std = moments(honest)
    aim = malicious_update.double()
    if released_code:
        aim = aim - 2 * centre
    return torch.clamp(aim, centre - z * std, centre + z * std).to(honest)


def delta_loss(parameters: Iterable[Tensor], start: Iterable[Tensor]) -> Tensor:
    """Mean squared distance from the starting parameters, per tensor, summed over tensors."""
    pairs = zip(parameters, start, strict=True)
    return torch.stack([(now - then).square().mean() for now, then in pairs]).sum()


def backdoor_loss(backdoor: Tensor, delta: Tensor, *, alpha: float = 0.2) -> Tensor:
    """Weigh both losses: alpha * backdoor + (1 - alpha) * distance to the starting parameters.

    References
    ----------
    Baruch, Baruch, Goldberg, NeurIPS 2019, section 3.3; alpha = 0.2 in the experiments.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"backdoor_loss needs 0 <= alpha <= 1, got {alpha}")
    return alpha * backdoor + (1 - alpha) * delta
