"""old_api: the older API, as most of Flower's baselines have it: server_fn and NumPyClient."""

from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from task import initial, measure, share
from task import train as fit_layers


class Client(NumPyClient):
    """Train and evaluate on the node's own digits."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def fit(self, parameters, config):
        """Train."""
        layers = fit_layers(parameters, self.images, self.labels)
        return layers, len(self.images), {"train_loss": 0.5}

    def evaluate(self, parameters, config):
        """Measure."""
        loss, accuracy = measure(parameters, self.images, self.labels)
        return loss, len(self.images), {"accuracy": accuracy}


def client_fn(context):
    """Make the node's client."""
    return Client(*share(context)).to_client()


def global_evaluate(server_round, parameters, config):
    """Measure on the server's digits."""
    loss, accuracy = measure(parameters)
    return loss, {"accuracy": accuracy}


def server_fn(context):
    """Make strategy and configuration."""
    strategy = FedAvg(
        initial_parameters=ndarrays_to_parameters(initial()), evaluate_fn=global_evaluate
    )
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=config)


client = ClientApp(client_fn=client_fn)
server = ServerApp(server_fn=server_fn)
