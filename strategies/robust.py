"""One strategy for every rule and pre-aggregator: screen, aggregate, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedrobust import aggregation
from fedrobust.adversarial import slack_weights
from fedrobust.attacks import bypass, impact, spread
from fedrobust.experiment.schema import Experiment
from fedrobust.failures import Refusal
from fedrobust.flower import array_of, payload, tensor_of, wire_of
from fedrobust.seeds import generator
from fedrobust.simulation import stragglers
from fedrobust.training import StepState
from fedrobust.training.server_optimizer import head_size, server_step
from fedrobust.vector import joined
from strategies.base import RecordedStrategy, Row
from strategies.batchnorm_statistics import averaged, statistics_down
from strategies.communication_cost import traffic
from strategies.downlink import Downlink
from strategies.replies import Round, listen
from strategies.root_dataset import OwnData

SERVER = -1  # the server's place where a client's number is asked for


class RobustStrategy(RecordedStrategy):
    """Aggregate screened replies with a robust rule and take one server step.

    Parameters
    ----------
    experiment
        Names the rule, its pre-aggregators and the server's settings.
    clients
        Node id -> client, from the roll call. Votes are per node: one reply each.
    most_examples
        Size of the whole training set; no reply may claim more.
    members
        Round -> the clients known to be Byzantine, for the report only (simulation).
    on_row
        Called with each round's row when it is complete.
    own_data
        What the server knows itself, for rules that trust it.
    initial
        The freshly drawn model, (d,): its last layer is put back after pre-training.
    shapes
        The shape of each parameter tensor; one vector where nobody needs the layers.
    variances
        Which running statistics of BatchNorm are variances, (b,); empty without BatchNorm.
    secret
        What the rule's draws follow from; None: the experiment's seed, which every node knows.

    Notes
    -----
    A bad reply costs its sender the vote. With fewer replies than the rule needs the model is
    kept, and the row says so. What clients claim of themselves is never a weight.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        clients: Mapping[int, int],
        most_examples: int,
        members: Callable[[int], Iterable[int]] = lambda round: (),
        on_row: Callable[[Row], None] = lambda row: None,
        own_data: OwnData | None = None,
        initial: Tensor | None = None,
        shapes: tuple[tuple[int, ...], ...] = (),
        variances: Tensor | None = None,
        secret: int | None = None,
    ) -> None:
        super().__init__(on_row)
        self._experiment = experiment
        self._secret = experiment.seed if secret is None else secret
        self._clients = dict(clients)
        self._most_examples = most_examples
        self._members = members
        self._own_data = own_data
        self._rule = aggregation.build(experiment.rule, pre=experiment.pre)
        self._memory = self._rule.init()
        self._state = StepState()
        self._initial = initial
        self._shapes = shapes
        self._sizes = tuple(torch.Size(shape).numel() for shape in shapes)
        self._wire = wire_of(experiment, self._sizes)
        self._downlink = Downlink(replicas=experiment.compression.replicas)
        self._variances = variances
        self._statistics: Tensor | None = None
        self._asked: dict[int, int] = {}
        self._model: Tensor | None = None
        self._matrix: Tensor | None = None  # kept: fresh pages cost more than the copy
        self._sent: list[Message] = []
        self._down = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send every asked node what it lacks; messages of the same kind share one content."""
        self._started = time.perf_counter()
        self._model = tensor_of(arrays["model"])
        self._statistics = tensor_of(arrays["statistics"]) if "statistics" in arrays else None
        if (
            self._experiment.pretrain.rounds
            and server_round == self._experiment.pretrain.rounds + 1
        ):
            self._begin_anew()
        asked = set(stragglers.participants(self._experiment, server_round))
        self._asked = {node: client for node, client in self._clients.items() if client in asked}
        contents = self._downlink.contents(
            self._asked.values(),
            model=self._model,
            statistics=statistics_down(self._experiment, self._statistics),
            state=self._state,
            setting={**config, "round": server_round},
        )
        ttl = stragglers.wall(self._experiment)
        self._sent = [
            Message(contents[client], node, "train", group_id=str(server_round), ttl=ttl)
            for node, client in self._asked.items()
        ]
        self._down = sum(payload(message.content) for message in self._sent)
        return self._sent

    def _begin_anew(self) -> None:
        """Put the freshly drawn last layer back and forget the moments: pre-training is over."""
        assert self._model is not None and self._initial is not None
        head = head_size(self._sizes)
        self._model = torch.cat([self._model[:-head], self._initial[-head:]])
        self._state = StepState()
        self._memory = self._rule.init()
        self._downlink.forget()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen the replies, aggregate what is left, and step."""
        assert self._model is not None, "aggregate_train follows configure_train"
        heard = self._screen(replies)
        self._row = {
            "round": server_round,
            "replies": len(heard.accepted),
            "rejected": heard.rejected,
            **traffic(self._experiment.server, heard.accepted.values(), self._down, self._asked),
        }
        self._downlink.confirm(heard.accepted, self._state.step)
        try:
            stepped = self._step(server_round, heard)
        except Refusal as error:  # the rule's own refusal: too few updates, nothing finite
            self._row["kept"] = str(error)
            return None, None
        if self._statistics is not None:
            accepted = [heard.accepted[client] for client in heard.clients]
            self._statistics = averaged(self._experiment, self._statistics, accepted)
            return array_of(model=stepped, statistics=self._statistics), None
        return array_of(model=stepped), None

    def snapshot(self) -> dict[str, Any]:
        """Return what the next round depends on: the rule's memory, the moments, who holds what."""
        return {
            "memory": self._memory,
            "step": self._state.step,
            "moments": list(self._state.moments),
            "statistics": self._statistics,
            "downlink": self._downlink.snapshot(),
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take a snapshot over."""
        self._memory, self._statistics = tree["memory"], tree["statistics"]
        self._state = StepState(tree["step"], tuple(tree["moments"]))
        self._downlink.restore(tree["downlink"])

    def statistics(self, otherwise: Tensor) -> Tensor:
        """Return the running statistics as they stand; ``otherwise`` before the first round."""
        return otherwise if self._statistics is None else self._statistics

    def _screen(self, replies: Iterable[Message]) -> Round:
        server = self._experiment.server
        return listen(
            replies,
            self._sent,
            clients=self._clients,
            d=self._model.numel(),  # type: ignore[union-attr]
            most_examples=self._most_examples,
            largest=server.largest,
            read=self._wire.read,
            variances=self._variances,
            times=server.times,
        )

    def _step(self, server_round: int, heard: Round) -> Tensor:
        """Aggregate, quantise the aggregate where it goes down as a step, and take that step."""
        server = self._experiment.server
        if len(heard.accepted) < server.min_replies:
            raise Refusal(
                f"server.min_replies asks for {server.min_replies}, got {len(heard.accepted)}"
            )
        updates = joined(heard.rows)
        if updates is None:
            updates = self._matrix = heard.matrix(self._matrix)
        source = generator(self._secret, "rule", round=server_round)
        own = self._own_data.offers(self._model, server_round) if self._own_data else None  # type: ignore[arg-type]
        weighed = self._slack(updates, heard)
        outcome = self._rule.apply(weighed, self._memory, source, clients=heard.clients, server=own)
        aggregate, packet = outcome.aggregate, None
        if self._experiment.compression.replicas:
            packet = self._wire.write(aggregate, server_round, SERVER)
            aggregate = self._wire.read(packet)
        stepped, state = server_step(
            self._experiment,
            self._model,  # type: ignore[arg-type]
            aggregate.to(self._model.device),  # type: ignore[union-attr]
            self._state,
            round=server_round,
            shapes=self._shapes,
            sizes=self._sizes,
        )
        self._memory, self._state = outcome.state, state
        if packet is not None:
            self._downlink.stepped(state.step, packet)
        self._row |= self._report(server_round, heard, updates, outcome)
        return stepped

    def _slack(self, updates: Tensor, heard: Round) -> Tensor:
        """Scale rows so that their mean is SFAT's weighted one; rows as they are without slack."""
        settings = self._experiment.adversarial.federated
        if not settings.slack:
            return updates
        losses = torch.tensor([heard.accepted[client].loss for client in heard.clients])
        top = min(settings.slack_top, len(losses))
        weights = slack_weights(losses, torch.ones(len(losses)), alpha=settings.slack, top=top)
        return updates * (len(losses) * weights)[:, None]

    def _report(self, server_round: int, heard: Round, updates: Tensor, outcome: Any) -> Row:
        """Describe who counted how much, and how much of that was the attackers'."""
        clients = heard.clients
        bad = set(self._members(server_round))
        malicious = torch.tensor([client in bad for client in clients])
        losses = [heard.accepted[c].loss for c in clients if c not in bad]
        row: Row = {"train_loss": round(sum(losses) / len(losses), 6) if losses else None}
        if outcome.weights is not None:
            weight = dict(zip(clients, outcome.weights.tolist(), strict=True))
            places = sorted(self._clients.values())
            row["weights"] = [round(weight[c], 6) if c in weight else None for c in places]
        if bad:
            row |= {"byzantine": sorted(bad)}
            if outcome.weights is not None:
                row["bypass"] = bypass(outcome.weights, malicious)
            if not bool(malicious.all()):
                row["impact"] = impact_of(outcome.aggregate, updates[~malicious])
        return row


def impact_of(aggregate: Tensor, honest: Tensor) -> dict[str, float]:
    """How far the aggregate is from the honest mean, in honest spreads, and its direction."""
    measured = impact(aggregate, honest.mean(0), spread=spread(honest))
    return {
        "deviation": round(min(measured.deviation, 1e9), 6),
        "cosine": round(measured.cosine, 6),
    }
