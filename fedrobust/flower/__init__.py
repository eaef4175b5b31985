"""The one room of the core that knows Flower: records on the wire, screening, the grids."""

from fedrobust.flower import commit_reveal
from fedrobust.flower.adversary_grid import AdversaryGrid
from fedrobust.flower.answer_grid import AnswerGrid
from fedrobust.flower.attackers import Attackers
from fedrobust.flower.cohort_grid import CohortGrid
from fedrobust.flower.cohort_host import serve_cohort
from fedrobust.flower.guarded_grid import GuardedGrid
from fedrobust.flower.in_process import InProcessGrid, matrix_of
from fedrobust.flower.legacy import whole_rounds
from fedrobust.flower.quantized_arrays import Wire, payload, wire_of
from fedrobust.flower.robust_grid import RobustGrid
from fedrobust.flower.robust_wrapper import Robust
from fedrobust.flower.screening import Rejected, screen
from fedrobust.flower.serialization import (
    TensorArray,
    array_of,
    read_setting,
    read_tensor,
    tensor_of,
)
from fedrobust.flower.straggler_grid import StragglerGrid
from fedrobust.flower.update_matrix import UpdateMatrix

__all__ = [
    "AdversaryGrid",
    "AnswerGrid",
    "Attackers",
    "CohortGrid",
    "GuardedGrid",
    "InProcessGrid",
    "Rejected",
    "Robust",
    "RobustGrid",
    "StragglerGrid",
    "TensorArray",
    "UpdateMatrix",
    "Wire",
    "array_of",
    "commit_reveal",
    "matrix_of",
    "payload",
    "read_setting",
    "read_tensor",
    "screen",
    "serve_cohort",
    "tensor_of",
    "whole_rounds",
    "wire_of",
]
