"""The private doors of Flower that we go through, and the versions they were tried in.

Whatever is imported from ``flwr.supercore``, ``flwr.superlink``, ``flwr.supernode`` or
``flwr.proto`` may be renamed by the next release: it is imported here and nowhere else, and
``tests/flower/test_compat.py`` says which door is shut. The doors behind which other people's apps
run (the simulation engine, the older API, an app's configuration) stand in ``_compat_apps``,
those behind which its own processes start in ``_compat_processes``.
"""

from __future__ import annotations

import importlib.metadata
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from flwr.app import Array, Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.supercore.object_ref import load_app
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE as MEDIA_TYPE
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

if TYPE_CHECKING:
    from flwr.superlink.grid.http_grid import HttpGrid

TRIED = ("1.41.0", "1.42.0")
CHUNK = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE  # bytes: Flower cuts arrays into pieces of this size

__all__ = [
    "CHUNK", "HEAD_BODY_DIVIDER", "MEDIA_TYPE", "TRIED", "ActivateNodeRequest",
    "ConfirmMessageReceivedRequest", "ConfirmMessageReceivedResponse", "DecodeError", "Metadata",
    "ObjectTree", "ObjectUnavailableError", "PullAppMessagesRequest", "PullMessagesRequest",
    "PullMessagesResponse", "PullObjectRequest", "PullObjectResponse", "PushMessagesRequest",
    "PushMessagesResponse", "PushObjectRequest", "PushObjectResponse", "SendNodeHeartbeatRequest",
    "TaskIdentity", "app_client", "call", "chunk_content", "cut", "fleet_client",
    "get_object_head_values_from_object_content", "inflate_object_from_contents", "is_http_grid",
    "load_app", "make_pull_object_fn_protobuf", "objects_of", "public_key", "push_request",
    "register_node", "run_config", "runtime_client", "set_message_id", "stranger_requests",
    "superlink_address", "superlink_app", "tree_of", "version",
]  # fmt: skip


class DoorError(RuntimeError):
    """A door of Flower's that this version has moved."""


def version() -> str:
    """Return the installed Flower's version."""
    return importlib.metadata.version("flwr")


def is_http_grid(grid: Any) -> bool:
    """Say whether a grid is the deployment engine's own.

    Its module brings a database along (a second to import), which no simulation needs: a grid of
    its kind exists only where somebody has imported it.
    """
    module = sys.modules.get("flwr.superlink.grid.http_grid")
    return module is not None and isinstance(grid, module.HttpGrid)


def runtime_client(grid: HttpGrid) -> Any:
    """Return the client through which a grid of the deployment engine speaks to the SuperLink."""
    return grid._runtime_client


def superlink_address(grid: Any) -> str:
    """Return the address at which a server app speaks to its SuperLink; empty for other grids."""
    return str(grid._addr) if is_http_grid(grid) else ""


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as Flower's own reader does."""
    message.metadata.__dict__["_message_id"] = message_id


def cut(array: Array, ends: Sequence[int]) -> Array:
    """Say at which bytes an array's chunks end when it is sent; returns the array."""
    view, starts = memoryview(array.data), [0, *ends[:-1]]
    chunks = [ArrayChunk(view[start:end]) for start, end in zip(starts, ends, strict=True)]
    # Where Flower keeps an array's chunks once it has cut it: what stands there it does not cut
    # anew.
    array.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in chunks]
    return array


def fleet_client(address: str, *, key: Path, verify: ssl.SSLContext, source: str) -> Any:
    """Return a client of the Fleet API that signs with a node's private key.

    Parameters
    ----------
    address
        https://HOST:PORT of the SuperLink.
    key
        The node's private key, ECDSA, in OpenSSH's format.
    source
        The address of this machine from which it connects.
    """
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    private: Any = load_ssh_private_key(key.read_bytes(), None)
    signing = NodeAuthHttpInterceptor(private, private.public_key())
    client = FleetHttpClient(address, interceptors=[signing], verify=verify)
    transport = httpx.HTTPTransport(verify=verify, local_address=source)
    client._client = httpx.Client(transport=transport, timeout=120)
    return client


