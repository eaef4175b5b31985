"""The report: one self-contained HTML page per run or sweep."""

from experiments.report.load import folders_in
from experiments.report.page import build, write

__all__ = ["build", "folders_in", "write"]
