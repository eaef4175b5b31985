"""What a node runs."""

from clients.byzantine_mod import byzantine

__all__ = ["byzantine"]
