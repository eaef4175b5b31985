"""``python -m experiments`` is the command line."""

from experiments.cli import main

main()
