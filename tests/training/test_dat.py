"""Distributed adversarial training over Flower: bytes, replicas, steps, statistics, phases."""

import itertools
import math

import pytest
import torch
from flwr.app import RecordDict
from torch.nn import functional as F

from clients import local_objective
from clients.client_app import app
from clients.node import make_node
from experiments.simulation import run_one
from fedrobust import data, models
from fedrobust.adversarial import predict, slack_weights
from fedrobust.evaluation import pixels
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError, phase
from fedrobust.flower import CohortGrid, InProcessGrid, read_setting, read_tensor, tensor_of
from fedrobust.models.batchnorm import load_statistics, read_statistics, variances
from fedrobust.runs.folder import RunFolder, timeless
from fedrobust.training import StepState, cross_entropy, lalr_step, lr_at, take_step
from fedrobust.training.server_optimizer import head_size
from fedrobust.vector import FlatModel
from strategies.checkpointing import Checkpoints
from strategies.session import run

PGD = {"name": "pgd", "eps": 0.1, "step_size": 0.05, "steps": 2}
LALR = {"optimizer": "lalr", "lr": 0.05, "warmup": 2, "evaluate_every": 1}
BOTH = {"bits": 8, "sides": "both"}


def experiment(small, **changes):
    return from_dict(small | changes)


def config(e):
    return {"experiment": e.to_toml()}


def on_grid(e, handler=app, clients=None):
    """Run in process and return the rows, the final arrays and the grid."""
    rows = []
    grid = InProcessGrid(handler, clients=clients or e.clients, run_config=config(e))
    arrays = run(grid, e, on_row=rows.append)
    return rows, arrays, grid


# The wire


@pytest.mark.parametrize("sides", ["up", "both"])
def test_quantised_rounds_agree_on_every_grid(small, sides):
    e = experiment(small, compression={"bits": 8, "sides": sides}, attack="alie", rule="nnm+krum")
    here = timeless(run_one(e))
    assert all("kept" not in row and not row["rejected"] for row in here[1:])
    for hosts in (1, 3):
        rows = []
        nodes = InProcessGrid(app, clients=hosts, run_config=config(e))
        run(CohortGrid(nodes, clients=e.clients), e, on_row=rows.append)
        assert timeless(rows) == here


def test_bytes_are_counted_and_few(small):
    rows = {
        bits: run_one(experiment(small, compression=table))[-1]
        for bits, table in ((32, {}), (8, {"bits": 8}), (2, {"bits": 2}), (-8, BOTH))
    }
    assert rows[32]["bytes_up"] == rows[32]["bytes_down"] == 10 * 650 * 4
    assert rows[8]["bytes_up"] == rows[-8]["bytes_up"] == 10 * (650 + 2 * 28)
    assert rows[8]["bytes_down"] == 10 * 650 * 4
    assert rows[-8]["bytes_down"] == 10 * (650 + 2 * 28)
    assert rows[2]["bytes_up"] == 10 * (160 + 3 + 2 * 28)


def test_rows_tell_the_line_and_the_times_when_asked(small):
    server = small["server"] | {"bandwidth": 1e6, "times": True}
    e = experiment(small, server=server, compression={"bits": 8}, adversarial={"perturbation": PGD})
    row = run_one(e)[-1]
    assert row["line_seconds"] == pytest.approx(8 * (650 + 56 + 2600) / 1e6)
    assert set(row["times"]) == {"attack", "train", "encode"}
    assert all(value > 0 for value in row["times"].values())
    assert sum(row["times"].values()) <= row["seconds"] + 0.01
    assert "times" not in run_one(experiment(small, rounds=1))[-1]


# Replicas


def replicas(grid):
    return {
        node: (
            int(read_setting(context.state, "replica-version", "step")),
            read_tensor(context.state, "replica", "model"),
        )
        for node, context in grid.contexts.items()
        if "replica" in context.state
    }


