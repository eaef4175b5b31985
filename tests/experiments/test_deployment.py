"""Real nodes: own data, own roles, commands; the processes themselves are rehearsed apart."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from PIL import Image

from clients.client_app import app
from experiments import flower_run
from experiments.deployment import connection, node_command, run_on_nodes
from experiments.simulation import run_one
from fedrobust import data, plugins
from fedrobust.data import DataError
from fedrobust.data.own import DESCRIPTIONS, load_own
from fedrobust.data.sets import DATASETS
from fedrobust.experiment.load import expand, from_dict, from_run_config, read
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower import CohortGrid, GuardedGrid, InProcessGrid, array_of, tensor_of
from fedrobust.flower.in_process import identify, stamp
from fedrobust.runs.folder import RunFolder
from strategies.server_app import carry

DEPLOY = Path(__file__).parents[2] / "experiments" / "deploy"
identify()


@pytest.fixture
def folder(tmp_path):
    """Forty digits as PNG files, one folder a class."""
    digits = data.load("digits")
    for i in range(40):
        label = int(digits.train_labels[i])
        place = tmp_path / "own" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.train_images[i, 0].numpy()).save(place / f"{i:03}.png")
    return tmp_path / "own"


def npz(path, images, labels):
    np.savez(path, images=images, labels=labels)
    return path


def test_a_folder_and_an_npz_hold_the_same_data(folder, tmp_path):
    found = load_own(folder, name="digits")
    assert found.train_images.shape == (40, 1, 8, 8)
    file = npz(tmp_path / "own.npz", found.train_images[:, 0].numpy(), found.train_labels.numpy())
    again = load_own(file, name="digits")
    assert torch.equal(found.train_images, again.train_images)
    assert torch.equal(found.train_labels, again.train_labels)
    originals = data.load("digits").train_images[:40]
    assert sorted(map(bytes, found.train_images.numpy())) == sorted(map(bytes, originals.numpy()))


def test_data_that_do_not_fit_are_refused(folder, tmp_path):
    images, labels = np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.int64)
    bad = {
        "uint8": npz(tmp_path / "a.npz", images.astype(np.float32), labels),
        r"8, 8\) ": npz(tmp_path / "b.npz", np.zeros((0, 8, 8), np.uint8), labels[:0]),
        "one label in 0..9": npz(tmp_path / "c.npz", images, labels + 10),
        "cannot read": npz(tmp_path / "d.npz", np.array([{}], dtype=object), labels),
        "no images in": tmp_path,
    }
    for words, path in bad.items():
        with pytest.raises(DataError, match=words):
            load_own(path, name="digits")
    with pytest.raises(DataError, match=r"expected \(28, 28\)"):
        load_own(folder, name="fashionmnist")
    (folder / "cats").mkdir()
    Image.new("L", (8, 8)).save(folder / "cats" / "x.png")
    with pytest.raises(DataError, match=r"class folders are numbers, .* has 'cats'"):
        load_own(folder, name="digits")


def test_descriptions_are_those_of_the_sets():
    assert set(DESCRIPTIONS) <= set(DATASETS)
    for name in ("digits", "fashionmnist-sample"):
        whole, (shape, facts) = data.load(name), DESCRIPTIONS[name]
        assert (whole.shape, whole.classes, whole.mean, whole.std) == (shape, *facts.values())


def ask(e, **node):
    """Send one training message to a node of its own configuration; return its update."""
    grid = InProcessGrid(lambda m, c: None, clients=1, run_config={})
    context = Context(1, 1, {"partition-id": 0, **node}, RecordDict(), {"experiment": e.to_toml()})
    model = torch.zeros(650)
    content = RecordDict({"arrays": array_of(model=model), "config": ConfigRecord({"round": 1})})
    message = stamp(Message(content, 1, "train"), "asked")
    assert grid.get_node_ids() == [1]
    reply = app(message, context)
    return tensor_of(reply.content["arrays"]["update"]), reply.content["metrics"]["num-examples"]


def test_a_nodes_owner_says_what_it_is_and_no_server(small, folder):
    placed = {"name": "fixed", "ids": [0, 1]}
    e = from_dict(small | {"attack": "sign_flip", "placement": placed})
    honest, count = ask(e, role="honest", data=str(folder))
    flipped, _ = ask(e, role="malicious", data=str(folder))
    assert count == 40
    assert torch.allclose(flipped, -honest)
    simulated, share = ask(e)
    assert share == 144
    assert not torch.allclose(simulated, honest)
    public, same = ask(e, role="honest")
    assert same == 144
    assert torch.allclose(public, -simulated)


def test_the_shipped_federation_runs_in_simulation():
    (e,) = expand(read(DEPLOY / "federation.toml"))
    assert (e.clients, e.byzantine, e.rounds) == (4, 1, 5)
    rows = run_one(replace(e, rounds=1))
    assert rows[1]["byzantine"] == [3]
    assert rows[1]["accuracy"] > rows[0]["accuracy"]


def test_real_nodes_do_not_collude(small):
    grid = InProcessGrid(lambda m, c: None, clients=4, run_config={})
    colluding = from_dict(small | {"attack": "alie"})
    with pytest.raises(ConfigError, match="knowledge = 'own'"):
        carry(grid, colluding, {"nodes": "clients"})
    assert isinstance(carry(grid, from_dict(small), {"nodes": "clients"}), GuardedGrid)
    assert isinstance(carry(grid, colluding, {"hosts": 2}), CohortGrid)


def test_a_node_has_tls_or_says_that_it_has_none(tmp_path):
    subprocess.run(
        ["sh", str(DEPLOY / "make_certificates.sh"), str(tmp_path), "server"], check=True
    )
    ca = tmp_path / "ca.crt"
    given = {"config": {"partition-id": 2, "role": "honest"}, "key": None, "port": 9100}
    command = node_command("server:9092", certificates=ca, insecure=False, **given)
    assert command[command.index("--node-config") + 1] == 'partition-id=2 role="honest"'
    assert "--insecure" not in command
    assert "--insecure" in node_command("s:1", certificates=None, insecure=True, **given)
    for certificates, insecure in ((None, False), (ca, True)):
        with pytest.raises(ConfigError, match="needs --root-certificates"):
            node_command("s:1", certificates=certificates, insecure=insecure, **given)
    with pytest.raises(ConfigError, match="there is no"):
        node_command("s:1", certificates=tmp_path / "x", insecure=False, **given)
    with pytest.raises(ConfigError, match="TLS needs"):
        connection(tmp_path, "s:1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"\x30\x82\x03\xff", "it is DER or damaged"),
        (b"hello", "it is DER or damaged"),
        (b"-----BEGIN EC PRIVATE KEY-----\nx\n-----END EC PRIVATE KEY-----\n", "a private key"),
        (b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "no whole certificate"),
    ],
)
def test_a_file_that_is_no_certificate_is_one_line(tmp_path, content, words):
    """It was a traceback in a thread, and the process stayed: no service manager restarted it."""
    path = tmp_path / "ca.crt"
    path.write_bytes(content)
    given = {"config": {}, "key": None, "port": 9100, "insecure": False}
    for call in (
        lambda: node_command("s:1", certificates=path, **given),
        lambda: connection(tmp_path, "s:1", certificates=path),
    ):
        with pytest.raises(ConfigError, match=words) as told:
            call()
        assert len(str(told.value).splitlines()) == 1


def test_a_node_without_a_certificate_ends_with_one_line(tmp_path):
    path = tmp_path / "ca.crt"
    path.write_bytes(b"")
    command = ["-m", "experiments.cli", "node", "--superlink", "s:1", "--partition", "0"]
    done = subprocess.run([sys.executable, *command, "--root-certificates", str(path)],
                          capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_the_certificates_verify_and_keys_are_private(tmp_path):
    script = str(DEPLOY / "make_certificates.sh")
    subprocess.run(["sh", script, str(tmp_path), "10.0.0.1", "fl.example.org"], check=True)
    verify = ["openssl", "verify", "-CAfile", "ca.crt", "server.crt"]
    assert "OK" in subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True).stdout
    shown = ["openssl", "x509", "-in", "server.crt", "-noout", "-ext", "subjectAltName"]
    names = subprocess.run(shown, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "IP Address:10.0.0.1" in names
    assert "DNS:fl.example.org" in names
    subprocess.run(["sh", str(DEPLOY / "make_key.sh"), str(tmp_path / "node-0")], check=True)
    assert "ecdsa-sha2-nistp384" in (tmp_path / "node-0.pub").read_text()
    for secret in ("ca.key", "server.key", "node-0"):
        assert (tmp_path / secret).stat().st_mode & 0o077 == 0


class Written(Exception):
    """The configuration of an app, instead of the app."""


def configuration_of(monkeypatch, start):
    def write_app(path, config, **settings):
        raise Written(config)

    monkeypatch.setattr(flower_run, "write_app", write_app)
    with pytest.raises(Written) as told:
        start()
    return told.value.args[0]


def test_the_server_can_read_every_key_that_a_run_is_sent(monkeypatch, tmp_path, small):
    """With ``secret-file`` every ``deploy --secret`` ended as an unknown key."""
    e = from_dict(small)
    folder = RunFolder(tmp_path / "results", e)
    nodes = {"superlink": "x:1", "output": tmp_path, "insecure": True, "data_root": str(tmp_path)}
    starts = [
        lambda: run_on_nodes(e, **nodes, resume=True, secret="results/secret"),
        lambda: run_on_nodes(e, **nodes, hosts=2),
        lambda: flower_run.run_on_flower(
            e, folder=folder, data_root=str(tmp_path), resume=True, device="cuda"
        ),
        lambda: flower_run.run_on_flower(e, folder=folder, stock=True),
    ]
    plugin = tmp_path / "part.py"
    plugin.write_text("")
    monkeypatch.setattr(plugins, "used", lambda: str(plugin))
    for start in starts:
        config = configuration_of(monkeypatch, start)
        assert config["use"] and config["output"] and len(config) >= 7
        assert from_run_config(config) == e
    with pytest.raises(ConfigError, match="secret is not honoured with cohort hosts"):
        run_on_nodes(e, **nodes, hosts=2, secret="results/secret")


def test_the_commands_are_there():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "node", "--superlink", "x:1", "--partition", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "needs --root-certificates" in done.stderr
