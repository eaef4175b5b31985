"""Updates in files, aggregated by the workers of a Ray cluster: each reads some of the columns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.cluster.connection import connected
from experiments.cluster.pool import Pool, pooled
from experiments.cluster.worker import Here, naming_the_machine, prepared
from experiments.update_files import UpdateFiles, write_placed
from fedrobust.aggregation.sharded import (
    Look,
    Settled,
    check_sharded,
    look,
    needs_products,
    parts_of,
    settle,
)
from fedrobust.aggregation.streamed import Streamed
from fedrobust.spec import Spec

SHARDS = 4  # a worker's: who is slow, or dies, holds the others up the less
LEAST = 1 << 16  # columns of a shard

Columns = tuple[int, int]


@dataclass(frozen=True)
class FileShard:
    """Some columns of files: a ``Matrix``."""

    files: UpdateFiles
    columns: Columns

    @property
    def n(self) -> int:
        """Files."""
        return self.files.n

    @property
    def d(self) -> int:
        """Columns of the shard."""
        return self.columns[1] - self.columns[0]

    def blocks(self, width: int) -> Iterator[Tensor]:
        """Read the shard's columns in order."""
        return self.files.blocks(width, *self.columns)


class Reader:
    """What runs inside a Ray actor: reads shards of files, which lie on its machine, too."""

    def set_up(self, paths: Sequence[Path]) -> Here:
        """Read the heads of the files."""
        with naming_the_machine():
            here = prepared("")
            self._files = UpdateFiles(paths)
        return here

    def look(self, columns: Columns, products: bool) -> tuple[Look, int]:
        """Read a shard once; return what was found, and the bytes that were read."""
        before = self._files.bytes_read
        found = look(FileShard(self._files, columns), products=products)
        return found, self._files.bytes_read - before

    def parts(self, columns: Columns, settled: Settled) -> Iterator[tuple[int, Tensor, int]]:
        """Read a shard again; yield the parts, each with its first column and the bytes read."""
        at, before = columns[0], self._files.bytes_read
        for part in parts_of(FileShard(self._files, columns), settled):
            read = self._files.bytes_read
            yield at, part, read - before
            at, before = at + len(part), read


def aggregate_on_ray(
    files: UpdateFiles,
    spec: Spec,
    output: Path,
    *,
    address: str,
    pre: Sequence[Spec] = (),
    generator: torch.Generator | None = None,
    workers: int = 0,
) -> tuple[Streamed, int, str]:
    """Aggregate files by the workers of a cluster; the aggregate is written here.

    Parameters
    ----------
    files
        At the same paths on every machine of the cluster.
    address
        Of the cluster, see ``connection.address_of``.

    Returns
    -------
    What was found, the bytes that all workers read, and on which machines they are.

    Raises
    ------
    ConfigError
        If a machine lacks a file, or no cluster answers.
    Refusal, SpecError
        As for files that are read here.
    """
    check_sharded(spec, n=files.n, pre=pre)
    found = Streamed()
    most = -(-files.d // LEAST)
    paths = [path.absolute() for path in files.paths]  # a worker stands elsewhere
    with (
        connected(address) as ray,
        pooled(ray, Reader, paths, workers=workers, most=most, cuda=False) as pool,
    ):
        where = pool.whereabouts()
        shards = cut(files.d, min(most, SHARDS * len(pool.numbers())))
        looks, read = _looks(pool, shards, needs_products(spec, pre))
        settled = settle(looks, spec, pre=pre, generator=generator, found=found)
        pieces = Pieces(pool, shards, ray.put(settled))
        write_placed(output, files, pieces)
    return found, read + pieces.bytes_read, where


def cut(d: int, count: int) -> list[Columns]:
    """Cut columns 0..d-1 into as many shards, of equal size but for one column."""
    ends = [d * i // count for i in range(count + 1)]
    return list(pairwise(ends))


def _looks(pool: Pool, shards: Sequence[Columns], products: bool) -> tuple[list[Look], int]:
    """Let every shard be read once; return what was found, in their order, and the bytes read."""
    answers = dict(each(pool, shards, "look", products))
    return [answers[shard][0] for shard in shards], sum(read for _, read in answers.values())


class Pieces:
    """The parts of an aggregate as they come, each with its first column.

    Attributes
    ----------
    bytes_read
        Of all parts so far.
    """

    def __init__(self, pool: Pool, shards: Sequence[Columns], settled: Any) -> None:
        self._pool, self._shards, self._settled = pool, shards, settled
        self.bytes_read = 0

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Let every shard be read again; those of a worker that died come anew."""
        answers = each(self._pool, self._shards, "parts", self._settled, num_returns="streaming")
        for _, (column, part, read) in answers:
            self.bytes_read += read
            yield column, part


def each(
    pool: Pool, shards: Sequence[Columns], method: str, *arguments: Any, **options: Any
) -> Iterator[tuple[Columns, Any]]:
    """Ask workers about every shard and yield the answers; a dead worker's shards are asked again.

    Raises
    ------
    ClusterError
        If fewer than half of the workers are left.
    """
    left, asked = deque(shards), set[Columns]()
    while left or asked:
        for number in pool.free():
            if left:
                shard = left.popleft()
                pool.ask(number, shard, method, shard, *arguments, **options)
                asked.add(shard)
        done = pool.wait()
        if done is None or done.tag is None:
            continue
        if done.failed is not None:
            raise done.failed
        if done.died or done.last:
            asked.discard(done.tag)
        if done.died:
            left.append(done.tag)
        elif done.value is not None:
            yield done.tag, done.value
