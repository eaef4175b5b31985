"""Data sets as tensors, and their partitions over clients."""

from fedrobust.data.builtin import breast_cancer, diabetes, docstrings, wine
from fedrobust.data.given import as_dataset
from fedrobust.data.held_out import examples_of, set_aside
from fedrobust.data.leaf import femnist, shakespeare
from fedrobust.data.partitions import PARTITIONERS, cut, partition
from fedrobust.data.sets import DATASETS, DataError, Dataset, load

DATASETS |= {
    "breast_cancer": breast_cancer,
    "wine": wine,
    "diabetes": diabetes,
    "docstrings": docstrings,
    "femnist": femnist,
    "shakespeare": shakespeare,
}

__all__ = [
    "DATASETS",
    "PARTITIONERS",
    "DataError",
    "Dataset",
    "as_dataset",
    "cut",
    "examples_of",
    "load",
    "partition",
    "set_aside",
]
