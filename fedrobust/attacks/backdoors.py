"""Poisons that plant a backdoor: patterns, parts of them, several of them, rare images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedrobust.ranges import real, whole
from fedrobust.seeds import generator as seeded

Poisoned = tuple[Tensor, Tensor]
CORNERS = 4  # top left, top right, bottom left, bottom right


def stamp(images: Tensor, *, size: int = 5, value: int = 255, corner: int = 0) -> Tensor:
    """Set ``size`` x ``size`` pixels of all channels in a corner: uint8 (N, C, H, W), a copy.

    Parameters
    ----------
    corner
        0: top left, as in the paper; 1: top right, 2: bottom left, 3: bottom right.

    References
    ----------
    Baruch, Baruch, Goldberg, NeurIPS 2019, section 4.2: 5 x 5 pixels at maximum intensity.
    """
    if images.dim() != 4 or images.dtype != torch.uint8:
        raise ValueError(
            f"stamp needs uint8 (N, C, H, W) images, got {tuple(images.shape)} {images.dtype}"
        )
    if not 1 <= size <= min(images.shape[2:]):
        raise ValueError(f"stamp needs 1 <= size <= {min(images.shape[2:])}, got {size}")
    if not 0 <= value <= 255:
        raise ValueError(f"stamp needs a pixel value in 0..255, got {value}")
    whole(corner, "stamp", "corner", high=CORNERS - 1)
    stamped = images.clone()
    rows = slice(-size, None) if corner >= 2 else slice(size)
    columns = slice(-size, None) if corner % 2 else slice(size)
    stamped[:, :, rows, columns] = value
    return stamped


def backdoor(
    images: Tensor,
    labels: Tensor,
    *,
    target: int = 0,
    size: int = 5,
    value: int = 255,
    share: float = 0.5,
    classes: int | None = None,
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Stamp a share of the images with a pattern and label them ``target``.

    Parameters
    ----------
    share
        Of the images, rounded up, drawn without replacement; the rest stays as it is.
        ``share=1`` stamps all of them, as for measuring the backdoor's accuracy.

    Raises
    ------
    ValueError
        For a share outside [0, 1], a target outside the classes, or images that are not uint8.

    References
    ----------
    Pattern and target class 0 of Baruch, Baruch, Goldberg, NeurIPS 2019, section 4.2.
    """
    chosen = _drawn("backdoor", images, target, share, classes, generator)
    images, labels = images.clone(), labels.clone()
    images[chosen] = stamp(images[chosen], size=size, value=value)
    labels[chosen] = target
    return images, labels


