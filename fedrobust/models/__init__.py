"""The networks: the ALIE paper's own, small ones, and the twelve of the transfer-attack paper."""

from fedrobust.models.adapters import Products, form_of
from fedrobust.models.dual import Routed, dual, on_branch, select, with_policy
from fedrobust.models.low_rank import low_rank
from fedrobust.models.zoo import MODELS, GivenModel, ModelError, build, build_for

__all__ = [
    "MODELS",
    "GivenModel",
    "ModelError",
    "Products",
    "Routed",
    "build",
    "build_for",
    "dual",
    "form_of",
    "low_rank",
    "on_branch",
    "select",
    "with_policy",
]
