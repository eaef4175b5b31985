"""Training under a redundancy scheme: commit, detect, reveal, and who is caught at what."""

import json
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from clients.client_app import app
from clients.node import make_node
from clients.redundancy import experiment_gradients, gradients, stages, worker
from clients.redundancy.experiment_gradients import gradients_together
from experiments.flower_run import run_on_flower
from experiments.simulation import run_one
from fedrobust import data, models
from fedrobust.attacks import threat_model
from fedrobust.experiment.load import expand, from_dict, read
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower import CohortGrid, InProcessGrid, Rejected, array_of, commit_reveal
from fedrobust.redundancy import assign, corrupt, corrupted_labels, permute, rounds, traffic
from fedrobust.redundancy.agreement import MISSING
from fedrobust.redundancy.decision import judge
from fedrobust.runs.folder import RunFolder, timeless
from fedrobust.training import Recipe, train_local
from fedrobust.vector import FlatModel
from strategies.session import run

D = 650  # softmax regression on 8x8 digits
REVERSED = {"name": "reversed_gradient", "scale": 100.0, "knowledge": "own"}
PAPERS = Path(__file__).parents[2] / "experiments/papers/aspis"


def build(small, *, q=2, rounds=2, attack=REVERSED, rule="median", clients=7, **settings):
    changes = {
        "clients": clients,
        "byzantine": q,
        "rounds": rounds,
        "attack": attack,
        "rule": rule,
        "placement": settings.pop("placement", "first"),
        "redundancy": {"name": "aspis", "batch": 70, **settings},
    }
    if changes["redundancy"]["name"] == "aspis":  # the older rule; contested has tests of its own
        changes["redundancy"].setdefault("detection", "strict")
    return from_dict(small | {"training": {}} | changes)  # a file is a mini-batch


def last(e):
    return run_one(e)[-1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "aspsi"}, "unknown scheme 'aspsi'; did you mean 'aspis'?"),
        ({"detection": "stirct"}, "unknown redundancy.detection 'stirct'; did you mean 'strict'?"),
        ({"adversary": "at2"}, "unknown adversary 'at2'; did you mean 'att2'?"),
        ({"replicaton": 3}, "unknown key 'redundancy.replicaton'; did you mean 'replication'?"),
        ({"replication": 4}, "replication must be odd"),
        ({"batch": 71}, "multiple of 35 files"),
        ({"batch": 35}, "at least 2 samples"),
        ({"q": 4}, "q must be less than half of 7 workers"),
        ({"workers": 8}, "redundancy.workers must be clients=7, got 8"),
        ({"tolerance": 1.0}, "the relative tolerance must be in [0, 1), got 1.0"),
        ({"name": "none", "detection": "strict"}, "compares copies, 'none' has one a file"),
        ({"name": "draco_repetition"}, "draco against s=2 needs replication 5, got 3"),
        ({"name": "byzshield_mols"}, "byzshield_mols needs workers = r * l"),
        (
            {"coordinates": 10, "second": "krum"},
            "redundancy.coordinates needs a coordinate-wise rule",
        ),
        (
            {"second": {"name": "bulyan", "f": 9}},
            "bulyan with f=9 needs at least 39 updates, got 35",
        ),
    ],
)
def test_each_mistake_gets_its_sentence(small, change, sentence):
    with pytest.raises(ConfigError) as caught:
        build(small, **change)
    assert any(sentence in line for line in caught.value.errors), caught.value.errors


def test_a_scheme_needs_gradients_and_an_attack_on_values(small):
    table = {"clients": 7, "redundancy": {"name": "aspis", "batch": 70}, "attack": "label_flip"}
    with pytest.raises(ConfigError) as caught:
        from_dict(small | table | {"training": {"mode": "update"}, "worker_momentum": 0.5})
    text = str(caught.value)
    for words in (
        "training.mode = 'gradient'",
        "worker_momentum is not honoured in redundancy mode",
        "faults silence",
    ):
        assert words in text


def test_what_is_left_open_is_written_out(small):
    e = build(small, second={"name": "krum"})
    assert (e.redundancy.q, e.redundancy.workers, e.redundancy.detection) == (2, 7, "strict")
    assert build(small, detection="auto").redundancy.detection == "contested"
    assert e.rule == {"name": "krum", "f": 2}  # c_max of Aspis with q = 2
    assert e.defence == "aspis+krum"
    assert from_dict(e.to_dict()) == e
    assert build(small, q=3).redundancy.q == 3
    assert from_dict(small).redundancy.name == ""


