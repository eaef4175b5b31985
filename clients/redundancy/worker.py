"""The file worker: it commits to one gradient per file, and reveals those that it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from flwr.app import Context, Message
from torch import Tensor

from clients.node import Node
from clients.redundancy.byzantine import ByzantineWorkers, liars_of
from clients.redundancy.gradients import FileGradients, open_bench
from fedrobust.attacks import threat_model
from fedrobust.flower import array_of, commit_reveal, read_setting, read_tensor
from fedrobust.redundancy.draco import encode_cyclic

MODEL = "model"


@dataclass(frozen=True)
class WorkerValues:
    """One worker's copies of its files.

    Attributes
    ----------
    client
        Its number.
    files
        The files it holds, in order.
    value, digest, sketches
        What it sends for a file, what it commits to, and the sketches of several files.
    """

    client: int
    files: list[int]
    value: Callable[[int], Tensor]
    digest: Callable[[int], bytes]
    sketches: Callable[..., Tensor]


def answer(node: Node, message: Message, context: Context) -> Message | None:
    """Answer one stage of a round as the worker that this node is, honest or not."""
    client = int(context.node_config["partition-id"])
    round = int(read_setting(message.content, "config", "round"))
    experiment = node.experiment
    liar = client in threat_model.members(experiment, round=round)
    if liar and threat_model.kind(experiment.attack["name"]) == "fault":
        return FAULTY[experiment.attack["name"]](message)
    bench = open_bench(node, _model(message, context), round)
    copies = _lying(liars_of(bench), bench, client) if liar else _honest(bench, client)
    return ANSWERS[str(commit_reveal.setting(message, "stage"))](message, bench, copies)


def _model(message: Message, context: Context) -> Tensor:
    """Return the round's model: it comes with the first stage and is kept for the others."""
    if "arrays" in message.content:
        vector = read_tensor(message.content, "arrays", "model")
        context.state[MODEL] = array_of(model=vector)
        return vector
    return read_tensor(context.state, MODEL, "model")


def _honest(bench: FileGradients, client: int) -> WorkerValues:
    return WorkerValues(
        client, bench.files_of(client), bench.gradient, bench.digest, bench.sketches
    )


def _lying(liars: ByzantineWorkers, bench: FileGradients, client: int) -> WorkerValues:
    """Wrap the honest copies: lie from the commitment on, or only in what is revealed."""
    honest = _honest(bench, client)
    if bench.experiment.redundancy.lies == "reveal":
        return replace(honest, value=lambda file: liars.value(client, file))
    return replace(
        honest,
        value=lambda file: liars.value(client, file),
        digest=lambda file: liars.digest(client, file),
        sketches=lambda files, **settings: liars.sketches(client, files, **settings),
    )


def _commit(message: Message, bench: FileGradients, copies: WorkerValues) -> Message:
    return commit_reveal.digests_reply(message, [copies.digest(file) for file in copies.files])


def _sketch(message: Message, bench: FileGradients, copies: WorkerValues) -> Message:
    seed, size = (
        int(commit_reveal.setting(message, "seed")),
        int(commit_reveal.setting(message, "size")),
    )
    return commit_reveal.sketches_reply(
        message, copies.sketches(copies.files, seed=seed, size=size)
    )


def _reveal(message: Message, bench: FileGradients, copies: WorkerValues) -> Message:
    start, stop = (int(commit_reveal.setting(message, key)) for key in ("start", "stop"))
    files = _own(message, copies)
    values = {str(file): copies.value(file)[start:stop] for file in files}
    return commit_reveal.values_reply(message, values)


def _sum(message: Message, bench: FileGradients, copies: WorkerValues) -> Message:
    total = bench.total(_own(message, copies), copies.value)
    return commit_reveal.values_reply(message, {"sum": total})


def _code(message: Message, bench: FileGradients, copies: WorkerValues) -> Message:
    """DRACO: one complex combination of the worker's tasks, as its real and imaginary parts."""
    tasks = torch.zeros(bench.assignment.files, bench.d)
    for file in copies.files:
        tasks[file] = copies.value(file)
    s = (bench.experiment.redundancy.replication - 1) // 2
    combination = encode_cyclic(tasks, s=s)[copies.client]
    parts = torch.view_as_real(combination).T.contiguous()
    return commit_reveal.values_reply(message, {"code": parts})


def _own(message: Message, copies: WorkerValues) -> list[int]:
    """Return the files asked for; a worker computes none that it does not hold."""
    asked = [int(file) for file in commit_reveal.setting(message, "files")]
    if strange := sorted(set(asked) - set(copies.files)):
        raise ValueError(f"asked for files that this worker does not hold: {strange[:5]}")
    return asked


ANSWERS: dict[str, Callable[[Message, FileGradients, WorkerValues], Message]] = {
    "commit": _commit,
    "sketch": _sketch,
    "reveal": _reveal,
    "sum": _sum,
    "code": _code,
}
assert set(ANSWERS) == set(commit_reveal.STAGES), "each stage needs its answer"


def _silence(message: Message) -> None:
    return None


def _exception(message: Message) -> Message:
    raise RuntimeError("a malicious worker raises on purpose")


def _garbage(message: Message) -> Message:
    return commit_reveal.digests_reply(message, [b"no digest"])


FAULTY: dict[str, Callable[[Message], Message | None]] = {
    "silence": _silence,
    "exception": _exception,
    "garbage": _garbage,
}
