"""The records of all attacks on updates, and the tables of functions derived from them.

A new attack is one function in a file of this folder and one record here. A plain function put into
``ATTACKS`` works too; it then counts as omniscient and finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from fedrobust.attacks import (
    alie,
    alie_backdoor,
    coupled,
    fake_clients,
    fang,
    finite_norm,
    hidra,
    min_max,
    optimised,
    poisoned_fl,
    searched,
    seesaw,
    simple,
)
from fedrobust.attacks.record import Attack

_RECORDS = (
    Attack(name="alie", craft=alie.alie, knowledge="colluding", spread=True),
    Attack(name="seesaw", craft=seesaw.seesaw, spread=True),
    Attack(name="finite_norm", craft=finite_norm.finite_norm, spread=True),
    Attack(name="ipm", craft=simple.ipm),
    Attack(name="sign_flip", craft=simple.sign_flip, knowledge="own"),
    Attack(name="reversed_gradient", craft=simple.reversed_gradient),
    Attack(name="constant", craft=simple.constant, knowledge="own"),
    Attack(name="zero", craft=simple.zero, knowledge="own"),
    Attack(name="gaussian", craft=simple.gaussian, knowledge="own"),
    Attack(name="mimic", craft=coupled.mimic),
    Attack(name="min_max", craft=min_max.min_max, spread=True),
    Attack(name="min_sum", craft=min_max.min_sum, spread=True),
    Attack(name="fang", craft=fang.fang, spread=True),
    Attack(name="rop", craft=coupled.rop, spread=True),
    Attack(name="byzmean", craft=coupled.byzmean),
    Attack(name="sensitivity_curve", craft=optimised.sensitivity_curve),
    Attack(name="opt_alie", craft=optimised.opt_alie, spread=True),
    Attack(name="opt_ipm", craft=optimised.opt_ipm),
    Attack(name="gradient_search", craft=searched.gradient_search, spread=True),
    Attack(name="drift_search", craft=searched.drift_search, spread=True),
    Attack(name="gradient_shift", craft=searched.gradient_shift, spread=True),
    Attack(name="model_replacement", craft=simple.model_replacement),
    Attack(name="free_rider", craft=simple.free_rider, knowledge="own"),
    Attack(name="hidra", craft=hidra.hidra, spread=True),
    Attack(name="mpaf", craft=fake_clients.mpaf, knowledge="own"),
    Attack(name="poisoned_fl", craft=poisoned_fl.poisoned_fl, knowledge="colluding"),
    Attack(name="nan", craft=simple.nan, knowledge="own", finite=False),
    Attack(name="inf", craft=simple.inf, knowledge="own", finite=False),
    Attack(
        name="alie_backdoor",
        craft=alie_backdoor.alie_backdoor,
        knowledge="colluding",
        spread=True,
        trains=True,
    ),
)

ATTACK_RECORDS = {record.name: record for record in _RECORDS}
ATTACKS: dict[str, Callable[..., Tensor]] = {r.name: r.craft for r in _RECORDS if not r.trains}
TRAINED: dict[str, Callable[..., Tensor]] = {r.name: r.craft for r in _RECORDS if r.trains}


def attack_record(name: str) -> Attack:
    """Return an attack's record; a plain one for a name that has none (faults, poisoned data)."""
    known = ATTACK_RECORDS.get(name)
    # A fault is committed by the client, so that its craft is never called; zero stands in.
    return known or Attack(name=name, craft=ATTACKS.get(name, simple.zero))


@contextmanager
def installed(record: Attack) -> Iterator[None]:
    """Let an attack stand in the tables inside the block, like any of ours.

    Raises
    ------
    ValueError
        If there is an attack of that name, or for an attack that trains a model.
    """
    if record.name in ATTACK_RECORDS or record.name in ATTACKS:
        raise ValueError(f"there is an attack {record.name!r} already: rename your own")
    if record.trains:
        raise ValueError(f"attack {record.name!r} trains a model: only ours can be handed one")
    ATTACK_RECORDS[record.name], ATTACKS[record.name] = record, record.craft
    try:
        yield
    finally:
        del ATTACK_RECORDS[record.name], ATTACKS[record.name]
