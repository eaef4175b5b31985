"""Byzantine workers that have read the protocol, each against the defence that stops it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from clients.client_app import app as experiment_app
from clients.node import make_node
from clients.redundancy import FileWorker, gradients, stages
from clients.redundancy import worker as experiment_worker
from clients.redundancy.gradients import FileGradients
from experiments.benchmarks.redundancy_campaign import CASES, play
from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict
from fedrobust.flower import InProcessGrid, array_of, commit_reveal, tensor_of
from fedrobust.flower.guarded_grid import SLACK, TooLarge, read_reply
from fedrobust.redundancy import assign, corrupt, corrupted_labels, permute, rounds
from fedrobust.redundancy.commitments import digest, sketch
from fedrobust.redundancy.decision import judge
from fedrobust.redundancy.draco import check_precision, combination, split_floats
from fedrobust.redundancy.file_gradient import FileGradient
from fedrobust.seeds import generator
from strategies import RedundantStrategy
from strategies.redundancy.membership import Membership, ProfileError, with_profiles
from tests.hostile import objects

SOURCE = torch.Generator().manual_seed(0)
DATA = TensorDataset(torch.randn(105, 6, generator=SOURCE), torch.arange(105) % 3)
LOSS = nn.functional.cross_entropy
SECRET = 2**100 + 17


def net():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


class Fleet:
    """Seven workers in process; some are hostile: worker -> a function (message, reply, values).

    ``reply`` makes the honest answer; what the function returns is sent instead.
    """

    def __init__(self, hostile, *, model=net, workers=7, context=None, **given):
        self.worker = FileWorker(model=model, loss=LOSS, data=DATA)
        self.hostile, self.asked = hostile, []
        self.grid = InProcessGrid(self.answer, clients=workers, run_config={})
        batch = {"batch": 2 * len(assign(given.get("scheme", "aspis"), workers=workers,
                 replication=given.get("replication", 3)).copies)}  # fmt: skip
        merged = {"replication": 3, "q": 2, "server_lr": 1.0, "secret": SECRET, **batch, **given}
        self.strategy = RedundantStrategy(
            model=model, loss=LOSS, data=DATA, workers=workers, **merged
        )
        self.arrays = self.strategy.initial_arrays()
        self.round = 0

    def answer(self, message, context):
        number = context.node_id - 1
        stage = commit_reveal.setting(message, "stage")
        self.asked.append((self.round, stage, number))

        def honest():
            return self.worker(message, context)

        if number not in self.hostile:
            return honest()
        return self.hostile[number](message, honest, self.worker._values)

    def play(self):
        """Run one round; return its row and how far the step is from the true mean."""
        self.round += 1
        asked = self.strategy.configure_train(self.round, self.arrays, ConfigRecord(), self.grid)
        replies = self.grid.send_and_receive(asked)
        stepped, _ = self.strategy.aggregate_train(self.round, replies)
        row = self.strategy.history[-1]
        if stepped is None:
            return row, None
        before, after = (self.strategy._layout.read(a)[0] for a in (self.arrays, stepped))
        values = self.worker._values
        true = torch.stack([values.value(f)[: len(before)] for f in self.strategy.kept])
        self.arrays = stepped
        return row, float((before - after - true.mean(0)).norm())


def stage_of(message):
    return commit_reveal.setting(message, "stage")


class Hidden:
    """Hide a vector of the null space of the last sketch that was seen in the next sum."""

    def __init__(self):
        self.seed = None

    def __call__(self, message, honest, values):
        if stage_of(message) == "sketch":
            self.seed = commit_reveal.setting(message, "seed")
            self.width = commit_reveal.setting(message, "width")
        if stage_of(message) != "sum" or self.seed is None:
            return honest()
        signs = sketch(torch.eye(values.length), seed=self.seed, size=self.width)
        hidden = 1e3 * torch.linalg.svd(signs.T)[2][-1].float()
        sums = {name: tensor_of(a) + hidden for name, a in honest().content["arrays"].items()}
        return commit_reveal.values_reply(message, sums)


@pytest.mark.parametrize(
    "given",
    [{}, {"detection": "paper"}, {"scheme": "aspis_plus", "second": "mean", "detection": "none"}],
)
def test_a_sum_is_sent_before_its_sketch_is_known(given):
    """The worker saw the first round's seed; the next round's is another one.

    Who sends sums changes from round to round, so that its turn comes within 8 of them.
    """
    fleet = Fleet({0: Hidden()}, **given)
    order = []
    for _ in range(8):
        row, gap = fleet.play()
        order += [stage for r, stage, _ in fleet.asked if r == fleet.round]
        if gap is not None:
            assert gap < 1e-3
    assert row["proven"] == {"0": "revealed a sum that is not that of its files"}
    assert order.index("sum") < order.index("sketch")


def test_each_attempt_has_a_seed_of_its_own():
    seeds = []

    def distort(message, honest, values):
        if stage_of(message) == "sketch":
            seeds.append(commit_reveal.setting(message, "seed"))
        if stage_of(message) != "sum":
            return honest()
        sums = {name: -tensor_of(a) for name, a in honest().content["arrays"].items()}
        return commit_reveal.values_reply(message, sums)

    def watch(message, honest, values):
        if stage_of(message) == "sketch":
            seeds.append(commit_reveal.setting(message, "seed"))
        return honest()

    fleet = Fleet({1: distort, 6: watch})
    row, gap = fleet.play()
    assert set(row["caught"]) == {"1"}
    assert gap < 1e-3
    assert len(set(seeds)) >= 2


def false_digests(message, honest, values):
    """Commit to values that nobody computed."""
    if stage_of(message) != "commit":
        return honest()
    held = len(commit_reveal.setting(honest(), "digests")) // 32
    return commit_reveal.digests_reply(message, [bytes([7]) * 32] * held)


@pytest.mark.parametrize(("byzantine", "sketching"), [((1,), {0, 2, 3, 4, 5, 6}), ((1, 4), set())])
def test_the_flagged_sketch_nothing_and_nobody_does_where_all_q_are_flagged(byzantine, sketching):
    fleet = Fleet(dict.fromkeys(byzantine, false_digests))
    row, gap = fleet.play()
    assert row["flagged"] == list(byzantine)
    assert gap < 1e-3
    assert {worker for _, stage, worker in fleet.asked if stage == "sketch"} == sketching
    assert ("sketch" in row["bytes_by_stage"]) is bool(sketching)


def test_over_a_cycle_of_rounds_all_upload_equally_many_sums():
    """Five of seven workers hold every file: two are left out, others in each round."""
    fleet = Fleet({})
    for _ in range(7):
        assert fleet.play()[1] < 1e-3
    sums = [[w for r, stage, w in fleet.asked if (r, stage) == (n, "sum")] for n in range(1, 8)]
    assert [len(set(workers)) for workers in sums] == [5] * 7
    assert [sum(w in workers for workers in sums) for w in range(7)] == [5] * 7


def test_vouching_for_a_false_sum_needs_every_holder():
    """Workers 0 and 1 shift a sum and all their sketches alike; the third holder does not."""
    shift = 20 * torch.randn(21, generator=torch.Generator().manual_seed(1))

    def vouch(message, honest, values):
        if stage_of(message) == "sum":
            sums = {n: tensor_of(a) + shift for n, a in honest().content["arrays"].items()}
            return commit_reveal.values_reply(message, sums)
        if stage_of(message) != "sketch":
            return honest()
        files = list(commit_reveal.setting(message, "files"))
        rows = commit_reveal.read_sketches(honest(), files=len(files), size=8)
        seed = commit_reveal.setting(message, "seed")
        rows += sketch(shift, seed=seed, size=8) / len(files)
        return commit_reveal.sketches_reply(message, rows)

    fleet = Fleet({0: vouch, 1: vouch})
    row, gap = fleet.play()
    assert gap < 1e-3
    assert row["caught"]
    assert set(row["caught"]) <= {"0", "1"}


class Orthogonal:
    """Add to a cyclic code word an error orthogonal to the decoder's direction, if it is known."""

    def __init__(self, known):
        self.known = known

    def __call__(self, message, honest, values):
        honest()
        plan = values.place.plan
        source = generator(self.known, "code", round=plan.round)
        direction = torch.randn(values.length, generator=source).double()
        error = torch.randn(values.length, generator=torch.Generator().manual_seed(9)).double()
        error -= direction * (error @ direction) / (direction @ direction)
        tasks = {f: values.value(f) for f in values.files_of(0)}
        word = combination(0, tasks, workers=7, s=2) + 10 * error
        return commit_reveal.values_reply(message, {"code": split_floats(word)})


