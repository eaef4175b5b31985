"""What a client starts from: the model it was sent, or its replica after the server's step."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor

from clients.node import Node
from fedrobust.flower import array_of, read_setting, read_tensor
from fedrobust.training import StepState
from fedrobust.training.server_optimizer import server_step

REPLICA = "replica"
BEHIND = "the replica missed a step"


def global_model(node: Node, message: Message, context: Context, *, server_round: int) -> Tensor:
    """Return the global model (d,) of a training message.

    With replicas the message holds the whole model with the optimizer's moments, or the one step
    that the replica lacks, or nothing; the replica is kept in the client's state.

    Raises
    ------
    ValueError
        If the replica lacks more than the message holds: the server, which gets the error for a
        reply, then sends the whole model.
    """
    if not node.experiment.compression.replicas:
        return read_tensor(message.content, "arrays", "model")
    version = int(read_setting(message.content, "config", "version"))
    arrays = message.content["arrays"]
    if isinstance(arrays, ArrayRecord) and "model" in arrays:
        keys = sorted(key for key in arrays if key.startswith("moment-"))
        moments = tuple(read_tensor(message.content, "arrays", key) for key in keys)
        model = read_tensor(message.content, "arrays", "model")
        return _keep(context, model, StepState(version, moments))
    model, state = _held(context)
    if state.step == version:
        return model
    if state.step != version - 1 or not isinstance(arrays, ArrayRecord) or "step" not in arrays:
        raise ValueError(f"{BEHIND}: it stands at {state.step}, the server at {version}")
    stepped, after = server_step(
        node.experiment,
        model,
        node.wire.read(arrays["step"]).to(model.device),
        state,
        # The step of the round before, which says what it froze: who missed that round is sent the
        # model.
        round=server_round - 1,
        shapes=node.model.shapes,
        sizes=node.model.sizes,
    )
    return _keep(context, stepped, after)


def _keep(context: Context, model: Tensor, state: StepState) -> Tensor:
    moments = {f"moment-{i}": moment for i, moment in enumerate(state.moments)}
    context.state[REPLICA] = array_of(model=model, **moments)
    context.state[f"{REPLICA}-version"] = ConfigRecord({"step": state.step})
    return model


def _held(context: Context) -> tuple[Tensor, StepState]:
    if REPLICA not in context.state:
        raise ValueError(f"{BEHIND}: there is none")
    record = context.state[REPLICA]
    keys = sorted(key for key in record if key.startswith("moment-"))
    moments = tuple(read_tensor(context.state, REPLICA, key) for key in keys)
    version = int(read_setting(context.state, f"{REPLICA}-version", "step"))
    return read_tensor(context.state, REPLICA, "model"), StepState(version, moments)