def distributed_backdoor(
    images: Tensor,
    labels: Tensor,
    *,
    target: int = 0,
    size: int = 5,
    value: int = 255,
    share: float = 0.5,
    parts: int = 4,
    member: int = 0,
    classes: int | None = None,
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Stamp a part of the pattern, each attacker another one; its success is that of the whole.

    Parameters
    ----------
    parts
        In how many bands the pixels of the square are cut, in the order of reading; at most its
        pixels. Attacker i stamps band i modulo ``parts``.
    member
        Which of the attackers this is, from 0; the system says it.
    target, size, value, share
        See ``backdoor``.

    Raises
    ------
    ValueError
        As ``backdoor``, and for a number of parts that the square does not have.

    References
    ----------
    Xie, Huang, Chen, Li, DBA: Distributed Backdoor Attacks against Federated Learning, ICLR 2020,
    section 3. There the parts are four bars with gaps between them; here they are those of the
    square of ``backdoor``, an interpretation.
    """
    if not 1 <= parts <= size * size:
        raise ValueError(f"distributed_backdoor needs 1 <= parts <= {size * size}, got {parts}")
    marked, changed = backdoor(
        images, labels, target=target, size=size, value=value, share=share, classes=classes,
        generator=generator,
    )  # fmt: skip
    pixels = torch.arange(size * size, device=images.device)
    foreign = (pixels * parts // (size * size) != member % parts).view(size, size)
    corner, before = marked[:, :, :size, :size], images[:, :, :size, :size]
    marked[:, :, :size, :size] = torch.where(foreign, before, corner)
    return marked, changed


def many_triggers(
    images: Tensor,
    labels: Tensor,
    *,
    triggers: int = 4,
    target: int = 0,
    size: int = 3,
    value: int = 255,
    share: float = 0.5,
    classes: int | None = None,
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Plant several patterns at once, one in each corner and each with a target of its own.

    An interpretation: the paper plants one backdoor by a replaced model, this several by one. With
    ``boost`` in the spec the update is scaled up to replace the model; without, it is a poison
    alone. Its success is the mean over the patterns.

    Parameters
    ----------
    triggers
        How many, 1 to 4: squares in the corners top left, top right, bottom left, bottom right.
    target
        Class of the first pattern's images; pattern j has class (target + j) modulo the classes.
    size, value
        Of each square; corners of small images may overlap.
    share
        Of the images, rounded up, drawn without replacement; the patterns take turns.

    Raises
    ------
    ValueError
        As ``backdoor``, and for another number of patterns.

    References
    ----------
    Bagdasaryan, Veit, Hua, Estrin, Shmatikov, How To Backdoor Federated Learning, AISTATS 2020,
    section 4 (model replacement).
    """
    whole(triggers, "many_triggers", "triggers", low=1, high=CORNERS)
    chosen = _drawn("many_triggers", images, target, share, classes, generator)
    images, labels = images.clone(), labels.clone()
    for trigger in range(triggers):
        part = chosen[trigger::triggers]
        images[part] = stamp(images[part], size=size, value=value, corner=trigger)
        labels[part] = trigger_target(target, trigger, classes)
    return images, labels


def trigger_target(target: int, trigger: int, classes: int | None) -> int:
    """Return the class of a trigger's images."""
    return target + trigger if classes is None else (target + trigger) % classes


def edge_case(
    images: Tensor,
    labels: Tensor,
    *,
    source: int = 7,
    target: int = 1,
    tail: float = 0.3,
    classes: int | None = None,
) -> Poisoned:
    """Relabel the rarest images of one class, and leave all that honest clients see as it is.

    An interpretation: the paper's rare images come from other collections (airliners of one
    company, digits of another century), which are not shipped; here they are the tail of a class in
    the client's own data: the images farthest, in pixels, from the mean of their class. Its success
    is the share of the tail of the test images of that class that the model takes for the target. A
    client without an image of the class changes nothing.

    Parameters
    ----------
    source, target
        The class whose tail is relabelled, and the label that it gets.
    tail
        Share of the class that is its tail, rounded up, in (0, 1].

    Raises
    ------
    ValueError
        For equal classes, classes that there are not, or a tail outside (0, 1].

    References
    ----------
    Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos, Attack of the Tails:
    Yes, You Really Can Backdoor Federated Learning, NeurIPS 2020, sections 2 and 3 (p-edge-case
    examples, black-box attack).
    """
    high = None if classes is None else classes - 1
    whole(source, "edge_case", "source", high=high)
    whole(target, "edge_case", "target", high=high)
    if source == target:
        raise ValueError(f"edge_case needs a target other than its source, got {target} twice")
    changed = labels.clone()
    changed[rare(images, labels, source, tail)] = target
    return images, changed


def rare(images: Tensor, labels: Tensor, source: int, tail: float) -> Tensor:
    """Return which images of a class are farthest from its mean, (k,), the farthest first.

    Of equally far ones the earlier; k is the share ``tail`` of the class, rounded up.
    """
    real(tail, "edge_case", "tail", above=0, high=1)
    of_class = (labels == source).nonzero().flatten()
    if not len(of_class):
        return of_class
    pixels = images[of_class].flatten(1).double()
    away = (pixels - pixels.mean(0)).square().sum(1)
    order = away.sort(descending=True, stable=True).indices
    return of_class[order[: math.ceil(tail * len(of_class))]]


def _drawn(
    who: str,
    images: Tensor,
    target: int,
    share: float,
    classes: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw which images are stamped, once the target and the share are known to make sense."""
    if not 0 <= share <= 1:
        raise ValueError(f"{who} needs 0 <= share <= 1, got {share}")
    if target < 0 or (classes is not None and target >= classes):
        raise ValueError(f"{who} needs a target among the classes, got {target}")
    source = generator or seeded(0, "poison")
    order = torch.randperm(len(images), generator=source, device=source.device)
    return order[: math.ceil(share * len(images))].to(images.device)