def superlink_app() -> Any:
    """Return the SuperLink's own web app with an empty state in memory, for measurements."""
    from flwr.superlink.main import create_app

    return create_app()


def app_client(app: Any) -> Any:
    """Return a Fleet client with a fresh key that calls a web app in this process."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
    from starlette.testclient import TestClient

    private = ec.generate_private_key(ec.SECP384R1())
    signing = NodeAuthHttpInterceptor(private, private.public_key())
    client = FleetHttpClient("http://127.0.0.1", interceptors=[signing])
    client._client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    return client


def register_node(client: Any) -> int:
    """Register and activate the node of a Fleet client; return its id."""
    from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest

    key = public_key(client)
    client.RegisterNode(RegisterNodeFleetRequest(public_key=key))
    return client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=30.0)).node_id


def public_key(client: Any) -> bytes:
    """Return the public key with which a Fleet client signs."""
    return client._interceptors[0]._public_key_bytes


def call(client: Any, name: str, request: Any) -> Any:
    """Call one method of the Fleet API by its name."""
    methods = {
        "ActivateNode": client.ActivateNode,
        "SendNodeHeartbeat": client.SendNodeHeartbeat,
        "PullMessages": client.PullMessages,
        "PullObject": client.PullObject,
        "PushMessages": client.PushMessages,
        "PushObject": client.PushObject,
        "ConfirmMessageReceived": client.ConfirmMessageReceived,
    }
    return methods[name](request)


def run_config(client: Any, node_id: int, run_id: int) -> dict[str, Any]:
    """Return a run's configuration as a SuperNode puts it together."""
    from flwr.common.config import get_fused_config_from_fab
    from flwr.common.serde import fab_from_proto, run_from_proto
    from flwr.proto.fab_pb2 import GetFabRequest
    from flwr.proto.node_pb2 import Node
    from flwr.proto.run_pb2 import GetRunRequest

    node = Node(node_id=node_id)
    run = run_from_proto(client.GetRun(GetRunRequest(node=node, run_id=run_id)).run)
    wanted = GetFabRequest(node=node, hash_str=run.fab_hash, run_id=run_id)
    fab = fab_from_proto(client.GetFab(wanted).fab)
    return dict(get_fused_config_from_fab(fab.content, run))


def objects_of(message: Message) -> dict[str, bytes]:
    """Return a message's objects as they are pushed, by id; gives the message its id."""
    set_message_id(message, message.object_id)
    return {key: one.deflate() for key, one in get_all_nested_objects(message).items()}


def tree_of(message: Message) -> ObjectTree:
    """Return the tree of a message's objects."""
    return get_object_tree(message)


def push_request(message: Message, node_id: int) -> PushMessagesRequest:
    """Return the request by which a node announces a message; the message has its id."""
    from flwr.app.message import remove_content_from_message
    from flwr.common.serde import message_to_proto

    bare = remove_content_from_message(message) if message.has_content() else message
    request = PushMessagesRequest(
        messages_list=[message_to_proto(bare)],
        message_object_trees=[get_object_tree(message)],
        clientapp_runtime_list=[1.0],
    )
    request.node.node_id = node_id
    return request


def chunk_content(data: bytes) -> bytes:
    """Return the bytes of an object that holds a piece of an array."""
    return ArrayChunk(memoryview(data)).deflate()


def stranger_requests() -> dict[str, bytes]:
    """Return well-formed requests on the control and task routes: path -> body."""
    from flwr.proto import control_pb2 as control
    from flwr.proto import runtime_pb2 as runtime

    requests: dict[str, Any] = {
        "/v1/runtime/acquire-task": runtime.AcquireTaskRequest(),
        "/v1/runtime/get-nodes": runtime.GetNodesRequest(),
        "/v1/control/list-nodes": control.ListNodesRequest(),
        "/v1/control/list-runs": control.ListRunsRequest(),
        "/v1/control/stop-run": control.StopRunRequest(run_id=1),
        "/v1/control/start-run": control.StartRunRequest(),
        "/v1/control/register-node": control.RegisterNodeRequest(public_key=b"x"),
    }
    return {path: request.SerializeToString() for path, request in requests.items()}
