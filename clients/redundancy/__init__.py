"""Workers that compute gradients of assigned files."""

from clients.redundancy.own_worker import FileWorker

__all__ = ["FileWorker"]
