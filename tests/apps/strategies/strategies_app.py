"""strategies: Flower's stock strategies, one by name."""

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)
from task import initial, layers_of, measure, record, share
from task import train as fit

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    """Train on the node's own digits."""
    images, labels = share(context)
    layers = fit(layers_of(message.content["arrays"]), images, labels)
    loss, _ = measure(layers, images, labels)
    metrics = MetricRecord({"num-examples": len(images), "train_loss": loss})
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


STRATEGIES = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "FedAvgM": lambda: FedAvgM(server_momentum=0.3),
    "FedAdam": lambda: FedAdam(eta=0.1),
    "FedYogi": lambda: FedYogi(eta=0.1),
    "FedAdagrad": lambda: FedAdagrad(eta=0.1),
    "Krum": lambda: Krum(num_malicious_nodes=2),
    "MultiKrum": lambda: MultiKrum(num_malicious_nodes=2, num_nodes_to_select=5),
    "Bulyan": lambda: Bulyan(num_malicious_nodes=1),
    "FedMedian": FedMedian,
    "FedTrimmedAvg": lambda: FedTrimmedAvg(beta=0.2),
    "QFedAvg": lambda: QFedAvg(client_learning_rate=3.0, q=0.1, train_loss_key="train_loss"),
    "DP": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0.02, clipping_norm=8.0, num_sampled_clients=10
    ),
}


@server.main()
def main(grid, context):
    """Lead the rounds."""
    strategy = STRATEGIES[context.run_config["strategy"]]()
    result = strategy.start(
        grid=grid,
        initial_arrays=record(initial()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    print("final", result.evaluate_metrics_serverapp)
