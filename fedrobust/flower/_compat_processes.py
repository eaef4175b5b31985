"""The private doors of Flower behind which its processes start: SuperLink, SuperNode, client app.

The others stand in ``_compat``; ``tests/flower/test_compat.py`` holds all of these files to the
versions that were tried, ``_compat.TRIED``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, NoReturn

from flwr.app import Message

from fedrobust.flower._compat import TRIED, DoorError, version


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

    factory: Any = gate
    own, before = Middleware(factory, **settings), extensions.get_middleware
    extensions.get_middleware = lambda: (own, *before())
    if main._get_middleware()[:1] != [own]:
        raise DoorError(f"flwr {version()} does not take a gate: tried with {', '.join(TRIED)}")
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def run_supernode(
    arguments: Sequence[str],
    *,
    sleep: Callable[[float], None],
    answering: Callable[[], AbstractContextManager[None]],
) -> None:
    """Run Flower's SuperNode in this process, with pauses of our own.

    Parameters
    ----------
    arguments
        Of ``flower-supernode``.
    sleep
        Is called where Flower sleeps: 3 s without a message, 0.5 s while one is worked on.
    answering
        Is entered when a message is whole, and left when its reply has been sent.
    """
    from flwr.supernode import start_client_internal as loop
    from flwr.supernode.cli import flower_supernode

    push = loop._push_messages

    def announced(**given: Any) -> None:
        with answering():
            push(**given)

    # In that module alone: another ``time.sleep`` for the whole process would reach every thread.
    loop.__dict__.update(_push_messages=announced, time=SimpleNamespace(sleep=sleep))
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()


def leave(sentence: str) -> NoReturn:
    """End a SuperNode from its own thread, as Flower does where it cannot go on."""
    from flwr.supercore.exit import ExitCode, flwr_exit

    flwr_exit(ExitCode.TASK_PROC_EXCEPTION, sentence)


def executor_client(address: str, secret: bytes) -> Any:
    """Return what asks a SuperNode of this machine for tasks, with the executor's secret."""
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor as Version
    from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor as Signed
    from flwr.supercore.runtime import RuntimeHttpClient

    signed = Signed(master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"})
    return RuntimeHttpClient.from_server_address(
        address, True, None, [Version(component_name="SuperExec"), signed]
    )


def next_task(client: Any) -> str:
    """Take the next message's task; return its token, empty where there is none."""
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.constant import TaskType

    wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    return str(client.AcquireTask(wanted).token)


def client_process() -> Any:
    """Import what Flower's client app process consists of."""
    from flwr.supernode.runtime import run_clientapp

    return run_clientapp


def run_task(address: str, token: str, parent: int, received: Callable[[Message], None]) -> None:
    """Be Flower's client app process for one message, until its ``SystemExit``.

    Parameters
    ----------
    received
        Is called with the message before it is answered.
    """
    own = client_process()
    pull = own.pull_task_input

    def pulled(client: Any) -> Any:
        found = pull(client)
        received(found[0])
        return found

    own.pull_task_input = pulled
    own.run_clientapp(address, token, insecure=True, parent_pid=parent)
