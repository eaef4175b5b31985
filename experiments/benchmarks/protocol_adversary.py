"""Byzantine workers who know the redundancy protocol, for the campaign against its invariant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from torch import Tensor

from clients.redundancy.gradients import FileGradients
from clients.redundancy.stages import WorkerValues, honest
from fedrobust.flower import InProcessGrid, array_of, commit_reveal, tensor_of
from fedrobust.flower.wrapping import WrappedGrid
from fedrobust.redundancy.commitments import digest, sketch

FEATURES, OUTPUTS = 6, 3  # of the regression that the campaign trains
LENGTH = FEATURES * OUTPUTS
# "keep" often: a worker that never behaves is found out in its first round.
ACTIONS = (
    "keep", "keep", "keep", "other", "null space", "scaled", "silent", "error", "replay", "swap",
    "not finite", "huge", "short", "twice", "in another name", "nothing",
)  # fmt: skip
PERSONAS = ("random", "patient", "vouching", "random")


@dataclass
class Adversary:
    """Up to q Byzantine workers that share one mind.

    Attributes
    ----------
    choices
        What decides: each call of ``pick`` takes the next number. A list, so that a failing case
        can be shrunk.
    byzantine
        Their numbers.
    """

    choices: Sequence[int]
    byzantine: frozenset[int]
    place: int = 0
    seed: int | None = None  # of the last sketch order seen
    width: int = 8
    said: dict[str, list[RecordDict]] = field(default_factory=dict)
    plan: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.persona = PERSONAS[self.pick(len(PERSONAS))]
        self.shift = 30.0 * torch.randn(LENGTH, generator=torch.Generator().manual_seed(1))

    def pick(self, count: int) -> int:
        """Return the next choice, in 0..count-1."""
        number = self.choices[self.place % len(self.choices)]
        self.place += 1
        return (number + 7 * (self.place // len(self.choices))) % count

    def new_round(self, values: FileGradients) -> None:
        """Decide which copies are distorted in this round, and how."""
        self.plan.clear()
        kind = self.pick(5) if self.persona == "random" else 0
        made = values.assignment
        victims = [w for w in range(made.workers) if w not in self.byzantine][: 1 + self.pick(3)]
        outside = [w for w in range(made.workers) if w not in {*self.byzantine, *victims}]
        cornered = ~made.matrix[outside].any(0)
        wholly = ~made.matrix[[w for w in range(made.workers) if w not in self.byzantine]].any(0)
        for file in range(made.files):
            wrong = 100.0 * torch.randn(LENGTH, generator=torch.Generator().manual_seed(file))
            for worker in sorted(self.byzantine):
                fit = (False, bool(cornered[file]), bool(wholly[file]), True, self.pick(2) == 0)
                if made.matrix[worker, file] and fit[kind]:
                    alone = kind == 4 and self.pick(3) == 0
                    self.plan[worker, file] = wrong + (worker if alone else 0)

    def copies(self, values: FileGradients, worker: int) -> WorkerValues:
        """Return a worker's copies: consistent, distorted as decided."""
        true = honest(values, worker)

        def value(file: int) -> Tensor:
            return self.plan.get((worker, file), true.value(file))

        def sketches(files: Sequence[int], *, seed: int, size: int) -> Tensor:
            return torch.stack([sketch(value(file), seed=seed, size=size) for file in files])

        return replace(
            true, value=value, digest=lambda file: digest(value(file)), sketches=sketches
        )

    def hidden(self) -> Tensor:
        """Return a large vector in the null space of the last sketch that was seen."""
        if self.seed is None:
            return torch.zeros(LENGTH)
        signs = sketch(torch.eye(LENGTH), seed=self.seed, size=self.width)
        return 50 * torch.linalg.svd(signs.T)[2][-1].float()

    def spoil(self, message: Message, reply: Message) -> Message | None:
        """Return what is sent instead of a consistent reply."""
        stage = str(commit_reveal.setting(message, "stage"))
        if stage == "sketch":
            self.seed = int(commit_reveal.setting(message, "seed"))
            self.width = int(commit_reveal.setting(message, "width"))
        before = self.said.setdefault(stage, [])
        action = self._action(stage)
        content = self._content(action, message, reply, before)
        before.append(reply.content)
        if action == "silent":
            return None
        if action == "error":
            return Message(Error(code=2, reason="no"), reply_to=message)
        return Message(content, reply_to=message)

    def _action(self, stage: str) -> str:
        """Return what to do with one message.

        "patient" workers say the truth until they know a sketch, then hide a vector in it.
        "vouching" ones add the same vector to a sum and to all sketches.
        """
        if self.persona == "patient":
            return "null space" if stage == "sum" else "keep"
        if self.persona == "vouching":
            return {"sum": "shifted", "sketch": "vouched"}.get(stage, "keep")
        return ACTIONS[self.pick(len(ACTIONS))]

    def _vouched(self, message: Message, content: RecordDict) -> RecordDict:
        """Return sketches that fit a sum to which the shift was added: every file takes a part."""
        files = list(commit_reveal.setting(message, "files"))
        data = content.config_records[commit_reveal.SCHEME]["sketches"]
        assert isinstance(data, bytes)
        rows = torch.frombuffer(bytearray(data), dtype=torch.float64).view(len(files), -1)
        rows += sketch(self.shift, seed=int(self.seed or 0), size=self.width) / len(files)
        return RecordDict(
            {commit_reveal.SCHEME: ConfigRecord({"sketches": rows.numpy().tobytes()})}
        )

    def _content(
        self, action: str, message: Message, reply: Message, before: list[RecordDict]
    ) -> RecordDict:
        if action == "nothing":
            return RecordDict()
        if action == "vouched":
            return self._vouched(message, reply.content)
        if action in ("replay", "swap") and before:
            return before[self.pick(len(before))]
        change: Callable[[Tensor], Tensor] | None = {
            "other": lambda v: v + 3.0,
            "shifted": lambda v: v + self.shift,
            "null space": lambda v: v + self.hidden()[: len(v)] if v.ndim == 1 else v,
            "scaled": lambda v: -5.0 * v,
            "not finite": lambda v: v * torch.nan,
            "huge": lambda v: v * 1e30,
            "short": lambda v: v[:-1],
        }.get(action)
        return reply.content if change is None else _changed(reply.content, change)


