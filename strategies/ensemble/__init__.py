"""Nodes that train models of their own and vote at inference."""