@pytest.mark.parametrize("server", [{"lr": 0.5, "momentum": 0.9}, LALR])
def test_replicas_stay_equal_bit_for_bit(small, server):
    e = experiment(small, rounds=5, compression=BOTH, server=server)
    rows, arrays, grid = on_grid(e)
    found = replicas(grid)
    assert len(found) == 10
    assert {version for version, _ in found.values()} == {4}  # the fifth step was not sent yet
    first = found[1][1]
    assert all(torch.equal(first, model) for _, model in found.values())
    short = experiment(small, rounds=4, compression=BOTH, server=server)
    assert torch.equal(first, tensor_of(on_grid(short)[1]["model"]))
    assert not torch.equal(first, tensor_of(arrays["model"]))
    assert rows[-1]["accuracy"] > rows[0]["accuracy"]


def test_who_missed_a_round_is_sent_the_whole_model(small):
    e = experiment(small, rounds=6, compression=BOTH, rule="mean")

    def flaky(message, context):
        number = read_setting(message.content, "config", "round")
        client = context.node_config["partition-id"]
        if client == 3 and number == 2:
            return None
        if client == 5 and number == 3:
            context.state = RecordDict()  # a node that was started anew
        if client == 7 and number == 4:
            raise RuntimeError("down")
        return app(message, context)

    rows, _, grid = on_grid(e, flaky)
    lost = [[entry["client"] for entry in row["rejected"]] for row in rows[1:]]
    assert lost == [[], [3], [5], [7], [], []]
    assert "the replica missed a step: there is none" in rows[3]["rejected"][0]["reason"]
    assert [row["replies"] for row in rows[1:]] == [10, 9, 9, 9, 10, 10]
    step, whole = 650 + 2 * 28, 2 * 4 * 650
    steady = [10 * step, 9 * step + whole]
    assert [row["bytes_down"] for row in rows[2:]] == [steady[0], *[steady[1]] * 3, steady[0]]
    found = replicas(grid)
    assert {version for version, _ in found.values()} == {5}
    assert all(torch.equal(found[1][1], model) for _, model in found.values())


def test_a_round_that_keeps_the_model_sends_nothing_the_next_time(small):
    e = experiment(small, compression=BOTH, server=small["server"] | {"min_replies": 10})

    def quiet_once(message, context):
        silent = read_setting(message.content, "config", "round") == 2
        quiet = silent and context.node_config["partition-id"] == 0
        return None if quiet else app(message, context)

    rows, _, grid = on_grid(e, quiet_once)
    assert "min_replies asks for 10" in rows[2]["kept"]
    assert rows[3]["bytes_down"] == 2 * 4 * 650  # the whole for the one, nothing for the others
    models_held = [model for _, model in replicas(grid).values()]
    assert all(torch.equal(models_held[0], model) for model in models_held)


# The server's step


def test_sgd_is_the_velocity_form_and_lalr_is_the_layers_step():
    shapes = ((2, 3), (4,))
    source = torch.Generator().manual_seed(1)
    model = torch.randn(10, generator=source)
    grads = [torch.randn(10, generator=source) for _ in range(3)]
    common = {"lr": 0.1, "momentum": 0.9, "schedule": "constant", "warmup": 0, "shapes": shapes}
    v, w, state, stepped = torch.zeros(10), model, StepState(), model
    params, memory = [model[:6].view(2, 3), model[6:]], None
    layered, kept = model, StepState()
    for g in grads:
        v = 0.9 * v + g
        w = w - 0.1 * v
        stepped, state = take_step(stepped, g, state, optimizer="sgd", **common)
        torch.testing.assert_close(stepped, w)
        params, memory = lalr_step(params, [g[:6].view(2, 3), g[6:]], memory, lr=0.1)
        layered, kept = take_step(layered, g, kept, optimizer="lalr", **common)
        assert torch.equal(layered, torch.cat([p.reshape(-1) for p in params]))
    assert (state.step, len(state.moments), len(kept.moments)) == (3, 1, 2)
    for name, moments in (("lars", 1), ("layerwise", 0)):
        _, kept = take_step(model, grads[0], StepState(), optimizer=name, **common)
        assert (kept.step, len(kept.moments)) == (1, moments)
    fixed, _ = take_step(model, grads[0], StepState(), optimizer="sgd", fixed=4, **common)
    assert torch.equal(fixed[:4], model[:4]) and not torch.equal(fixed[4:], model[4:])
    with pytest.raises(ValueError, match="non-finite"):
        take_step(model, grads[0] * math.inf, StepState(), optimizer="sgd", **common)


