"""Low-rank adapters in a model: which parameters are factors, and what their products are.

An adapter adds B A to a frozen weight (LoRA). Clients train and send the factors; a rule may be
shown them as they are, or the products that they make: an average of products is no product of
averages.

References
----------
Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, section 4.1.
Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources (FlexLoRA), NeurIPS 2024, section 3: products are averaged and factorised again.
Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024, section 3: what
averaging the factors apart gets wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fedrobust.failures import Refusal
from fedrobust.model_layers import Layers
from fedrobust.models.zoo import ModelError
from fedrobust.vector import trainable

FACTORS, PRODUCT = "factors", "product"
# The names that PEFT gives its factors, and ours: the first times the second is no shape, B A is.
NAMES = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
NULL = 1e-6  # a direction that holds less than this share of the greatest one holds nothing


@dataclass(frozen=True)
class Products:
    """Updates of factors as updates of their products, and a step of products as one of factors.

    Attributes
    ----------
    shapes
        Of the parameter tensors, in the order of the vector (d,).
    pairs
        Places of A (r, ...) and B (out, r, ...) among them. More dimensions, as convolutions have,
        are read as one.
    """

    shapes: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of values in each parameter tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def layout(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of what a rule sees: a product in the place of its A, nothing for its B."""
        made = {a: (self._rows_of(b), self._columns_of(a)) for a, b in self.pairs}
        return tuple(made.get(i, self.shapes[i]) for i in self._kept)

    @cached_property
    def _kept(self) -> tuple[int, ...]:
        """The places that a rule sees: all but those of B."""
        gone = {b for _, b in self.pairs}
        return tuple(i for i in range(len(self.shapes)) if i not in gone)

    def seen(self, updates: Tensor, start: Tensor) -> Tensor:
        """Return updates (n, d) of factors as updates of products and of all else, (n, d').

        Parameters
        ----------
        start
            The global model (d,) that they are updates of: a client's factors are ``start`` minus
            its update, and its row is the global product minus its own.
        """
        parts = updates.split(self.sizes, dim=1)
        own, partner = start.to(updates).split(self.sizes), dict(self.pairs)
        widths = [prod(shape) for shape in self.layout]
        rows = updates.new_empty(len(updates), sum(widths))  # one product at a time beside it
        for place, block in zip(self._kept, rows.split(widths, dim=1), strict=True):
            if place not in partner:
                block.copy_(parts[place])
                continue
            down, up = self._factors(own, place, partner[place])
            change_a = parts[place].reshape(len(updates), *down.shape)
            change_b = parts[partner[place]].reshape(len(updates), *up.shape)
            # BA - (B - dB)(A - dA), without the difference of two large products
            block.copy_((change_b @ down + (up - change_b) @ change_a).flatten(1))
        return rows

    def sent(self, aggregate: Tensor, start: Tensor) -> Tensor:
        """Return an aggregate (d',) of products as the step (d,) of factors that leads there.

        The product that results is the nearest one of the adapter's rank; among its factorisations
        the one is taken whose A has the scale of the one before and is nearest to it.

        Raises
        ------
        Refusal
            If a product has no singular values, as numbers near the end of float32 may.
        """
        parts = aggregate.split([prod(shape) for shape in self.layout])
        found = dict(zip(self._kept, parts, strict=True))
        own = start.to(aggregate).split(self.sizes)
        for a, b in self.pairs:
            down, up = self._factors(own, a, b)
            step = found[a].view(len(up), -1)
            found[a], found[b] = (one.reshape(-1) for one in _step_of_factors(step, down, up))
        return torch.cat([found[i] for i in range(len(self.shapes))])

    def offered(
        self, server: Mapping[str, Callable[[], Any]], start: Tensor
    ) -> Mapping[str, Callable[[], Any]]:
        """Return what a rule may ask of the server's own data and of the model, of products.

        The root update becomes the products' as a client's does; the loss after a step of products
        is that of the factors which the step leads to. A product has the name of its A.
        """

        def root() -> Tensor:
            return self.seen(server["root"]().unsqueeze(0), start)[0]

        def loss() -> Callable[[Tensor], float]:
            after = server["loss"]()
            return lambda step: after(self.sent(step, start))

        def layers() -> Layers:
            names = [name for name, _ in server["layers"]()]
            return tuple((names[i], s) for i, s in zip(self._kept, self.layout, strict=True))

        def model() -> Tensor:
            return self.seen(server["model"]().unsqueeze(0), start)[0]

        forms = {"root": root, "loss": loss, "layers": layers, "model": model}
        return {key: forms.get(key, given) for key, given in server.items()}

    def _factors(self, own: Sequence[Tensor], a: int, b: int) -> tuple[Tensor, Tensor]:
        rank = self.shapes[a][0]
        return own[a].view(rank, -1), own[b].view(-1, rank)

    def _rows_of(self, b: int) -> int:
        return self.shapes[b][0]

    def _columns_of(self, a: int) -> int:
        return self.sizes[a] // self.shapes[a][0]


