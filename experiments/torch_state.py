"""What a caller may have set in PyTorch for the whole process or thread, and a run depends on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedrobust.experiment.schema import ConfigError


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Train as if the caller had set nothing: gradients are on inside the block.

    Being inside ``torch.no_grad()`` or ``torch.inference_mode()`` belongs to the thread and is
    undone here. The default type and the default device belong to the whole process: changing them
    would change them under the feet of other threads, so that they are refused instead.

    Raises
    ------
    ConfigError
        If torch's default type is not float32, or its default device not the CPU.
    """
    wrong = []
    if (dtype := torch.get_default_dtype()) != torch.float32:
        found = str(dtype).removeprefix("torch.")
        wrong.append(
            f"runs are computed in float32, but torch's default dtype is {found}: call"
            " torch.set_default_dtype(torch.float32) first"
        )
    if (place := torch.get_default_device()).type != "cpu":
        wrong.append(
            f"torch's default device is {str(place)!r}: call torch.set_default_device('cpu') first"
            " and choose the run's own by device=..."
        )
    if wrong:
        raise ConfigError(wrong)
    with torch.inference_mode(False), torch.enable_grad():
        yield
