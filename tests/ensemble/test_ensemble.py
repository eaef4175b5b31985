"""Members, their messages, and the vote: over the grid and beside it."""

import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from clients.client_app import app
from clients.ensemble import byzantine, member
from clients.ensemble.node import make_ensemble_node
from clients.node import host_of
from experiments.simulation import run_one
from fedrobust import adversarial
from fedrobust.attacks.threat_model import ANSWERS
from fedrobust.data import load as load_data
from fedrobust.ensemble import Ensemble, answers, combine, nodes_of
from fedrobust.ensemble import member as training
from fedrobust.ensemble.attacker import key_of
from fedrobust.ensemble.image_store import ArchiveError, folder_of, load, obtain
from fedrobust.ensemble.measures import by_vote, measure
from fedrobust.ensemble.similarity import cotangent, mean_logit, vote_gradient
from fedrobust.evaluation import pixels
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import NodeSettings
from fedrobust.flower import CohortGrid, InProcessGrid, Rejected, array_of
from fedrobust.flower.ensemble_replies import screen_answer, screen_progress
from fedrobust.flower.wrapping import WrappedGrid
from fedrobust.runs.folder import RunFolder
from fedrobust.training import OPTIMIZERS, one_thread
from strategies import server_app
from strategies.ensemble.query import ask
from strategies.session import run

ATTACKER = {"attacks": ["mi_fgsm", "mi_cwa"], "surrogates": ["small_wide", "linear"], "epochs": 1,
            "images": 30, "steps": 2, "data": "share", "parts": 4}  # fmt: skip


def experiment(
    paradigm="same", *, clients=3, byzantine=0, attack=None, rounds=2, rule=None, fault="none", **p
):
    plan = {"paradigm": paradigm, "train_images": 300, "test_images": 60, "batch_size": 32,
            "architectures": ["linear", "mlp", "small_wide"], **p}  # fmt: skip
    rule = {"rule": "mean"} if paradigm == "fedavg" else {"rule": rule} if rule else {}
    return from_dict(
        {"data": "fashionmnist-sample", "model": "mlp", "clients": clients, "byzantine": byzantine,
         "rounds": rounds, "seed": 4, **rule, "attack": fault, "ensemble": plan,
         "placement": {"name": "fixed", "ids": list(range(byzantine))} if byzantine else "random",
         "transfer": attack or {}}
    )  # fmt: skip


def grid_of(e, **settings):
    return InProcessGrid(app, clients=e.clients, run_config={"experiment": e.to_toml()} | settings)


def run_on(grid, e):
    rows = []
    run(grid, e, on_row=rows.append)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def offline_members(e):
    """Train the same members without a message: the same functions in a plain loop."""
    site = make_ensemble_node(e)
    modules = []
    for client, node in enumerate(nodes_of(e)):
        trained = training.init_member(site.module(node, client), node)
        total = e.rounds * e.ensemble.epochs
        with one_thread():
            for _ in range(total):
                training.train_epoch(
                    trained, node, site.data_of(client), site.settings(client, total)
                )  # fmt: skip
        modules.append(trained.module)
    return modules


@pytest.mark.parametrize("what", ["probabilities", "logits", "labels"])
def test_votes_through_messages_are_the_offline_votes_on_1000_images(what):
    e = experiment("architecture", answer=what, votes=["hard"])
    grid, clients = grid_of(e), {1: 0, 2: 1, 3: 2}
    run_on(grid, e)
    images = pixels(load_data(e.data).test_images[:1000])
    heard = ask(grid, clients, images, name="test", what=what)
    own = answers(offline_members(e), images, logits=what == "logits")
    assert heard.clients == [0, 1, 2] and heard.missing == []
    if what != "labels":
        assert torch.equal(heard.answers, own)
    votes = {"probabilities": ("soft", "hard", "weighted"), "logits": ("mean_logit",)}
    for vote in votes.get(what, ("hard",)):
        assert torch.equal(combine(heard.answers, vote), combine(own, vote))
        assert len(combine(own, vote)) == 1000


