"""The one room of the core that knows Flower: records on the wire, screening, the grids."""

from fedrobust.flower import promises
from fedrobust.flower.adversary_grid import AdversaryGrid
from fedrobust.flower.cohort_grid import CohortGrid, serve_cohort
from fedrobust.flower.drop_in import Robust
from fedrobust.flower.fleet_grid import FleetGrid
from fedrobust.flower.guarded_grid import GuardedGrid
from fedrobust.flower.in_process import InProcessGrid
from fedrobust.flower.packets import Wire, payload, wire_of
from fedrobust.flower.screening import Rejected, screen
from fedrobust.flower.wire import TensorArray, array_of, read_setting, read_tensor, tensor_of

__all__ = [
    "AdversaryGrid",
    "CohortGrid",
    "FleetGrid",
    "GuardedGrid",
    "InProcessGrid",
    "Rejected",
    "Robust",
    "TensorArray",
    "Wire",
    "array_of",
    "payload",
    "promises",
    "read_setting",
    "read_tensor",
    "screen",
    "serve_cohort",
    "tensor_of",
    "wire_of",
]
