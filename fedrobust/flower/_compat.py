"""The private doors of Flower that we go through, all of them, and the versions they were tried in.

Whatever is imported from ``flwr.supercore``, ``flwr.superlink``, ``flwr.supernode`` or
``flwr.proto`` may be renamed by the next release: it is imported here and nowhere else, and
``tests/test_compat.py`` says which door is shut.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Any

from flwr.app import Array, Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.proto.fleet_pb2 import (  # type: ignore[import-untyped]
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (  # type: ignore[import-untyped]
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import PullAppMessagesRequest  # type: ignore[import-untyped]
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid
from google.protobuf.message import DecodeError

TRIED = ("1.41.0", "1.42.0")
CHUNK = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE  # bytes: Flower cuts arrays into pieces of this size

__all__ = [
    "CHUNK",
    "HEAD_BODY_DIVIDER",
    "TRIED",
    "ConfirmMessageReceivedRequest",
    "ConfirmMessageReceivedResponse",
    "DecodeError",
    "HttpGrid",
    "ObjectTree",
    "ObjectUnavailableError",
    "PullAppMessagesRequest",
    "PullMessagesRequest",
    "PullMessagesResponse",
    "PullObjectRequest",
    "PullObjectResponse",
    "PushMessagesRequest",
    "PushMessagesResponse",
    "PushObjectRequest",
    "PushObjectResponse",
    "TaskIdentity",
    "cut",
    "get_object_head_values_from_object_content",
    "inflate_object_from_contents",
    "make_pull_object_fn_protobuf",
    "run_superlink",
    "runtime_client",
    "set_message_id",
    "superlink_address",
    "version",
]


class DoorError(RuntimeError):
    """A door of Flower's that this version has moved."""


def version() -> str:
    """Return the installed Flower's version."""
    return importlib.metadata.version("flwr")


def runtime_client(grid: HttpGrid) -> Any:
    """Return the client through which a grid of the deployment engine speaks to the SuperLink."""
    return grid._runtime_client


def superlink_address(grid: Any) -> str:
    """Return the address at which a server app speaks to its SuperLink; empty for other grids."""
    return str(grid._addr) if isinstance(grid, HttpGrid) else ""


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as Flower's own reader does."""
    message.metadata.__dict__["_message_id"] = message_id


def cut(array: Array, ends: Sequence[int]) -> Array:
    """Say at which bytes an array's chunks end when it is sent; returns the array."""
    view, starts = memoryview(array.data), [0, *ends[:-1]]
    chunks = [ArrayChunk(view[start:end]) for start, end in zip(starts, ends, strict=True)]
    array.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in chunks]
    return array


def run_superlink(arguments: Sequence[str], gate: type, **settings: Any) -> None:
    """Run Flower's SuperLink in this process with an ASGI middleware in front of all its own.

    Parameters
    ----------
    arguments
        Of ``flower-superlink``.
    gate, settings
        The middleware's class, made as ``gate(app, **settings)``.

    Raises
    ------
    DoorError
        If this Flower does not put the middleware in front: better none than one without it.
    """
    from flwr.superlink import extensions, main
    from flwr.superlink.cli import flower_superlink
    from starlette.middleware import Middleware

    own, before = Middleware(gate, **settings), extensions.get_middleware
    extensions.get_middleware = lambda: (own, *before())
    if main._get_middleware()[:1] != [own]:
        raise DoorError(f"flwr {version()} does not take a gate: tried with {', '.join(TRIED)}")
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()
