"""Low-rank adapters of our own, for models of any kind and without another package."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedrobust.models.zoo import ModelError


class LowRank(nn.Module):
    """A frozen linear layer and what an adapter adds to it: x W^T + b + (alpha / r) x A^T B^T.

    References
    ----------
    Hu et al., LoRA, ICLR 2022, section 4.1: A is drawn, B begins at zero.
    """

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) for (..., in)."""
        return self.base(x) + self.scale * (x @ self.lora_A.T @ self.lora_B.T)


def low_rank(
    module: nn.Module,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    layers: Iterable[str] | None = None,
    trained: Iterable[str] = (),
) -> nn.Module:
    """Freeze a module and put an adapter beside its linear layers; the module is changed in place.

    Parameters
    ----------
    rank
        Of each adapter, at least 1.
    alpha
        The adapter's part is scaled by alpha / rank.
    layers
        Names of the linear layers to adapt, or ends of names ("q_proj"); None: all of them.
    trained
        Names of layers, or ends of names, that are trained whole, such as a new head.

    Raises
    ------
    ModelError
        If the rank is below 1, or a name is no such layer.

    References
    ----------
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, section 4.1.
    """
    if rank < 1:
        raise ModelError(f"low_rank needs a rank of at least 1, got {rank}")
    named = {name: m for name, m in module.named_modules() if name}
    linear = [name for name, m in named.items() if isinstance(m, nn.Linear)]
    whole = _chosen(trained, list(named))
    adapted = _chosen(layers, linear) if layers is not None else set(linear)
    module.requires_grad_(False)
    for name in sorted(adapted - whole):
        above, _, last = name.rpartition(".")
        setattr(module.get_submodule(above), last, LowRank(named[name], rank=rank, alpha=alpha))  # type: ignore[arg-type]
    for name in whole:
        named[name].requires_grad_(True)
    return module


def _chosen(wanted: Iterable[str], names: list[str]) -> set[str]:
    """Return the names that are, or end with, what is wanted."""
    found: set[str] = set()
    for one in wanted:
        ends = {name for name in names if name == one or name.endswith(f".{one}")}
        if not ends:
            raise ModelError(f"low_rank finds no layer {one!r} among {', '.join(names[:8])}")
        found |= ends
    return found
