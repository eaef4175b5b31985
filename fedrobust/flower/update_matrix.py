"""The (n, d) matrix of a round's updates, in memory that outlives the round.

Fresh memory for every update costs more than the update itself: each page is mapped and cleared by
the operating system when it is first written. A grid whose clients live in this process therefore
owns one matrix, hands each client its row to write into, and shows the server the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.app import Array
from torch import Tensor

from fedrobust.failures import Refusal
from fedrobust.flower.serialization import TensorArray


class RowArray(TensorArray):
    """A row of an ``UpdateMatrix`` as a Flower array: the tensor is the row itself."""

    def __init__(self, row: Tensor) -> None:
        super().__init__(row)
        self.tensor = row  # not ``row.detach()``: the matrix knows its rows by identity


class UpdateMatrix:
    """Rows that clients write and the server reads, kept from round to round.

    Parameters
    ----------
    places
        How many clients may have a row; 0 for a matrix that only gathers updates from elsewhere.

    Notes
    -----
    A row is valid until its client trains again. One matrix serves one run at a time.
    """

    def __init__(self, places: int = 0) -> None:
        self._places = places
        self._rows = torch.empty(0, 0)
        self._handed: dict[int, Tensor] = {}  # place -> the very tensor that was handed out
        self._spare = torch.empty(0, 0)

    def row(self, place: int, like: Tensor) -> Tensor:
        """Return a client's row, (d,), of the shape, type and device of a model's vector.

        What the row held before is lost. A model of another size or on another device starts the
        whole matrix anew.
        """
        rows = self._rows
        if rows.shape[1:] != like.shape or rows.dtype != like.dtype or rows.device != like.device:
            # Memory of rows that nobody ever writes is never mapped, so all places cost nothing.
            self._rows = like.new_empty(self._places, like.numel())
            self._handed = {}
        if place not in self._handed:
            self._handed[place] = self._rows[place]
        return self._handed[place]

    def array(self, place: int, update: Tensor) -> Array | None:
        """Return a client's row as what travels in its reply; None where the update is not in it.

        It travels by reference, inside this process.
        """
        return RowArray(update) if self._handed.get(place) is update else None

    def gather(self, updates: Sequence[Tensor]) -> Tensor:
        """Return the updates (n, d) as one matrix; not to be written.

        No number is copied where they are neighbouring rows of this matrix, in order. Otherwise
        they are stacked, in the memory of the last such round where it fits.

        Raises
        ------
        Refusal
            If there are no updates.
        """
        if not updates:
            raise Refusal("no update was accepted")
        first = self._first(updates)
        if first is not None:
            return self._rows[first : first + len(updates)]
        shape, like = (len(updates), updates[0].numel()), updates[0]
        spare = self._spare
        fits = spare.dtype == like.dtype and spare.device == like.device
        if tuple(spare.shape) != shape or not fits:
            self._spare = like.new_empty(shape)
        return torch.stack(list(updates), out=self._spare)

    def _first(self, updates: Sequence[Tensor]) -> int | None:
        """Return the place of the first update where all are this matrix's rows, one by one."""
        places = {id(row): place for place, row in self._handed.items()}
        first = places.get(id(updates[0]))
        if first is None:
            return None
        neighbours = all(places.get(id(u)) == first + i for i, u in enumerate(updates))
        return first if neighbours else None
