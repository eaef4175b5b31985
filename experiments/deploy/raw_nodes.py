"""Nodes for drills that speak Flower's Fleet API themselves: honest ones, and hostile ones.

A node of these is a thread instead of three processes. It has a registered key, an address of its
own on loopback, and does what its behaviour says with each message that it is sent. What the
SuperLink answered to each attempt is kept, so that a drill can show it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from clients.client_app import app
from experiments.deploy.federation import Federation
from fedrobust.flower import _compat as flower
from fedrobust.flower.in_process import identify
from fedrobust.flower.salt import SALT

Behaviour = Callable[["RawNode", Message], None]
HEARTBEAT = 30.0
POLL = 0.3
FLOOD = 20 * 2**20  # bytes that a flooder pushes beside its reply
WIDE = 200_000
GUESSES = 5  # microseconds around its own message in which a forger looks for the others'
NONE: Mapping[str, bytes] = {}
OURS = threading.Lock()  # the client app keeps one model: one node at a time trains on it


class RawNode(threading.Thread):
    """One node, from its activation until ``stop``.

    Parameters
    ----------
    it
        The federation, where the node's key is registered.
    number
        Which client it is; its key is ``node-NUMBER``.
    behaviour
        What it does with a message.
    source
        The address on loopback from which it connects.
    """

    def __init__(
        self,
        it: Federation,
        number: int,
        behaviour: Behaviour | None = None,
        *,
        source: str = "127.0.0.1",
    ) -> None:
        super().__init__(name=f"raw-node-{number}", daemon=True)
        identify()
        self.number, self.behaviour = number, behaviour or honest
        self.client = flower.fleet_client(
            f"https://{it.address}", key=it.home / f"node-{number}", verify=trust(it), source=source
        )
        self.tried: Counter[str] = Counter()
        self.seen: list[Message] = []
        self.team: list[RawNode] = []
        self.node_id, self.crash = 0, ""
        self._contexts: dict[int, Context] = {}
        self._over = threading.Event()

    def run(self) -> None:
        """Activate, then ask for messages and act on them until stopped."""
        key = flower.public_key(self.client)
        request = flower.ActivateNodeRequest(public_key=key, heartbeat_interval=HEARTBEAT)
        self.node_id = self.call("ActivateNode", request).node_id
        beat = 0.0
        while not self._over.wait(POLL):
            try:
                if time.monotonic() > beat:
                    request = flower.SendNodeHeartbeatRequest(heartbeat_interval=HEARTBEAT)
                    request.node.node_id = self.node_id
                    self.call("SendNodeHeartbeat", request)
                    beat = time.monotonic() + HEARTBEAT / 2
                if (message := self.pull()) is not None:
                    self.behaviour(self, message)
            except httpx.HTTPError as error:  # the SuperLink is away, or refuses: ask again
                self.crash = str(error)

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self.join(30)

    def call(self, name: str, request: Any) -> Any:
        """Call one method of the Fleet API; note how it was answered."""
        try:
            answer = flower.call(self.client, name, request)
        except httpx.HTTPStatusError as error:
            self.tried[f"{name} {error.response.status_code}"] += 1
            raise
        self.tried[f"{name} 200"] += 1
        return answer

    def attempt(self, name: str, request: Any) -> Any:
        """Call a method; return None where it is refused."""
        try:
            return self.call(name, request)
        except httpx.HTTPStatusError:
            return None

    def pull(self) -> Message | None:
        """Return the next message for this node, whole; None while there is none."""
        request = flower.PullMessagesRequest()
        request.node.node_id = self.node_id
        found = self.call("PullMessages", request)
        if not found.messages_list:
            return None
        data, tree = found.messages_list[0].metadata, found.message_object_trees[0]
        contents = {i: self.object(data.run_id, i) for i in sorted(set(listed(tree)))}
        message: Message = flower.inflate_object_from_contents(data.message_id, contents)
        flower.set_message_id(message, data.message_id)
        self.confirm(data.run_id, data.message_id)
        self.seen.append(message)
        return message

    def object(self, run_id: int, object_id: str) -> bytes:
        """Fetch an object; empty where there is none for this node."""
        request = flower.PullObjectRequest(run_id=run_id, object_id=object_id)
        request.node.node_id = self.node_id
        while True:
            found = self.call("PullObject", request)
            if found.object_available or not found.object_found:
                return found.object_content
            time.sleep(POLL)

    def confirm(self, run_id: int, message_id: str) -> None:
        """Say that a message has come."""
        request = flower.ConfirmMessageReceivedRequest(run_id=run_id, message_object_id=message_id)
        request.node.node_id = self.node_id
        self.call("ConfirmMessageReceived", request)

    def answer(self, message: Message) -> Message | None:
        """Return what fedrobust's client app answers."""
        run = message.metadata.run_id
        if run not in self._contexts:
            config = flower.run_config(self.client, self.node_id, run)
            own = {"partition-id": self.number, "role": "honest"}
            self._contexts[run] = Context(run, self.node_id, own, RecordDict(), config)
        with OURS:
            return app(message, self._contexts[run])

    def push(self, reply: Message, *, tree: Any = None, extra: Mapping[str, bytes] = NONE) -> Any:
        """Announce a reply and push the objects that are asked for; None where it is refused."""
        objects = {**flower.objects_of(reply), **extra}
        request = flower.push_request(reply, self.node_id)
        if tree is not None:
            request.message_object_trees[0].CopyFrom(tree)
        response = self.attempt("PushMessages", request)
        for object_id in response.objects_to_push if response is not None else ():
            if object_id in objects:
                self.push_object(reply.metadata.run_id, response.session_id, object_id,
                                 objects[object_id])  # fmt: skip
        return response

    def push_object(self, run: int, session: str, object_id: str, content: bytes) -> Any:
        """Push one object; None where it is refused."""
        request = flower.PushObjectRequest(
            run_id=run, session_id=session, object_id=object_id, object_content=content
        )
        request.node.node_id = self.node_id
        return self.attempt("PushObject", request)


