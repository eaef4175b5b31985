"""Measured figures: each script prints one JSON line per case."""