@pytest.mark.parametrize(("known", "hit"), [(0, False), (SECRET, True)])
def test_the_decoders_direction_follows_from_the_secret(known, hit):
    """Seed and round are in every order; who knew the secret as well would pass unseen."""
    given = {"scheme": "draco_cyclic", "replication": 5, "second": "mean"}
    fleet = Fleet({0: Orthogonal(known)}, **given)
    fleet.strategy.kept = ()
    asked = fleet.strategy.configure_train(1, fleet.arrays, ConfigRecord(), fleet.grid)
    stepped, _ = fleet.strategy.aggregate_train(1, fleet.grid.send_and_receive(asked))
    before, after = (fleet.strategy._layout.read(a)[0] for a in (fleet.arrays, stepped))
    values = fleet.worker._values
    gap = float((before - after - values.all_values().mean(0)).norm())
    assert (fleet.strategy.history[-1]["flagged"] == [0]) is not hit
    assert (gap > 0.1) is hit
    if not hit:
        assert gap < 1e-5


def test_no_order_carries_the_secret_and_labels_are_new_each_round():
    told = []

    def watch(message, honest, values):
        told.append(dict(commit_reveal.settings(message)))
        return honest()

    fleet = Fleet({3: watch}, scheme="aspis_plus", detection="window")
    for _ in range(3):
        fleet.play()
    assert str(SECRET) not in str(told)
    labels = {order["labels"] for order in told if order["stage"] == "commit"}
    assert len(labels) == 3
    assert all(label >= 0 for label in labels)