def test_every_grid_gives_the_same_rows():
    e = experiment("full", votes=["soft", "robust"], rule="median")
    here = run_on(grid_of(e), e)
    for hosts in (1, 2):
        nodes = InProcessGrid(app, clients=hosts, run_config={"experiment": e.to_toml()})
        assert run_on(CohortGrid(nodes, clients=e.clients), e) == here
    assert here[-1]["accuracy"] > 0.2
    assert set(here[-1]["clean"]) == {"soft", "robust"}


class Watched(WrappedGrid):
    """Keep every message that passes, both ways."""

    def __init__(self, inner):
        super().__init__(inner)
        self.seen = []

    def send_and_receive(self, messages, *, timeout=None):
        sent = list(messages)
        replies = list(self._inner.send_and_receive(sent, timeout=timeout))
        self.seen += [(m.metadata.message_type, m.content) for m in (*sent, *replies)]
        return replies


def arrays_in(content):
    for record in content.values():
        if isinstance(record, ArrayRecord):
            yield from record.values()


def test_no_message_holds_parameters_or_training_images():
    e = experiment(attack=ATTACKER)
    grid = Watched(grid_of(e))
    run_on(grid, e)
    kinds = [kind for kind, _ in grid.seen]
    assert kinds.count("train") == 2 * 2 * 3 and kinds.count("query.predict") == 2 * 4 * 3
    dataset = load_data(e.data)
    public = {tuple(pixels(dataset.test_images[i]).flatten().tolist()) for i in range(60)}
    moved = obtain(e, dataset, None).images
    public |= {tuple(pixels(one).flatten().tolist()) for each in moved.values() for one in each}
    for kind, content in grid.seen:
        for array in arrays_in(content):
            assert kind == "query.predict"
            tensor = array.tensor
            if tensor.dim() == 2:
                assert tensor.shape[1] == 10 and len(tensor) <= 60  # predictions
            else:
                assert {tuple(one.flatten().tolist()) for one in tensor} <= public
        if kind == "train":
            assert set(content) <= {"node", "metrics"}
            if "metrics" in content:
                assert all(isinstance(v, int | float) for v in content["metrics"].values())
            else:
                assert set(json.loads(content["node"]["row"])) == set(
                    NodeSettings.__dataclass_fields__
                )


class Dead(WrappedGrid):
    """Node 2 stops answering queries."""

    def send_and_receive(self, messages, *, timeout=None):
        sent = list(messages)
        replies = self._inner.send_and_receive(sent, timeout=timeout)
        gone = {m.metadata.message_id for m in sent if m.metadata.dst_node_id == 2
                and m.metadata.message_type == "query.predict"}  # fmt: skip
        return [r for r in replies if r.metadata.reply_to_message_id not in gone]


def test_a_dead_node_reduces_the_vote_and_is_named():
    e = experiment()
    grid = Dead(grid_of(e))
    row = run_on(grid, e)[-1]
    assert row["voters"] == 2
    assert row["rejected"] == [
        {"node": 2, "client": 1, "reason": "no reply before the deadline"}
    ]  # fmt: skip
    images = pixels(load_data(e.data).test_images[:60])
    heard = ask(grid, {1: 0, 2: 1, 3: 2}, images, name="again")
    assert heard.clients == [0, 2]
    members = offline_members(e)
    expected = combine(answers([members[0], members[2]], images))
    assert torch.equal(combine(heard.answers), expected)


