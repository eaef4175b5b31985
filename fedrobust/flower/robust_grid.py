"""A robust rule in front of any loop over a grid: own loops, and strategies of either API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from logging import INFO, WARNING
from threading import Lock
from typing import TYPE_CHECKING

from flwr.app import Error, Message
from flwr.common import log
from flwr.serverapp import Grid

from fedrobust.flower.evaluation_replies import alike
from fedrobust.flower.in_process import RAISED
from fedrobust.flower.model_replies import Sent, refuse_secure_aggregation
from fedrobust.flower.reply_aggregation import ReplyAggregator
from fedrobust.flower.rule_spelling import Rule
from fedrobust.flower.wrapping import WrappedGrid
from fedrobust.spec import Spec

if TYPE_CHECKING:
    import pandas as pd

LEGACY = "fitins.parameters"  # the record in which Flower's older API sends its model
ALONE = (
    "training messages go out one by one, so that no rule can compare their replies: send the "
    "messages of a round together, or run an app of the older API inside "
    "fedrobust.flower.whole_rounds()"
)


class RobustGrid(WrappedGrid):
    """Put a rule of fedrobust between the nodes and whatever sends them messages.

    The replies to one batch of training messages are aggregated as ``Robust`` does; each accepted
    one comes back with the aggregate in the place of its own arrays, so that any average of them
    is the aggregate. A refused reply does not come back (where messages are pushed and pulled, an
    error reply takes its place). Evaluation replies come back with medians; all others as they are.

    Parameters
    ----------
    grid
        Any grid: what ``main(grid, context)`` was given.
    rule, pre, seed, weights
        As in ``Robust``; claims are read from ``num-examples``.

    Raises
    ------
    SpecError
        For an unknown rule or setting.
    ValueError
        For secure aggregation, for a first round with fewer nodes than the rule needs, and for
        training messages that are sent one by one.

    Notes
    -----
    A round with too few replies left for the rule hands on a step of zero: every accepted reply
    returns what its node was sent. Replies without a floating array (trees, counts) pass through.
    What the app does with the replies is its own: a server optimizer behind the grid also steps on
    running statistics, and an average of integers is float64. ``Robust`` keeps both out.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        rule: Rule,
        pre: Sequence[Spec] = (),
        seed: int | None = None,
        weights: Spec = "equal",
    ) -> None:
        super().__init__(grid)
        self._core = ReplyAggregator(rule, pre, seed, weights)
        self._round = 0
        self._lock = Lock()  # the older API sends from threads
        self._refused: dict[str, Message] = {}

    @property
    def history(self) -> pd.DataFrame:
        """What became of every reply: round, node, accepted, weight, reason."""
        return self._core.history

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send, and hand back what the rule made of the replies."""
        asked = list(messages)
        refuse_secure_aggregation(asked)
        by_type = {
            kind: Sent.of(group) for kind, group in groupby(sorted(asked, key=_type), key=_type)
        }
        replies = list(self._inner.send_and_receive(asked, timeout=timeout))
        made = []
        with self._lock:
            for kind, sent in by_type.items():
                own = [reply for reply in replies if _type(reply) == kind]
                made += self._handed(kind, sent, own)
        return made

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Carry the messages at once; a refused reply waits as an error."""
        listed = list(messages)
        ids = super().push_messages(listed)
        for message in listed:
            reason = self._refused.pop(message.metadata.message_id, None)
            if reason is not None:
                self._done.setdefault(message.metadata.message_id, reason)
        return ids

    def _handed(self, kind: str, sent: Sent, replies: list[Message]) -> list[Message]:
        if kind.split(".")[0] == "evaluate":
            result = alike(sent, replies)
            self._note(sent, result.refused)
            # A discovery round, say, answers evaluations without metrics: not ours to change.
            return result.replies or replies
        if kind.split(".")[0] != "train" or not _holds_floats(sent, replies):
            return replies
        return self._aggregated(sent, replies)

    def _aggregated(self, sent: Sent, replies: list[Message]) -> list[Message]:
        n = len(sent.messages)
        # A loop of its own may ask a single node later on; the older API sends each message by
        # itself.
        if n == 1 and (self._round == 0 or LEGACY in next(iter(sent.messages.values())).content):
            raise ValueError(ALONE)
        if self._round == 0:
            self._core.check(n)
        self._round += 1
        result = self._core.aggregate(sent, replies, self._round)
        self._note(sent, result.refused)
        if result.kept:
            log(WARNING, "round %s keeps the model: %s", self._round, result.kept)
        return result.replies

    def _note(self, sent: Sent, refused: dict[int, str]) -> None:
        for node, reason in sorted(refused.items()):
            log(INFO, "reply of node %s refused: %s", node, reason)
            message = sent.messages[node]
            if reason != "no reply" and message.metadata.message_id:
                error = Error(code=RAISED, reason=f"refused: {reason}")
                self._refused[message.metadata.message_id] = Message(error, reply_to=message)


def _type(message: Message) -> str:
    return message.metadata.message_type


def _holds_floats(sent: Sent, replies: list[Message]) -> bool:
    """Whether models travel at all: floating arrays went out, or some reply claims to hold one."""
    if any(a.dtype.kind == "f" for arrays in sent.arrays.values() for a in arrays.values()):
        return True
    contents = [reply.content for reply in replies if reply.has_content()]
    records = [record for content in contents for record in content.array_records.values()]
    floating = [
        any(str(a.dtype).startswith("float") for a in record.values()) for record in records
    ]
    return 2 * sum(floating) > len(contents)