def test_the_schedule_sets_the_rate_of_each_step(small):
    schedule = {"name": "multistep", "milestones": [2], "gamma": 0.5}
    server = {"lr": 0.4, "momentum": 0.0, "warmup": 2, "schedule": schedule}
    rates = [lr_at(k, lr=0.4, schedule=schedule, warmup=2) for k in range(5)]
    assert rates == [0.2, 0.4, 0.4, 0.4, 0.2]
    steps = []
    for rounds in range(1, 6):
        e = experiment(small, rounds=rounds, server=server, rule="mean")
        steps.append(tensor_of(on_grid(e)[1]["model"]))
    plain = small | {"server": {"lr": 0.2, "momentum": 0.0}, "rule": "mean", "rounds": 1}
    assert torch.equal(steps[0], tensor_of(on_grid(experiment(plain))[1]["model"]))
    assert len({tuple(step[:5].tolist()) for step in steps}) == 5


def test_workers_together_equal_one_process_with_the_whole_batch(small):
    """Acceptance row 15: M workers of batch B and one process of batch M B, after three steps."""
    e = experiment(
        small, rule="mean", model="cnn", training={"batch_size": 10_000}, data="digits",
        server={"lr": 0.1, "momentum": 0.9},
    )  # fmt: skip
    spread = tensor_of(on_grid(e)[1]["model"])
    d = data.load("digits")
    model = FlatModel(models.build_for("cnn", d, seed=e.seed))
    shares = make_node(e).labels
    sizes = [len(labels) for labels in shares]
    images = torch.cat(make_node(e).images)
    w, state = model.vector.clone(), StepState()
    for _ in range(3):
        model.load(w)
        model.gradient.zero_()
        losses = F.cross_entropy(model.module(pixels(images)), torch.cat(shares), reduction="none")
        sum(part.mean() for part in losses.split(sizes)).div(len(sizes)).backward()
        w, state = take_step(
            w, model.gradient.clone(), state, optimizer="sgd", lr=0.1, momentum=0.9,
            schedule="constant", warmup=0, shapes=model.shapes,
        )  # fmt: skip
    assert float((spread - w).abs().max()) < 1e-5
    assert len(set(sizes)) <= 2


# BatchNorm


def test_statistics_go_there_and_back():
    d = data.load("digits")
    module = models.build_for("bn_cnn", d, seed=1)
    found = read_statistics(module)
    assert len(found) == 2 * (16 + 32)
    assert int(variances(module).sum()) == 48
    load_statistics(module, torch.arange(96.0))
    assert torch.equal(read_statistics(module), torch.arange(96.0))
    assert len(read_statistics(models.build_for("cnn", d, seed=1))) == 0
    with pytest.raises(ValueError, match="need 96 values, got 5"):
        load_statistics(module, torch.zeros(5))


def statistics_of(grid):
    return [
        read_tensor(context.state, "statistics", "statistics")
        for context in grid.contexts.values()
        if "statistics" in context.state
    ]


def test_local_statistics_stay_with_their_clients(small):
    e = experiment(small, model="bn_cnn", batchnorm="local", rounds=2)
    rows, arrays, grid = on_grid(e)
    held = statistics_of(grid)
    assert len(held) == 10 and not torch.equal(held[0], held[1])
    expected = torch.stack(held).sort(0).values[4:6].mean(0)
    torch.testing.assert_close(tensor_of(arrays["statistics"]), expected)
    assert rows[-1]["bytes_up"] - rows[-1]["bytes_down"] == 10 * 96 * 4


def test_averaged_statistics_are_the_rules_and_are_sent(small):
    def final(**batchnorm):
        e = experiment(small, model="bn_cnn", batchnorm={"name": "average", **batchnorm}, rounds=1)
        return on_grid(e)

    local = statistics_of(
        on_grid(experiment(small, model="bn_cnn", batchnorm="local", rounds=1))[2]
    )
    rows, arrays, grid = final(rule="mean")
    assert not statistics_of(grid)
    mean = torch.stack(local).mean(0)
    torch.testing.assert_close(tensor_of(arrays["statistics"]), mean)
    middle = tensor_of(final()[1]["statistics"])
    assert not torch.allclose(middle, mean, rtol=1e-3)
    assert rows[-1]["bytes_up"] == rows[-1]["bytes_down"]