def _changed(content: RecordDict, change: Callable[[Tensor], Tensor]) -> RecordDict:
    """Change every array, or the bytes of digests and sketches."""
    if "arrays" in content and isinstance(content["arrays"], ArrayRecord):
        arrays = content["arrays"]
        made = {name: change(tensor_of(array)) for name, array in arrays.items()}
        return RecordDict({"arrays": array_of(**made)})
    record = dict(content.config_records[commit_reveal.SCHEME].items())
    for key in ("digests", "sketches"):
        if isinstance(data := record.get(key), bytes):
            record[key] = bytes(255 - b for b in data[:8]) + data[8:]
    return RecordDict({commit_reveal.SCHEME: ConfigRecord(record)})


class Saboteur(WrappedGrid):
    """Repeat the Byzantine workers' replies, and forge replies to what honest ones were asked."""

    def __init__(self, inner: InProcessGrid, adversary: Adversary) -> None:
        super().__init__(inner)
        self._adversary = adversary

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        """Carry the messages, and add forged replies in front of the true ones."""
        sent = list(messages)
        replies = list(self._inner.send_and_receive(sent, timeout=timeout))
        bad = {worker + 1 for worker in self._adversary.byzantine}
        own = [r for r in replies if r.metadata.src_node_id in bad and not r.has_error()]
        if not own:
            return replies
        if self._adversary.pick(8) == 0:
            replies = [own[0], *replies]
        honest_asked = [m for m in sent if m.metadata.dst_node_id not in bad]
        if honest_asked and self._adversary.pick(8) == 0:
            forged = Message(own[0].content, reply_to=honest_asked[0])
            forged.metadata.__dict__["_src_node_id"] = own[0].metadata.src_node_id
            replies = [forged, *replies]
        return replies