def test_cyclic_codes_hold_in_single_precision_gradients_and_say_where_they_do_not():
    given = {"scheme": "draco_cyclic", "replication": 7, "second": "mean", "q": 3}
    noise = 1e3 * torch.randn(4, 21, generator=torch.Generator().manual_seed(2))

    def distort(message, honest, values):
        code = tensor_of(honest().content["arrays"]["code"])
        return commit_reveal.values_reply(message, {"code": code + noise})

    fleet = Fleet({1: distort, 8: distort, 24: distort}, workers=25, **given)
    asked = fleet.strategy.configure_train(1, fleet.arrays, ConfigRecord(), fleet.grid)
    stepped, _ = fleet.strategy.aggregate_train(1, fleet.grid.send_and_receive(asked))
    assert fleet.strategy.history[-1]["flagged"] == [1, 8, 24]
    before, after = (fleet.strategy._layout.read(a)[0] for a in (fleet.arrays, stepped))
    true = fleet.worker._values.all_values().mean(0)
    assert torch.allclose(before - after, true, atol=1e-5)
    for workers, s in ((45, 1), (45, 10), (45, 22), (100, 1)):
        check_precision(workers, s)
    with pytest.raises(ValueError, match="draco_cyclic with 100 workers against 5 loses precision"):
        check_precision(100, 5)


