"""Whose word decides how much a client counts: nobody's, the operator's, or claims that are cut.

A spec of ``WEIGHTINGS`` says it. ``weighing`` turns it into a function of a round: who answered,
and how many examples each claims to hold -> a weight each.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedrobust.aggregation.preconditions import check_weighable, resolve_pre, resolve_rule
from fedrobust.aggregation.weighting import truncated
from fedrobust.failures import Refusal
from fedrobust.ranges import real, whole
from fedrobust.spec import Spec, SpecError, resolve, split

Claims = Sequence[float | None]
Weighing = Callable[[Sequence[int], Claims], Tensor | None]
SUPPLIED = ("clients", "claims")


def equal(*, clients: Sequence[int], claims: Claims) -> None:
    """Count every client alike, whatever it holds.

    References
    ----------
    What the breakdown of every rule is stated for: f of n updates.
    """


def attested(
    *,
    clients: Sequence[int],
    claims: Claims,
    table: Mapping[str, float] | None = None,
    file: str | None = None,
    share: float | None = None,
    f: int | None = None,
) -> Tensor:
    """Count each client by what the operator attests of it; one that is not named counts nothing.

    Parameters
    ----------
    table
        Client -> weight, in any unit. In an experiment the client's number, and each needs one;
        in front of an app of your own the node's id.
    file
        A TOML or JSON file with that table, read once, in the place of ``table``. An experiment
        that has neither takes the sizes of the partition's shares, which the server cuts itself.
    share, f
        Where given, the weights are cut as in ``truncated``: what is attested is true, but a large
        site may be Byzantine all the same.

    References
    ----------
    Portnoy, Tirosh, Hendler, Towards Federated Learning with Byzantine-Robust Client Weighting,
    2020 (arXiv 2004.04986), section 3: weights that the server knows to be right.
    """
    known = table_of({"name": "attested", "table": table, "file": file})
    true = [known.get(str(client), 0.0) for client in clients]
    if share is None:
        return torch.tensor(true, dtype=torch.float64)
    return truncated_claims(clients=clients, claims=true, share=share, f=f)


def truncated_claims(
    *, clients: Sequence[int], claims: Claims, share: float, f: int | None = None
) -> Tensor:
    """Count each client by its claim, cut so that no f of them hold more than a stated share.

    Parameters
    ----------
    share
        The most that any f clients may hold together, in (f / n, 1).
    f
        How many clients may be Byzantine, at least 1; the rule's own unless given.

    References
    ----------
    Portnoy, Tirosh, Hendler, Towards Federated Learning with Byzantine-Robust Client Weighting,
    2020 (arXiv 2004.04986), section 4.
    """
    try:
        return truncated(_numbers(claims), f=whole(f, "truncated", "f", low=1), share=share)
    except ValueError as error:  # too few answered, or nobody claims anything: no fault of ours
        raise Refusal(str(error)) from error


def claimed(*, clients: Sequence[int], claims: Claims) -> Tensor:
    """Count each client by its claim as it is; with the plain mean only, for comparison.

    References
    ----------
    McMahan et al., Communication-Efficient Learning, AISTATS 2017, Algorithm 1 (n_k / n).
    """
    # An infinite claim counts nothing: shares() would refuse the whole round for it.
    return _numbers(claims).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)


WEIGHTINGS: dict[str, Callable[..., Tensor | None]] = {
    "equal": equal,
    "attested": attested,
    "truncated": truncated_claims,
    "claimed": claimed,
}


def weighing(spec: Spec, *, rule: Spec, pre: Sequence[Spec] = ()) -> Weighing:
    """Return what says how much each client of a round counts.

    Parameters
    ----------
    spec
        Of ``WEIGHTINGS``.
    rule, pre
        What the weights are for. Their f is that of ``truncated`` where it has none of its own.

    Returns
    -------
    ``(clients, claims) -> weights (n,)``, or None where all count alike.

    Raises
    ------
    SpecError
        For an unknown name or setting, a table that is none, or a defence that cannot be weighted
        so: ``krum has no weighted form: ...``.
    """
    # With the file's table in it: a file that is edited during a run changes nothing.
    name, given = split(written_out(spec, f=_own_f(rule, pre)))
    function, settings = resolve_weights({"name": name, **given})
    if name == "equal":
        return lambda clients, claims: None
    check_weights({"name": name, **settings}, rule=rule, pre=pre)
    if name == "attested":
        table_of({"name": name, **settings})

    def weigh(clients: Sequence[int], claims: Claims) -> Tensor | None:
        return function(clients=clients, claims=claims, **settings)

    return weigh


def resolve_weights(spec: Spec) -> tuple[Callable[..., Tensor | None], dict[str, Any]]:
    """Look a spec of ``WEIGHTINGS`` up and check the names of its settings."""
    return resolve(WEIGHTINGS, spec, kind="weights", supplied=SUPPLIED)


def check_weights(spec: Spec, *, rule: Spec, pre: Sequence[Spec] = ()) -> None:
    """Check that a defence can be weighted so.

    Raises
    ------
    SpecError
        With the reason.
    """
    name, settings = split(spec)
    if name == "equal":
        return
    if name == "claimed" and (split(rule)[0] != "mean" or pre):
        raise SpecError(
            f"weights 'claimed' take clients at their word: with the plain mean only, got"
            f" {split(rule)[0]!r}; 'truncated' cuts the claims"
        )
    resolve_rule(rule)
    for one in pre:
        resolve_pre(one)
    try:
        check_weighable(rule, pre=pre)
    except ValueError as error:
        raise SpecError(f"weights {name!r}: {error}") from error
    if name == "truncated" or settings.get("share") is not None:
        whole(settings.get("f"), f"weights {name!r}", "f", low=1)
        real(settings.get("share"), f"weights {name!r}", "share", above=0, high=1)
    if name == "attested" and (settings.get("table") or settings.get("file")):
        table_of(spec)


def written_out(spec: Spec, *, f: int | None) -> dict[str, Any]:
    """Return the spec with everything in it that decides the weights: f, and a file's table."""
    name, given = split(spec)
    if (name == "truncated" or "share" in given) and f is not None:
        given = {"f": f, **given}
    if name == "attested" and given.get("file"):
        table = {"table": table_of({"name": name, **given})}
        given = {key: value for key, value in given.items() if key != "file"} | table
    return {"name": name, **given}


