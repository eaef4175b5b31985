"""Distributed learning and inference against transfer attacks: what is run, and what it shows."""
