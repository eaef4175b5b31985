"""How a file worker answers each stage of a round, honest or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import Context, Message
from torch import Tensor

from clients.redundancy.gradients import FileGradients
from fedrobust.flower import commit_reveal, read_tensor
from fedrobust.redundancy.draco import combination, split_floats
from fedrobust.redundancy.file_gradient import profile
from fedrobust.redundancy.plan import FilePlan, plan_from

MODEL, ORDER = "model", "order"
OPENING = ("profile", "commit", "code")  # stages that bring the model and the plan


@dataclass(frozen=True)
class WorkerValues:
    """One worker's copies of its files.

    Attributes
    ----------
    worker
        Its number.
    files
        The files it holds, in order.
    value, digest, sketches
        What it sends for a file, what it commits to, and the sketches of several files.
    """

    worker: int
    files: list[int]
    value: Callable[[int], Tensor]
    digest: Callable[[int], bytes]
    sketches: Callable[..., Tensor]


@dataclass(frozen=True)
class Task:
    """What a worker was told in this round: the model, the plan, and which worker it is."""

    vector: Tensor
    statistics: Tensor
    plan: FilePlan
    worker: int


def read_task(message: Message, context: Context) -> Task:
    """Read the round's task; it comes with the first stage and is kept for the others.

    Raises
    ------
    ValueError
        If this node is none of the workers, or has not seen the round's first stage.
    """
    stage = str(commit_reveal.setting(message, "stage"))
    if stage in OPENING:
        # As they came: to build them anew costs more than all else that a small round needs here,
        # and a tensor that is the same object is known to be the same model.
        context.state[MODEL] = message.content["arrays"]
        context.state[ORDER] = message.content[commit_reveal.SCHEME]
    if MODEL not in context.state or ORDER not in context.state:
        raise ValueError(f"stage {stage!r} came to a node that has not seen the round's first one")
    told = context.state[ORDER]
    names = told["nodes"]
    nodes = list(names) if isinstance(names, list) else []
    if str(context.node_id) not in nodes:
        raise ValueError(f"node {context.node_id} is none of the {len(nodes)} workers")
    tracked = "statistics" in context.state[MODEL]
    return Task(
        read_tensor(context.state, MODEL, "model"),
        read_tensor(context.state, MODEL, "statistics") if tracked else torch.empty(0),
        plan_from(told),
        nodes.index(str(context.node_id)),
    )


def honest(gradients: FileGradients, worker: int) -> WorkerValues:
    """Return an honest worker's copies."""
    files = gradients.files_of(worker)
    return WorkerValues(worker, files, gradients.value, gradients.digest, gradients.sketches)


def answer(message: Message, gradients: FileGradients, copies: WorkerValues) -> Message:
    """Answer one stage.

    Raises
    ------
    ValueError
        For an unknown stage, or files that this worker does not hold.
    """
    stage = str(commit_reveal.setting(message, "stage"))
    if stage not in ANSWERS:
        raise ValueError(f"unknown stage {stage!r}: server and worker are of different versions")
    return ANSWERS[stage](message, gradients, copies)


def _profile(message: Message, gradients: FileGradients, copies: WorkerValues) -> Message:
    """Say which bits this machine computes: every worker computes file 0, whoever holds it."""
    return commit_reveal.profile_reply(message, profile(), gradients.digest(0))


def _commit(message: Message, gradients: FileGradients, copies: WorkerValues) -> Message:
    return commit_reveal.digests_reply(message, [copies.digest(file) for file in copies.files])


def _sketch(message: Message, gradients: FileGradients, copies: WorkerValues) -> Message:
    seed, size = (int(commit_reveal.setting(message, key)) for key in ("seed", "width"))
    made = copies.sketches(_own(message, copies), seed=seed, size=size)
    return commit_reveal.sketches_reply(message, made)


def _reveal(message: Message, gradients: FileGradients, copies: WorkerValues) -> Message:
    start, stop = (int(commit_reveal.setting(message, key)) for key in ("start", "stop"))
    files = _own(message, copies)
    values = {str(file): copies.value(file)[start:stop] for file in files}
    return commit_reveal.values_reply(message, values)


def _sum(message: Message, gradients: FileGradients, copies: WorkerValues) -> Message:
    """Add up each group of files, in the order asked."""
    left = _own(message, copies)
    sums: dict[str, Tensor] = {}
    for place, length in enumerate(commit_reveal.setting(message, "lengths")):
        sums[str(place)] = gradients.total(left[:length], copies.value)
        left = left[length:]
    return commit_reveal.values_reply(message, sums)


def _code(message: Message, gradients: FileGradients, copies: WorkerValues) -> Message:
    """DRACO: one complex combination of the worker's tasks, in double precision."""
    plan = gradients.place.plan
    tasks = {file: copies.value(file) for file in copies.files}
    s = (plan.replication - 1) // 2
    made = combination(copies.worker, tasks, workers=plan.workers, s=s)
    return commit_reveal.values_reply(message, {"code": split_floats(made)})


def _own(message: Message, copies: WorkerValues) -> list[int]:
    """Return the files asked for; a worker computes none that it does not hold."""
    asked = [int(file) for file in commit_reveal.setting(message, "files")]
    if strange := sorted(set(asked) - set(copies.files)):
        raise ValueError(f"asked for files that this worker does not hold: {strange[:5]}")
    return asked


ANSWERS: dict[str, Callable[[Message, FileGradients, WorkerValues], Message]] = {
    "profile": _profile,
    "commit": _commit,
    "sketch": _sketch,
    "reveal": _reveal,
    "sum": _sum,
    "code": _code,
}
assert set(ANSWERS) == set(commit_reveal.STAGES), "each stage needs its answer"
