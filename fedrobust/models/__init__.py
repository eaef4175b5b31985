"""The networks: the ALIE paper's own, small ones, and the twelve of the transfer-attack paper."""

from fedrobust.models.zoo import MODELS, NETWORKS, ModelError, build, build_for

__all__ = ["MODELS", "NETWORKS", "ModelError", "build", "build_for"]
