"""Put one reply together from the objects that a node pushed, within a budget of bytes."""

from __future__ import annotations

import json
from collections.abc import Callable

from flwr.app import Message

from fedrobust.flower._compat import (
    CHUNK,
    HEAD_BODY_DIVIDER,
    ObjectTree,
    get_object_head_values_from_object_content,
    inflate_object_from_contents,
    set_message_id,
)

MOST_SMALL = 64  # objects of one client's reply beside chunks: ours has five
LARGEST_SMALL = 2**16  # bytes of such an object, per client: names, shapes, numbers
NAMED = 256  # bytes that an array adds to the records that name it
DEEPEST = 8  # message, records, record, array, chunk


class TooLarge(ValueError):
    """A reply beyond its budget."""


def read_reply(
    tree: ObjectTree,
    fetch: Callable[[str], bytes],
    *,
    most_bytes: int,
    clients: int = 1,
    arrays: int = 0,
    records: int = 0,
    contents: dict[str, bytes] | None = None,
) -> Message:
    """Fetch the objects of one reply within a budget and put the message together.

    Parameters
    ----------
    tree
        What the sender says the reply consists of.
    fetch
        Object id -> bytes.
    most_bytes
        Of all objects together, and of what they unfold to.
    clients
        How many clients answer in it.
    arrays, records
        How many arrays each of them was asked for, and how many bytes that are in no array, beyond
        the few of an ordinary reply.
    contents
        What has been fetched of this reply before; what is fetched now is added.

    Raises
    ------
    ObjectUnavailableError
        If an object is announced and not there yet: call again later, with the same ``contents``.
    TooLarge
        Before anything is fetched, if the tree is too wide or too deep; before the next object is,
        once the budget is spent; before anything is unfolded, if it would unfold to more.
    Exception
        Whatever Flower's own reader raises for bytes that are no message.
    """
    # Two objects an array: itself and its last chunk. Whole chunks follow from the bytes.
    most_objects = (MOST_SMALL + 2 * arrays) * clients + most_bytes // CHUNK
    contents = {} if contents is None else contents
    left = most_bytes - sum(map(len, contents.values()))
    for object_id in _ids(tree, most_objects):
        if object_id in contents:
            continue
        content = fetch(object_id)
        left -= len(content)
        if left < 0:
            raise TooLarge(f"more than the {most_bytes} bytes that a reply may have")
        contents[object_id] = content
    small = clients * (LARGEST_SMALL + NAMED * arrays + records)
    _weigh(tree.object_id, contents, small, most_bytes)
    message = inflate_object_from_contents(tree.object_id, contents)
    if not isinstance(message, Message):
        raise ValueError(f"a {type(message).__name__} instead of a message")
    set_message_id(message, tree.object_id)
    return message


def _ids(tree: ObjectTree, most: int) -> list[str]:
    """List the distinct objects of a tree, without recursion and without trusting its size."""
    ids: dict[str, None] = {}
    waiting, seen = [(tree, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if seen > most or depth > DEEPEST:
            raise TooLarge(f"more than {most} objects, or deeper than {DEEPEST}")
        ids[node.object_id] = None
        waiting += [(child, depth + 1) for child in node.children]
    return list(ids)


def _weigh(root: str, contents: dict[str, bytes], largest_small: int, most_bytes: int) -> None:
    """Refuse objects that refer to one another so often that they unfold beyond the budget.

    An array names its chunks by their places, as often as it likes: one chunk of 5 MB and a list of
    ten thousand zeros are 50 GB. Every reference counts as much as what it refers to.
    """
    known: dict[str, int] = {}

    def weight(object_id: str, depth: int) -> int:
        if object_id in known:
            return known[object_id]
        if depth > DEEPEST:
            raise TooLarge(f"deeper than {DEEPEST}")
        content = contents[object_id]
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind != "ArrayChunk" and len(content) > largest_small:
            raise TooLarge(f"{kind:.20} of {len(content)} bytes, beyond {largest_small}")
        total = len(content) + sum(weight(i, depth + 1) for i in _named(kind, children, content))
        known[object_id] = total
        if total > most_bytes:
            raise TooLarge(f"unfolds to more than the {most_bytes} bytes that a reply may have")
        return total

    weight(root, 1)


def _named(kind: str, children: list[str], content: bytes) -> list[str]:
    """List what an object unfolds, as often as it does."""
    if kind not in ("Array", "ArrayRecord", "RecordDict"):
        return children
    body = json.loads(content[content.find(HEAD_BODY_DIVIDER) + len(HEAD_BODY_DIVIDER) :])
    if kind == "Array":
        return [children[place] for place in body["arraychunk_ids"]]
    return list(body.values())
