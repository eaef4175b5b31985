"""defended: the app of ``fedavg`` behind a robust rule."""

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from task import initial, layers_of, measure, record, share
from task import train as fit

from fedrobust.flower import Robust

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


@server.main()
def main(grid, context):
    """Lead the rounds."""
    strategy = Robust(FedAvg(), rule="nnm+trimmed_mean:f=2")
    result = strategy.start(
        grid=grid,
        initial_arrays=record(initial()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    print("final", result.evaluate_metrics_serverapp)