@pytest.mark.parametrize("files", [15, 91])
def test_an_order_says_how_much_its_answer_needs(files):
    """A reveal order holds no array: a budget from the question refused 38,378 parameters."""
    order = commit_reveal.order("reveal", arrays=files, size=files * 38_378 * 4)
    asked = Message(RecordDict({"scheme": order}), 1, "train")
    asked.metadata.__dict__["_message_id"] = "asked"
    values = {str(f): torch.full((38_378,), float(f)) for f in range(files)}
    tree, contents = objects(commit_reveal.values_reply(asked, values))
    own = commit_reveal.budget_of(asked)
    bounds = {"most_bytes": own.size + SLACK, "arrays": own.arrays}
    reply = read_reply(tree, contents.__getitem__, **bounds)
    assert len(reply.content["arrays"]) == files
    with pytest.raises(TooLarge):
        read_reply(tree, contents.__getitem__, most_bytes=own.size // 2, arrays=own.arrays)
    sketches = commit_reveal.sketches_reply(asked, torch.zeros(2352, 8))
    tree, contents = objects(sketches)
    size = {"most_bytes": 2352 * 32 + SLACK}
    assert read_reply(tree, contents.__getitem__, records=2352 * 32, **size).content["scheme"]
    with pytest.raises(TooLarge):
        read_reply(tree, contents.__getitem__, **size)


def experiment(small, **changes):
    table = {"name": "aspis", "batch": 70, "adversary": "weak"}
    attack = {"name": "reversed_gradient", "scale": 100.0, "knowledge": "own"}
    return from_dict(
        small
        | {"clients": 7, "byzantine": 2, "rounds": 1, "attack": attack, "placement": "first",
           "rule": "median", "redundancy": table, "training": {}}
        | changes
    )  # fmt: skip


def digests_of(e, role):
    """Return what nodes 0 (which the TOML calls Byzantine) and 6 (honest) commit to."""
    grid = InProcessGrid(experiment_app, clients=7, run_config={"experiment": e.to_toml()})
    for node, context in grid.contexts.items():
        context.node_config |= {"role": role(node - 1)} if role(node - 1) else {}
    told = {}
    plan = rounds.plan(e, examples=1437, server_round=1).settings()
    order = commit_reveal.order("commit", nodes=[str(n) for n in grid.contexts], **plan)
    content = RecordDict({"arrays": array_of(model=torch.zeros(650)), "scheme": order,
                                        "config": ConfigRecord({"round": 1})})  # fmt: skip
    for reply in grid.send_and_receive([Message(content, n, "train") for n in grid.contexts]):
        told[reply.metadata.src_node_id - 1] = commit_reveal.read_digests(reply, files=15)
    return told


def test_the_role_is_the_nodes_own_setting(small):
    """No TOML makes an honest node attack, and a malicious one attacks under a scheme too."""
    e = experiment(small)
    plain = digests_of(e, lambda worker: None)  # simulation: the TOML says who
    honest = digests_of(e, lambda worker: "honest")
    swapped = digests_of(e, lambda worker: "malicious" if worker == 6 else "honest")
    assert plain[0] != honest[0] == swapped[0]
    assert plain[6] == honest[6] != swapped[6]


def test_data_of_a_nodes_own_are_refused_with_a_reason(small):
    e = experiment(small)
    node = make_node(e)
    context = InProcessGrid(experiment_app, clients=1, run_config={}).contexts[1]
    context.node_config |= {"data": "mine.npz"}
    with pytest.raises(ValueError, match="without data of its own"):
        experiment_worker.respond(node, Message(RecordDict(), 1, "train"), context)


def silent(message, honest, values):
    return None


def reversed_copies(worker, files=None):
    """Return a hostile worker that commits to wrong values and stays consistent."""

    def distort(message, honest, values):
        if stage_of(message) == "profile":
            return honest()
        honest()  # turns the values to this round
        true = stages.honest(values, worker)

        def value(file):
            wrong = files is None or file in files
            return -100 * true.value(file) if wrong else true.value(file)

        def sketches(held, **given):
            return torch.stack([sketch(value(f), **given) for f in held])

        copies = replace(true, value=value, digest=lambda f: digest(value(f)), sketches=sketches)
        return stages.answer(message, values, copies)

    return distort


@pytest.mark.parametrize("detection", ["contested", "strict"])
def test_who_is_absent_votes_for_nobody(detection):
    """K = 15, q = 4: ten honest workers are cut off, so four of the five heard are Byzantine."""
    hostile = {w: reversed_copies(w) for w in range(4)} | dict.fromkeys(range(5, 15), silent)
    fleet = Fleet(hostile, workers=15, q=1, detection=detection, scheme="detox")
    fleet.strategy._settings = replace(fleet.strategy._settings, q=4)
    row, gap = fleet.play()
    assert gap is None
    assert "5 workers were heard, at least 9 are needed (2 q + 1 with q=4" in row["kept"]


def test_min_replies_is_honoured():
    row, gap = Fleet({6: silent}, min_replies=7).play()
    assert gap is None
    assert "6 workers were heard, at least 7" in row["kept"]


@pytest.mark.parametrize(("least", "kept"), [(6, None), (7, "6 workers were heard, at least 7")])
def test_min_replies_of_the_toml_is_honoured_under_a_scheme(small, least, kept):
    server = small["server"] | {"min_replies": least}
    row = run_one(experiment(small, byzantine=1, attack="silence", server=server))[-1]
    assert row.get("kept", "").startswith(kept or "") and ("kept" in row) is bool(kept)


def test_absent_copies_weaken_no_vote_and_the_bound_follows():
    """Two of seven are away: the Byzantine pair owns files whose third holder is silent."""
    made = assign("aspis", workers=7, replication=3)
    mine = {f for f, h in enumerate(made.holders.tolist()) if len({5, 6, *h}) == 3}
    hostile = {0: reversed_copies(0), 1: reversed_copies(1), 5: silent, 6: silent}
    assert mine
    for detection in ("contested", "strict", "none"):
        row, gap = Fleet(hostile, detection=detection).play()
        assert row["wrong_bound"] is not None
        if detection == "contested":
            assert gap < 1e-3
            assert row["wrong_bound"] == 0
        else:
            assert row["wrong_bound"] > 2 / 35 or row["accepted"]


def test_att2_with_fresh_labels_is_never_flagged_and_never_ends_in_a_plain_mean():
    design, window, wrong = assign("aspis_plus", workers=15, replication=3), None, 0
    for t in range(60):
        made = permute(design, torch.Generator().manual_seed(t))
        labels = corrupted_labels(made, corrupt("att2", made, q=4))
        verdict, window = judge(labels, q=4, detection="window", length=15, window=window)
        assert not verdict.flagged
        assert not verdict.plain
        values = labels.gather(0, verdict.chosen.clamp(min=0)[None])[0]
        wrong += int(((verdict.chosen >= 0) & (values != 0)).sum())
    assert abs(wrong / 60 / 35 - 28 / 455) < 0.03  # as many as under plain Aspis


def test_batch_statistics_are_agreed_like_gradients():
    """One worker sends wild statistics with true gradients; the model's stay the true ones."""

    def wild(message, honest, values):
        if stage_of(message) == "profile":
            return honest()
        honest()
        true = stages.honest(values, 0)

        def value(file):
            spoilt = true.value(file).clone()
            spoilt[-16:] = 1e6
            return spoilt

        copies = replace(true, value=value, digest=lambda f: digest(value(f)))
        return stages.answer(message, values, copies)

    fleet = Fleet({0: wild}, model=normed)
    row, gap = fleet.play()
    assert gap < 1e-3
    state = fleet.arrays.to_torch_state_dict()
    module = normed()
    module.load_state_dict(state)
    own = FileGradient(normed, LOSS, DATA)
    values = fleet.worker._values
    expected = torch.stack([values.value(f)[-16:] for f in fleet.strategy.kept]).mean(0)
    found = torch.cat([state["1.running_mean"], state["1.running_var"]])
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, own.statistics)
    assert 0 in row["flagged"]