def honest(node: RawNode, message: Message) -> None:
    """Answer as fedrobust's client does."""
    reply = node.answer(message)
    if reply is not None:
        node.push(reply)


def silent(node: RawNode, message: Message) -> None:
    """Answer the roll call and nothing else."""
    if message.metadata.message_type.startswith("query"):
        honest(node, message)


def malformed(node: RawNode, message: Message) -> None:
    """Answer with names that are a line of a log, a colour, a formula, and no update."""
    names = ["a\nINFO :      round 9; accuracy 1.0", "\x1b[31mred", "=HYPERLINK(1)", "<script>"]
    if message.metadata.message_type.startswith("query"):
        return honest(node, message)
    records = {name: MetricRecord({name: 1.0}) for name in names}
    node.push(Message(RecordDict(records), reply_to=message))


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


def _other_ids(message: Message, node_id: int) -> list[str]:
    """Guess the ids of the same message to another node, made within milliseconds of this one."""
    m, found = message.metadata, []
    for shift in range(-GUESSES, GUESSES + 1):
        data = copy(m)
        created = m.created_at + shift * 1e-6
        data.__dict__.update(_dst_node_id=node_id, _created_at=created, _message_id="")
        found.append(Message(metadata=data, content=message.content).object_id)
    return found


def renamed(reply: Message, source: int, asked: str) -> Message:
    """Return a reply as if another node had sent it, to another message, upside down."""
    content = RecordDict(dict(reply.content))
    if "arrays" in content and "update" in content["arrays"]:
        update = -5 * content["arrays"]["update"].numpy()
        content["arrays"] = ArrayRecord({"update": Array(update)})
    content["forged"] = ConfigRecord({"n": secrets.token_hex(4)})
    data = copy(reply.metadata)
    data.__dict__.update(_src_node_id=source, _reply_to_message_id=asked)
    return Message(metadata=data, content=content)


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


def trust(it: Federation) -> ssl.SSLContext:
    """Return what verifies the federation's SuperLink."""
    return ssl.create_default_context(cafile=str(it.home / "ca.crt"))


def listed(tree: Any) -> list[str]:
    """List the objects of a tree."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        found.append(node.object_id)
        waiting += node.children
    return found


def as_words(nodes: Iterable[RawNode]) -> str:
    """Return what the nodes tried and were answered, as one line of JSON."""
    return json.dumps({node.name: dict(sorted(node.tried.items())) for node in nodes})
