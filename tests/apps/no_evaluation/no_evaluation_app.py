"""no_evaluation: FedAvg that never asks the nodes to evaluate, although they could."""

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
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


@server.main()
def main(grid, context):
    """Lead the rounds."""
    strategy = FedAvg(fraction_evaluate=0.0)
    result = strategy.start(
        grid=grid,
        initial_arrays=record(initial()),
        num_rounds=context.run_config["num-server-rounds"],
    )
    print("final", len(result.arrays))
