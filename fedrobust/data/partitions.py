"""Who holds which training images: flwr-datasets' partitioners behind one seeded call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedrobust.data.dirichlet import dirichlet
from fedrobust.data.sets import DataError
from fedrobust.data.similarity import similarity
from fedrobust.seeds import derive
from fedrobust.spec import Spec, resolve


def iid(*, clients: int, seed: int) -> Any:
    """Shuffle once, deal equal shares."""
    from flwr_datasets.partitioner import IidPartitioner

    return IidPartitioner(num_partitions=clients)


def shards(*, clients: int, seed: int, per_client: int = 2) -> Any:
    """Sort by label, cut into equal shards, deal ``per_client`` shards to each client.

    References
    ----------
    McMahan et al., Communication-Efficient Learning, AISTATS 2017, section 3.
    """
    from flwr_datasets.partitioner import ShardPartitioner

    return ShardPartitioner(
        num_partitions=clients,
        partition_by="label",
        num_shards_per_partition=per_client,
        seed=seed,
    )


def pathological(*, clients: int, seed: int, classes_per_client: int = 2) -> Any:
    """Each client holds images of ``classes_per_client`` classes only."""
    from flwr_datasets.partitioner import PathologicalPartitioner

    return PathologicalPartitioner(
        num_partitions=clients,
        partition_by="label",
        num_classes_per_partition=classes_per_client,
        class_assignment_mode="deterministic",
        seed=seed,
    )


PARTITIONERS: dict[str, Callable[..., Any]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
    "pathological": pathological,
    "similarity": similarity,
}
SUPPLIED = ("clients", "seed")


def partition(labels: Tensor, spec: Spec, *, clients: int, seed: int) -> list[Tensor]:
    """Split a training set over clients.

    Parameters
    ----------
    labels
        int64, (N,).
    spec
        A key of ``PARTITIONERS``, or a table with its settings.
    clients
        How many shares, at most N.
    seed
        One seed gives one partition.

    Returns
    -------
    One int64 index tensor a client; disjoint, none empty.

    Raises
    ------
    DataError
        If there are fewer images than clients, or the partitioner cannot fill each share.
    """
    if len(labels) < clients:
        raise DataError(f"partition over {clients} clients needs as many images, got {len(labels)}")
    build, settings = resolve(PARTITIONERS, spec, kind="partition", supplied=SUPPLIED)
    return _split(labels, build, settings, clients, seed)


def _split(
    labels: Tensor, build: Callable[..., Any], settings: dict, clients: int, seed: int
) -> list[Tensor]:
    from datasets import Dataset as Table

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    partitioner = build(clients=clients, seed=derive(seed, "partition") % 2**31, **settings)
    partitioner.dataset = Table.from_dict(
        {"index": order.tolist(), "label": labels[order].tolist()}
    )
    try:
        with warnings.catch_warnings():  # other packages' advice is not about these settings
            warnings.simplefilter("ignore")
            # [:]: a column is read from its table row by row, unless it is taken whole
            columns = [partitioner.load_partition(i)["index"][:] for i in range(clients)]
    except (ValueError, RuntimeError) as error:
        raise DataError(f"partition {build.__name__!r} over {clients} clients: {error}") from error
    shares = [torch.tensor(column) for column in columns]
    if any(len(share) == 0 for share in shares):
        raise DataError(f"partition {build.__name__!r} left a client of {clients} without images")
    return shares
