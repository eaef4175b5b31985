"""custom_strategy: strategies of one's own, by variant."""

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg, Result
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


def global_evaluate(server_round, arrays):
    """Measure on the server's digits."""
    loss, accuracy = measure(layers_of(arrays))
    return MetricRecord({"accuracy": accuracy, "loss": loss})


class OwnAggregate(FedAvg):
    """Average without weights."""

    def aggregate_train(self, server_round, replies):
        """Average the layers of the replies without an error."""
        good = [reply.content for reply in replies if not reply.has_error()]
        if not good:
            return None, None
        stacks = zip(*(layers_of(content["arrays"]) for content in good), strict=True)
        return record([np.mean(stack, axis=0) for stack in stacks]), None


class OwnStart(FedAvg):
    """A loop of its own that keeps the best model, as Flower's advanced example has."""

    def start(self, grid, initial_arrays, num_rounds=3, evaluate_fn=None, best=0.0):
        """Train, evaluate, note the best."""
        result, arrays = Result(), initial_arrays
        result.evaluate_metrics_serverapp[0] = evaluate_fn(0, arrays)
        for server_round in range(1, num_rounds + 1):
            asked = self.configure_train(server_round, arrays, ConfigRecord(), grid)
            replies = grid.send_and_receive(asked)
            made, _ = self.aggregate_train(server_round, replies)
            arrays = made if made is not None else arrays
            told = evaluate_fn(server_round, arrays)
            best = max(best, told["accuracy"])
            result.evaluate_metrics_serverapp[server_round] = told
        result.arrays = arrays
        print("best", best)
        return result


class Minimum(FedAvg):
    """Insists on eight replies."""

    def aggregate_train(self, server_round, replies):
        """Count first."""
        listed = list(replies)
        if len(listed) < 8:
            raise RuntimeError(f"only {len(listed)} replies")
        return super().aggregate_train(server_round, listed)


VARIANTS = {"aggregate": OwnAggregate, "start": OwnStart, "minimum": Minimum}


@server.main()
def main(grid, context):
    """Lead the rounds; "inside" defines its class here and starts it twice."""
    variant, rounds = context.run_config["variant"], context.run_config["num-server-rounds"]
    arrays = record(initial())
    if variant == "inside":

        class Inside(FedAvg):
            """A class that nobody sees from outside."""

        strategy = Inside()
        arrays = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=1).arrays
    else:
        strategy = VARIANTS[variant]()
    strategy.start(grid, arrays, num_rounds=rounds, evaluate_fn=global_evaluate)