def test_hostile_statistics_lose_the_vote_or_the_median(small):
    def attacked(value):
        def handler(message, context):
            reply = app(message, context)
            if context.node_config["partition-id"] == 0 and "arrays" in reply.content:
                arrays = reply.content["arrays"]
                arrays["statistics"].tensor.fill_(value)
            return reply

        return handler

    e = experiment(small, model="bn_cnn", rounds=1)
    honest = tensor_of(on_grid(e)[1]["statistics"])
    for value, word in ((-1.0, "negative variance"), (math.nan, "not finite"), (1e12, "beyond")):
        rows, _, _ = on_grid(e, attacked(value))
        assert word in rows[-1]["rejected"][0]["reason"]
    rows, arrays, _ = on_grid(e, attacked(1e6))
    assert not rows[-1]["rejected"]
    assert float((tensor_of(arrays["statistics"]) - honest).abs().max()) < 1.0


def test_an_attack_in_eval_mode_leaves_the_statistics(small):
    changes = {"model": "bn_cnn", "rounds": 1, "batchnorm": "local"}
    loss = {"name": "natural"}
    plain = statistics_of(on_grid(experiment(small, **changes))[2])
    table = {"perturbation": PGD, "loss": loss}
    attacked = statistics_of(on_grid(experiment(small, **changes, adversarial=table))[2])
    assert all(torch.equal(a, b) for a, b in zip(plain, attacked, strict=True))


def test_dual_statistics_go_their_own_ways(small):
    table = {"perturbation": PGD, "loss": {"name": "standard", "lambda_nat": 1.0}, "eps": 0.1,
             "eval_steps": 2, "eval_images": 50}  # fmt: skip
    federated = {"adversarial_clients": 0.5}
    for serve in ("clean", "adversarial"):
        batchnorm = {"name": "dual", "serve": serve}
        e = experiment(
            small, model="bn_cnn", batchnorm=batchnorm,
            adversarial=table | {"federated": federated},
            rounds=2,
        )  # fmt: skip
        rows, arrays, _ = on_grid(e)
        found = tensor_of(arrays["statistics"])
        assert len(found) == 2 * 96
        assert not torch.equal(found[:32], found[32:64])
        assert "robust_accuracy" in rows[-1]
    module = models.dual(models.build_for("bn_cnn", data.load("digits"), seed=1)).train()
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    routed, fresh = models.Routed(module, x), read_statistics(module)

    def moved(images):
        load_statistics(module, fresh)
        routed(images)
        return read_statistics(module) != fresh

    perturbed, clean = moved(x), moved(x.clone())
    assert bool(perturbed.any()) and bool(clean.any()) and not bool((perturbed & clean).any())


# Phases and variants


def test_phases_follow_one_another(small):
    e = experiment(
        small, rounds=9, pretrain={"rounds": 2},
        semi={"mode": "pseudo", "labelled": 0.5, "teacher_rounds": 3},
    )  # fmt: skip
    order = [phase(e, round) for round in range(1, 10)]
    assert order == ["pretrain"] * 2 + ["teacher"] * 3 + ["train"] * 4


def test_the_head_starts_anew_and_the_trunk_goes_on(small):
    changes = {"model": "mlp", "rule": "mean", "server": {"lr": 0.1, "momentum": 0.9}}
    seen = {}

    def spying(message, context):
        number = read_setting(message.content, "config", "round")
        if number is not None and context.node_config["partition-id"] == 0:
            seen[number] = read_tensor(message.content, "arrays", "model")
        return app(message, context)

    e = experiment(small, **changes, rounds=5, pretrain={"rounds": 3, "finetune": "partial"})
    _, arrays, _ = on_grid(e, spying)
    head = head_size(FlatModel(models.build_for("mlp", data.load("digits"), seed=e.seed)).sizes)
    assert head == 1010
    assert torch.equal(seen[4][-head:], seen[1][-head:])
    assert not torch.equal(seen[4][:-head], seen[1][:-head])
    final = tensor_of(arrays["model"])
    assert torch.equal(final[:-head], seen[4][:-head])
    assert not torch.equal(final[-head:], seen[4][-head:])
    full = experiment(small, **changes, rounds=5, pretrain={"rounds": 3})
    assert not torch.equal(tensor_of(on_grid(full)[1]["model"])[:-head], final[:-head])


