"""old_workflow: the older API with a LegacyContext workflow, also with SecAgg+."""

from flwr.client import ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
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


class Sometimes:
    """The SecAgg+ mod, where the run is secure."""

    def __call__(self, message, context, call_next):
        """Mask the update, or not."""
        if context.run_config["secure"]:
            return secaggplus_mod(message, context, call_next)
        return call_next(message, context)


client = ClientApp(client_fn=client_fn, mods=[Sometimes()])
server = ServerApp()


@server.main()
def main(grid, context):
    """Lead the rounds by a workflow."""
    strategy = FedAvg(
        initial_parameters=ndarrays_to_parameters(initial()), evaluate_fn=global_evaluate
    )
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    legacy = LegacyContext(context=context, config=config, strategy=strategy)
    secure = SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2, max_weight=1000)
    fit = secure if context.run_config["secure"] else None
    DefaultWorkflow(fit_workflow=fit)(grid, legacy)