def test_shipped_experiments_build_and_check():
    files = sorted(PAPERS.glob("*.toml"))
    runs = {
        f.stem: expand(read(f))
        for f in files
        if f.stem not in ("tables", "paper", "verdicts", "figures")
    }
    assert len(runs) >= 5
    assert all(run.redundancy.name for group in runs.values() for run in group)


def test_the_optimal_attack_is_outvoted_but_not_found(small):
    e = build(small)
    row = last(e)
    assert (row["path"], row["accepted"], row["cliques"]) == ("files", False, 2)
    assert (row["flagged"], row["precision"], row["recall"]) == ([], None, 0.0)
    assert row["wrong_files"] == row["wrong_bound"] == round(2 / 35, 6)
    expected = traffic(rounds.base(e.redundancy), parameters=D)
    by_stage = {"commit": expected.digests, "reveal": expected.per_file}
    assert row["bytes_by_stage"] == by_stage
    assert row["bytes_naive"] == expected.naive
    json.dumps(row)


def test_the_weak_attack_is_found_and_the_mean_fetched_as_sums(small):
    row = last(build(small, adversary="weak"))
    assert (row["path"], row["accepted"]) == ("sum", True)
    assert (row["flagged"], row["precision"], row["recall"]) == ([0, 1], 1.0, 1.0)
    assert row["wrong_files"] == 0
    assert row["bytes_by_stage"]["sum"] == 5 * D * 4  # the five honest workers cover all files


def vector_after(e):
    """Run one round and return the model before and after it."""
    seen = []
    nodes = InProcessGrid(app, clients=e.clients, run_config={"experiment": e.to_toml()})
    result = run(nodes, e, on_row=seen.append)
    dataset = data.load(e.data)
    model = FlatModel(models.build_for(e.model, dataset, seed=e.seed))
    return model, dataset, result["model"].tensor, seen[-1]


def file_gradients(e, model, dataset):
    """Compute each file's gradient by hand."""
    start = model.vector.clone()
    rows = []
    for chosen in rounds.plan(e, examples=len(dataset.train_labels), server_round=1).indices:
        images, labels = dataset.train_images[chosen], dataset.train_labels[chosen]
        recipe = Recipe(batch_size=len(labels))
        rows.append(
            train_local(model, start, images, labels, recipe, generator=torch.Generator())[0]
        )
    return start, torch.stack(rows)


@pytest.mark.parametrize(
    ("settings", "combine"),
    [
        ({"q": 0, "attack": "none"}, lambda rows: rows.mean(0)),
        ({"adversary": "weak"}, lambda rows: rows.mean(0)),
        ({"attack": "none"}, lambda rows: rows.quantile(0.5, dim=0)),
        ({"attack": "none", "coordinates": 100}, lambda rows: rows.quantile(0.5, dim=0)),
        ({"attack": "none", "detection": "paper"}, lambda rows: rows.mean(0)),
        ({"name": "detox", "rule": "mean", "attack": "none"}, lambda rows: rows.mean(0)),
        ({"name": "draco_cyclic", "replication": 5, "rule": "mean"}, lambda rows: rows.mean(0)),
    ],
)
def test_a_step_is_the_rule_over_the_files(small, settings, combine):
    e = build(small, rounds=1, **settings)
    model, dataset, after, row = vector_after(e)
    assert "kept" not in row
    start, rows = file_gradients(e, model, dataset)
    step = (start - after) / e.server.lr
    assert torch.allclose(step, combine(rows), atol=2e-6)


def test_fewer_than_q_flagged_keep_the_robust_second_stage(small):
    row = last(build(small, attack="none"))
    assert row["accepted"]
    assert row["path"] == "files"
    lone = last(build(small, q=3, adversary="lone_files"))
    assert lone["accepted"]
    assert (lone["flagged"], lone["path"]) == ([], "files")
    assert lone["wrong_files"] == round(1 / 35, 6)


