"""The report: one self-contained HTML page per run or sweep."""

from experiments.report.load import build, folders_in, write

__all__ = ["build", "folders_in", "write"]
