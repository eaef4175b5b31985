"""Redundancy on Flower: commit, detect and vote on digests, reveal, second stage, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedrobust import aggregation
from fedrobust.experiment.schema import Experiment
from fedrobust.failures import Refusal
from fedrobust.flower import array_of, commit_reveal, tensor_of
from fedrobust.redundancy import (
    Assignment,
    Corruption,
    label_digests,
    label_values,
    rounds,
    traffic,
)
from fedrobust.redundancy.commitments import sketch, sketches_agree
from fedrobust.redundancy.decision import Verdict, judge
from fedrobust.redundancy.draco import decode_cyclic
from fedrobust.redundancy.uploads import DIGEST
from fedrobust.redundancy.window import Window
from fedrobust.seeds import generator
from fedrobust.training import StepState
from fedrobust.training.server_optimizer import server_step
from strategies.base import RecordedStrategy, Row
from strategies.redundancy.exchange import Exchange, RoundLog, read_all
from strategies.redundancy.reveal import (
    SAME,
    Reveal,
    ask_sketches,
    reveal_files,
    reveal_slices,
    reveal_sum,
)

Truth = Callable[[int], Corruption | None]


class RedundantStrategy(RecordedStrategy):
    """Train with files that several workers compute: only what they agree on is fetched.

    Parameters
    ----------
    experiment
        Its ``scheme`` says who computes what and how liars are found; its rule is the second stage,
        over the files' voted gradients.
    clients
        Node id -> worker, from the roll call.
    truth
        Round -> what the liars really distort, for the report only (simulation).
    on_row
        Called with each round's row when it is complete.
    shapes
        The model's parameter tensors in order; a layer-wise server optimizer needs them.
    secret
        What the server's draws follow from; None: the experiment's seed, which every node knows.

    Notes
    -----
    A round: the model goes out; workers commit to a digest per file; agreement, cliques and votes
    are decided on digests; then only values that were voted for are fetched, one copy of each, or
    one sum per worker where the mean is enough. Silence is no evidence against anybody. All state
    but the window's and the rule's memory is of one round.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        clients: Mapping[int, int],
        truth: Truth = lambda round: None,
        on_row: Callable[[Row], None] = lambda row: None,
        shapes: tuple[tuple[int, ...], ...] = (),
        secret: int | None = None,
    ) -> None:
        super().__init__(on_row)
        self._experiment = experiment
        self._secret = experiment.seed if secret is None else secret
        self._shapes = shapes
        self._clients = dict(clients)
        self._truth = truth
        self._rule = aggregation.build(experiment.rule, pre=experiment.pre)
        self._memory = self._rule.init()
        self._window: Window | None = None
        self._state = StepState()
        self._model: Tensor | None = None
        self._matrix: Tensor | None = None
        self._questions: Exchange | None = None
        self._sent: list[Message] = []
        worst = rounds.worst_case(experiment.redundancy)
        self._bound = None if worst is None else round(worst.fraction, 6)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the model, and ask every worker to commit to its files."""
        self._started = time.perf_counter()
        self._model = tensor_of(arrays["model"])
        deadline = self._experiment.server.deadline
        self._questions = Exchange(grid, self._clients, server_round, deadline)
        coded = self._experiment.redundancy.name == "draco_cyclic"
        order = commit_reveal.order("code" if coded else "commit")
        everyone = dict.fromkeys(self._clients.values(), order)
        self._sent = self._questions.messages(everyone, arrays=arrays)
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decide on the commitments, fetch what is needed, and step."""
        assert self._questions is not None and self._model is not None, (
            "configure_train comes first"
        )
        ledger = RoundLog()
        ledger.bytes_down["model"] = self._model.nbytes * len(self._sent)
        heard = self._questions.heard(self._sent, replies)
        self._row = {"round": server_round, "replies": len(heard)}
        self._row |= {"seconds_commit": round(time.perf_counter() - self._started, 4)}
        coded = self._experiment.redundancy.name == "draco_cyclic"
        try:
            step = self._decode(heard, ledger) if coded else self._vote(heard, ledger)
            stepped = self._stepped(server_round, step)
        except Refusal as error:  # nothing to step with, or the rule's own refusal
            self._row["kept"] = str(error)
            stepped = None
        self._row |= self._costs(ledger)
        return (None, None) if stepped is None else (array_of(model=stepped), None)

    def snapshot(self) -> dict[str, Any]:
        """Return what the next round depends on: the rule's memory, the moments and the window."""
        window = None if self._window is None else asdict(self._window)
        step, moments = self._state.step, list(self._state.moments)
        return {"memory": self._memory, "step": step, "moments": moments, "window": window}

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take a snapshot over."""
        self._memory = tree["memory"]
        self._state = StepState(tree["step"], tuple(tree["moments"]))
        window = tree["window"]
        if window is not None:
            window = Window(**{**window, "flagged": tuple(window["flagged"])})
        self._window = window

    def _vote(self, heard: Mapping[int, Message], ledger: RoundLog) -> Tensor:
        """Commitments -> labels -> verdict -> values -> the second stage's aggregate."""
        settings = self._experiment.redundancy
        files = rounds.assignment(self._experiment, round=self._questions.round)  # type: ignore[union-attr]
        promised = _read_commitments(heard, files, self._clients.values(), ledger)
        held = {w: files.matrix[w].nonzero().flatten().tolist() for w, _ in promised}
        labels, accept = self._labels(promised, held, files, ledger)
        begin = time.perf_counter()
        verdict, self._window = judge(
            labels,
            q=settings.q,
            detection=settings.detection,
            length=settings.window,
            window=self._window,
        )
        self._row["seconds_detect"] = round(time.perf_counter() - begin, 4)
        self._row |= {
            "flagged": list(verdict.flagged),
            "accepted": verdict.accepted,
            "cliques": verdict.cliques,
            "capped": verdict.capped,
        }
        server = self._experiment.server
        job = Reveal(
            self._questions,  # type: ignore[arg-type]
            ledger,
            promised,
            verdict.holders(labels),
            self._model.numel(),  # type: ignore[union-attr]
            server.largest,
        )
        step, origin = self._second_stage(job, verdict, held, accept)
        self._row |= self._report(verdict, origin, files, ledger)
        return step

    def _labels(
        self,
        promised: Mapping[tuple[int, int], bytes],
        held: Mapping[int, list[int]],
        files: Assignment,
        ledger: RoundLog,
    ) -> tuple[Tensor, Callable[[int, int, Tensor], bool]]:
        """Tell which copies agree: by their digests, or with a tolerance by their sketches.

        The sketches' seed is drawn after everybody has committed to a digest of the whole vector.
        Also returned: a check of a revealed value against its sender's sketch.
        """
        shape = {"workers": files.workers, "files": files.files}
        tolerance, size = self._experiment.redundancy.tolerance, self._experiment.redundancy.sketch
        if not tolerance:
            return label_digests(promised, **shape), lambda worker, file, value: True
        questions = self._questions
        assert questions is not None
        sketches, seed = ask_sketches(questions, held, size=size, ledger=ledger)

        def accept(worker: int, file: int, value: Tensor) -> bool:
            own = sketch(value, seed=seed, size=size)
            return sketches_agree(own, sketches[worker, file], tolerance=SAME)

        return label_values(sketches, tolerance=tolerance, **shape), accept

    def _second_stage(
        self,
        job: Reveal,
        verdict: Verdict,
        held: Mapping[int, list[int]],
        accept: Callable[[int, int, Tensor], bool],
    ) -> tuple[Tensor, dict[int, int]]:
        """Return the aggregate (d,), and file -> the worker its value came from."""
        e, files = self._experiment, sorted(job.holders)
        if not files:
            raise Refusal("no file was voted for")
        mean = verdict.plain or (e.rule["name"] == "mean" and not e.pre)
        self._row["path"] = "sum" if mean else "files"
        if mean and not e.redundancy.tolerance:
            total, origin = reveal_sum(job, held, size=e.redundancy.sketch, alone=verdict.plain)
            if not origin:
                raise Refusal("no file could be revealed")
            return total / len(origin), origin
        if e.redundancy.coordinates and not mean:
            return reveal_slices(
                job,
                files,
                width=e.redundancy.coordinates,
                combine=lambda rows: self._rule.apply(rows).aggregate,
            )
        values, origin = reveal_files(job, files, accept)
        if not values:
            raise Refusal("no file could be revealed")
        order = self._shuffled(sorted(values))
        rows = self._stacked([values[file] for file in order])
        if mean:
            return rows.mean(0), origin
        source = generator(self._secret, "rule", round=job.questions.round)
        outcome = self._rule.apply(rows, self._memory, source, clients=order)
        self._memory = outcome.state
        return outcome.aggregate, origin

    def _stacked(self, values: list[Tensor]) -> Tensor:
        """Stack vectors in the memory of the last round, where it fits: fresh pages cost more."""
        shape = (len(values), values[0].numel())
        if self._matrix is None or tuple(self._matrix.shape) != shape:
            self._matrix = torch.empty(shape)
        return torch.stack(values, out=self._matrix)

    def _shuffled(self, files: list[int]) -> list[int]:
        """Shuffle the files, as DETOX does before its buckets."""
        source = generator(self._secret, "buckets", round=self._questions.round)  # type: ignore[union-attr]
        return [files[i] for i in torch.randperm(len(files), generator=source).tolist()]

    def _decode(self, heard: Mapping[int, Message], ledger: RoundLog) -> Tensor:
        """DRACO's cyclic code: the exact mean of all files, whatever s workers send."""
        e, d = self._experiment, self._model.numel()  # type: ignore[union-attr]
        received = torch.zeros(e.clients, d, dtype=torch.complex64)

        def read(message: Message, worker: int) -> Tensor | str:
            largest = e.server.largest
            return commit_reveal.read_values(message, ["code"], shape=(2, d), largest=largest)[
                "code"
            ]

        asked = dict.fromkeys(sorted(self._clients.values()))
        for worker, value in read_all(heard, asked, read, ledger).items():
            if isinstance(value, str):
                ledger.refuse(worker, value)
                continue
            ledger.up("code", value.nbytes)
            received[worker] = torch.complex(value[0], value[1])
        rounds = self._questions.round  # type: ignore[union-attr]
        source = generator(self._secret, "code", round=rounds)
        found = decode_cyclic(received, s=(e.redundancy.replication - 1) // 2, generator=source)
        self._row |= {"path": "code", "flagged": list(found.byzantine)}
        self._row |= self._quality(set(found.byzantine))
        if not found.consistent:
            raise Refusal("more workers lie than the code corrects")
        return found.total / e.clients

    def _stepped(self, server_round: int, aggregate: Tensor) -> Tensor:
        """Take the experiment's server step."""
        stepped, self._state = server_step(
            self._experiment,
            self._model,  # type: ignore[arg-type]
            aggregate,
            self._state,
            round=server_round,
            shapes=self._shapes,
            sizes=tuple(torch.Size(shape).numel() for shape in self._shapes),
        )
        return stepped

    def _report(
        self, verdict: Verdict, origin: Mapping[int, int], files: Assignment, ledger: RoundLog
    ) -> Row:
        """Say what was detected, and in simulation how much of it was true."""
        row: Row = {
            "caught": {str(worker): why for worker, why in sorted(ledger.caught.items())},
            "files": files.files,
            "dropped": files.files - len(origin),
            "wrong_bound": self._bound,
        }
        truth = self._truth(self._questions.round)  # type: ignore[union-attr]
        if truth is not None:
            lies = self._experiment.redundancy.lies == "commit"
            wrong = sum(bool(truth.distorted[w, file]) for file, w in origin.items()) if lies else 0
            row["wrong_files"] = round(wrong / files.files, 6)
        return row | self._quality({*verdict.flagged, *ledger.caught})

    def _quality(self, flagged: set[int]) -> Row:
        """Precision and recall of the flagged workers; None where there is nothing to divide by."""
        truth = self._truth(self._questions.round)  # type: ignore[union-attr]
        if truth is None:
            return {}
        liars = set(truth.adversaries)
        hits = len(flagged & liars)
        return {
            "byzantine": sorted(liars),
            "precision": round(hits / len(flagged), 6) if flagged else None,
            "recall": round(hits / len(liars), 6) if liars else None,
        }

    def _costs(self, ledger: RoundLog) -> Row:
        """Bytes by stage, without headers, and what sending every copy would have cost."""
        files = rounds.assignment(self._experiment, round=self._questions.round)  # type: ignore[union-attr]
        node_of = {client: node for node, client in self._clients.items()}
        rejected = [{"node": node_of.get(e["client"]), **e} for e in ledger.refused]
        return {
            "rejected": sorted(rejected, key=lambda e: e["client"]),
            "bytes_up": sum(ledger.bytes_up.values()),
            "bytes_down": sum(ledger.bytes_down.values()),
            "bytes_by_stage": dict(ledger.bytes_up),
            "bytes_naive": traffic(files, parameters=self._model.numel()).naive,  # type: ignore[union-attr]
        }


def _read_commitments(
    heard: Mapping[int, Message], files: Assignment, workers: Iterable[int], ledger: RoundLog
) -> dict[tuple[int, int], bytes]:
    """Read who committed to what: (worker, file) -> digest."""
    held = {worker: files.matrix[worker].nonzero().flatten().tolist() for worker in sorted(workers)}

    def read(message: Message, worker: int) -> tuple[bytes, ...]:
        return commit_reveal.read_digests(message, files=len(held[worker]))

    promised: dict[tuple[int, int], bytes] = {}
    for worker, digests in read_all(heard, held, read, ledger).items():
        ledger.up("commit", DIGEST * len(digests))
        promised |= {(worker, f): d for f, d in zip(held[worker], digests, strict=True)}
    return promised