def counting():
    """Average running statistics over all batches that were counted: BatchNorm without momentum."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3))


def test_statistics_do_not_depend_on_what_a_worker_computed_before():
    first, second = FileGradient(counting, LOSS, DATA), FileGradient(counting, LOSS, DATA)
    where = (first.model.vector.clone(), first.statistics)
    first(*where, torch.arange(0, 30), seed=0)
    busy, fresh = (g(*where, torch.arange(30, 60), seed=0) for g in (first, second))
    assert torch.equal(busy, fresh)


def test_honest_workers_agree_on_batchnorm_without_momentum():
    """Each worker has a process of its own here: none may be flagged for the files it counted."""
    fleet = Fleet({}, model=counting)
    workers = [FileWorker(model=counting, loss=LOSS, data=DATA) for _ in range(7)]
    fleet.worker = lambda message, context: workers[context.node_id - 1](message, context)
    fleet.worker._values = workers[0]._values
    for _ in range(2):
        row, gap = fleet.play()
        assert (row["flagged"], row["kept_files"]) == ([], 35)
        assert gap < 1e-3
    state = fleet.arrays.to_torch_state_dict()
    assert int(state["1.num_batches_tracked"]) == 0


def test_a_step_of_ones_own_takes_no_momentum_silently():
    def step(model, aggregate, state, server_round):
        return model - aggregate, state

    with pytest.raises(ValueError, match=r"server_momentum=0\.9 is SGD's"):
        Fleet({}, step=step, server_momentum=0.9)
    assert Fleet({}, step=step).play()[1] < 1e-3


def test_who_is_proven_byzantine_is_out_for_good():
    def distort(message, honest, values):
        if stage_of(message) != "sum":
            return honest()
        sums = {name: -tensor_of(a) for name, a in honest().content["arrays"].items()}
        return commit_reveal.values_reply(message, sums)

    fleet = Fleet({1: distort})
    fleet.play()
    row, gap = fleet.play()
    assert set(row["proven"]) == {"1"}
    assert gap < 1e-3
    assert (2, "commit", 1) not in fleet.asked
    other = Fleet({1: distort})
    other.strategy.restore(fleet.strategy.snapshot())
    other.play()
    assert all(worker != 1 for _, _, worker in other.asked)


def test_repeated_silence_is_not_waited_for():
    fleet = Fleet({4: silent})
    for _ in range(11):
        assert fleet.play()[1] < 1e-3
    asked = [r for r, stage, worker in fleet.asked if worker == 4 and stage == "commit"]
    assert asked == [1, 2, 3, 10]
    back = Membership(silent={4: 5}).after(asked=[4], caught={}, silent=[])
    assert back.asked(range(7), 11) == list(range(7))


def bent(message, honest, values):
    """An honest worker with another BLAS: each value differs in its last bits."""
    honest()
    number = bent.number[message.metadata.dst_node_id]
    true = stages.honest(values, number)

    def value(file):
        return true.value(file) * (1 + 1e-6)

    def sketches(held, **given):
        return torch.stack([sketch(value(f), **given) for f in held])

    copies = replace(true, value=value, digest=lambda f: digest(value(f)), sketches=sketches)
    if stage_of(message) == "profile":
        return commit_reveal.profile_reply(message, "torch 1.9, cpu arm64", copies.digest(0))
    return stages.answer(message, values, copies)


bent.number = {node: node - 1 for node in range(1, 16)}


def test_other_bits_are_named_and_left_out():
    fleet = Fleet({5: bent, 6: bent})
    row, gap = fleet.play()
    assert set(row["left_out"]) == {"5", "6"}
    assert "torch 1.9, cpu arm64, the others torch" in row["left_out"]["5"]
    assert (row["path"], row["flagged"]) == ("buckets", [])  # two copies of most files are too few
    # two honest machines apart and two Byzantine workers: the five alike still decide
    fleet = Fleet({0: reversed_copies(0), 1: reversed_copies(1), 5: bent, 6: bent})
    row, gap = fleet.play()
    assert gap is None or gap < 1e-3


def test_other_bits_switch_to_a_stated_tolerance():
    fleet = Fleet({4: bent, 5: bent, 6: bent}, mixed=0.01)
    row, gap = fleet.play()
    assert "left_out" not in row
    assert gap < 1e-3
    assert row["flagged"] == []


CYCLIC = {"scheme": "draco_cyclic", "replication": 5, "second": "mean"}


def test_a_cyclic_code_leaves_out_who_computes_other_bits_and_corrects_for_them():
    fleet = Fleet({5: bent, 6: bent}, **CYCLIC)
    for server_round in (1, 2):
        asked = fleet.strategy.configure_train(
            server_round, fleet.arrays, ConfigRecord(), fleet.grid
        )
        replies = fleet.grid.send_and_receive(asked)
        stepped, _ = fleet.strategy.aggregate_train(server_round, replies)
        row = fleet.strategy.history[-1]
        assert set(row["left_out"]) == {"5", "6"} and "kept" not in row
        before, after = (fleet.strategy._layout.read(a)[0] for a in (fleet.arrays, stepped))
        gap = before - after - fleet.worker._values.all_values().mean(0)
        assert float(gap.norm()) < 1e-5
        fleet.arrays = stepped
    assert [stage for _, stage, worker in fleet.asked if worker == 5] == ["profile"]


def test_a_cyclic_code_with_too_many_other_bits_ends_at_the_start():
    """Other bits are wrong words to the decoder: every round kept the model, as if attacked."""
    with pytest.raises(ProfileError, match="5 workers must compute the same bits, got 4"):
        Fleet({4: bent, 5: bent, 6: bent}, **CYCLIC).play()
    told = {w: ("p", b"x" if w < 5 else bytes([w])) for w in range(7)}  # q = 2 claim nonsense
    found = with_profiles(Membership(), told, workers=7, q=2, coded=True)
    assert set(found.apart) == {5, 6}


def test_too_few_alike_is_refused_and_byzantine_workers_alone_cannot_cause_it():
    with pytest.raises(ProfileError, match="needs 5 workers that compute the same bits, got 4"):
        Fleet({4: bent, 5: bent, 6: bent}).play()
    told = {w: ("p", b"x" if w < 4 else bytes([w])) for w in range(7)}  # q = 3 claim nonsense
    found = with_profiles(Membership(), told, workers=7, q=3)
    assert set(found.apart) == {4, 5, 6}
    assert found.left(3) == 0


def test_a_reply_in_anothers_name_is_nobodys():
    fleet = Fleet({})
    asked = fleet.strategy.configure_train(1, fleet.arrays, ConfigRecord(), fleet.grid)
    replies = fleet.grid.send_and_receive(asked)
    forged = Message(replies[0].content, reply_to=asked[6])
    forged.metadata.__dict__["_src_node_id"] = 1
    fleet.strategy.aggregate_train(1, [forged, *replies])
    row = fleet.strategy.history[-1]
    assert row["flagged"] == []
    assert "proven" not in row


def test_a_node_keeps_the_files_that_it_holds(monkeypatch):
    """Room for 15 of 35 files: a node that holds 15 computes each once."""
    counted = []

    def compute(place, indices, files):
        counted.extend(files)
        return [torch.full((4,), float(f)) for f in files]

    monkeypatch.setattr(gradients, "LARGEST", 15 * 4 * 4)
    strategy = Fleet({}).strategy
    values = FileGradients(compute).turn_to(
        torch.zeros(4), torch.empty(0), strategy._settings.plan(1)
    )
    held = values.files_of(3)
    for _ in range(3):
        assert values.total(held)[0] == sum(held)
        [values.digest(file) for file in held]
    assert len(held) == 15
    assert sorted(counted) == held


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(CASES), st.lists(st.integers(0, 2**16 - 1), min_size=3, max_size=60))
def test_no_accepted_step_leaves_its_bound(case, choices):
    """A small campaign; 20,000 rounds: ``python -m experiments.benchmarks.redundancy_campaign``."""
    workers, q = case
    assert play(choices, workers=workers, q=q, rounds=3)["rounds"] == 3


def test_rows_of_real_nodes_claim_nothing_about_who_is_byzantine(small):
    row = Fleet({0: reversed_copies(0)}).play()[0]
    assert not {"precision", "recall", "byzantine", "wrong_files"} & set(row)
    simulated = run_one(experiment(small))[-1]
    assert simulated["precision"] == 1.0


def test_every_attack_on_the_page_is_played():
    """The last column of the table names tests of this file, or of the file that it names."""
    root = Path(__file__).parents[2]
    page = (root / "experiments/docs/pages/explanation/redundancy.md").read_text()
    lines = page.split("## Attacks tried")[1].split("## ")[0].splitlines()
    asked = [
        re.findall("`([^`]+)`", line.split("|")[4]) for line in lines if line.startswith("| ")
    ][1:]
    assert len(asked) > 15 and all(asked)
    for where in (name for cell in asked for name in cell):
        path, _, words = where.rpartition(" -k ") if " -k " in where else ("", "", where)
        if where.endswith(".py"):
            assert (root / where).is_file()
            continue
        file = root / path if path else Path(__file__)
        names = re.findall(r"def (test_\w+)", file.read_text())
        for word in words.strip('"').split(" or "):
            assert any(word in name for name in names), where