def test_pre_training_works_with_replicas(small):
    e = experiment(small, model="mlp", rounds=5, compression=BOTH,
                   pretrain={"rounds": 2, "finetune": "partial", "perturbation": PGD})  # fmt: skip
    rows, _, grid = on_grid(e)
    assert all(not row["rejected"] for row in rows[1:])
    held = [model for _, model in replicas(grid).values()]
    assert len(held) == 10 and all(torch.equal(held[0], model) for model in held)


def test_pseudo_labels_are_the_teachers(small):
    e = experiment(small, rounds=4, semi={"mode": "pseudo", "labelled": 0.25, "teacher_rounds": 2})
    seen = {}

    def spying(message, context):
        number = read_setting(message.content, "config", "round")
        if number is not None:
            seen[number] = read_tensor(message.content, "arrays", "model")
        return app(message, context)

    _, _, grid = on_grid(e, spying)
    node = make_node(e)
    for client in (0, 7):
        images, labels = node.share(client)
        kept = read_tensor(grid.contexts[client + 1].state, "pseudo-labels", "labels").long()
        masked = local_objective._masked(e, labels, client)
        assert int((masked >= 0).sum()) == round(len(labels) / 4)
        assert torch.equal(masked[masked >= 0], labels[masked >= 0])
        node.model.load(seen[3])
        taught = predict(node.model.module, pixels(images))
        assert torch.equal(kept, torch.where(masked >= 0, labels, taught))


def lesson_of(e, round=1, client=0):
    grid = InProcessGrid(app, clients=e.clients, run_config=config(e))
    node = make_node(e)
    images, labels = node.share(client)
    context = grid.contexts[client + 1]
    vector = node.model.vector.clone()
    plan = local_objective.objective(
        node, context, vector, images, labels, server_round=round, client=client
    )
    return plan.member


def test_the_unlabelled_share_of_a_batch_is_exact(small):
    trades = {"name": "trades", "eps": 0.1, "step_size": 0.05, "steps": 2}
    e = experiment(
        small, semi={"mode": "trades", "labelled": 0.5, "fraction": 0.75},
        adversarial={"perturbation": trades, "loss": "trades"},
        training={"batch_size": 16, "mode": "update", "steps": 40},
    )  # fmt: skip
    plan = lesson_of(e)
    batches = list(plan.draw(len(plan.labels), plan.recipe, torch.Generator().manual_seed(1)))
    assert len(batches) == 40
    assert all(int((plan.labels[batch] < 0).sum()) == 12 and len(batch) == 16 for batch in batches)
    assert "kept" not in run_one(e)[-1]


def test_who_perturbs_and_how_much(small):
    table = {"perturbation": PGD, "eps_warmup": 4}
    e = experiment(small, adversarial=table | {"federated": {"adversarial_clients": 0.3}})
    grown = lesson_of(e, round=2).loss.alone.keywords["perturbation"]
    assert (grown["eps"], grown["step_size"], grown["steps"]) == (0.05, 0.025, 2)
    assert lesson_of(e, round=9).loss.alone.keywords["perturbation"] == PGD
    perturbs = [lesson_of(e, client=c).loss is not cross_entropy for c in range(10)]
    assert perturbs == [True] * 3 + [False] * 7


def test_local_epochs_fall(small):
    training = {"mode": "update", "epochs": 4, "batch_size": 16}
    e = experiment(
        small,
        training=training,
        adversarial={"federated": {"epochs_gamma": 0.5, "epochs_every": 2}},
        rounds=6,
    )
    assert [lesson_of(e, round=r).recipe.epochs for r in range(1, 7)] == [4, 4, 2, 2, 1, 1]


