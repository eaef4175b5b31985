"""Redundancy against Byzantine workers: assignments, agreement, detection, votes and codes."""

from fedrobust.redundancy.adversaries import (
    ADVERSARIES,
    Corruption,
    corrupt,
    corrupted_labels,
    window_adversaries,
)
from fedrobust.redundancy.agreement import Agreement, agreement, label_digests, label_values
from fedrobust.redundancy.assignment import SCHEMES, Assignment, assign, permute
from fedrobust.redundancy.detection import Detection, detect
from fedrobust.redundancy.search import NotApplicable
from fedrobust.redundancy.uploads import Traffic, traffic
from fedrobust.redundancy.voting import Vote, choose, majority, representatives, vote
from fedrobust.redundancy.window import Window, latency, window_init, window_step
from fedrobust.redundancy.worst_case import Distortion, distortion, gamma_bound

__all__ = [
    "ADVERSARIES",
    "SCHEMES",
    "Agreement",
    "Assignment",
    "Corruption",
    "Detection",
    "Distortion",
    "NotApplicable",
    "Traffic",
    "Vote",
    "Window",
    "agreement",
    "assign",
    "choose",
    "corrupt",
    "corrupted_labels",
    "detect",
    "distortion",
    "gamma_bound",
    "label_digests",
    "label_values",
    "latency",
    "majority",
    "permute",
    "representatives",
    "traffic",
    "vote",
    "window_adversaries",
    "window_init",
    "window_step",
]
