"""Data sets as tensors, and their partitions over clients."""

from fedrobust.data.given import as_dataset
from fedrobust.data.partitions import PARTITIONERS, cut, partition
from fedrobust.data.sets import DATASETS, DataError, Dataset, load

__all__ = [
    "DATASETS",
    "PARTITIONERS",
    "DataError",
    "Dataset",
    "as_dataset",
    "cut",
    "load",
    "partition",
]