@pytest.mark.parametrize("fault", ANSWERS)
def test_a_byzantine_member_costs_its_vote_at_most(fault):
    votes = ["soft", "hard", "robust"]
    e = experiment(clients=5, byzantine=2, fault=fault, votes=votes, rule="median", rounds=3,
                   attack=ATTACKER if fault == "flip" else None)  # fmt: skip
    row = run_on(grid_of(e), e)[-1]
    assert set(row["votes" if fault == "flip" else "clean"]) == set(votes)
    named = [entry["client"] for entry in row["rejected"]]
    assert named == ([0, 1] if fault in ("silence", "garbage", "stale", "exception") else [])
    # Computed against these very members, two of five take more than any other answers.
    assert row["clean"]["robust"] > (0.1 if fault == "best_vote" else 0.3)


def test_a_robust_vote_survives_what_breaks_the_soft_one():
    e = experiment(clients=5, byzantine=2, fault="flip", answer="logits", rounds=4,
                   votes=["mean_logit", "robust"], rule="trimmed_mean")  # fmt: skip
    clean = run_on(grid_of(e), e)[-1]["clean"]
    assert clean["mean_logit"] < 0.3 < clean["robust"]


def test_members_differ_and_keep_their_own_models():
    e = experiment("full_data")
    grid = grid_of(e)
    run_on(grid, e)
    images = pixels(load_data(e.data).test_images[:20])
    heard = ask(grid, {1: 0, 2: 1, 3: 2}, images, name="x")
    assert not torch.equal(heard.answers[0], heard.answers[1])
    with pytest.raises(RuntimeError, match="not been trained"):
        member.recall(make_ensemble_node(e), 0, _fresh(e))


def _fresh(e):
    from fedrobust.flower.in_process import new_context

    return new_context(0, e.clients, {"experiment": e.to_toml()})


def test_tuning_sees_the_nodes_own_data_only():
    from dataclasses import replace

    e = experiment("tuned", trials=2, tune_epochs=[2, 2])
    site = make_ensemble_node(e)
    others = torch.cat([site.shares[0], site.shares[2]])
    images = site.dataset.train_images.clone()
    images[others] = 255 - images[others]
    spoiled = replace(site, dataset=replace(site.dataset, train_images=images))
    node = nodes_of(e)[1]
    assert node.tuned
    found = [member.tuned(s, 1, s.data_of(1), node) for s in (site, spoiled)]
    assert found[0] == found[1] and found[0].lr != node.lr
    losses = [
        next(training.curve(lambda: site.module(node, 0), node, s.data_of(0), s.settings(0, 1)))
        for s in (site, spoiled)
    ]
    assert losses[0] != losses[1]  # what was spoiled does matter, where it is one's own


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_member_taken_apart_and_put_together_goes_on_as_before(optimizer):
    schedule = "plateau" if optimizer == "rprop" else "cosine"
    e = experiment(nodes=[{"optimizer": optimizer, "lr": 0.01, "schedule": schedule}], rounds=4)
    site, node = make_ensemble_node(e), nodes_of(e)[0]
    own, settings = site.data_of(0), site.settings(0, 4)
    straight, broken = (training.init_member(site.module(node, 0), node) for _ in "ab")
    for _ in range(2):
        training.train_epoch(straight, node, own, settings, keep_best=True)
        training.train_epoch(broken, node, own, settings, keep_best=True)
        tensors, facts = training.pack(broken)
        assert all(t.dtype == torch.float32 for t in tensors.values())
        facts = json.loads(json.dumps(facts))
        broken = training.unpack(site.module(node, 0), node, tensors, facts)
    for key, value in straight.module.state_dict().items():
        assert torch.equal(value, broken.module.state_dict()[key]), (optimizer, key)
    assert straight.losses == broken.losses
    assert training.weights(tensors, best=True).keys() == straight.module.state_dict().keys()


def with_statistics():
    layers = [torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 10)]
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)


