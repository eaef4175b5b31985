"""The grid's matrix: rows are dealt as they are asked for, moved, written behind; never copied."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict
from fedrobust.flower import UpdateMatrix, tensor_of
from fedrobust.flower.in_process import InProcessGrid
from fedrobust.matrix import permute_rows

LIKE = torch.zeros(3)


def filled(matrix, places):
    return {place: matrix.row(place, LIKE).fill_(place) for place in places}


def test_rows_lie_in_the_order_in_which_they_are_asked_for():
    matrix = UpdateMatrix(6)
    rows = filled(matrix, [5, 2])
    whole = matrix.gather([rows[5], rows[2]])
    assert whole.tolist() == [[5.0] * 3, [2.0] * 3]
    assert whole.data_ptr() == rows[5].data_ptr(), "places that nobody has take no memory"


@pytest.mark.parametrize("wanted", [[0, 1, 2, 3], [3, 1], [2, 0, 4], [4, 3, 2, 1, 0], [0, 2]])
def test_rows_are_moved_within_the_matrix_and_replies_follow_them(wanted):
    matrix = UpdateMatrix(5)
    rows = filled(matrix, [3, 0, 4, 2, 1])
    replies = {place: matrix.array(place, row) for place, row in rows.items()}
    start = matrix.gather([rows[3]]).data_ptr()
    whole = matrix.gather([tensor_of(replies[place]) for place in wanted])
    assert whole[:, 0].tolist() == wanted
    assert whole.data_ptr() >= start and whole.untyped_storage().nbytes() == 5 * 3 * 4
    for place, reply in replies.items():  # those left out as well: they are still to be judged
        assert tensor_of(reply).tolist() == [float(place)] * 3
        assert reply.numpy().tolist() == [float(place)] * 3


def test_updates_from_elsewhere_get_a_free_row():
    matrix = UpdateMatrix(4)
    rows = filled(matrix, [2, 0])
    memory = rows[2].untyped_storage().data_ptr()
    other = torch.full((3,), 7.0)
    whole = matrix.gather([rows[0], other, rows[2]])
    assert whole[:, 0].tolist() == [0, 7, 2] and whole.untyped_storage().data_ptr() == memory
    narrow = torch.zeros(3, dtype=torch.float64)
    assert matrix.put(1, narrow) is None and matrix.put(1, torch.zeros(4)) is None
    assert matrix.put(1, other) is not None
    assert matrix.put(3, other) is None, "all rows are taken"


def test_a_row_of_a_round_that_is_over_is_not_read():
    matrix = UpdateMatrix(2)
    old = matrix.array(0, matrix.row(0, LIKE))
    matrix.begin()
    with pytest.raises(ValueError, match="no row in this round"):
        tensor_of(old)


def test_free_rows_lie_behind_a_view_and_nowhere_else():
    matrix = UpdateMatrix(5)
    rows = filled(matrix, [1, 4, 2])
    view = matrix.gather(list(rows.values()))
    room = matrix.room(view, 2)
    assert room.shape == (5, 3) and room.data_ptr() == view.data_ptr()
    assert matrix.room(view, 3) is None and matrix.room(view[1:], 2) is None
    assert matrix.room(view.clone(), 2) is None
    assert matrix.free(room[3:]) and not matrix.free(room[2:]) and matrix.holds(room)
    room[3:] = 9
    matrix.put(0, room[3])
    assert matrix.room(view, 1) is None, "somebody's row lies there now"


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_a_permutation_in_place_is_the_permutation(n):
    rows = torch.randn(n + 2, 5)
    order = torch.randperm(n).tolist()
    expected = torch.cat([rows[order], rows[n:]])
    permute_rows(rows, order)
    assert torch.equal(rows, expected)


class Largest(TorchDispatchMode):
    """Notes the largest memory that any operation brings into being."""

    def __init__(self, but):
        super().__init__()
        self.but, self.bytes = but, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        before = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor):
                memory = one.untyped_storage()
                if memory.data_ptr() not in before and memory.nbytes() != self.but:
                    self.bytes = max(self.bytes, memory.nbytes())
        return made


@pytest.mark.parametrize(
    ("attack", "rule"),
    [
        ("none", "mean"),
        ({"name": "alie", "knowledge": "omniscient"}, "mean"),
        ("alie", "krum"),
        ({"name": "opt_alie", "evaluations": 2}, "median"),
        ("fang", "trimmed_mean"),
        ("sign_flip", "mean"),
        ("huge", "median"),
    ],
)
def test_no_attack_brings_a_second_matrix_into_being(attack, rule):
    clients, d = 10, 1_000_120
    e = from_dict(
        {
            "data": "fashionmnist-sample", "model": "wide_mlp", "clients": clients,
            "byzantine": 0 if attack == "none" else 2, "rounds": 1, "seed": 1, "rule": rule,
            "attack": attack, "training": {"batch_size": 4}, "server": {"evaluate_every": 9},
        }
    )  # fmt: skip
    matrix = 4 * clients * d
    with Largest(but=matrix) as seen:
        rows = run_one(e)
    assert rows[-1]["replies"] == clients - 2 * (attack == "huge")
    assert seen.bytes < matrix / 2, "copies of honest rows are four fifths of it"


def test_the_matrix_of_a_run_is_the_grids():
    assert isinstance(InProcessGrid(lambda m, c: None, clients=2).updates, UpdateMatrix)
