"""Redundancy on Flower: commit, detect and vote on digests, reveal, second stage, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
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
from fedrobust.redundancy import traffic
from fedrobust.redundancy.file_gradient import FileGradient, Loss
from fedrobust.redundancy.plan import FilePlan
from fedrobust.redundancy.uploads import DIGEST
from fedrobust.secret import fresh
from fedrobust.seeds import derive
from fedrobust.spec import Spec
from fedrobust.training import StepState, take_step
from strategies.base import RecordedStrategy, Row
from strategies.redundancy import report
from strategies.redundancy.enrolment import ask_profiles, numbered_workers
from strategies.redundancy.exchange import Exchange, RoundLog
from strategies.redundancy.layout import ModelLayout
from strategies.redundancy.outcome import Basis, Round, Truth, decide
from strategies.redundancy.second_stage import build_rule
from strategies.redundancy.settings import Settings, settled
from strategies.redundancy.state import State, state_from

Step = Callable[[Tensor, Tensor, StepState, int], tuple[Tensor, StepState]]


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
        (model, aggregate, state, round) -> the next model and state, in the place of the SGD step;
        it has its own rate, and a momentum if it wants one.
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
        if step is not None and server_momentum:
            raise ValueError(f"server_momentum={server_momentum} is SGD's: a step has its own")
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
        self._clients = None if clients is None else dict(clients)
        self._step = step or _sgd(server_lr, server_momentum, self._layout.shapes)
        self._truth = truth
        self._rule = build_rule(self._settings)
        known = fresh() if secret is None else secret
        self._state = State(secret=known, tolerance=tolerance, memory=self._rule.init())
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
            self._clients = numbered_workers(grid, workers=s.workers, deadline=s.deadline)
        exchange = Exchange(grid, self._clients, server_round, s.deadline)
        plan = s.plan(server_round, derive(self._state.secret, "worker labels", round=server_round))
        tracked = {"statistics": statistics} if self._layout.b else {}
        sent_arrays = array_of(model=model, **tracked)
        if not self._state.enrolled:
            self._compare_profiles(exchange, plan, sent_arrays)
        asked = tuple(self._state.members.asked(self._clients.values(), server_round))
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
        done = decide(self._basis(), now, heard, ledger, self._state)
        row |= done.row
        if self._truth is not None:  # simulated: the attackers may say what they chose
            row |= report.search(heard)
        self.kept = done.kept
        # Who was caught in a round that keeps the model is out all the same.
        members = done.state.members.after(
            asked=now.asked, caught=ledger.caught, silent=ledger.silent
        )
        self._state = replace(done.state, members=members)
        stepped = self._stepped(now, done.value, row)
        for worker, why in ledger.caught.items():
            log(WARNING, "worker %s is Byzantine and out for good: it %s", worker, why)
        refused = {entry["client"]: entry["reason"] for entry in ledger.refused}
        row |= struck(now.exchange.grid, refused | ledger.caught, now.exchange.clients)
        row |= members.row() | report.costs(ledger, now.exchange.clients)
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
        return self._state.tree()

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take a snapshot over."""
        self._state = state_from(tree)

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
        told = {**self._first_order(plan), "stage": "profile", "reply-bytes": DIGEST}
        members, tolerance = ask_profiles(
            exchange,
            ConfigRecord(told),
            arrays,
            settings=self._settings,
            members=self._state.members,
        )
        self._state = replace(self._state, members=members, tolerance=tolerance, enrolled=True)

    def _basis(self) -> Basis:
        """Return what decides every round."""
        return Basis(
            settings=self._settings,
            rule=self._rule,
            length=self._layout.length,
            layers=lambda: self._layout.layers,
            truth=self._truth,
        )

    def _stepped(self, now: Round, value: Tensor | None, row: Row) -> ArrayRecord | None:
        """Take the server's step along the gradient; the statistics are taken over as they are."""
        if value is None:
            return None
        gradient, statistics = value[: self._layout.d], value[self._layout.d :]
        try:
            model, step = self._step(now.model, gradient, self._state.step, now.plan.round)
        except Refusal as error:
            row["kept"] = str(error)
            return None
        self._state = replace(self._state, step=step)
        return self._layout.write(now.arrays, model, statistics)


def _sgd(lr: float, momentum: float, shapes: tuple[tuple[int, ...], ...]) -> Step:
    """Return SGD with momentum at one rate."""

    def step(
        model: Tensor, aggregate: Tensor, state: StepState, server_round: int
    ) -> tuple[Tensor, StepState]:
        return take_step(
            model, aggregate, state, optimizer={"name": "sgd"}, lr=lr, momentum=momentum,
            schedule={"name": "constant"}, warmup=0, shapes=shapes,
        )  # fmt: skip

    return step