def form_of(adapters: str, module: nn.Module) -> Products | None:
    """Return how a rule sees updates of a module: None where it sees them as they are.

    Parameters
    ----------
    adapters
        "factors" or "product".

    Raises
    ------
    ModelError
        If products are asked for and the module has no pair of trainable factors.
    """
    if adapters == FACTORS:
        return None
    named = trainable(module)
    found = tuple(pairs_in(named))
    if not found:
        raise ModelError(
            f"adapters = {PRODUCT!r} needs a model with trainable factors named lora_A and lora_B,"
            f" {type(module).__name__} has none: see fedrobust.models.low_rank, or PEFT"
        )
    return Products(tuple(tuple(p.shape) for p in named.values()), found)


def pairs_in(named: Mapping[str, nn.Parameter]) -> Iterator[tuple[int, int]]:
    """Yield the places of A and B of each adapter, by their names and in their order.

    A factor whose other one is frozen (FFA-LoRA) is a parameter like any other: its product is
    linear in it.
    """
    names = list(named)
    for first, second in NAMES:
        for place, name in enumerate(names):
            other = _other(name, first, second)
            if other in named:
                yield place, names.index(other)


def _other(name: str, first: str, second: str) -> str:
    """Return the name of B for that of A, or nothing."""
    words = name.split(".")
    if first not in words:
        return ""
    return ".".join(second if word == first else word for word in words)


def _step_of_factors(step: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the changes of A (r, in) and B (out, r) that take BA to BA - step."""
    if not bool(step.any()):
        return torch.zeros_like(down), torch.zeros_like(up)
    before = down.double()
    try:
        new_down, new_up = _factorised(up.double() @ before - step.double(), before)
    except torch.linalg.LinAlgError as error:
        raise Refusal(f"the product of an adapter cannot be factorised: {error}") from error
    return (before - new_down).to(step), (up.double() - new_up).to(step)


def _factorised(target: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (r, in) near ``like`` and B (out, r): BA is the best approximation of the target."""
    rank = len(like)
    _, values, right = torch.linalg.svd(target, full_matrices=False)
    held = int((values[:rank] > NULL * values[0]).sum())
    taken = right[:held]
    # Directions that hold nothing are A's own: with B = 0 they are where learning goes on.
    own = torch.linalg.svd(like - like @ taken.T @ taken, full_matrices=False)[2][: rank - held]
    basis = torch.linalg.qr(torch.cat([taken, own]).T).Q.T
    left, _, turn = torch.linalg.svd(like @ basis.T, full_matrices=False)
    scale = torch.linalg.vector_norm(like) / rank**0.5
    near = (left @ turn @ basis) * (scale if scale > 0 else 1.0)
    return near, target @ torch.linalg.pinv(near)
