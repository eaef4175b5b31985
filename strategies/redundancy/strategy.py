"""Redundancy on Flower: commit, detect and vote on digests, reveal, second stage, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from logging import WARNING
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedrobust.failures import Refusal
from fedrobust.flower import array_of, commit_reveal
from fedrobust.flower.commit_reveal import DOUBLE
from fedrobust.flower.quarantine import struck
from fedrobust.redundancy import Assignment, Corruption, traffic
from fedrobust.redundancy.decision import judge
from fedrobust.redundancy.file_gradient import FileGradient, Loss
from fedrobust.redundancy.plan import FilePlan
from fedrobust.redundancy.uploads import DIGEST
from fedrobust.redundancy.window import Window
from fedrobust.secret import fresh
from fedrobust.seeds import derive
from fedrobust.spec import Spec
from fedrobust.training import StepState, take_step
from strategies.base import RecordedStrategy, Row
from strategies.redundancy import decoding, report
from strategies.redundancy.commitments import held_files, labels_of, read_commitments
from strategies.redundancy.enrolment import ask_profiles, enrol
from strategies.redundancy.exchange import Exchange, RoundLog
from strategies.redundancy.layout import ModelLayout
from strategies.redundancy.membership import Membership
from strategies.redundancy.reveal import Reveal
from strategies.redundancy.second_stage import SecondStage, build_rule
from strategies.redundancy.settings import Settings, settled

Truth = Callable[[int, Assignment], Corruption | None]
Step = Callable[[Tensor, Tensor, StepState, int], tuple[Tensor, StepState]]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round works with."""

    exchange: Exchange
    plan: FilePlan
    asked: tuple[int, ...]
    sent: list[Message]
    arrays: ArrayRecord
    model: Tensor
    statistics: Tensor
    began: float


