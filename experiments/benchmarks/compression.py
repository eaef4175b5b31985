"""Speed of the quantiser and of the LALR step on one core, on a network of 11.2 M parameters.

``python -m experiments.benchmarks.compression --json``; about 15 seconds. ``ratio`` is seconds over
reference seconds, and the goal is met where it is at most ``goal``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.measuring import Row, median_of, peak_of, show
from fedrobust.training.compression import Quantized, quantize
from fedrobust.training.lalr import lalr_step

SIZE = 11_171_146  # PreAct-ResNet-18, the network of the quantised uplink
PACE = 1e9  # bytes of float32 per second and core


def case(
    name: str,
    call: Callable[[], Any],
    *,
    reference: str,
    reference_seconds: float,
    goal: float | None,
) -> dict[str, Any]:
    """Time one case and put it beside its reference."""
    seconds = median_of(call)
    return {
        "case": name,
        "seconds": seconds,
        "reference": reference,
        "reference_seconds": reference_seconds,
        "ratio": seconds / reference_seconds,
        "goal": goal,
        "peak_bytes": peak_of(call),
    }


def torch_round_trip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Quantise at 127 levels and decode, in plain torch operations."""
    norm = x.norm()
    ratio = x.abs() / norm * 127
    level = (ratio + torch.rand(x.shape, generator=generator)).floor_().to(torch.uint8)
    codes = 2 * level + (x > 0)
    return (codes >> 1).float() * ((codes & 1).float() * 2 - 1) * (norm / 127)


def layers() -> list[Tensor]:
    """Return 54 tensors of the sizes of a residual network's layers, 11.2 M values in all."""
    large = [2_359_296] * 3 + [1_179_648] + [589_824] * 3 + [294_912] + [147_456] * 3 + [73_728]
    small = [512] * 41
    rest = SIZE - sum(large) - sum(small)
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, generator=generator) for size in [*large, *small, rest]]


def quantiser_cases() -> Iterator[dict[str, Any]]:
    """Yield encode plus decode in each setting, against 1 GB/s and against plain torch."""
    generator = torch.Generator().manual_seed(0)
    x, row = torch.randn(SIZE, generator=generator), torch.empty(SIZE)
    tensors = layers()

    def round_trip(x: Tensor = x, out: Tensor | None = None, **settings: Any) -> Tensor:
        return quantize(x, generator=generator, **settings).dequantize(out=out)

    def over_the_wire(levels: int) -> Tensor:
        packet = quantize(x, levels=levels, generator=generator).to_bytes()
        return Quantized.from_bytes(packet).dequantize(out=row)

    calls: dict[str, Callable[[], Any]] = {
        "8 bits, into a row": lambda: round_trip(out=row),
        "8 bits, into fresh memory": round_trip,
        "8 bits, largest value as scale": lambda: round_trip(out=row, scale="linf"),
        "8 bits, buckets of 512": lambda: round_trip(out=row, bucket=512),
        "8 bits, 54 tensors": lambda: [round_trip(tensor) for tensor in tensors],
        "16 bits, into a row": lambda: round_trip(out=row, levels=32767),
        "8 bits, over the wire": lambda: over_the_wire(127),
        "4 bits, over the wire": lambda: over_the_wire(7),
    }
    for name, call in calls.items():
        yield case(name, call, reference="1 GB/s", reference_seconds=4 * SIZE / PACE, goal=1.0)
    plain = median_of(lambda: torch_round_trip(x, generator), times=3)
    yield case(
        "8 bits against plain torch",
        round_trip,
        reference="the same in torch operations",
        reference_seconds=plain,
        goal=None,
    )


def lalr_cases() -> Iterator[dict[str, Any]]:
    """Yield one LALR step against one step of torch's Adam with the same tensors."""
    params = layers()
    grads = [torch.randn_like(p) for p in params]
    _, state = lalr_step(params, grads, None, lr=0.01)
    held = [torch.nn.Parameter(p.clone()) for p in params]
    for parameter, grad in zip(held, grads, strict=True):
        parameter.grad = grad
    adam = median_of(torch.optim.Adam(held).step)
    yield case(
        "LALR step, 54 tensors",
        lambda: lalr_step(params, grads, state, lr=0.01),
        reference="torch.optim.Adam, in place",
        reference_seconds=adam,
        goal=None,
    )


def main() -> None:
    """Print one line per case, on one thread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    as_json = parser.parse_args().json
    torch.set_num_threads(1)
    assert math.isclose(sum(t.numel() for t in layers()), SIZE)
    show(chain(quantiser_cases(), lalr_cases()), _text, as_json=as_json)


def _text(row: Row) -> str:
    pace = 4 * SIZE / row["seconds"] / 1e9  # 4 bytes a float32
    return f"{row['case']:32} {row['seconds']:8.4f} s {pace:7.2f} GB/s x{row['ratio']:.2f}"


if __name__ == "__main__":
    main()