def test_the_paper_rule_is_fooled_where_the_strict_rule_is_not(small):
    fooled = last(build(small, q=3, adversary="small_d", detection="paper"))
    assert (fooled["flagged"], fooled["precision"], fooled["path"]) == ([3, 4], 0.0, "sum")
    assert fooled["wrong_files"] == round(10 / 35, 6)
    strict = last(build(small, q=3, adversary="small_d"))
    assert (strict["accepted"], strict["path"]) == (False, "files")
    assert strict["wrong_files"] == round(7 / 35, 6)
    assert strict["loss"] < fooled["loss"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"detection": "paper"},
        {"adversary": "weak"},
        {"coordinates": 100},
        {"tolerance": 0.05},
        {"name": "detox", "adversary": "weak", "rule": "mean"},
    ],
)
def test_who_commits_to_one_value_and_reveals_another_is_caught(small, settings):
    opened = build(small, distorts_from="reveal", rounds=1, **settings)
    row = last(opened)
    assert row["caught"]
    assert set(row["caught"]) <= {str(worker) for worker in row["byzantine"]}
    assert row["precision"] == 1.0
    assert row["wrong_files"] == 0
    assert row["dropped"] == 0
    honest = last(build(small, rounds=1, **{**settings, "attack": "none"}))
    assert row["loss"] == pytest.approx(honest["loss"], rel=1e-5)


@pytest.mark.parametrize(("fault", "told"), [
    ("silence", "no reply before the deadline"),
    ("exception", "raises on purpose"),
    ("garbage", "bytes of digests, expected 480"),
])  # fmt: skip
def test_silence_is_no_evidence(small, fault, told):
    row = last(build(small, attack=fault))
    assert row["flagged"] == []
    assert row["caught"] == {}
    assert [entry["client"] for entry in row["rejected"]] == [0, 1]
    assert all(told in entry["reason"] and entry["node"] for entry in row["rejected"])
    assert row["accepted"]
    assert row["wrong_files"] == 0


def test_values_that_are_not_finite_are_dropped(small):
    row = last(build(small, attack="nan"))
    assert row["dropped"] == 2
    assert {e["client"] for e in row["rejected"]} == {0, 1}
    assert "kept" not in row


def test_nobody_answers(small):
    e = build(small)
    nodes = InProcessGrid(mute, clients=7, run_config={"experiment": e.to_toml()})
    rows = []
    run(nodes, e, on_row=rows.append)
    assert "0 workers were heard, at least 5 are needed" in rows[-1]["kept"]
    assert rows[-1]["accuracy"] == rows[0]["accuracy"]


def mute(message, context):
    return app(message, context) if message.metadata.message_type != "train" else None


def hosts_of(e, hosts):
    rows = []
    nodes = InProcessGrid(app, clients=hosts, run_config={"experiment": e.to_toml()})
    run(CohortGrid(nodes, clients=e.clients), e, on_row=rows.append)
    return timeless(rows)


@pytest.mark.parametrize("settings", [
    {}, {"adversary": "weak"}, {"distorts_from": "reveal", "detection": "paper"},
    {"name": "draco_cyclic", "replication": 5, "rule": "mean"}, {"tolerance": 0.05},
])  # fmt: skip
def test_every_grid_gives_the_same_rounds(small, settings):
    e = build(small, **settings)
    here = timeless(run_one(e))
    assert here[1]["replies"] == 7
    for hosts in (1, 3):
        assert hosts_of(e, hosts) == here


def test_each_file_is_computed_once_a_round(small, monkeypatch):
    counted = []
    alone = experiment_gradients._alone
    monkeypatch.setattr(
        experiment_gradients,
        "_alone",
        lambda node, place, chosen, file: counted.append(file) or alone(node, place, chosen, file),
    )
    last(build(small, rounds=3))
    assert len(counted) == 3 * 35
    monkeypatch.setattr(gradients, "LARGEST", 0)  # no room: computed again, the same bits
    row = last(build(small, rounds=1, placement={"name": "fixed", "ids": [5, 6]}))
    assert row["wrong_files"] == round(2 / 35, 6)


def test_files_computed_together_are_the_same_up_to_rounding(small):
    e = build(small, rounds=1, attack="none")
    model, dataset, _, _ = vector_after(e)
    start, rows = file_gradients(e, model, dataset)
    chosen = rounds.plan(e, examples=len(dataset.train_labels), server_round=1).indices
    made = gradients_together(
        model, start, dataset.train_images[chosen], dataset.train_labels[chosen]
    )
    assert torch.allclose(made, rows, atol=1e-6)
    alone, together = (last(build(small, attack="none", vmap_files=n)) for n in (1, 8))
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert together["accepted"]