def settled(spec: dict[str, Any], *, f: Any) -> dict[str, Any]:
    """Return the spec written out where that is possible; ``check_weights`` says why it is not."""
    try:
        return written_out(spec, f=f)
    except SpecError:
        return spec


def table_of(spec: Spec) -> dict[str, float]:
    """Return the operator's table, client -> weight.

    Raises
    ------
    SpecError
        If there is none, or two; if the file cannot be read; or for a weight that is none.
    """
    _, given = split(spec)
    table, file = given.get("table"), given.get("file")
    # Neither or both.
    if (table is None) == (file is None):
        raise SpecError("weights 'attested' need one of table and file: client -> weight")
    found = read_table(file) if file is not None else table
    if not isinstance(found, Mapping) or not found:
        raise SpecError(f"weights 'attested' need a table client -> weight, got {found!r}")
    # Keys of TOML and JSON are strings; the numbers of clients are looked up as strings too.
    checked = {str(c): real(w, "weights 'attested'", f"{c!r}", low=0) for c, w in found.items()}
    if not max(checked.values()) > 0:
        raise SpecError("weights 'attested' need at least one above 0, got zeros only")
    return checked


def read_table(file: Any) -> Any:
    """Read a TOML or JSON file.

    Raises
    ------
    SpecError
        If it is not there or malformed.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        return json.loads(text) if str(file).endswith(".json") else tomllib.loads(text)
    except (OSError, ValueError, TypeError) as error:
        raise SpecError(f"weights 'attested' cannot read {str(file)!r}: {error}") from error


def _own_f(rule: Spec, pre: Sequence[Spec]) -> int | None:
    """Return the largest f of a defence; None where it has none."""
    told = [split(one)[1].get("f") for one in (rule, *pre)]
    return max((f for f in told if isinstance(f, int)), default=None)


def _numbers(claims: Claims) -> Tensor:
    """Return claims as float64; what is no number is NaN."""
    return torch.tensor(
        [float(c) if isinstance(c, int | float) else math.nan for c in claims],
        dtype=torch.float64,
    )
