"""Somebody else's package on real nodes: processes of Flower, one of which lacks the package."""

import os

import pytest
from sklearn.datasets import load_wine

from experiments.deploy.federation import federation
from experiments.deployment import run_on_nodes
from fedrobust import plugins
from fedrobust.experiment.load import from_dict, read
from tests.plugins.test_plugin_package import PACKAGE, SETTING

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
MALICIOUS, LACKING = 1, 3
CHANGES = {
    "clients": 4,
    "rounds": 2,
    "placement": {"name": "fixed", "ids": [MALICIOUS]},
    "attack": {"name": "drown", "factor": 2.0, "knowledge": "own"},
    "server": {"lr": 0.1, "evaluate_every": 1, "deadline": 60.0},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two honest nodes with tables of their own, a malicious one, and one without the package."""
    home, table = tmp_path_factory.mktemp("nodes"), load_wine(as_frame=True).frame
    before = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PACKAGE))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(PACKAGE), before]))
        try:
            experiment = from_dict(read(SETTING) | CHANGES)
            with federation(home, nodes=0, namespaces=False) as it:
                it.register_all(CHANGES["clients"])
                for number in range(CHANGES["clients"]):
                    own = home / f"own-{number}.csv"
                    table[number :: CHANGES["clients"]].to_csv(own, index=False)
                    role = "malicious" if number == MALICIOUS else "honest"
                    if number == LACKING:
                        it.environment = it.environment | {"PYTHONPATH": before}
                    config = {"partition-id": number, "role": role, "data": str(own)}
                    it.start_node(number, config)
                it.wait_for_nodes(CHANGES["clients"])
                yield run_on_nodes(
                    experiment, superlink=it.address, output=home / "results",
                    certificates=home / "ca.crt",
                )  # fmt: skip
        finally:
            for kind, name in list(plugins.ROOM.parts):
                plugins.ROOM.take(kind, name)


def test_nodes_with_the_package_train_its_model_on_their_own_tables(rows):
    assert [row["replies"] for row in rows[1:]] == [3, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_node_without_the_package_says_what_it_lacks(rows):
    for row in rows[1:]:
        (lost,) = row["rejected"]
        assert lost["client"] == LACKING
        assert (
            "this node lacks the model 'bottleneck', the data 'wines', the loss 'focal'"
            in (lost["reason"])
        )
        assert "start it with --use FILE.py" in lost["reason"]
