"""own_loop: a loop of its own over the grid; the accuracy is printed and nothing returned."""

import time

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from task import initial, layers_of, measure, record, share
from task import train as fit

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    """Train on the node's own digits."""
    images, labels = share(context)
    layers = fit(layers_of(message.content["arrays"]), images, labels)
    metrics = MetricRecord({"num-examples": len(images), "train_loss": 0.0})
    content = RecordDict({"arrays": record(layers), "metrics": metrics})
    return Message(content, reply_to=message)


@client.evaluate()
def evaluate(message, context):
    """Measure on the node's own digits."""
    images, labels = share(context)
    loss, accuracy = measure(layers_of(message.content["arrays"]), images, labels)
    told = {"num-examples": len(images), "eval_loss": loss, "eval_acc": accuracy}
    return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)


def exchange(grid, messages, pull):
    """Send and receive at once, or push and pull until all have answered."""
    if not pull:
        return list(grid.send_and_receive(messages, timeout=60))
    ids, replies = set(grid.push_messages(messages)), []
    while len(replies) < len(ids):
        replies += list(grid.pull_messages(ids))
        time.sleep(0.01)
    return replies


@server.main()
def main(grid, context):
    """Train by hand."""
    layers = initial()
    for server_round in range(1, context.run_config["num-server-rounds"] + 1):
        config = ConfigRecord({"server-round": server_round})
        content = RecordDict({"arrays": record(layers), "config": config})
        messages = [Message(content, node, "train") for node in grid.get_node_ids()]
        replies = exchange(grid, messages, context.run_config["pull"])
        good = [reply.content for reply in replies if not reply.has_error()]
        stacks = zip(*(layers_of(held["arrays"]) for held in good), strict=True)
        layers = [np.mean(stack, axis=0, dtype=np.float32) for stack in stacks]
        print("round", server_round, "accuracy", measure(layers)[1])
