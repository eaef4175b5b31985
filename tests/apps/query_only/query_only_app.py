"""query_only: federated analytics: it asks for counts and trains nothing."""

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from task import share

client = ClientApp()
server = ServerApp()


@client.query()
def query(message, context):
    """Count the node's digits."""
    images, _ = share(context)
    return Message(RecordDict({"m": MetricRecord({"rows": len(images)})}), reply_to=message)


@server.main()
def main(grid, context):
    """Sum the counts."""
    asked = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(asked)
    print("rows", sum(reply.content["m"]["rows"] for reply in replies))
