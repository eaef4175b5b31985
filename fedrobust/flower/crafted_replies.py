"""An attack on the replies of anybody's app: honest replies in, Byzantine ones out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor

from fedrobust import attacks
from fedrobust.attacks import ATTACKS, POISONS
from fedrobust.flower.broken_replies import BROKEN, NotApplicable
from fedrobust.flower.model_replies import (
    Layout,
    ModelReply,
    Refused,
    Sent,
    agreed,
    layout_of,
    read_reply,
)
from fedrobust.flower.model_vectors import Known, arrays_of, known_of, matrix_of, starts_of
from fedrobust.spec import Spec, SpecError, parameters, split, suggest

Attack = Spec | Callable[..., Tensor]


@dataclass(frozen=True)
class Crafted:
    """What Byzantine nodes send in the place of their own replies.

    Attributes
    ----------
    replies
        Node -> its reply, or None for silence; nodes whose reply stays as it is are missing.
    untouched
        Node -> why its own reply stays.
    """

    replies: dict[int, Message | None]
    untouched: dict[int, str]


def check_attack(attack: Attack) -> None:
    """Check an attack's name.

    Raises
    ------
    SpecError
        For an unknown one, or one that needs the client's data.
    """
    if callable(attack):
        return
    plain, _ = attacks.knowledge(attack)
    name, given = split(plain)
    if name in POISONS:
        raise SpecError(f"attack {name!r} changes a client's data, which only its own code sees")
    if name not in ATTACKS and name not in BROKEN:
        raise SpecError(f"unknown attack {name!r}; {suggest(name, [*ATTACKS, *BROKEN])}")
    if name in BROKEN and given:
        raise SpecError(f"attack {name!r} has no parameters, got {', '.join(given)}")


def attack_replies(
    attack: Attack,
    sent: Sent,
    replies: Mapping[int, Message],
    byzantine: Sequence[int],
    *,
    n: int,
    server_round: int = 0,
    knowledge: str = "omniscient",
    generator: torch.Generator | None = None,
) -> Crafted:
    """Replace the replies of Byzantine nodes, whose own code has run.

    Parameters
    ----------
    attack
        One of ``ATTACKS`` on the floating arrays, one of ``BROKEN``, or a function
        ``(honest, *, n, f) -> (f, d)``.
    replies
        Node -> its honest reply, of all nodes that answered.
    byzantine
        Nodes that send what the attack says.
    n
        How many nodes were asked.
    knowledge
        "omniscient": the attack sees the updates of all other nodes; "colluding" or "own": those
        of the Byzantine nodes.

    Raises
    ------
    ValueError
        What the attack itself raises in the first round; later its nodes answer honestly.
    """
    own = [node for node in byzantine if node in replies]
    if not callable(attack) and split(attack)[0] in BROKEN:
        return _broken(split(attack)[0], sent, replies, own)
    readable = []
    untouched = {}
    for node in sorted(replies):
        try:
            readable.append(read_reply(replies[node], node))
        except Refused as error:
            untouched[node] = f"its own reply cannot be read: {error}"
    readable = _alike(readable)
    mine = [reply for reply in readable if reply.node in own]
    layout = agreed([layout_of(reply.values, {}) for reply in readable])
    if not mine or layout is None or not layout.coordinates:
        reason = "its reply holds no floating array"
        return Crafted({}, {node: untouched.get(node, reason) for node in own})
    # Where no honest node was read an omniscient attacker is left with its own.
    seen = [r for r in readable if (r.node in own) == (knowledge != "omniscient")] or mine
    starts = starts_of(readable, layout, sent)
    view, honest = matrix_of(seen, layout, starts), matrix_of(mine, layout, starts)
    n, f = max(n, len(mine)), len(mine)
    try:
        if callable(attack):
            rows = attack(view, n=n, f=f)
        else:
            rows = _crafted(
                attack, view, honest, known_of(layout, starts),
                n=n, f=f, round=server_round, generator=generator,
            )  # fmt: skip
    except SpecError:
        raise
    except ValueError as error:  # a later round may be too small for an attack: it waits
        if not server_round:
            raise
        return Crafted({}, {reply.node: str(error) for reply in mine})
    return _written(rows, honest, mine, layout, starts, sent)


def _crafted(attack: Spec, view: Tensor, own: Tensor, known: Known, **given: Any) -> Tensor:
    """Craft in the laboratory's sign where the global model counts: updates are subtracted there.

    Here an update is what a client adds to the model.
    """
    wanted = parameters(ATTACKS[split(attack)[0]])
    told = {key: compute() for key, compute in known.items() if key in wanted}
    if "model" not in told:
        return attacks.craft(view, attack, own=own, **given, **told)
    return -attacks.craft(-view, attack, own=-own, **given, **told)


def _alike(readable: list[ModelReply]) -> list[ModelReply]:
    """Keep the replies with the layout of most: the attack needs one matrix."""
    layouts = [layout_of(reply.values, {}) for reply in readable]
    usual = agreed(layouts)
    if usual is None:
        return []
    return [r for r, own in zip(readable, layouts, strict=True) if own.slots == usual.slots]


def _broken(
    name: str, sent: Sent, replies: Mapping[int, Message], byzantine: Sequence[int]
) -> Crafted:
    made: dict[int, Message | None] = {}
    untouched = {}
    for node in byzantine:
        if replies[node].has_error():
            untouched[node] = "its own reply is an error"
            continue
        try:
            made[node] = BROKEN[name](sent.messages[node], replies[node])
        except (NotApplicable, Refused) as reason:
            untouched[node] = str(reason)
    return Crafted(made, untouched)


def _written(
    rows: Tensor,
    honest: Tensor,
    mine: list[ModelReply],
    layout: Layout,
    starts: dict[int, dict[tuple[str, str], np.ndarray]],
    sent: Sent,
) -> Crafted:
    """Write crafted updates into the nodes' own replies; all else of them stays."""
    made: dict[int, Message | None] = {}
    untouched = {}
    for row, own, reply in zip(rows, honest, mine, strict=True):
        if torch.equal(row.to(own), own):
            untouched[reply.node] = "the attack sends what the node would have sent"
            continue
        others = {key: reply.values[key] for key in layout.others}
        dtypes = {key: reply.values[key].dtype for key in layout.coordinates}
        with np.errstate(over="ignore"):  # a huge step in float16 is infinite: so be it
            arrays = arrays_of(layout, starts[reply.node], row.to(own), others, dtypes)
        content = RecordDict()
        for name, held in reply.content.items():
            if isinstance(held, ArrayRecord):
                content[name] = ArrayRecord()
                for key in held:
                    content.array_records[name][key] = arrays[name, key]
            else:
                content[name] = held
        made[reply.node] = Message(content, reply_to=sent.messages[reply.node])
    return Crafted(made, untouched)
