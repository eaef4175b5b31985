"""failing: what goes wrong without an attacker, by mode."""

import time

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from task import initial, record

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    """Fail on two nodes, or return what came."""
    if context.run_config["mode"] == "clients" and context.node_config["partition-id"] < 2:
        raise FileNotFoundError("/data/partition.csv")
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
    return Message(content, reply_to=message)


@server.main()
def main(grid, context):
    """Fail, wait for ever, or train nothing."""
    mode = context.run_config["mode"]
    if mode == "import":
        import a_package_that_is_not_there  # noqa: F401
    if mode == "hang":
        time.sleep(3600)
    if mode == "exit":
        raise SystemExit(7)
    strategy = FedAvg(fraction_evaluate=0.0)
    told = MetricRecord({"accuracy": 0.1})
    strategy.start(grid, record(initial()), 1, evaluate_fn=lambda server_round, arrays: told)
