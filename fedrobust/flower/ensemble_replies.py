"""The second half of the trust boundary: what members of an ensemble answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

from fedrobust.flower.screening import Rejected
from fedrobust.flower.serialization import tensor_of

PROGRESS = {"num-examples", "epoch", "loss", "held-loss"}


@dataclass(frozen=True)
class Progress:
    """What a member says of its training: claims, never weights."""

    examples: int
    epoch: int
    loss: float
    held_loss: float


def screen_answer(message: Message, *, query: str, shape: tuple[int, ...]) -> Tensor:
    """Accept a member's answer to a query, or say why not.

    Values are not judged here: the vote drops a row that is not finite, or no probability, image by
    image.

    Parameters
    ----------
    message
        What came back.
    query
        The name of the query that was sent; an answer to another one is refused.
    shape
        The shape that the answer must have.

    Raises
    ------
    Rejected
        For an error reply, missing or extra keys, another query, or another type or shape. Whatever
        a reply holds, nothing else is raised.
    """
    try:
        _whole(message, {"arrays", "reply"})
        arrays, reply = message.content["arrays"], message.content["reply"]
        if not isinstance(arrays, ArrayRecord) or not isinstance(reply, ConfigRecord):
            raise Rejected("records of the wrong kind")
        if set(arrays.keys()) != {"answer"}:
            raise Rejected(f"arrays: {', '.join(sorted(arrays.keys()))[:80]}, expected: answer")
        if reply.get("query") != query:
            raise Rejected(f"answers the query {str(reply.get('query'))[:40]!r}, not {query!r}")
        # What it declares first, which costs nothing to compare; then what the bytes hold.
        if tuple(arrays["answer"].shape) != shape:
            raise Rejected(f"answer of shape {tuple(arrays['answer'].shape)}, expected {shape}")
        answer = tensor_of(arrays["answer"])
        if tuple(answer.shape) != shape:
            raise Rejected(f"answer of shape {tuple(answer.shape)}, expected {shape}")
        return answer
    except Rejected:
        raise
    except Exception as error:  # a hostile reply may break any accessor: it costs only its vote
        raise Rejected(f"unreadable reply ({type(error).__name__}: {str(error)[:120]})") from error


def screen_progress(message: Message, *, most_examples: int) -> Progress:
    """Accept a member's report on its training, or say why not.

    Raises
    ------
    Rejected
        For an error reply, anything but the four metrics, or metrics that cannot be.
    """
    try:
        _whole(message, {"metrics"})
        metrics = message.content["metrics"]
        if not isinstance(metrics, MetricRecord) or set(metrics.keys()) != PROGRESS:
            raise Rejected(f"a report needs exactly {', '.join(sorted(PROGRESS))}")
        examples, epoch = metrics["num-examples"], metrics["epoch"]
        losses = (metrics["loss"], metrics["held-loss"])
        if not isinstance(examples, int) or not 1 <= examples <= most_examples:
            raise Rejected(f"num-examples {examples!r:.40} outside 1..{most_examples}")
        if not isinstance(epoch, int) or epoch < 1:
            raise Rejected(f"epoch {epoch!r:.40} is no number of epochs")
        if not all(isinstance(loss, float) and math.isfinite(loss) for loss in losses):
            raise Rejected("a loss is no finite number")
        return Progress(examples, epoch, *(float(loss) for loss in losses))  # type: ignore[arg-type]
    except Rejected:
        raise
    except Exception as error:  # as above
        raise Rejected(f"unreadable reply ({type(error).__name__}: {str(error)[:120]})") from error


def _whole(message: Message, records: set[str]) -> None:
    if message.has_error():
        raise Rejected(f"error reply: {str(message.error.reason)[:200]}")
    if set(message.content.keys()) != records:
        found = ", ".join(sorted(map(str, message.content.keys())))[:80]
        raise Rejected(f"records: {found or 'none'}, expected: {', '.join(sorted(records))}")