def noisy(copies, client):
    """Return a worker of another numeric profile: its values differ by one part in a million."""
    scale = 1 + 1e-6 * client
    return worker.replace(
        copies,
        value=lambda file: copies.value(file) * scale,
        digest=lambda file: gradients.digest(copies.value(file) * scale),
        sketches=lambda files, **s: gradients.sketch(
            torch.stack([copies.value(f) * scale for f in files]), **s
        ),
    )


@pytest.mark.parametrize(("tolerance", "agree"), [(0.0, False), (0.05, True)])
def test_a_tolerance_lets_rounding_pass_and_no_attack(small, monkeypatch, tolerance, agree):
    honest = worker.honest
    monkeypatch.setattr(worker, "honest", lambda b, c: noisy(honest(b, c), c))
    row = last(build(small, adversary="weak", tolerance=tolerance))
    assert row["accepted"] is agree
    if agree:
        assert row["flagged"] == [0, 1]
        assert row["wrong_files"] == 0
    else:
        assert "kept" in row


def test_a_sketch_that_fits_a_false_sum_is_caught(small, monkeypatch):
    """Worker 0 commits to the truth, then sends sketches and sums of twice its values."""
    honest = worker.honest

    def twice(bench, client):
        copies = honest(bench, client)
        if client:
            return copies
        return worker.replace(
            copies,
            value=lambda file: 2 * copies.value(file),
            sketches=lambda files, **s: 2 * copies.sketches(files, **s),
        )

    monkeypatch.setattr(worker, "honest", twice)
    settings = {"attack": "none", "rounds": 1, "detection": "contested"}
    row = last(build(small, **settings))
    assert set(row["caught"]) == {"0"}
    assert row["dropped"] == 0
    monkeypatch.setattr(worker, "honest", honest)
    assert row["loss"] == pytest.approx(last(build(small, **settings))["loss"], rel=1e-5)


def test_aspis_plus_finds_the_byzantine_and_finds_them_again_when_they_change(small):
    placement = {"name": "window", "length": 12}
    e = build(small, clients=15, q=2, rounds=24, name="aspis_plus", placement=placement, window=6,
              adversary="att3")  # fmt: skip
    rows = run_one(e)[1:]
    assert len({tuple(row["byzantine"]) for row in rows}) >= 2
    assert [row["round"] for row in rows if row["recall"] == 1 and row["precision"] == 1]
    for start in range(0, 24, 6):  # each window whose byzantine do not change ends with all found
        window = rows[start : start + 6]
        if len({tuple(row["byzantine"]) for row in window}) == 1:
            assert window[-1]["flagged"] == window[-1]["byzantine"]
    assert rows[-1]["accuracy"] > 0.6


def test_stale_flags_do_not_open_the_way_to_the_mean():
    """Two are flagged by earlier rounds, a third is Byzantine now: the second stage stays robust.

    Worker 2 owns the only copy of a file whose other holders are the stale flags: nobody who is
    left contradicts it, so the others agree on everything, and a plain mean would take its value.
    """
    made = assign("aspis_plus", workers=7, replication=3)
    window = None
    for turn in range(20):
        files = permute(made, torch.Generator().manual_seed(turn))
        labels = corrupted_labels(files, corrupt("att3", files, q=2, adversaries=(0, 1)))
        verdict, window = judge(labels, q=2, detection="window", length=100, window=window)
    assert verdict.flagged == (0, 1)
    assert not verdict.plain
    labels = torch.where(made.matrix, 0, MISSING)
    file = next(f for f, h in enumerate(made.holders.tolist()) if {0, 1} < set(h))
    third = next(w for w in made.holders[file].tolist() if w not in (0, 1))
    labels[third, file] = 5
    verdict, _ = judge(labels, q=2, detection="window", length=100, window=window)
    assert int(verdict.chosen[file]) == third
    assert not verdict.plain