def test_batch_statistics_live_in_the_state_too():
    node = NodeSettings("regnetx_200mf", "sgd_m", 0.01, 0.9, 0.0, "constant")
    d = load_data("digits")
    own = training.TrainValSplit(
        d.train_images[:64], d.train_labels[:64], d.train_images[:0], d.train_labels[:0]
    )
    trained = training.init_member(with_statistics(), node)
    settings = training.EpochSettings(epochs=1, batch_size=16, augment="none", seed=1, client=0)
    training.train_epoch(trained, node, own, settings)
    again = training.unpack(with_statistics(), node, *training.pack(trained))
    assert int(again.module[2].num_batches_tracked) == 4
    assert torch.equal(again.module[2].running_mean, trained.module[2].running_mean)


def reply_of(content):
    grid = InProcessGrid(lambda m, c: Message(content, reply_to=m), clients=1, run_config={})
    return grid.send_and_receive([Message(RecordDict(), 1, "query.predict")])[0]


def answer(tensor, query="q", **more):
    words = ConfigRecord({"query": query})
    return RecordDict({"arrays": array_of(answer=tensor), "reply": words, **more})


def test_the_screen_lets_one_form_pass():
    good = torch.rand(4, 10)
    assert torch.equal(screen_answer(reply_of(answer(good)), query="q", shape=(4, 10)), good)
    huge = ArrayRecord()
    huge["answer"] = Array("float32", (4, 10), "numpy.ndarray", b"\x93NUMPY")
    wrong = {
        "answers the query": answer(good, "p"),
        "of shape": answer(good[:3]),
        "float32": answer(good.double()),
        "records: ": answer(good, extra=MetricRecord({"a": 1})),
        "arrays: ": RecordDict({"arrays": array_of(x=good), "reply": ConfigRecord({"query": "q"})}),
        "no npy": RecordDict({"arrays": huge, "reply": ConfigRecord({"query": "q"})}),
        "expected: arrays": RecordDict(),
        "wrong kind": RecordDict({"arrays": MetricRecord(), "reply": ConfigRecord()}),
    }
    for words, content in wrong.items():
        with pytest.raises(Rejected, match=words):
            screen_answer(reply_of(content), query="q", shape=(4, 10))
    assert len(wrong) == 8


def test_a_report_is_four_numbers():
    good = {"num-examples": 5, "epoch": 1, "loss": 0.5, "held-loss": 0.0}

    def screened(**changes):
        content = RecordDict({"metrics": MetricRecord(good | changes)})
        return screen_progress(reply_of(content), most_examples=10)

    assert screened().examples == 5
    for changes in ({"num-examples": 11}, {"num-examples": 0}, {"epoch": 0}, {"epoch": 1.5},
                    {"loss": float("nan")}, {"held-loss": 3}, {"more": 1}):  # fmt: skip
        with pytest.raises(Rejected):
            screened(**changes)


def test_the_attackers_images_are_near_quantised_kept_and_checked(tmp_path):
    dataset = load_data("fashionmnist-sample")
    e = experiment(attack=ATTACKER)
    made = obtain(e, dataset, tmp_path)
    assert list(made.images) == ["mi_fgsm", "mi_cwa"]
    for images in made.images.values():
        assert images.dtype == torch.uint8 and images.shape == made.clean.shape
        moved = (images.int() - made.clean.int()).abs()
        assert 0 < int(moved.max()) <= 8
    folder = folder_of(e, tmp_path)
    assert (folder / "sheet.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((folder / "manifest.json").read_text())
    assert facts["attacker_images"] == 75 and len(facts["sha256"]) == 5
    assert [s["model"] for s in facts["surrogates"]][:2] == ["small_wide", "linear"]
    assert not list(folder.glob("*.pt")) and not list(folder.glob("*.pkl"))
    again = obtain(experiment("tuned", attack=ATTACKER, clients=5), dataset, tmp_path)
    assert torch.equal(again.images["mi_cwa"], made.images["mi_cwa"])
    assert key_of(e) != key_of(experiment(attack=ATTACKER | {"step_scaling": "proportional"}))
    bytes_ = (folder / "clean.npy").read_bytes()
    (folder / "clean.npy").write_bytes(bytes_[:-1] + bytes([bytes_[-1] ^ 1]))
    with pytest.raises(ArchiveError, match="is not the file of its manifest"):
        load(folder)


def test_the_systems_gradient_comes_in_parts():
    e = experiment("architecture")
    members = [m.eval() for m in offline_members(e)]
    d = load_data(e.data)
    images, labels = pixels(d.test_images[:8]), d.test_labels[:8]
    logits = answers(members, images, logits=True)
    weights = cotangent(mean_logit(logits), labels)
    parts = torch.stack([vote_gradient(m, images, weights) for m in members]).mean(0)
    whole = adversarial.loss_gradient(Ensemble(members, vote="mean_logit"), images, labels)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)


