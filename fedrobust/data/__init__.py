"""Data sets as uint8 tensors, and their partitions over clients."""

from fedrobust.data.partitions import PARTITIONERS, partition
from fedrobust.data.sets import DATASETS, DataError, Dataset, load

__all__ = ["DATASETS", "PARTITIONERS", "DataError", "Dataset", "load", "partition"]
