"""Data sets as tensors, and their partitions over clients."""

from fedrobust.data.builtin import breast_cancer, diabetes, docstrings, wine
from fedrobust.data.given import as_dataset
from fedrobust.data.held_out import examples_of, set_aside
from fedrobust.data.leaf import femnist, shakespeare
from fedrobust.data.partitions import PARTITIONERS, cut, partition
from fedrobust.data.sets import DATASETS, VALIDATION, DataError, Dataset, load, validation

DATASETS |= {
    "breast_cancer": breast_cancer,
    "wine": wine,
    "diabetes": diabetes,
    "docstrings": docstrings,
    "femnist": femnist,
    "shakespeare": shakespeare,
}
# The board's table of numbers is tuned on it.
DATASETS["breast_cancer" + VALIDATION] = validation(breast_cancer)

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
