"""Nodes for drills that speak Flower's Fleet API themselves.

A node of these is a thread instead of three processes. It has a registered key, an address of its
own on loopback, and does what its behaviour says with each message that it is sent. What the
SuperLink answered to each attempt is kept, so that a drill can show it.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from flwr.app import Context, Message, RecordDict

from clients.client_app import app
from experiments.deploy.federation import Federation
from fedrobust.flower import _compat as flower
from fedrobust.flower.in_process import identify

Behaviour = Callable[["RawNode", Message], None]
HEARTBEAT = 30.0
POLL = 0.3
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
                    # Twice an interval, so that one may be late.
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
        whole: Any = flower.inflate_object_from_contents(data.message_id, contents)
        message: Message = whole
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
            own: dict[str, bool | float | int | str] = {
                "partition-id": self.number,
                "role": "honest",
            }
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
