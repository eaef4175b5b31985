"""A finished run leaves its data and updates to nobody: a sweep of many holds one run's memory."""

import gc

import pytest

from experiments.simulation import simulate


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": "alie"},
        {"attack": {"name": "alie", "knowledge": "colluding"}, "training": {"mode": "gradient"}},
        {"attack": "label_flip"},
        {"attack": "sign_flip", "compression": {"bits": 8}},
    ],
    ids=["omniscient", "colluding", "data", "quantised"],
)
def test_a_run_needs_no_garbage_collection(small, changes):
    given = small | {"clients": 10, "byzantine": 2, "rule": "krum"} | changes
    simulate(given, rounds=1)  # what is kept for the process on purpose
    gc.collect()
    gc.disable()
    try:
        simulate(given, rounds=1)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(o).__name__ for o in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    # Names, since the type of a lazy object may raise when it is asked for its class.
    assert not {"Tensor", "Node", "UpdateMatrix", "AdversaryGrid"} & set(left)
