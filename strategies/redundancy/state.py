"""What a redundant strategy remembers from round to round: one value, and its form in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fedrobust.redundancy.window import Window
from fedrobust.training import StepState
from strategies.redundancy.membership import Membership


@dataclass(frozen=True, kw_only=True)
class State:
    """All on which the next round depends.

    Attributes
    ----------
    secret
        What the draws follow from that no worker may foresee.
    tolerance
        By which copies are compared; 0 compares bits.
    memory
        The rule's.
    step
        The server optimizer's.
    window
        Evidence against workers, for detection "window".
    members
        Who takes part.
    enrolled
        Whether the workers' numeric profiles have been compared.
    """

    secret: int
    tolerance: float
    memory: Any
    step: StepState = field(default_factory=StepState)
    window: Window | None = None
    members: Membership = field(default_factory=Membership)
    enrolled: bool = False

    def tree(self) -> dict[str, Any]:
        """Return it as plain values and tensors, for a checkpoint."""
        return {
            "memory": self.memory,
            "step": self.step.step,
            "moments": list(self.step.moments),
            "window": None if self.window is None else asdict(self.window),
            "members": self.members.tree(),
            "tolerance": self.tolerance,
            "enrolled": self.enrolled,
            "secret": self.secret,
        }


def state_from(tree: Mapping[str, Any]) -> State:
    """Read what ``State.tree`` returned."""
    window = tree["window"]
    if window is not None:
        window = Window(**{**window, "flagged": tuple(window["flagged"])})
    return State(
        secret=tree["secret"],
        tolerance=tree["tolerance"],
        memory=tree["memory"],
        step=StepState(tree["step"], tuple(tree["moments"])),
        window=window,
        members=Membership(**tree["members"]),
        enrolled=tree["enrolled"],
    )
