"""The (n, d) matrix of a round's updates, in memory that outlives the round.

Fresh memory for every update costs more than the update itself: each page is mapped and cleared by
the operating system when it is first written. A grid whose clients live in this process therefore
owns one matrix, hands each client its row to write into, and shows the server the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from flwr.app import Array
from torch import Tensor

from fedrobust.failures import Refusal
from fedrobust.flower.serialization import TensorArray
from fedrobust.matrix import permute_rows

Memory = Callable[[int, Tensor], Tensor]  # (places, a vector (d,)) -> rows (places, d)


def own_memory(places: int, like: Tensor) -> Tensor:
    """Return memory of this process's own, on a vector's device."""
    # Memory of rows that nobody ever writes is never mapped, so all places cost nothing.
    return like.new_empty(places, like.numel())


class RowArray(TensorArray):
    """A row of an ``UpdateMatrix`` as a Flower array: its tensor is the row, wherever that is."""

    def __init__(self, matrix: UpdateMatrix, place: int) -> None:
        super().__init__(matrix.handed(place))
        self._matrix, self._place = matrix, place

    @property
    def tensor(self) -> Tensor:  # type: ignore[override]
        """The row itself, not ``row.detach()``: the matrix knows its rows by identity."""
        return self._matrix.handed(self._place)

    @tensor.setter
    def tensor(self, value: Tensor) -> None:
        """Ignore what the constructor of a plain array sets."""


class UpdateMatrix:
    """Rows that clients write and the server reads, kept from round to round.

    Parameters
    ----------
    places
        How many clients may have a row; 0 for a matrix that only gathers updates from elsewhere.
    memory
        Makes the rows, where they shall be somewhere else than in this process's own memory.

    Notes
    -----
    A row stands behind those that were handed out before it in the round, so that those asked
    fill the matrix from its start, whoever they are. What reads several rows as one matrix moves
    them into the asked order within the same memory. A row is valid until its client trains again
    or the next round begins. One matrix serves one run at a time.
    """

    def __init__(self, places: int = 0, memory: Memory = own_memory) -> None:
        self._places = places
        self._memory = memory
        self._withdrawn = False
        self._rows = torch.empty(0, 0)
        self._slots: dict[int, int] = {}  # place -> where its row is
        self._handed: dict[int, Tensor] = {}  # place -> the very tensor that was handed out
        self._spare = torch.empty(0, 0)

    @classmethod
    def over(cls, rows: Tensor, slots: Mapping[int, int]) -> UpdateMatrix:
        """Return a matrix over rows (n, d) that somebody else has dealt out: client -> its row."""
        made = cls(len(slots))
        made._rows, made._slots = rows, dict(slots)
        return made

    def begin(self) -> None:
        """Begin a round: all rows are void, and are handed out anew."""
        self._slots, self._handed = {}, {}
        if self._withdrawn:  # into memory made anew
            self._rows, self._withdrawn = torch.empty(0, 0), False

    def withdraw(self) -> None:
        """Move the rows of this round to other memory: somebody may still write where they are."""
        if not self._slots:
            return
        taken = own_memory(self._places, self._rows[0])
        taken[: len(self._slots)] = self._rows[: len(self._slots)]
        self._rows, self._withdrawn = taken, True
        self._handed = {place: taken[self._slots[place]] for place in self._handed}

    def has(self, place: int) -> bool:
        """Whether a client has a row in this round."""
        return place in self._slots

    def free_for(self, place: int) -> bool:
        """Whether a client has a row, or there is one left for it."""
        return place in self._slots or len(self._slots) < self._places

    def slot(self, place: int) -> int:
        """Return the number of a client's row."""
        return self._slots[place]

    def row(self, place: int, like: Tensor) -> Tensor:
        """Return a client's row, (d,), of the shape, type and device of a model's vector.

        What the row held before is lost. A model of another size or on another device starts the
        whole matrix anew.
        """
        if not self._alike(like):
            self.begin()
            self._rows = self._memory(self._places, like)
        if place not in self._handed:
            self._slots.setdefault(place, len(self._slots))
            self._handed[place] = self._rows[self._slots[place]]
        return self._handed[place]

    def handed(self, place: int) -> Tensor:
        """Return the row that a client was handed in this round.

        Raises
        ------
        ValueError
            If there is none: the reply is of a round that is over.
        """
        if place not in self._handed:
            raise ValueError(f"client {place} has no row in this round")
        return self._handed[place]

    def array(self, place: int, update: Tensor) -> Array | None:
        """Return a client's row as what travels in its reply; None where the update is not in it.

        It travels by reference, inside this process.
        """
        return RowArray(self, place) if self._handed.get(place) is update else None

    def put(self, place: int, update: Tensor) -> Array | None:
        """Write an update (d,) into a client's row; None where there is no row for it.

        An update that is in the row already is not copied.
        """
        if not self.free_for(place) or not self._alike(update):
            return None
        row = self.row(place, update)
        if row.data_ptr() != update.data_ptr():
            row.copy_(update)
        return RowArray(self, place)

    def gather(self, updates: Sequence[Tensor]) -> Tensor:
        """Return the updates (n, d) as one matrix; not to be written.

        Where all are rows of this matrix they are a part of it: rows in another order are
        moved, within its memory. Updates from elsewhere get a free row; where there is none all are
        stacked, in the memory of the last such round where it fits.

        Raises
        ------
        Refusal
            If there are no updates.
        """
        if not updates:
            raise Refusal("no update was accepted")
        owners = {id(row): place for place, row in self._handed.items()}
        found = [owners.get(id(update)) for update in updates]
        foreign = [update for update, place in zip(updates, found, strict=True) if place is None]
        twice = len({id(update) for update in updates}) < len(updates)
        if twice or len(foreign) == len(updates) or not self._room_for(foreign):
            return self._stacked(updates)
        places = [
            self._settled(update) if place is None else place
            for update, place in zip(updates, found, strict=True)
        ]
        return self._in_order(places)

    def room(self, view: Tensor, more: int) -> Tensor | None:
        """Return the rows of ``view`` and as many free ones behind them, to be written.

        None unless ``view`` is the last that was gathered, in this matrix, and nobody's row is
        behind it.
        """
        count = len(view)
        fits = len(self._slots) == count and count + more <= self._places
        if not fits or view.data_ptr() != self._rows.data_ptr():
            return None
        return self._rows[: count + more]

    def holds(self, rows: Tensor) -> bool:
        """Whether a tensor is in this matrix."""
        return rows.untyped_storage().data_ptr() == self._rows.untyped_storage().data_ptr()

    def free(self, rows: Tensor) -> bool:
        """Whether rows are the free ones of this matrix in order, from the first on."""
        first = len(self._slots)
        inside = first + len(rows) <= self._places
        return inside and rows.is_contiguous() and rows.data_ptr() == self._rows[first:].data_ptr()

    def _room_for(self, updates: Sequence[Tensor]) -> bool:
        """Whether there are free rows for updates from elsewhere, of this matrix's kind."""
        free = self._places - len(self._slots)
        return len(updates) <= free and all(self._alike(update) for update in updates)

    def _alike(self, like: Tensor) -> bool:
        """Whether the rows have the shape, type and device of a vector."""
        rows = self._rows
        alike = rows.dtype == like.dtype and rows.device == like.device
        return alike and rows.shape[1:] == like.shape

    def _settled(self, update: Tensor) -> int:
        """Give an update from elsewhere a row; return the place under which it is known."""
        place = -1 - len(self._slots)  # no client has it
        self.row(place, update).copy_(update)
        return place

    def _in_order(self, places: Sequence[int]) -> Tensor:
        """Return the rows of some places as one matrix, moved where they do not stand so."""
        slots = [self._slots[place] for place in places]
        first = slots[0]
        if slots == list(range(first, first + len(slots))):
            return self._rows[first : first + len(slots)]
        chosen = set(places)
        others = sorted((p for p in self._slots if p not in chosen), key=self._slots.__getitem__)
        order = [*places, *others]
        permute_rows(self._rows, [self._slots[place] for place in order])
        self._slots = {place: slot for slot, place in enumerate(order)}
        self._handed = {place: self._rows[slot] for place, slot in self._slots.items()}
        return self._rows[: len(places)]

    def _stacked(self, updates: Sequence[Tensor]) -> Tensor:
        """Stack updates from elsewhere, in memory that is kept."""
        shape, like = (len(updates), updates[0].numel()), updates[0]
        spare = self._spare
        fits = spare.dtype == like.dtype and spare.device == like.device
        if tuple(spare.shape) != shape or not fits:
            self._spare = like.new_empty(shape)
        return torch.stack(list(updates), out=self._spare)
