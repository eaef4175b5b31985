"""What Byzantine file workers take over from the round before, each in its own node's state.

All of one round are the same attacker: they remember the same. Whoever was not there in the last
round, with the same others, begins afresh as they do; so they agree whatever hosts they are on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from torch import Tensor

from fedrobust.flower import array_of
from fedrobust.flower.node_state import tensor_in
from fedrobust.redundancy import Window

FACTS, WINDOW = "attackers", "attackers-window"
ATTACK, RULE, SENT = "attack-state", "rule-memory", "attackers-sent"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is known when a round begins.

    Attributes
    ----------
    attack, rule
        What the attack and the rule remember, tables of tensors; None: nothing.
    window
        The state of detection "window".
    model
        The last round's parameters (d,).
    sent
        What was crafted in this very round, and the notes of it: a round has several stages.
    """

    attack: dict[str, Tensor] | None = None
    rule: dict[str, Tensor] | None = None
    window: Window | None = None
    model: Tensor | None = None
    sent: Tensor | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


def recall(context: Context, *, server_round: int, workers: tuple[int, ...]) -> Memory:
    """Return what a node knows; nothing where others were Byzantine in the last round."""
    facts = context.state.get(FACTS)
    if not isinstance(facts, ConfigRecord) or facts["workers"] != list(workers):
        return Memory()
    sent = _table(context, SENT) or {}
    if facts["round"] == server_round:
        return Memory(sent=sent.get("vector"))
    if facts["round"] != server_round - 1:
        return Memory()
    return Memory(
        attack=_table(context, ATTACK),
        rule=_table(context, RULE),
        window=_window(context),
        model=sent.get("model"),
    )


def keep(context: Context, known: Memory, *, server_round: int, workers: tuple[int, ...]) -> None:
    """Write down what is known after crafting: for the later stages, and for the next round."""
    assert known.sent is not None and known.model is not None, "something was crafted"
    context.state[FACTS] = ConfigRecord({"round": server_round, "workers": list(workers)})
    context.state[SENT] = array_of(vector=known.sent, model=known.model)
    for key, table in ((ATTACK, known.attack), (RULE, known.rule)):
        if table is not None:
            context.state[key] = array_of(**table)
        elif key in context.state:
            del context.state[key]
    if known.window is not None:
        w = asdict(known.window)
        flat = known.window.disagreed.flatten().int().tolist()
        context.state[WINDOW] = ConfigRecord(
            {"iteration": w["iteration"], "disagreed": flat, "flagged": list(w["flagged"])}
        )


def _table(context: Context, key: str) -> dict[str, Tensor] | None:
    found = context.state.get(key)
    if not isinstance(found, ArrayRecord):
        return None
    return {name: tensor_in(array) for name, array in found.items()}


def _window(context: Context) -> Window | None:
    found: Any = context.state.get(WINDOW)
    if found is None:
        return None
    flat = torch.tensor(found["disagreed"], dtype=torch.bool)
    side = int(len(flat) ** 0.5)
    return Window(found["iteration"], flat.view(side, side), tuple(found["flagged"]))
