"""A host's side of a cohort: one message for many clients, one reply of them all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedrobust.failures import PluginError
from fedrobust.flower.blocks import pack
from fedrobust.flower.in_process import Together, answer, stamp
from fedrobust.flower.serialization import read_setting
from fedrobust.flower.shared_rows import Dealt, dealt
from fedrobust.flower.update_matrix import UpdateMatrix

COHORT = "fedrobust.cohort"
ROWS = "fedrobust.rows"  # the handle of the rows that the clients' updates are written into
STATUS = "status"
REMEMBERS = "remembers"
MISTAKE = "PluginError: "  # begins the reason of a reply that an attack's own mistake cost
Handler = Callable[[Message, Context], Message | None]


def serve_cohort(
    handler: Handler,
    message: Message,
    context: Context,
    *,
    together: Together | None = None,
    shares: bool = True,
) -> Message | None:
    """Answer a host's message by calling ``handler`` once for each logical client in it.

    A message without a cohort goes to the handler as it is.

    Parameters
    ----------
    together
        Answers for all of them instead: (messages, contexts, matrix) -> replies.
    shares
        Whether the host may write into rows that the server shares with it: in a simulation that
        started the host itself. Else updates leave this process as bytes.
    """
    if COHORT not in message.content:
        return handler(message, context)
    clients = list(read_setting(message.content, COHORT, "clients"))
    of = int(read_setting(message.content, COHORT, "of"))
    content = RecordDict({k: r for k, r in message.content.items() if k not in (COHORT, ROWS)})
    contexts = _own_contexts(context, clients, of)
    # One content for all: nobody writes into what it was handed.
    asked = [Message(content, reply_to=message) for _ in clients]
    for client, inner in zip(clients, asked, strict=True):
        stamp(inner, f"{message.metadata.message_id}/{client}")
    rows = _rows(message.content, clients) if shares else None
    matrix = (
        UpdateMatrix(len(clients)) if rows is None else UpdateMatrix.over(rows.rows, rows.slots)
    )
    one_by_one = (answer(handler, m, c) for m, c in zip(asked, contexts, strict=True))
    answers = together(asked, contexts, matrix) if together else one_by_one
    status: dict[str, str] = {}
    contents: dict[int, RecordDict] = {}
    try:
        for client, own, answered in zip(clients, contexts, answers, strict=True):
            if answered is None or answered.has_error():
                said = "silent" if answered is None else f"error: {answered.error.reason}"
                status[str(client)] = said
            else:
                contents[client] = answered.content
            _keep_state(context, client, own.state)
    except PluginError as error:  # an exception ends at the host; its server ends the run on this
        word = f"error: {MISTAKE}{error}"
        status |= {str(c): word for c in clients if c not in contents and str(c) not in status}
    reply = pack(contents, matrix, rows)
    reply[STATUS] = ConfigRecord({**status, REMEMBERS: bool(context.state)})
    return Message(reply, reply_to=message)


def _rows(content: RecordDict, clients: Sequence[int]) -> Dealt | None:
    """Return the rows that the server tells this host to write; None for bytes."""
    told = content.get(ROWS)
    return dealt(dict(told), clients) if isinstance(told, ConfigRecord) else None


def _own_contexts(context: Context, clients: Sequence[int], of: int) -> list[Context]:
    """Return each client's context, with its part of what the host remembers."""
    states: Mapping[str, dict[str, Any]] = defaultdict(dict)
    for key, record in context.state.items():
        client, _, name = key.partition("/")
        states[client][name] = record
    return [
        Context(
            run_id=context.run_id,
            node_id=client + 1,
            node_config={**context.node_config, "partition-id": client, "num-partitions": of},
            state=RecordDict(states.get(str(client), {})),
            run_config=context.run_config,
        )
        for client in clients
    ]


def _keep_state(context: Context, client: int, state: RecordDict) -> None:
    for key, record in state.items():
        context.state[f"{client}/{key}"] = record
