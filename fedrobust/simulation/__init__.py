"""Simulated stragglers and dropouts."""
