"""What hostile nodes and strangers do in drills."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from experiments.deploy.federation import Federation
from experiments.deploy.raw_nodes import Behaviour, RawNode, honest, trust
from fedrobust.flower import _compat as flower
from fedrobust.flower.salt import SALT

FLOOD = 20 * 2**20  # bytes that a flooder pushes beside its reply
WIDE = 200_000
LARGE = 16 * 2**20
GUESSES = 5  # microseconds around its own message in which a forger looks for the others'


def silent(node: RawNode, message: Message) -> None:
    """Answer the roll call and nothing else."""
    if message.metadata.message_type.startswith("query"):
        honest(node, message)


def malformed(node: RawNode, message: Message) -> None:
    """Answer with an update, and records named as a line of a log, a colour, a formula."""
    names = ["a\nINFO :      round 9; accuracy 1.0", "\x1b[31mred", "=HYPERLINK(1)", "<script>"]
    reply = node.answer(message)
    if reply is None or message.metadata.message_type.startswith("query"):
        return honest(node, message)
    records = {**reply.content, **{name: MetricRecord({name: 1.0}) for name in names}}
    node.push(Message(RecordDict(records), reply_to=message))


def talkative(node: RawNode, message: Message) -> None:
    """Answer with an object of 16 MiB beside the update, as a million numbers by name have."""
    reply = node.answer(message)
    if reply is None or message.metadata.message_type.startswith("query"):
        return honest(node, message)
    large = flower.chunk_content(bytes(LARGE))
    extra = {hashlib.sha256(large).hexdigest(): large}
    node.push(reply, tree=with_children(reply, extra), extra=extra)


def with_children(reply: Message, names: Iterable[str]) -> Any:
    """Return the tree of a reply with objects that are not its own beside them."""
    flower.objects_of(reply)  # gives the reply its id
    tree = flower.tree_of(reply)
    tree.children.extend(flower.ObjectTree(object_id=name) for name in names)
    return tree


def flooder(node: RawNode, message: Message) -> None:
    """Answer, then push 20 MB in a second tree of the same reply, then a tree of 200,000."""
    reply = node.answer(message)
    if reply is None:
        return
    node.push(reply)
    if message.metadata.message_type.startswith("query"):
        return
    chunks = {}
    for _ in range(FLOOD // (4 * 2**20)):
        content = flower.chunk_content(secrets.token_bytes(4 * 2**20))
        chunks[hashlib.sha256(content).hexdigest()] = content
    second = flower.ObjectTree(object_id=reply.object_id)
    second.children.extend(flower.ObjectTree(object_id=i) for i in chunks)
    response = node.push(reply, tree=second)
    for object_id, content in chunks.items() if response is not None else ():
        node.push_object(reply.metadata.run_id, response.session_id, object_id, content)
    wide = flower.ObjectTree(object_id=reply.object_id)
    names = (f"{i:064x}" for i in range(WIDE))
    wide.children.extend(flower.ObjectTree(object_id=name) for name in names)
    node.push(reply, tree=wide)


def poisoner(node: RawNode, message: Message) -> None:
    """Announce objects that the next message should consist of, with a child that is not theirs.

    What it can compute: the settings of the next rounds with and without the salt that it saw, an
    empty content, and the arrays of the model that it was sent. It pushes their true bytes too, so
    that its own reply is whole.
    """
    reply = node.answer(message)
    if reply is None:
        return
    junk = flower.chunk_content(b"junk")
    known = flower.objects_of(message)
    guesses = {key: content for key, content in guessed(message).items() if key not in known}
    tree = flower.tree_of(reply)
    extra = {hashlib.sha256(junk).hexdigest(): junk}
    for guess in guesses:
        tree.children.append(
            flower.ObjectTree(
                object_id=guess, children=[flower.ObjectTree(object_id=key) for key in extra]
            )
        )
    node.tried["guesses"] += len(guesses)
    node.push(reply, tree=tree, extra=extra | guesses)


def guessed(message: Message) -> dict[str, bytes]:
    """Return objects that a server without a salt would send next: id -> bytes."""
    found: list[Any] = [RecordDict()]
    for record in message.content.values():
        if isinstance(record, ArrayRecord):
            found += record.values()
        if not isinstance(record, ConfigRecord):
            continue
        plain = {key: value for key, value in record.items() if key != SALT}
        turn = plain.get("round", 0)
        for later in range(1, 4):
            told = {"round": turn + later} if isinstance(turn, int) else {}
            found += [ConfigRecord({**plain, **told}), ConfigRecord({**record, **told})]
    return {one.object_id: one.deflate() for one in found}


def forger(victims: Callable[[RawNode], Iterable[RawNode]]) -> Behaviour:
    """Return a node that answers for others, whose ids it has been told, and then for itself.

    It guesses the ids of the messages to them, as it would without a salt, and it also knows the
    true ones: the worst case of a leak.
    """

    def behaviour(node: RawNode, message: Message) -> None:
        reply = node.answer(message)
        if reply is None:
            return
        for victim in victims(node):
            known = [m.metadata.message_id for m in victim.seen[-1:]]
            for asked in [*_other_ids(message, victim.node_id), *known]:
                node.push(renamed(reply, victim.node_id, asked))
                node.tried["forged"] += 1
                unseen = node.object(message.metadata.run_id, asked)
                node.tried["objects of another's"] += bool(unseen)
                node.confirm(message.metadata.run_id, asked)
        node.push(reply)

    return behaviour


def from_envelope(data: Any, content: RecordDict) -> Message:
    """Return a message with an envelope of one's own; Flower's stubs offer that to nobody."""
    make: Any = Message
    return make(metadata=data, content=content)


def _other_ids(message: Message, node_id: int) -> list[str]:
    """Guess the ids of the same message to another node, made within milliseconds of this one."""
    m, found = message.metadata, []
    for shift in range(-GUESSES, GUESSES + 1):
        data = copy(m)
        created = m.created_at + shift * 1e-6
        data.__dict__.update(_dst_node_id=node_id, _created_at=created, _message_id="")
        found.append(from_envelope(data, message.content).object_id)
    return found


def renamed(reply: Message, source: int, asked: str) -> Message:
    """Return a reply as if another node had sent it, to another message, upside down."""
    content = RecordDict(dict(reply.content))
    if "arrays" in content and "update" in content.array_records["arrays"]:
        update = -5 * content.array_records["arrays"]["update"].numpy()
        content["arrays"] = ArrayRecord({"update": Array(update)})
    content["forged"] = ConfigRecord({"n": secrets.token_hex(4)})
    data = copy(reply.metadata)
    data.__dict__.update(_src_node_id=source, _reply_to_message_id=asked)
    return from_envelope(data, content)


def stranger(it: Federation, source: str = "127.0.0.2") -> dict[str, int]:
    """Ask for everything that is not for strangers, from an address that is no operator's.

    Returns
    -------
    Path -> status of the answer.
    """
    answers = {}
    transport = httpx.HTTPTransport(verify=trust(it), local_address=source)
    with httpx.Client(transport=transport, base_url=f"https://{it.address}", timeout=30) as client:
        for path, body in flower.stranger_requests().items():
            headers = {"content-type": flower.MEDIA_TYPE, "x-forwarded-for": "127.0.0.1"}
            answer = client.post(path, content=body, headers=headers)
            answers[path] = answer.status_code
        for path in ("/docs", "/openapi.json", "/health"):
            answers[path] = client.get(path).status_code
    return answers
