"""Apps of Flower's older API (``server_fn``, ``NumPyClient``) in front of our grids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Message
from flwr.app.message_type import MessageType

from fedrobust.flower._compat_apps import fit_to_record, fitted, replaced_fit_clients


@contextmanager
def whole_rounds() -> Iterator[None]:
    """Let servers of the older API send each round's training messages together.

    Flower sends them one by one from a pool of threads, so that nothing at the grid ever sees a
    round. Inside the block ``flwr.server.server.fit_clients`` is replaced, for this process:

        with whole_rounds():
            ServerApp(server_fn=server_fn)(RobustGrid(grid, rule="median"), context)
    """
    with replaced_fit_clients(_fit_together):
        yield


def _fit_together(
    client_instructions: list[tuple[Any, Any]],
    max_workers: int | None,
    timeout: float | None,
    group_id: int,
) -> tuple[list[tuple[Any, Any]], list[Any]]:
    """Do what ``fit_clients`` does, with one call of the grid."""
    proxies = {proxy.node_id: proxy for proxy, _ in client_instructions}
    messages = [
        Message(
            fit_to_record(instruction),
            proxy.node_id,
            MessageType.TRAIN,
            ttl=timeout,
            group_id=str(group_id) if group_id else "",
        )
        for proxy, instruction in client_instructions
    ]
    results: list[tuple[Any, Any]] = []
    failures: list[Any] = []
    grid = next(iter(proxies.values())).grid if proxies else None
    for reply in grid.send_and_receive(messages) if grid is not None else []:
        proxy = proxies.pop(reply.metadata.src_node_id, None)
        if proxy is None:
            continue
        try:
            if reply.has_error():
                raise ValueError(f"error reply: {reply.error.reason}")
            result = fitted(reply.content)
            results.append((proxy, result))
        except Exception as error:  # as Flower's own: whatever a reply breaks is one failure
            failures.append(error)
    failures += [ValueError(f"no reply from node {node}") for node in proxies]
    return results, failures