def test_probes_run_over_the_grid():
    e = experiment(attack=ATTACKER, probe_images=6)
    found = run_on(grid_of(e), e)[-1]["probes"]
    assert set(found) == {"surrogate_system", "surrogate_node", "node_node", "curvature"}
    assert all(-1 <= found[k] <= 1 for k in found if k != "curvature")
    assert found["curvature"] > 0


def test_measures_by_hand():
    labels = torch.tensor([0, 1, 2, 0])
    found = measure({"clean": torch.tensor([0, 1, 0, 0]), "a": torch.tensor([0, 2, 2, 1])}, labels)
    assert found == {"clean": 0.75, "a": {"cond": round(1 / 3, 6), "all": 0.5}}
    rows = torch.eye(3)[torch.tensor([[0, 1], [0, 2], [1, 1]])]
    cells = by_vote({"clean": rows, "a": rows}, torch.tensor([0, 2]), {"soft": "soft"})
    assert cells == {"soft": {"clean": 0.5, "a": {"cond": 1.0, "all": 0.5}}}


def test_fedavg_is_measured_on_the_same_images(tmp_path):
    e = experiment("fedavg", attack=ATTACKER)
    row = run_one(e)[-1]
    assert set(row["votes"]) == {"soft", "hard", "weighted"}
    assert set(row["votes"]["soft"]) == {"clean", "mi_fgsm", "mi_cwa"}


def on_node(e, **node):
    config = {"experiment": e.to_toml()}
    return Context(1, 1, {"partition-id": 0, **node}, RecordDict(), config)


def test_a_members_owner_says_whether_it_is_byzantine_and_where_its_data_are(tmp_path):
    quiet = experiment(byzantine=1)  # as in every mode: no attack, nobody is Byzantine
    assert not byzantine.is_byzantine(quiet, on_node(quiet))
    assert not byzantine.is_byzantine(quiet, on_node(quiet, role="malicious"))
    e = experiment(byzantine=1, fault="flip")
    assert byzantine.is_byzantine(e, on_node(e))
    assert not byzantine.is_byzantine(e, on_node(e, role="honest"))
    assert byzantine.is_byzantine(e, on_node(e, role="malicious"))
    images = torch.zeros(7, 28, 28, dtype=torch.uint8).numpy()
    np.savez(tmp_path / "own.npz", images=images, labels=torch.arange(7).numpy())
    context = on_node(e, data=str(tmp_path / "own.npz"))
    site = make_ensemble_node(e, host_of(context.run_config, context.node_config))
    assert [len(share) for share in site.shares] == [7, 0, 0]
    assert len(site.data_of(0).labels) + len(site.data_of(0).held_labels) == 7


def test_the_server_app_records_the_rows_of_a_vote(tmp_path):
    """As ``flwr run`` starts it: rows on disk, one line of the log each, without a loss."""
    e = experiment()
    config = {"experiment": e.to_toml(), "output": str(tmp_path), "nodes": "clients"}
    server_app.main(grid_of(e), Context(0, 0, {}, RecordDict(), config))
    recorded = RunFolder(tmp_path, e).rows()
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in recorded]
    assert rows == run_on(grid_of(e), e)
    said = server_app.sentence(rows[-1])
    assert said == f"round 2; accuracy {rows[-1]['accuracy']:.4f}"