def test_detox_falls_to_its_worst_set(small):
    worst = build(small, clients=9, q=4, name="detox", batch=72)
    assert threat_model.members(worst, round=1) == (0, 1, 3, 4)
    row = last(worst)
    assert row["wrong_files"] == round(2 / 3, 6)
    weak = last(build(small, clients=9, q=3, name="detox", batch=72, adversary="weak"))
    assert weak["wrong_files"] == 0


def test_files_are_shuffled_passes_over_the_set(small):
    e = build(small)
    turns = [rounds.plan(e, examples=220, server_round=r).indices for r in range(1, 7)]
    assert turns[0].shape == (35, 2)
    one_pass = torch.cat(turns[:3]).flatten()
    assert len(set(one_pass.tolist())) == 210
    assert not torch.equal(turns[0], turns[3])
    with pytest.raises(ValueError, match="at most the 60 training images, got 70"):
        rounds.check_examples(e.redundancy, 60)


def reply(**records):
    asked = Message(RecordDict(), 1, "train")
    asked.metadata.__dict__["_message_id"] = "x"
    return Message(RecordDict(records), reply_to=asked)


HOSTILE = [
    {},
    {"scheme": ConfigRecord({"digests": b"short"})},
    {"scheme": ConfigRecord({"digests": [1, 2]})},
    {"scheme": ConfigRecord({"sketches": "words"})},
    {"scheme": ArrayRecord()},
    {"arrays": ConfigRecord({"sum": 1})},
    {"arrays": array_of(surprise=torch.zeros(3))},
]


@pytest.mark.parametrize("records", HOSTILE)
def test_readers_refuse_and_never_raise_anything_else(records):
    for read_one in (
        lambda m: commit_reveal.read_digests(m, files=2),
        lambda m: commit_reveal.read_sketches(m, files=2, size=4),
        lambda m: commit_reveal.read_values(m, ["sum"], shape=(3,), largest=1e10),
    ):
        with pytest.raises(Rejected):
            read_one(reply(**records))
    asked = Message(RecordDict(), 1, "train")
    asked.metadata.__dict__["_message_id"] = "x"
    with pytest.raises(Rejected, match="error reply: gone"):
        commit_reveal.read_digests(Message(Error(code=1, reason="gone"), reply_to=asked), files=1)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(4), "expected (3,)"),
        (torch.zeros(3, dtype=torch.float64), "expected float32"),
        (torch.tensor([0.0, float("nan"), 0.0]), "not finite"),
        (torch.tensor([0.0, 1e12, 0.0]), "magnitude 1e+12"),
    ],
)
def test_each_value_is_screened_by_itself(value, reason):
    good = torch.ones(3)
    message = reply(arrays=array_of(a=value, b=good))
    found = commit_reveal.read_values(message, ["a", "b", "c"], shape=(3,), largest=1e10)
    assert reason in found["a"]
    assert torch.equal(found["b"], good)
    assert found["c"] == "missing value"


def test_a_worker_computes_only_what_it_holds(small):
    e = build(small)
    node = make_node(e)
    plan = rounds.plan(e, examples=1437, server_round=1)
    start = node.model.vector.clone()
    values = experiment_gradients.gradients_of(node, start, torch.empty(0), plan)
    copies = stages.honest(values, 0)
    order = commit_reveal.order("sum", files=[34], lengths=[1])
    message = Message(RecordDict({"scheme": order}), 1, "train")
    with pytest.raises(ValueError, match="does not hold"):
        stages.answer(message, values, copies)
    odd = Message(RecordDict({"scheme": commit_reveal.order("dance")}), 1, "train")
    with pytest.raises(ValueError, match="unknown stage 'dance'"):
        stages.answer(odd, values, copies)


def test_a_stopped_run_resumes_with_its_window_and_its_velocity(small, tmp_path):
    e = build(small, clients=15, q=2, rounds=6, name="aspis_plus", window=20)
    whole = timeless(run_one(e))
    folder = RunFolder(tmp_path, e)
    rows = []

    def stop(row):
        rows.append(row)
        if row["round"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_one(e, folder=folder, on_row=stop)
    assert timeless(run_one(e, folder=folder, resume=True)) == whole


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_same_rounds_through_flower(small):
    e = build(small, distorts_from="reveal", detection="paper")
    through_flower = timeless(run_on_flower(e))
    assert through_flower == timeless(run_one(e))
    assert through_flower[1]["caught"]
    assert set(through_flower[-1]["proven"]) == {"0", "1"}
