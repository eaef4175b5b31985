"""A rule that a user chose, however it was written down, and when it can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedrobust import aggregation
from fedrobust.aggregation import Aggregator, Outcome, Weighing
from fedrobust.failures import Refusal, blamed
from fedrobust.flower.rule_spelling import Rule, read_rule, rule_name
from fedrobust.returned import check_returned
from fedrobust.spec import Spec, SpecError, parse_spec, split


@dataclass(frozen=True)
class ChosenRule:
    """A rule and its pre-aggregators: shared by all that aggregate the replies of anybody's app.

    Attributes
    ----------
    rule, pre
        As tables; the rule may be a function (n, d) -> (d,).
    built
        Applies them.
    weigh
        (nodes, what each claims to hold) -> how much it counts; None: all alike.
    """

    rule: Rule
    pre: tuple[Spec, ...]
    built: Aggregator
    weigh: Weighing

    @classmethod
    def of(cls, rule: Rule, pre: Sequence[Spec] = (), weights: Spec = "equal") -> ChosenRule:
        """Read and build a rule; see ``read_rule`` for how it may be written.

        Parameters
        ----------
        weights
            How much each node counts, a spec of ``fedrobust.aggregation.WEIGHTINGS``.

        Raises
        ------
        SpecError
            For an unknown rule or setting, or a rule that cannot be weighted so.
        """
        chosen, chain = read_rule(rule, pre)
        if not callable(chosen):
            weigh = aggregation.weighing(parse_spec(weights), rule=chosen, pre=chain)
        elif split(weights)[0] == "equal":
            weigh = aggregation.weighing("equal", rule="mean")
        else:
            raise SpecError("a function (n, d) -> (d,) has no weighted form: name a rule")
        return cls(chosen, chain, _build(chosen, chain), weigh)

    @property
    def name(self) -> str:
        """The rule as text."""
        return rule_name(self.rule, self.pre)

    def check(self, n: int) -> None:
        """Check that n updates are enough for the rule.

        Raises
        ------
        ValueError
            ``krum with f=5 needs at least 13 updates, got 12``.
        """
        if not callable(self.rule):
            aggregation.check(self.rule, n=n, pre=self.pre)

    def fitting(self, n: int, malformed: int) -> Aggregator:
        """Return the rule, with a smaller f where n would be too few for the one it has.

        No honest client sends a malformed reply, so up to f of them are Byzantine clients that are
        out already. Else f malformed replies would keep a rule with little room from ever running.
        Silent clients and those with an error may be honest: they do not lower f.

        Raises
        ------
        ValueError
            If n updates are too few even so.
        """
        try:
            self.check(n)
        except Refusal:
            if callable(self.rule) or not 0 < malformed <= split(self.rule)[1].get("f", 0):
                raise
            rule, *pre = (with_fewer(one, malformed) for one in (self.rule, *self.pre))
            aggregation.check(rule, n=n, pre=pre)
            return _build(rule, pre)
        return self.built


def with_fewer(spec: Spec, out: int) -> Spec:
    """Lower the f of a spec, where it has one, by the Byzantine clients that are out already."""
    name, given = split(spec)
    return {"name": name, **given, **({"f": max(0, given["f"] - out)} if "f" in given else {})}


def _build(rule: Rule, pre: Sequence[Spec]) -> Aggregator:
    if not callable(rule):
        return aggregation.build(rule, pre=pre)
    chain = [aggregation.build("mean", pre=[one]) for one in pre]  # checks their names
    function, name = rule, rule_name(rule)

    def apply(updates: Tensor, state: Any = None, source: Any = None, **_: Any) -> Outcome:
        rows = updates
        for one in pre[: len(chain)]:
            rows = aggregation.preaggregate(rows, one, generator=source)
        with blamed("rule", name, but=(Refusal,)):
            result = check_returned("rule", name, function(rows), rows.shape[1:], rows.dtype)
        if not bool(result.isfinite().all()):
            raise Refusal("the rule returned values that are not finite")
        return Outcome(result, None, None)

    return Aggregator(lambda: None, apply)
