"""Attack the redundant protocol at random, round after round, and check one invariant.

``python -m experiments.benchmarks.redundancy_campaign --rounds 20000 --json``; about five minutes
on one core. In each run up to q workers are Byzantine. They know the protocol, the data and the
model, see every order, and agree among themselves. Of every message they may distort the values
consistently, reveal or add up something else than they committed to, hide in the null space of the
last sketch they saw, answer with what was said before or by another worker, twice, in an honest
worker's name, in nonsense, or not at all.

The invariant: a step that is taken differs from the mean over its true files by at most
``STATED`` times the mean of their norms where the plain mean was taken; and where buckets were
compared each coordinate lies between the least and the greatest of all true files. No honest worker
is ever convicted by its own word.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from torch import Tensor, nn

from clients.redundancy.answers import WorkerValues, answer, honest, read_task
from clients.redundancy.gradients import FileGradients, Place
from fedrobust.flower import InProcessGrid, array_of, commit_reveal, tensor_of
from fedrobust.flower.wrapping import WrappedGrid
from fedrobust.redundancy.commitments import digest, sketch
from strategies.redundancy.strategy import RedundantStrategy

STATED = 1e-3  # what ``reveal_sums`` promises
FEATURES, OUTPUTS = 6, 3
LENGTH = FEATURES * OUTPUTS
# "keep" often: a worker that never behaves is found out in its first round.
ACTIONS = (
    "keep", "keep", "keep", "other", "null space", "scaled", "silent", "error", "replay", "swap",
    "not finite", "huge", "short", "twice", "in another name", "nothing",
)  # fmt: skip
PERSONAS = ("random", "patient", "vouching", "random")
CASES = ((5, 1), (5, 2), (7, 2), (7, 3))  # workers, q; r = 3


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


class Problem:
    """Linear regression on random data: the gradient of a file in closed form."""

    def __init__(self, samples: int = 70) -> None:
        source = torch.Generator().manual_seed(0)
        self.x = torch.randn(samples, FEATURES, generator=source)
        self.y = torch.randn(samples, OUTPUTS, generator=source)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    def compute(self, place: Place, indices: Tensor, files: Sequence[int]) -> list[Tensor]:
        """Return each file's gradient of half the mean squared error."""
        weight = place.vector.view(OUTPUTS, FEATURES)
        made = []
        for file in files:
            x, y = self.x[indices[file]], self.y[indices[file]]
            made.append((((x @ weight.T - y).T @ x) / len(x)).flatten())
        return made


def play(
    choices: Sequence[int], *, workers: int, q: int, rounds: int, detection: str = "contested"
) -> Counter[str]:
    """Run some rounds against an adversary; return what happened.

    Raises
    ------
    AssertionError
        If the invariant is broken.
    """
    adversary = Adversary(choices, frozenset(random.Random(choices[0]).sample(range(workers), q)))
    problem = Problem()
    values = FileGradients(problem.compute)
    turn: list[int] = [0]

    def app(message: Message, context: Context) -> Message | None:
        task = read_task(message, context)
        values.turn_to(task.vector, task.statistics, task.plan)
        if turn[0] != task.plan.round:
            turn[0] = task.plan.round
            adversary.new_round(values)
        if task.worker not in adversary.byzantine:
            return answer(message, values, honest(values, task.worker))
        copies = adversary.copies(values, task.worker)
        return adversary.spoil(message, answer(message, values, copies))

    # Aspis has a file for every three of the workers: C(5, 3) or C(7, 3).
    files = 10 if workers == 5 else 35
    strategy = RedundantStrategy(
        model=lambda: nn.Linear(FEATURES, OUTPUTS, bias=False), loss=None, data=problem,
        workers=workers, replication=3, q=q, detection=detection, batch=2 * files,
        server_lr=1.0, secret=2**70 + choices[0],
    )  # fmt: skip
    grid = Saboteur(InProcessGrid(app, clients=workers, run_config={}), adversary)
    arrays, seen = array_of(model=torch.zeros(LENGTH)), Counter[str]()
    for number in range(1, rounds + 1):
        before = tensor_of(arrays["model"])
        asked = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        stepped, _ = strategy.aggregate_train(number, grid.send_and_receive(asked))
        row = strategy.history[-1]
        seen.update(["rounds", str(row.get("path", "kept"))])
        convicted = {int(w) for w in {**row.get("proven", {}), **row.get("caught", {})}}
        assert convicted <= adversary.byzantine, (convicted, adversary.byzantine, row)
        if stepped is None:
            continue
        arrays = array_of(model=0.2 * tensor_of(stepped["model"]) + 0.8 * before)
        true = values.all_values()
        step = before - tensor_of(stepped["model"])
        _check(step, true, strategy.kept, str(row["path"]))
        seen["caught"] += len(row["caught"])
    return seen


def _check(step: Tensor, true: Tensor, kept: Sequence[int], path: str) -> None:
    """Compare a step with what the true values allow."""
    if path == "sum":
        rows = true[list(kept)]
        gap = torch.linalg.vector_norm(step - rows.mean(0))
        # Beside the promise, the rounding of the step itself.
        allowed = STATED * torch.linalg.vector_norm(rows, dim=1).mean() + 1e-6
        assert gap <= allowed, f"a step off by {gap:.3g}, {allowed:.3g} is stated"
        return
    low, high = true.min(0).values - 1e-5, true.max(0).values + 1e-5
    assert bool(((step >= low) & (step <= high)).all()), "a step outside of the true files"


def main() -> None:
    """Play until so many rounds are over; print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source, seen, began, games = random.Random(options.seed), Counter[str](), time.time(), 0
    while seen["rounds"] < options.rounds:
        workers, q = CASES[source.choice((0, 1, 1, 2, 3))]
        choices = [source.randrange(2**16) for _ in range(source.randint(5, 200))]
        seen += play(choices, workers=workers, q=q, rounds=5)
        games += 1
    told = {"games": games, **seen, "violations": 0, "seconds": round(time.time() - began, 1)}
    print(json.dumps(told) if options.json else "\n".join(f"{k}: {v}" for k, v in told.items()))


if __name__ == "__main__":
    main()