def test_slack_weighs_by_the_lowest_loss(small):
    changes = {"rule": "mean", "rounds": 1, "server": {"lr": 1.0, "momentum": 0.0}}
    e = experiment(small, **changes, adversarial={"federated": {"slack": 0.2, "slack_top": 2}})
    replies = []

    def spying(message, context):
        reply = app(message, context)
        if "arrays" in reply.content:
            replies.append(
                (reply.content["metrics"]["loss"], read_tensor(reply.content, "arrays", "update"))
            )
        return reply

    _, arrays, _ = on_grid(e, spying)
    losses = torch.tensor([loss for loss, _ in replies])
    weights = slack_weights(losses, torch.ones(10), alpha=0.2, top=2)
    assert float(weights.max() / weights.min()) == pytest.approx(1.5)
    step = (torch.stack([row for _, row in replies]) * weights[:, None]).sum(0)
    start = FlatModel(models.build_for("linear", data.load("digits"), seed=e.seed)).vector
    torch.testing.assert_close(tensor_of(arrays["model"]), start - step)


def test_calibration_changes_what_a_client_learns(small):
    changes = {"partition": {"name": "dirichlet", "alpha": 0.2}, "rule": "mean"}
    plain, shifted = (
        run_one(experiment(small, **changes, adversarial={"federated": {"calibration": strength}}))[
            -1
        ]["loss"]
        for strength in (0.0, 1.0)
    )
    assert plain != shifted


def test_partial_participation_asks_some(small):
    e = experiment(small, rule="mean", rounds=6, participation=0.3)
    rows = run_one(e)
    assert [row["replies"] for row in rows[1:]] == [3] * 6
    assert all(row["bytes_down"] == 3 * 2600 and not row["rejected"] for row in rows[1:])
    told = [tuple(i for i, w in enumerate(row["weights"]) if w is not None) for row in rows[1:]]
    assert len(set(told)) > 1
    with pytest.raises(ConfigError, match=r"krum with f=2 needs at least 7 updates, got 3"):
        experiment(small, rule="krum", participation=0.3)


def test_evaluation_holds_what_was_asked_and_the_alarms(small):
    table = {"eps": 0.1, "eval_attacks": "fgsm+pgd+margin", "eval_restarts": 2, "eval_steps": 3,
             "eval_images": 60, "probe_images": 40}  # fmt: skip
    rows = run_one(experiment(small, adversarial=table))
    keys = ["robust_accuracy", "fgsm_accuracy", "margin_accuracy", "worst_accuracy",
            "probe_accuracy"]  # fmt: skip
    for row in rows:
        assert all(0 <= row[key] <= 1 for key in keys)
        assert row["worst_accuracy"] <= min(row[key] for key in keys[:3])
    alone = run_one(
        experiment(small, adversarial={k: v for k, v in table.items() if k != "eval_attacks"})
    )
    assert [row["robust_accuracy"] for row in alone] == [row["robust_accuracy"] for row in rows]


def test_a_collapse_raises_the_alarm(small, monkeypatch):
    from strategies import evaluation

    told = iter([0.5, 0.6, 0.3, 0.3])
    monkeypatch.setattr(evaluation, "overfitting_probe", lambda *args, **kwargs: next(told))
    table = {"eps": 0.1, "eval_steps": 1, "eval_images": 20, "probe_images": 8}
    rows = run_one(experiment(small, adversarial=table))
    assert [bool(row.get("alarms")) for row in rows] == [False, False, True, True]
    assert rows[2]["alarms"] == ["catastrophic overfitting: the probe fell from 0.600 to 0.300"]


# Resuming


class Stopped(Exception):
    """The run is stopped here."""


