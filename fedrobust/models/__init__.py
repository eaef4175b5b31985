"""The networks: the ALIE paper's own, small ones, and the twelve of the transfer-attack paper."""

from fedrobust.models.dual import Routed, dual, on_branch, select, with_policy
from fedrobust.models.zoo import MODELS, GivenModel, ModelError, build, build_for

__all__ = [
    "MODELS",
    "GivenModel",
    "ModelError",
    "Routed",
    "build",
    "build_for",
    "dual",
    "on_branch",
    "select",
    "with_policy",
]
