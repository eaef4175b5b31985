"""Fuzz the gate and the collector: requests and replies of a node's own making.

``python -m experiments.benchmarks.fuzz_gate --inputs 20000`` from a checkout, with Hypothesis
installed, prints one JSON line. Half of the inputs are requests on the nodes' routes (damaged,
truncated, in others' names, with trees of any shape), half are sets of replies to the collector. A
finding is an exception that gets through, an answer that the gate does not give, memory that a
request leaves behind though Flower refused it, or a reply counted for a node that did not send it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from typing import Any

import typer
from flwr.app import Error, Message, RecordDict
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from experiments.deploy.gate import Gate
from experiments.deploy.gate_ledger import Limits, Node, Told
from fedrobust.flower import _compat as flower
from fedrobust.flower.in_process import stamp
from fedrobust.flower.replies import SUPERLINK, collect
from tests import hostile

ROUTES = ("pull-messages", "push-messages", "push-object", "pull-object",
          "confirm-message-received", "get-run", "send-node-heartbeat", "none")  # fmt: skip
ALLOWED = {200, 400, 403, 408, 409, 413, 418, 503}
KNOWN, OTHER, UNKNOWN = 5, 7, 9
NAMES = [f"{i:064x}" for i in range(6)] + ["", "x", "\x00" * 64]
SENT = [stamp(Message(RecordDict(), node, "train"), f"to {node}") for node in (KNOWN, OTHER)]


async def behind(scope: Any, receive: Any, send: Any) -> None:
    """Answer like Flower: sometimes no, sometimes nonsense."""
    event = await receive()
    refuses = sum(event.get("body", b"")) % 3 == 0
    await send({"type": "http.response.start", "status": 418 if refuses else 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def request_of(draw: random.Random) -> tuple[str, bytes]:
    """Make one request: valid, of anybody, about anything; then, often, damaged."""
    route = draw.choice(ROUTES)
    kinds = {
        "pull-messages": flower.PullMessagesRequest,
        "push-messages": flower.PushMessagesRequest,
        "push-object": flower.PushObjectRequest,
        "pull-object": flower.PullObjectRequest,
        "confirm-message-received": flower.ConfirmMessageReceivedRequest,
    }
    request = kinds.get(route, flower.PullMessagesRequest)()
    request.node.node_id = draw.choice((KNOWN, OTHER, UNKNOWN, 2**64 - 1))
    if route in ("push-object", "pull-object"):
        request.object_id = draw.choice(NAMES[:7])
    if route == "push-object":
        request.object_content = draw.randbytes(draw.choice((0, 10, 3000)))
    if route == "confirm-message-received":
        request.message_object_id = draw.choice(NAMES[:7])
    for _ in range(draw.choice((0, 1, 1, 1, 2)) if route == "push-messages" else 0):
        data = request.messages_list.add().metadata
        data.message_id, data.reply_to_message_id = draw.choice(NAMES[:7]), draw.choice(NAMES[:7])
        data.src_node_id = draw.choice((request.node.node_id, OTHER))
        tree = request.message_object_trees.add()
        tree.object_id = draw.choice((data.message_id, NAMES[0]))
        for _ in range(draw.choice((0, 1, 5, 40))):
            tree = draw.choice((tree, request.message_object_trees[-1])).children.add()
            tree.object_id = draw.choice(NAMES[:7])
    content = bytearray(request.SerializeToString())
    for _ in range(draw.choice((0, 0, 0, 0, 1, 3))):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    end = draw.choice((None, None, None, None, None, draw.randrange(len(content) + 1)))
    return route, bytes(content[:end])


def ask(gate: Gate, route: str, body: bytes, source: str) -> int:
    """Send one request through the gate; return the status of the answer."""
    answers: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Any) -> None:
        answers.append(event)

    length = str(len(body)).encode()
    scope = {"type": "http", "path": f"/v1/fleet/{route}", "client": (source, 1),
             "server": ("127.0.0.1", 2), "headers": [(b"content-length", length)]}  # fmt: skip
    asyncio.run(gate(scope, receive, send))
    return int(answers[0]["status"])


def fuzz_gate(inputs: int, start: int, findings: list[str]) -> Counter[str]:
    """Send requests; note what was answered and what must not be."""
    draw, outcomes = random.Random(start), Counter[str]()
    gate = Gate(behind, limits=Limits(objects=16, depth=5, reply_bytes=5000))
    for number in range(inputs):
        # Anew from time to time: what was pushed once is refused, or passed over, from then on.
        if number % 200 == 0:
            told = Told(frozenset(NAMES[:4]), time.time() + 60)
            nodes = {node: Node(dict.fromkeys(NAMES[:3], told)) for node in (KNOWN, OTHER)}
            gate._ledger._nodes = nodes
        route, body = request_of(draw)
        try:
            status = ask(gate, route, body, draw.choice(("127.0.0.1", "10.0.0.1", "")))
        except Exception as error:
            findings.append(f"{route}: raises {error!r:.200}")
            continue
        outcomes[f"{route} {status}"] += 1
        if status not in ALLOWED:
            findings.append(f"{route}: answers {status}")
        pushed = [reply for node in nodes.values() for reply in node.pushed.values()]
        if set(nodes) != {KNOWN, OTHER} or gate._waiting or len(pushed) > 6:
            findings.append(f"{route}: leaves something behind")
        if any(reply.stored > 5000 or len(reply.objects) > 16 for reply in pushed):
            findings.append(f"{route}: beyond the bounds")
    return outcomes


def fuzz_collector(inputs: int, start: int, findings: list[str]) -> Counter[str]:
    """Show sets of replies, some in others' names, to the collector and the screens behind it."""
    outcomes: Counter[str] = Counter()

    @seed(start)
    @settings(max_examples=inputs, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(hostile.REPLIES, st.randoms(use_true_random=False))
    def judge(pushed: Any, draw: random.Random) -> None:
        outcomes["inputs"] += 1
        made = hostile.read(*pushed)
        if isinstance(made, str):
            made = Message(Error(draw.choice((2, 3, 11)), made), reply_to=SENT[0])
        source = draw.choice((KNOWN, OTHER, UNKNOWN, SUPERLINK))
        made.metadata.__dict__["_src_node_id"] = source
        made.metadata.__dict__["_reply_to_message_id"] = draw.choice(("to 5", "to 7", "to 9", ""))
        screens: dict[str, Any] = hostile.SCREENS
        for kind, screen in screens.items():
            try:
                # Twice: the second must never count.
                found = collect(SENT, [made, made], screen)
            except Exception as error:
                findings.append(f"{kind}: raises {error!r:.200}")
                continue
            if any(node != source or not hostile.sound(value)
                   for node, value in found.accepted.items()):  # fmt: skip
                findings.append(f"{kind}: counts what it must not")
            if set(found.accepted) | set(found.refused) != {KNOWN, OTHER}:
                findings.append(f"{kind}: loses a node")
            if not all(reason.isprintable() for reason in found.refused.values()):
                findings.append(f"{kind}: a reason that is not printable")
            outcomes[f"{kind} accepted"] += len(found.accepted)

    judge()
    return outcomes


def main(inputs: int = 20_000, start: int = 0) -> None:
    """Run a campaign and print what was found."""
    logging.getLogger("fedrobust.gate").setLevel(logging.ERROR)
    began, findings = time.monotonic(), list[str]()
    answered = fuzz_gate(inputs // 2, start, findings)
    collected = fuzz_collector(inputs - inputs // 2, start, findings)
    line = {"inputs": inputs, "findings": len(findings), "first": findings[:5],
            "gate": dict(sorted(answered.items())), "collector": dict(sorted(collected.items())),
            "seed": start, "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
    typer.echo(json.dumps(line))
    raise typer.Exit(1 if findings else 0)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
