"""Members side by side: their answers to a query, and the system as one differentiable model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedrobust.adversarial.frozen import Model, frozen
from fedrobust.spec import suggest

SMOOTH_VOTES = ("soft", "mean_logit")


def answers(
    members: Sequence[Model], x: Tensor, *, batch_size: int = 500, logits: bool = False
) -> Tensor:
    """Return what every member answers to a query, (members, B, C): the input of ``combine``.

    Parameters
    ----------
    members
        Images in [0, 1] to logits; evaluated in eval mode and left as found. Architectures may
        differ, the classes may not.
    x
        Images (B, ...).
    batch_size
        Images at once.
    logits
        Return logits instead of probabilities.

    Raises
    ------
    ValueError
        If there is no member or no image.
    """
    if not members or not len(x):
        raise ValueError(f"answers needs members and images, got {len(members)} and {len(x)}")
    with frozen(*members), torch.no_grad():
        rows = [torch.cat([member(part) for part in x.split(batch_size)]) for member in members]
    stack = torch.stack(rows)
    return stack if logits else stack.softmax(2)


class Ensemble(nn.Module):
    """A voting system as one model, so that gradients go through the vote.

    For an attack that knows the whole system, and for its similarity to a surrogate.

    Parameters
    ----------
    members
        Images in [0, 1] to logits.
    vote
        "soft": the logarithm of the members' mean probability. "mean_logit": their mean logit.
        Both have the label of that vote; counting votes has no gradient.

    Raises
    ------
    ValueError
        If there is no member or the vote has no gradient.
    """

    def __init__(self, members: Sequence[nn.Module], *, vote: str = "soft") -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least 1 member, got 0")
        if vote not in SMOOTH_VOTES:
            hint = suggest(vote, list(SMOOTH_VOTES))
            raise ValueError(f"an ensemble has no gradient of the vote {vote!r}; {hint}")
        self.members = nn.ModuleList(members)
        self.vote = vote

    def forward(self, images: Tensor) -> Tensor:
        """Return the system's logits, (B, C)."""
        stack = torch.stack([member(images) for member in self.members])
        # In logarithms: a probability that underflows to 0 has no gradient. (Up to log m.)
        return stack.log_softmax(2).logsumexp(0) if self.vote == "soft" else stack.mean(0)
