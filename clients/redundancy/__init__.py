"""Workers that compute gradients of assigned files."""

from clients.redundancy.file_worker import FileWorker

__all__ = ["FileWorker"]
