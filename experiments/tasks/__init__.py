"""Experiments on text, tables and adapters, and on few attackers among many clients."""