class RedundantStrategy(RecordedStrategy):
    """Train with files that several workers compute: only what they agree on is fetched.

    The server owns the data; every worker has them all and computes the gradients of the files that
    it is given (`clients.redundancy.FileWorker`).

    Parameters
    ----------
    model, loss, data
        The workers' own: a module, or a function that returns one; (outputs, targets) -> scalar;
        a map-style dataset of pairs (input, target). One gradient is computed at the start, so that
        a mistake shows on the server. ``loss=None`` leaves that out.
    workers, replication, q
        K, r (odd), and the most Byzantine workers there can be, q < K/2.
    scheme, m
        See `fedrobust.redundancy.assign`.
    detection
        "contested" (default of "aspis"), "strict", "paper", "window" (of "aspis_plus"), "none": see
        `fedrobust.redundancy.decision.judge`.
    second, pre
        The second stage, a rule over files or buckets of them, where the plain mean is not enough.
    batch
        Samples of one round over all files; 0: two a file.
    permutation, window, tolerance, sketch, coordinates
        See `fedrobust.experiment.schema.Redundancy`.
    mixed
        Where workers compute other bits: 0 leaves the minority out; in (0, 1) copies are compared
        by this relative tolerance instead.
    server_lr, server_momentum
        v <- momentum v + aggregate; w <- w - lr v.
    deadline, min_replies, largest
        Seconds to wait in each stage; fewest workers heard (2q+1 at least); greatest magnitude.
    seed
        Of the files: workers are told.
    secret
        What the draws follow from that no worker may foresee; never sent, kept in the snapshot.
        None: a new one from the system's entropy.
    clients
        Node id -> worker. None: the first K nodes that are connected, by id.
    step
        (model, aggregate, state, round) -> the next model and state, in the place of the SGD step.
    truth
        (round, assignment) -> what Byzantine workers really distort, for the rows; simulation only.
    on_row
        Called with each round's row after it, where Flower's own ``start`` leads the run.

    Attributes
    ----------
    history
        The rows so far.
    kept
        The files that the last step was made of.

    Notes
    -----
    A round: the model goes out; workers commit to a digest per file; agreement, cliques and votes
    are decided on digests; then only values that were voted for are fetched, one copy of each, or
    sums where the mean is enough. Silence is no evidence against anybody, and a copy that did not
    come votes for nobody; the model is kept unless 2q+1 workers are heard. A worker that
    contradicts its own commitment is out for good. A model with BatchNorm is trained with the
    statistics that the workers agree on, aggregated like gradients.
    """

    def __init__(
        self,
        *,
        model: nn.Module | Callable[[], nn.Module],
        loss: Loss | None,
        data: Any,
        workers: int,
        replication: int,
        q: int,
        scheme: str = "aspis",
        m: int = 0,
        detection: str = "auto",
        second: Spec = "median",
        pre: Sequence[Spec] = (),
        batch: int = 0,
        permutation: str = "auto",
        window: int = 15,
        tolerance: float = 0.0,
        mixed: float = 0.0,
        sketch: int = 32,
        coordinates: int = 0,
        server_lr: float = 0.1,
        server_momentum: float = 0.0,
        deadline: float = 600.0,
        min_replies: int = 1,
        largest: float = 1e10,
        seed: int = 0,
        secret: int | None = None,
        clients: Mapping[int, int] | None = None,
        step: Step | None = None,
        truth: Truth | None = None,
        on_row: Callable[[Row], None] = lambda row: None,
    ) -> None:
        super().__init__()
        self._on_row = on_row
        self._settings = settled(
            Settings(
                scheme=scheme, m=m, workers=workers, replication=replication, q=q, batch=batch,
                examples=len(data), detection=detection, permutation=permutation, window=window,
                tolerance=tolerance, mixed=mixed, sketch=sketch, coordinates=coordinates,
                deadline=deadline, min_replies=min_replies, largest=largest, seed=seed,
                rule=second, pre=tuple(pre),
            )
        )  # fmt: skip
        self._layout = ModelLayout(model)
        if loss is not None:
            probe = FileGradient(ModelLayout(model).flat.module, loss, data)
            probe(self._layout.flat.vector, probe.statistics, torch.arange(2), seed=0)
        self._secret = fresh() if secret is None else secret
        self._clients = None if clients is None else dict(clients)
        self._step = step or self._sgd(server_lr, server_momentum)
        self._truth = truth
        self._rule = build_rule(self._settings)
        self._memory = self._rule.init()
        self._window: Window | None = None
        self._state = StepState()
        self._members = Membership()
        self._tolerance = tolerance
        self._enrolled = False
        self._round: Round | None = None
        self.history: list[Row] = []
        self.kept: tuple[int, ...] = ()

    def initial_arrays(self) -> ArrayRecord:
        """Return the model as it was given, layer by layer, for ``start``."""
        return ArrayRecord(self._layout.flat.module.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the model, and ask every worker that takes part to commit to its files."""
        began = time.perf_counter()
        s = self._settings
        model, statistics = self._layout.read(arrays)
        if self._clients is None:
            self._clients = enrol(grid, workers=s.workers, deadline=s.deadline)
        exchange = Exchange(grid, self._clients, server_round, s.deadline)
        plan = s.plan(server_round, derive(self._secret, "worker labels", round=server_round))
        tracked = {"statistics": statistics} if self._layout.b else {}
        sent_arrays = array_of(model=model, **tracked)
        if not self._enrolled and not s.coded:
            self._compare_profiles(exchange, plan, sent_arrays)
        asked = tuple(self._members.asked(self._clients.values(), server_round))
        order = self._first_order(plan)
        sent = exchange.messages(dict.fromkeys(asked, order), arrays=sent_arrays)
        self._round = Round(
            exchange=exchange, plan=plan, asked=asked, sent=sent, arrays=arrays, model=model,
            statistics=statistics, began=began,
        )  # fmt: skip
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decide on the commitments, fetch what is needed, and step."""
        assert self._round is not None, "configure_train comes first"
        now, ledger = self._round, RoundLog()
        heard = now.exchange.heard(now.sent, replies)
        ledger.bytes_down["model"] = (now.model.nbytes + now.statistics.nbytes) * len(now.sent)
        row: Row = {"round": server_round, "replies": len(heard)}
        row["seconds_commit"] = round(time.perf_counter() - now.began, 4)
        stepped: ArrayRecord | None = None
        self.kept = ()
        try:
            part = self._decode if self._settings.coded else self._vote
            value = part(now, heard, ledger, row)
            stepped = self._stepped(now, value)
        except Refusal as error:  # nothing to step with, or the rule's own refusal
            row["kept"] = str(error)
        # Outside of the try: who was caught in a round that keeps the model is out all the same.
        self._members = self._members.after(
            asked=now.asked, caught=ledger.caught, silent=ledger.silent
        )
        for worker, why in ledger.caught.items():
            log(WARNING, "worker %s is Byzantine and out for good: it %s", worker, why)
        refused = {entry["client"]: entry["reason"] for entry in ledger.refused}
        row |= struck(now.exchange.grid, refused | ledger.caught, now.exchange.clients)
        row |= self._members.row() | report.costs(ledger, now.exchange.clients)
        row["bytes_naive"] = traffic(now.plan.base, parameters=self._layout.length).naive
        self._row = row
        self.history.append(row)
        return stepped, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask nobody; hand the row out, which ``Strategy.start`` leaves to us."""
        self._on_row(self._row)
        return []

    def snapshot(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        window = None if self._window is None else asdict(self._window)
        step, moments = self._state.step, list(self._state.moments)
        return {
            "memory": self._memory,
            "step": step,
            "moments": moments,
            "window": window,
            "members": self._members.tree(),
            "tolerance": self._tolerance,
            "enrolled": self._enrolled,
            "secret": self._secret,
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take a snapshot over."""
        self._memory = tree["memory"]
        self._state = StepState(tree["step"], tuple(tree["moments"]))
        window = tree["window"]
        if window is not None:
            window = Window(**{**window, "flagged": tuple(window["flagged"])})
        self._window = window
        self._members = Membership(**tree["members"])
        self._tolerance, self._enrolled = tree["tolerance"], tree["enrolled"]
        self._secret = tree["secret"]

    def _first_order(self, plan: FilePlan) -> ConfigRecord:
        """Return the order that opens a round: one for all workers."""
        nodes = [""] * self._settings.workers
        for node, worker in (self._clients or {}).items():
            nodes[worker] = str(node)
        told = {**plan.settings(), "nodes": nodes}
        if self._settings.coded:
            size = 2 * DOUBLE * self._layout.length
            return commit_reveal.order("code", arrays=1, size=size, **told)
        return commit_reveal.order("commit", size=max(plan.base.loads) * DIGEST, **told)

    def _compare_profiles(self, exchange: Exchange, plan: FilePlan, arrays: ArrayRecord) -> None:
        """Ask once a run which workers compute the same bits."""
        self._enrolled = True
        told = {**self._first_order(plan), "stage": "profile", "reply-bytes": DIGEST}
        self._members, self._tolerance = ask_profiles(
            exchange,
            ConfigRecord(told),
            arrays,
            settings=self._settings,
            members=self._members,
        )

    def _vote(self, now: Round, heard: Mapping[int, Message], ledger: RoundLog, row: Row) -> Tensor:
        """Commitments -> labels -> verdict -> values -> the second stage's aggregate."""
        s, files = self._settings, now.plan.assignment
        assigned = report.without_rows(files, self._members.out)
        q = self._members.left(s.q)
        promised = read_commitments(heard, held_files(files, now.asked), ledger)
        present = sorted({worker for worker, _ in promised})
        self._enough(present, q)
        labels, accept = labels_of(
            promised, files, now.exchange, ledger,
            tolerance=self._tolerance, size=s.sketch, secret=self._secret,
        )  # fmt: skip
        begin = time.perf_counter()
        verdict, self._window = judge(
            labels, q=q, detection=s.detection, length=s.window, window=self._window,
            copies=assigned.copies,
        )  # fmt: skip
        row["seconds_detect"] = round(time.perf_counter() - begin, 4)
        row |= report.verdict(verdict)
        wrong = report.bound_of(verdict, assigned, present, settings=s, q=q)
        job = Reveal(
            questions=now.exchange, ledger=ledger, promised=promised,
            holders=verdict.holders(labels), length=self._layout.length, largest=s.largest,
            late=self._members.late,
        )  # fmt: skip
        stage = SecondStage(
            settings=s, rule=self._rule, memory=self._memory, secret=self._secret, q=q,
            round=now.plan.round,
            known={
                "layers": lambda: self._layout.layers,
                "model": lambda: torch.cat(self._layout.read(now.arrays)),
            },
        )  # fmt: skip
        done = stage.apply(job, verdict, wrong=wrong, accept=accept)
        self._memory, self.kept = done.memory, tuple(sorted(done.origin))
        truth = None if self._truth is None else self._truth(now.plan.round, files)
        row |= report.outcome(done, verdict, ledger, files=files, wrong=wrong, truth=truth)
        return done.value

    def _enough(self, present: Sequence[int], q: int) -> None:
        """Raise a Refusal unless enough workers were heard."""
        s = self._settings
        if q < 0:
            raise Refusal(
                f"more than q={s.q} workers contradicted themselves or compute other bits: q is too"
                " small"
            )
        least = max(s.min_replies, 2 * q + 1)
        if len(present) < least:
            raise Refusal(
                f"{len(present)} workers were heard, at least {least} are needed"
                f" (2 q + 1 with q={q}, min_replies={s.min_replies})"
            )

    def _decode(
        self, now: Round, heard: Mapping[int, Message], ledger: RoundLog, row: Row
    ) -> Tensor:
        """DRACO's cyclic code: the exact mean of all files, whatever s workers send."""
        s = self._settings
        found = decoding.decode(
            heard, now.asked, ledger,
            workers=s.workers, replication=s.replication, length=self._layout.length,
            largest=s.largest, secret=self._secret, round=now.plan.round,
        )  # fmt: skip
        row |= {"path": "code", "flagged": list(found.byzantine)}
        truth = None if self._truth is None else self._truth(now.plan.round, now.plan.assignment)
        row |= report.quality(set(found.byzantine), truth)
        if not found.consistent:
            raise Refusal("more workers are Byzantine than the code corrects")
        return (found.total / s.workers).float()

    def _stepped(self, now: Round, value: Tensor) -> ArrayRecord:
        """Take the server's step along the gradient; the statistics are taken over as they are."""
        gradient, statistics = value[: self._layout.d], value[self._layout.d :]
        model, self._state = self._step(now.model, gradient, self._state, now.plan.round)
        return self._layout.write(now.arrays, model, statistics)

    def _sgd(self, lr: float, momentum: float) -> Step:
        def step(
            model: Tensor, aggregate: Tensor, state: StepState, server_round: int
        ) -> tuple[Tensor, StepState]:
            return take_step(
                model, aggregate, state, optimizer={"name": "sgd"}, lr=lr, momentum=momentum,
                schedule={"name": "constant"}, warmup=0, shapes=self._layout.shapes,
            )  # fmt: skip

        return step
