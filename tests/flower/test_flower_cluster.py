"""Flower's simulation on a Ray cluster that is there already, of two nodes."""

import pytest

from experiments.flower_run import run_on_flower
from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict

pytestmark = pytest.mark.slow


@pytest.fixture
def two_nodes():
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.exhaustive
def test_the_same_rounds_on_an_existing_cluster(small, two_nodes):
    assert len(two_nodes.list_all_nodes()) == 2
    e = from_dict(small | {"attack": "alie", "rule": "nnm+krum", "rounds": 2})
    there, here = run_on_flower(e, hosts=2, ray_address=two_nodes.address), run_one(e)
    for row in [*there, *here]:
        row.pop("seconds")
    assert there == here
