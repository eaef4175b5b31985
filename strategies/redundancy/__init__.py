"""Redundant assignment on Flower: commit, detect, reveal."""