@pytest.mark.parametrize(
    "changes",
    [
        {"compression": BOTH, "server": LALR, "model": "bn_cnn", "batchnorm": "local"},
        {"compression": {"bits": 4}, "model": "bn_cnn", "pretrain": {"rounds": 1},
         "semi": {"mode": "pseudo", "labelled": 0.5, "teacher_rounds": 1}},
    ],
)  # fmt: skip
def test_resumed_in_the_middle_the_numbers_are_the_same(small, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(
        "experiments.simulation.Checkpoints", lambda write, saved: Checkpoints(write, saved, 0.0)
    )
    probing = {"eps": 0.1, "eval_steps": 1, "eval_images": 20, "probe_images": 8}
    e = experiment(small, **changes, adversarial=probing, clients=4, rounds=4, rule="median",
                   byzantine=1)  # fmt: skip
    expected, folder = timeless(run_one(e)), RunFolder(tmp_path, e)

    def stop(row):
        if row["round"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run_one(e, folder=folder, on_row=stop)
    assert timeless(run_one(e, folder=folder, resume=True)) == expected
    assert len(expected) == 5


# Every axis


AXES = {
    "compression": [{}, {"bits": 4, "scale": "linf", "bucket": 64}, BOTH],
    "server": [{"lr": 0.1}, {"optimizer": "lalr", "lr": 0.02},
               {"optimizer": {"name": "lars", "beta": 0.8}, "lr": 0.02, "warmup": 1,
                "schedule": {"name": "cosine", "steps": 5}}],
    "adversarial": [{}, {"perturbation": {"name": "fgsm", "eps": 0.1, "mode": "train"}},
                    {"perturbation": {"name": "trades", "eps": 0.1, "step_size": 0.1, "steps": 1},
                     "loss": "mart", "fraction": 0.5}],
    "batchnorm": ["average", "local", "dual"],
    "training": [{"batch_size": 16}, {"batch_size": 16, "mode": "update", "steps": 2}],
}  # fmt: skip


def pairs(places):
    return set(itertools.combinations(enumerate(places), 2))


def covering():
    """Choose combinations greedily until every two options of two axes have met."""
    every = list(itertools.product(*(range(len(options)) for options in AXES.values())))
    missing, chosen = set().union(*map(pairs, every)), []
    while missing:
        best = max(every, key=lambda places: len(pairs(places) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def test_every_two_options_run_together(small):
    chosen = covering()
    assert 9 <= len(chosen) <= 14
    for places in chosen:
        changes = {axis: AXES[axis][i] for axis, i in zip(AXES, places, strict=True)}
        e = experiment(small, clients=3, byzantine=1, rounds=1, model="bn_cnn", rule="median",
                       attack="sign_flip", **changes)  # fmt: skip
        row = run_one(e)[-1]
        assert row["replies"] == 3 and "kept" not in row and math.isfinite(row["loss"]), changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compression": {"bits": 17}}, "compression.bits needs 2..16 or 32, got 17"),
        ({"compression": {"scale": "l3"}}, "unknown compression.scale 'l3'; choose from l2"),
        ({"compression": {"sides": "down"}}, "unknown compression.sides"),
        ({"compression": {"bit": 8}}, "unknown key 'compression.bit'; did you mean 'bits'"),
        ({"server": {"optimizer": "lalrr"}}, "did you mean 'lalr'"),
        ({"server": {"optimizer": {"name": "lalr", "beta": 1}}}, "no parameter 'beta'"),
        ({"server": {"optimizer": "lalr:direction=lars"}}, "name it 'lars'"),
        ({"server": {"optimizer": "lalr:direction=gradient"}}, "name it 'layerwise'"),
        ({"server": {"schedule": "multistep"}}, "needs the parameter 'milestones'"),
        ({"server": {"times": 1}}, "needs true or false"),
        ({"batchnorm": "averaged"}, "did you mean 'average'"),
        ({"batchnorm": {"name": "local", "serve": "clean"}}, "no parameter 'serve'"),
        ({"semi": {"mode": "pseudo", "labelled": 0.5}}, "needs teacher_rounds"),
        ({"semi": {"labelled": 0.5}}, "need a semi.mode"),
        ({"semi": {"mode": "trades", "labelled": 0.5}}, "needs the loss trades or mart"),
        ({"pretrain": {"rounds": 3}}, "need to be below rounds = 3"),
        ({"pretrain": {"rounds": 1, "perturbation": "pgdd"}}, "did you mean 'pgd'"),
        ({"adversarial": {"federated": {"slack": 0.2}}}, "needs the rule mean, got trimmed_mean"),
        ({"participation": 0}, "participation needs"),
        (
            {"participation": 0.5, "compression": BOTH, "byzantine": 0},
            "sides = 'both' needs participation = 1",
        ),
        ({"adversarial": {"eval_attacks": "pgd+fgms"}}, "did you mean 'fgsm'"),
    ],
)
def test_wrong_settings_are_sentences(small, changes, words):
    with pytest.raises(ConfigError, match=words):
        experiment(small, **changes)
