"""Who holds which training images: flwr-datasets' partitioners, and our own, behind one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedrobust.data.dirichlet import dirichlet
from fedrobust.data.sets import DataError, Dataset
from fedrobust.data.similarity import EqualPartitioner, similarity
from fedrobust.data.sizes import sizes
from fedrobust.data.skew import FEATURE, feature, feature_of, quantity
from fedrobust.seeds import derive, generator
from fedrobust.spec import Spec, resolve, split


def iid(*, clients: int, seed: int) -> Any:
    """Shuffle once, deal equal shares."""
    return EqualPartitioner(clients)


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


@dataclass(frozen=True)
class Shares:
    """A partition that is its shares already, one index tensor a client."""

    parts: tuple[Tensor, ...]


def natural(*, clients: int, seed: int, owners: Tensor | None = None) -> Shares:
    """Each client holds what is its own: the data say whose each example is.

    With more owners than clients whole owners are dealt round, in an order drawn from the seed, as
    evenly as their number allows.

    Parameters
    ----------
    owners
        Whose each example is, (N,); the data set's own.

    References
    ----------
    Caldas et al., LEAF: A Benchmark for Federated Settings, 2018, section 3.
    """
    if owners is None:
        raise DataError("partition 'natural' needs data that say whose each example is")
    names = owners.unique()
    if len(names) < clients:
        raise DataError(
            f"partition 'natural' over {clients} clients needs as many owners of data, these have"
            f" {len(names)}"
        )
    source = generator(seed, "natural clients")
    # As many owners as clients: client i is owner i, whatever the seed.
    dealt = names[torch.randperm(len(names), generator=source)] if len(names) > clients else names
    held = [dealt[i::clients] for i in range(clients)]
    return Shares(tuple(torch.isin(owners, own).nonzero().flatten() for own in held))


PARTITIONERS: dict[str, Callable[..., Any]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
    "pathological": pathological,
    "similarity": similarity,
    "sizes": sizes,
    "quantity": quantity,
    "feature": feature,
    "natural": natural,
}
SUPPLIED = ("clients", "seed", "owners")
WITHOUT_CLASSES = ("iid", "quantity", "feature", "natural")


def partition(
    labels: Tensor,
    spec: Spec,
    *,
    clients: int,
    seed: int,
    owners: Tensor | None = None,
    inputs: Tensor | None = None,
) -> list[Tensor]:
    """Split a training set over clients.

    Parameters
    ----------
    labels
        int64, (N,); where they are no classes, the partitions of ``WITHOUT_CLASSES`` remain, and
        those of a user's own.
    spec
        A key of ``PARTITIONERS``, or a table with its settings.
    clients
        How many shares, at most N.
    seed
        One seed gives one partition.
    owners
        Whose each example is, (N,), for "natural".
    inputs
        The examples themselves, (N, ...), for "feature".

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
    name, _ = split(spec)
    if getattr(build, "own", False):
        return _own(name, build(labels, clients=clients, seed=seed, **settings), labels, clients)
    if name == "natural":
        return list(natural(clients=clients, seed=seed, owners=owners).parts)
    classes = labels.dim() == 1 and not labels.is_floating_point()
    if not classes and name not in WITHOUT_CLASSES:
        raise DataError(
            f"partition {name!r} needs a class for each example, the targets are {labels.dtype} of"
            f" shape {tuple(labels.shape)}: choose from {', '.join(WITHOUT_CLASSES)}"
        )
    # One class for all where there are none: the table below has a column of labels.
    columns = {"label": labels if classes else torch.zeros(len(labels), dtype=torch.int64)}
    if name == FEATURE:
        if inputs is None:
            raise DataError("partition 'feature' needs the inputs beside the labels")
        columns[FEATURE] = feature_of(inputs.cpu(), settings.get("column", 0))
    return _split(columns, build, settings, clients, seed)


def cut(dataset: Dataset, spec: Spec, *, clients: int, seed: int) -> list[Tensor]:
    """Split a data set's training examples over clients; see ``partition``."""
    owners, inputs = dataset.train_clients, dataset.train_images
    given: dict[str, Any] = {"clients": clients, "seed": seed, "owners": owners, "inputs": inputs}
    return partition(dataset.train_labels, spec, **given)


def _own(name: str, shares: Any, labels: Tensor, clients: int) -> list[Tensor]:
    """Check what a partition of a user's own returned."""
    if not isinstance(shares, Sequence) or len(shares) != clients:
        found = f"{len(shares)} of them" if isinstance(shares, Sequence) else type(shares).__name__
        raise DataError(f"partition {name!r} must return {clients} index tensors, got {found}")
    parts = [torch.as_tensor(share).long().flatten() for share in shares]
    if empty := [i for i, part in enumerate(parts) if not len(part)]:
        raise DataError(f"partition {name!r} left client {empty[0]} of {clients} without examples")
    # Over all clients: one example twice would be trained on twice, or by two.
    used = torch.cat(parts)
    if int(used.min()) < 0 or int(used.max()) >= len(labels):
        raise DataError(f"partition {name!r} names an example outside 0..{len(labels) - 1}")
    if len(used.unique()) < len(used):
        raise DataError(f"partition {name!r} gives one example to two clients")
    return parts


def _split(
    columns: dict[str, Tensor],
    build: Callable[..., Any],
    settings: dict,
    clients: int,
    seed: int,
) -> list[Tensor]:
    count = len(columns["label"])
    # Shuffled here: parts are cut as the data come, and those may come sorted by class.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    # Their seeds are numpy's, of 32 bits.
    partitioner = build(clients=clients, seed=derive(seed, "partition") % 2**31, **settings)
    try:
        if hasattr(partitioner, "split"):
            sorted_by = columns[getattr(partitioner, "by", "label")]
            parts = partitioner.split(sorted_by[order].numpy())
            shares = [order[torch.as_tensor(part, dtype=torch.int64)] for part in parts]
        else:
            shares = _from_table(partitioner, order, columns["label"], clients)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"partition {build.__name__!r} over {clients} clients: {error}") from error
    if any(len(share) == 0 for share in shares):
        raise DataError(f"partition {build.__name__!r} left a client of {clients} without images")
    return shares


def _from_table(partitioner: Any, order: Tensor, labels: Tensor, clients: int) -> list[Tensor]:
    """Ask a partitioner of flwr-datasets, which wants a table: seconds, where ours take none."""
    from datasets import Dataset as Table

    partitioner.dataset = Table.from_dict(
        {"index": order.tolist(), "label": labels[order].tolist()}
    )
    with warnings.catch_warnings():  # other packages' advice is not about these settings
        warnings.simplefilter("ignore")
        # [:]: a column is read from its table row by row, unless it is taken whole
        columns = [partitioner.load_partition(i)["index"][:] for i in range(clients)]
    return [torch.tensor(column) for column in columns]
