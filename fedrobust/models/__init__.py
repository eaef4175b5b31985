"""The networks: the ALIE paper's own, and small ones for both image shapes."""

from fedrobust.models.zoo import MODELS, ModelError, build, build_for

__all__ = ["MODELS", "ModelError", "build", "build_for"]
