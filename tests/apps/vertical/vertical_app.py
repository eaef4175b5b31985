"""vertical: vertical federated learning. Each node holds some columns, the server the labels.

A node embeds its columns; the server learns from all embeddings side by side and sends each node
the gradient of its own.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from task import IMAGES, LABELS, TEST

BATCH, RATE = 64, 0.5

client = ClientApp()
server = ServerApp()


def columns(context):
    """Return the node's own columns of all images."""
    place = int(context.node_config["partition-id"])
    count = int(context.node_config["num-partitions"])
    return IMAGES[:, place : context.run_config["columns"] : count]


def rows(message):
    """Return the rows of a step: test images at the end, training images before."""
    step = message.content["config"]["step"]
    if step < 0:
        return np.arange(TEST)
    return np.random.default_rng(step).integers(TEST, len(IMAGES), BATCH)


def own_weights(context, width):
    """Return the node's own layer, kept in its state."""
    if "own" not in context.state:
        context.state["own"] = ArrayRecord({"w": Array(np.eye(width, dtype=np.float32))})
    return context.state["own"]["w"].numpy()


@client.train("embed")
def embed(message, context):
    """Answer with the embedding of a batch: as wide as the node has columns."""
    x = columns(context)[rows(message)]
    embedding = np.ascontiguousarray(x @ own_weights(context, x.shape[1]), dtype=np.float32)
    return Message(
        RecordDict({"out": ArrayRecord({"embedding": Array(embedding)})}), reply_to=message
    )


@client.train("learn")
def learn(message, context):
    """Step along the gradient of the node's own embedding."""
    x = columns(context)[rows(message)]
    step = RATE * x.T @ message.content["gradient"]["embedding"].numpy()
    weights = (own_weights(context, x.shape[1]) - step).astype(np.float32)
    context.state["own"] = ArrayRecord({"w": Array(weights)})
    return Message(RecordDict(), reply_to=message)


def embeddings(grid, nodes, step):
    """Ask every node for its embedding of a batch; return them in order of nodes."""
    config = ConfigRecord({"step": step})
    asked = [Message(RecordDict({"config": config}), node, "train.embed") for node in nodes]
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(asked)}
    return [replies[node].content["out"]["embedding"].numpy() for node in nodes]


def send_gradients(grid, nodes, step, gradients):
    """Send each node the gradient of its own embedding."""
    config = ConfigRecord({"step": step})
    messages = []
    for node, gradient in zip(nodes, gradients, strict=True):
        held = ArrayRecord({"embedding": Array(np.ascontiguousarray(gradient, dtype=np.float32))})
        content = RecordDict({"gradient": held, "config": config})
        messages.append(Message(content, node, "train.learn"))
    list(grid.send_and_receive(messages))


@server.main()
def main(grid, context):
    """Learn a linear layer on all embeddings side by side."""
    nodes = sorted(grid.get_node_ids())
    head = np.zeros((context.run_config["columns"], 10))
    for step in range(context.run_config["steps"]):
        parts = embeddings(grid, nodes, step)
        chosen = np.random.default_rng(step).integers(TEST, len(IMAGES), BATCH)
        together = np.concatenate(parts, axis=1)
        raised = np.exp(together @ head)
        error = raised / raised.sum(1, keepdims=True) - np.eye(10)[LABELS[chosen]]
        gradient = error @ head.T / BATCH
        head -= RATE * together.T @ error / BATCH
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        send_gradients(grid, nodes, step, np.split(gradient, ends, axis=1))
    guess = (np.concatenate(embeddings(grid, nodes, -1), axis=1) @ head).argmax(1)
    print("accuracy", (guess == LABELS[:TEST]).mean())
