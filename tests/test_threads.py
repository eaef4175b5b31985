"""Thread limits are the user's: kernels keep to them and leave them, runs do not depend on them."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import pytest
import torch

from fedrobust import threads
from fedrobust.aggregation import gram, kernels, reads
from fedrobust.threads import LEAST_WORK, in_parts, kernel_threads, one_thread

ROOT = Path(__file__).parents[1]
# Every limit before and after everything compiled: torch's, OpenMP's, BLAS's, and the number of
# levels that OpenMP may nest, which numba's launch of its own threads changes too.
PROBE = """
import ctypes, json
import equal_bits, threadpoolctl, torch

def limits():
    pools = {p["filepath"]: p["num_threads"] for p in threadpoolctl.threadpool_info()}
    info = torch.__config__.parallel_info()
    mkl = [line.strip() for line in info.splitlines() if "get_max_threads" in line]
    openmp = {path: ctypes.CDLL(path) for path in pools if "gomp" in path}
    levels = {path: library.omp_get_max_active_levels() for path, library in openmp.items()}
    return {"torch": torch.get_num_threads(), "mkl": mkl, "levels": levels, "pools": pools}

torch.set_num_threads(1)
before = limits()
equal_bits.every_rule()
equal_bits.every_preaggregator()
equal_bits.other_compiled_loops()
equal_bits.outcome("foolsgold")
after = limits()
for kind in ("levels", "pools"):  # libraries that were loaded meanwhile had no limit before
    after[kind] = {path: after[kind][path] for path in before[kind]}
print(json.dumps([before, after]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", ["1", "2"])
def test_no_call_changes_a_limit(count):
    environment = os.environ | {"OMP_NUM_THREADS": count, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    environment.pop("NUMBA_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before["torch"] == 1 and before["pools"] and before["mkl"]
    assert after == before


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("torchs", "openmps", "numbas", "least"),
    [(4, "", 8, 4), (4, "3", 8, 3), (4, "2,4", 8, 2), (4, "many", 8, 4), (4, "", 1, 1),
     (1, "8", 8, 1), (4, "0", 8, 1)],
)  # fmt: skip
def test_the_least_of_the_users_limits_counts(
    monkeypatch, torch_threads, torchs, openmps, numbas, least
):
    torch_threads(torchs)
    monkeypatch.setenv("OMP_NUM_THREADS", openmps)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", numbas)
    assert kernel_threads() == least
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert kernel_threads() == least  # their bits do not depend on it
    assert torch.get_num_threads() == torchs


@pytest.mark.parametrize(("count", "work", "used"), [(1, 10, 1), (3, 10, 3), (3, 2, 2), (8, 0, 1)])
def test_parts_are_done_once_on_as_many_threads(monkeypatch, count, work, used):
    monkeypatch.setattr(threads, "kernel_threads", lambda: count)
    before = threading.active_count()
    together = threading.Barrier(used)  # breaks unless each share has a thread of its own
    done = []

    def kernel(word, first, last):
        together.wait(timeout=20)
        done.append((first, last, threading.get_ident(), word))

    in_parts(kernel, "word", parts=7, work=work * LEAST_WORK)
    places = sorted((first, last) for first, last, _, _ in done)
    assert [i for first, last in places for i in range(first, last)] == list(range(7))
    assert len({thread for _, _, thread, _ in done}) == len(done) == used
    assert threading.active_count() <= before  # none of them outlives the call


def test_what_a_share_raises_is_raised(monkeypatch):
    monkeypatch.setattr(threads, "kernel_threads", lambda: 2)

    def kernel(first, last):
        if first:
            raise ValueError("the second share")

    with pytest.raises(ValueError, match="the second share"):
        in_parts(kernel, parts=2, work=2 * LEAST_WORK)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_kernels_give_equal_bits_on_any_number_of_threads(monkeypatch, count):
    matrix = torch.randn(21, 100_003, generator=torch.Generator().manual_seed(3))
    matrix[3, 7] = float("inf")
    finite = matrix[4:]
    rows = torch.arange(1, 16)

    def results():
        return [
            kernels.rank_mean(finite, 8, 9),
            kernels.nearest_mean(finite, rows, 7, 8, 11),
            kernels.row_distances(finite, finite[0] * 0.5),
            kernels.largest_values(matrix).isfinite(),
            reads.signs_and_largest(finite)[0],
            reads.lengths_and_largest(finite)[0],
            gram.gram(finite, three=(0, 1, 2))[0],
        ]

    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    monkeypatch.setattr(threads, "kernel_threads", lambda: 1)
    alone = results()
    assert alone[3].tolist() == [i != 3 for i in range(21)]
    monkeypatch.setattr(threads, "kernel_threads", lambda: count)
    assert all(map(torch.equal, results(), alone))


def test_one_thread_gives_the_limit_back_after_an_error(torch_threads):
    torch_threads(3)
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 3
