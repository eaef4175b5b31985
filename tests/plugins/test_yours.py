"""A user's own model, data, loss, metrics and partition beside ours, and the tasks they make."""

import collections
import functools

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import nn
from torch.utils.data import TensorDataset

import fedrobust
from experiments.simulation import run_one
from fedrobust import data, models, plugins, simulate
from fedrobust.data import DataError, as_dataset
from fedrobust.evaluation import evaluate
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.runs.checkpoint import CheckpointError
from fedrobust.runs.folder import RunFolder
from fedrobust.training.tasks import METRICS, TASK_LOSSES, fitting, loss_of, measured
from fedrobust.vector import FlatModel

FILE = """
import torch
from torch import nn
import fedrobust

WIDTH = 16

@fedrobust.plugin("model")
def net(shape, classes):
    '''A network of a file.'''
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))

def middle(updates, *, f):
    return updates.sort(dim=0).values[f : len(updates) - f].mean(dim=0)

def turned(honest, *, n, f, factor=-3.0):
    return (factor * honest.mean(dim=0)).expand(f, -1)
"""


@pytest.fixture(scope="module")
def tumours():
    """Breast cancer in Wisconsin, 569 rows of 30 columns: a frame with the column target."""
    return load_breast_cancer(as_frame=True).frame


@pytest.fixture
def mine(tmp_path):
    """A file of a user's; what it put into the tables is gone after the test."""
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    yield path
    forget()


def forget():
    for kind, name in list(plugins.ROOM.parts):
        plugins.ROOM.take(kind, name)
    plugins.ROOM.files.clear()


def network(shape, classes):
    """A module with BatchNorm and dropout, of any inputs."""
    width = int(np.prod(shape))
    return nn.Sequential(
        nn.Flatten(),
        nn.BatchNorm1d(width, momentum=0.5),
        nn.Dropout(0.2),
        nn.Linear(width, classes),
    )


class Tied(nn.Module):
    """Tied weights, a frozen layer, and two outputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        middle = self.second(self.first(x).relu() + self.frozen(x))
        return {"logits": self.head(middle), "middle": middle}


def both(outputs, targets):
    """Cross-entropy of one output, and a little of the other's size."""
    return (
        nn.functional.cross_entropy(outputs["logits"], targets)
        + 1e-3 * outputs["middle"].square().mean()
    )


def right(outputs, targets):
    return float((outputs["logits"].argmax(1) == targets).float().mean())


# ---- data


def test_every_form_of_one_set_is_the_same_data_set(tumours):
    x, y = tumours.drop(columns="target"), tumours["target"]
    arrays = x.to_numpy().astype("float32"), y.to_numpy()
    forms = [
        tumours,
        (x, y),
        arrays,
        tuple(map(torch.tensor, arrays)),
        TensorDataset(*map(torch.tensor, arrays)),
        list(zip(*arrays, strict=True)),
        datasets.Dataset.from_pandas(tumours),
        {"train": tumours},
    ]
    found = {data.given.digest_of(as_dataset("t", form)) for form in forms}
    assert len(found) == 1 and len(forms) == 8
    made = as_dataset("t", tumours)
    assert made.shape == (30,) and made.classes == 2 and made.holds_classes
    assert len(made.train_labels) == 455 and len(made.test_labels) == 114
    assert len(made.mean) == 30 and not made.holds_images


def test_training_and_test_data_may_come_apart(tumours):
    pair = as_dataset("t", (tumours[:500], tumours[500:]))
    table = as_dataset("t", datasets.DatasetDict(
        train=datasets.Dataset.from_pandas(tumours[:500]),
        test=datasets.Dataset.from_pandas(tumours[500:]),
    ))  # fmt: skip
    assert len(pair.train_labels) == 500 and len(pair.test_labels) == 69
    assert torch.equal(pair.test_images, table.test_images)


def test_types_say_what_the_data_are():
    picture = np.zeros((10, 9, 9), "uint8")
    assert as_dataset("p", (picture, np.arange(10) % 3)).holds_images
    tokens = as_dataset("s", (np.zeros((10, 7), "int32"), np.ones((10, 7), "int64")))
    assert tokens.train_images.dtype == torch.int64 and tokens.classes == 2
    assert not tokens.holds_classes
    value = as_dataset("v", (np.zeros((10, 2)), np.zeros(10)))
    assert value.train_labels.dtype == torch.float32 and value.classes == 1
    labels = as_dataset("l", (np.zeros((10, 2)), np.zeros((10, 4))))
    assert labels.classes == 4
    owned = as_dataset("o", (np.zeros((10, 2)), np.arange(10) % 2, list("aabbbbcccc")))
    assert owned.train_clients.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (3, "a int is none of"),
        ({"training": 1}, "needs the key 'train', got training"),
        ((np.zeros((9, 2)), np.zeros(8)), "has 9 inputs and 8 targets"),
        ((np.full((9, 2), np.nan), np.zeros(9)), "inputs hold values that are missing"),
        ((np.zeros((9, 2)), np.arange(9) - 2), "classes 0, 1, ..., got -2"),
        (pd.DataFrame({"a": [1.0] * 9, "b": [0] * 9}), "one column named target"),
        (pd.DataFrame({"a": ["x"] * 9, "y": [0] * 9}), "column 'a' holds no numbers"),
        ([(np.zeros(i + 1), 0) for i in range(9)], "differ in shape"),
        ([np.zeros(2)] * 9, "an example is"),
        ((np.zeros((2, 2)), np.zeros(2)), "too few to hold a fifth out"),
    ],
)
def test_data_that_cannot_be_read_say_why(given, sentence):
    with pytest.raises(DataError, match=sentence):
        as_dataset("mine", given)


def test_natural_clients_hold_their_own():
    owners = torch.tensor([3, 3, 1, 1, 1, 7, 7, 9])
    shares = data.partition(torch.zeros(8), "natural", clients=4, seed=0, owners=owners)
    assert [s.tolist() for s in shares] == [[2, 3, 4], [0, 1], [5, 6], [7]]
    two = data.partition(torch.zeros(8), "natural", clients=2, seed=0, owners=owners)
    held = [set(owners[s].tolist()) for s in two]
    assert not held[0] & held[1] and held[0] | held[1] == {1, 3, 7, 9}
    assert sum(map(len, two)) == 8
    with pytest.raises(DataError, match="these have 4"):
        data.partition(torch.zeros(8), "natural", clients=5, seed=0, owners=owners)
    with pytest.raises(DataError, match="say whose each example is"):
        data.partition(torch.zeros(8), "natural", clients=2, seed=0)
    with pytest.raises(
        DataError, match=r"'dirichlet' needs a class.*choose from iid, quantity, feature, natural"
    ):
        data.partition(torch.zeros(8), {"name": "dirichlet", "alpha": 1.0}, clients=2, seed=0)


# ---- losses and metrics


def test_losses_equal_torchs_own_and_do_not_spread_shapes():
    torch.manual_seed(0)
    x, y = torch.randn(6, 1), torch.randn(6)
    assert torch.equal(TASK_LOSSES["mse"](x, y), nn.functional.mse_loss(x[:, 0], y))
    logits, tokens = torch.randn(2, 5, 3), torch.randint(3, (2, 5))
    tokens[0, 3:] = -1
    each = [nn.functional.cross_entropy(logits[i, t], tokens[i, t])
            for i in range(2) for t in range(5) if tokens[i, t] >= 0]  # fmt: skip
    found = TASK_LOSSES["token_cross_entropy"](logits, tokens)
    assert float(found) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)
    with pytest.raises(ValueError, match=r"outputs \(6, 2\) do not fit targets \(6,\)"):
        fitting(torch.zeros(6, 2), y)


def test_metrics_by_hand():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0], [3.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 2])
    compute = {name: metric.compute for name, metric in METRICS.items()}
    assert compute["accuracy"](logits, labels) == 0.75
    assert compute["class_accuracy"](logits, labels) == [1.0, 0.5, 1.0]
    assert compute["worst_class"](logits, labels) == 0.5
    several = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert compute["label_accuracy"](*several) == 0.75 and compute["exact_match"](*several) == 0.5
    values = torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0])
    assert compute["mae"](*values) == 1.0
    assert compute["rmse"](*values) == pytest.approx(2**0.5)
    targets = torch.tensor([0.0, 2.0])
    assert compute["r2"](targets, targets) == 1.0
    assert compute["r2"](torch.ones(2), targets) == 0.0


@pytest.mark.parametrize("name", ["cross_entropy", "mse"])
def test_a_loss_is_the_same_alone_and_in_a_stack(name):
    from fedrobust.cohort import Member, train_cohort
    from fedrobust.training import Recipe

    torch.manual_seed(1)
    model = FlatModel(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    x = torch.randn(2, 12, 5)
    y = torch.randint(3, (2, 12)) if name == "cross_entropy" else torch.randn(2, 12, 3)
    spec = {"name": name} | ({"smoothing": 0.1} if name == "cross_entropy" else {})
    recipe = Recipe(mode="update", batch_size=4, epochs=2, lr=0.1)

    def members():
        sources = [torch.Generator().manual_seed(i) for i in range(2)]
        return [Member(x[i], y[i], recipe, sources[i], loss_of(spec)) for i in range(2)]

    start = model.vector.clone()
    alone = train_cohort(model, start, members(), cohort="off")
    stacked = train_cohort(model, start, members(), cohort="vmap")
    for one, other in zip(alone, stacked, strict=True):
        assert torch.allclose(one[0], other[0], atol=1e-6)
        assert one[1] == pytest.approx(other[1], rel=1e-5)


def test_what_is_measured_of_classes_is_what_it_always_was():
    dataset = data.load("digits")
    module = models.build_for("linear", dataset, seed=1)
    held = dataset.test_images, dataset.test_labels
    score = evaluate(module, *held)
    assert measured(module, *held, loss="cross_entropy") == {
        "accuracy": score.accuracy, "loss": score.loss,
    }  # fmt: skip
    more = measured(module, *held, loss="cross_entropy", metrics=("accuracy", "worst_class"))
    assert more["accuracy"] == pytest.approx(score.accuracy)
    assert more["loss"] == pytest.approx(score.loss, rel=1e-5)


# ---- runs


def test_a_module_of_ones_own_is_trained(small):
    torch.manual_seed(0)  # a module's weights are its own, whatever the run's seed
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    results = simulate(small, model=module, keep_models=True, rounds=6)
    assert results.accuracy > 0.5
    state = results.state_dict()
    assert set(state) == {"1.weight", "1.bias"}
    assert all(torch.equal(module.state_dict()[k], v) for k, v in before.items())
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fresh.load_state_dict(state)
    dataset = data.load("digits")
    found = evaluate(fresh, dataset.test_images, dataset.test_labels).accuracy
    assert found == pytest.approx(results.accuracy)
    assert "Sequential" not in models.MODELS


def test_a_frame_and_a_function_that_makes_the_model(small, tumours):
    setting = small | {"data": tumours, "model": network, "rounds": 6, "attack": "sign_flip"}
    results = simulate(setting)
    assert results.accuracy > 0.85
    again = simulate(setting)
    assert results.frame["loss"].equals(again.frame["loss"]), "dropout is drawn from the seed too"
    assert results.runs[0][0].run_id == again.runs[0][0].run_id
    ours = simulate(small, data=tumours, model="mlp", rounds=6)
    assert ours.accuracy > 0.9, "our own networks normalise columns"


def test_tied_weights_frozen_layers_and_two_outputs(small, tumours):
    x = torch.tensor(tumours.iloc[:, :8].to_numpy()).float()
    x = (x - x.mean(0)) / x.std(0)
    given = x, torch.tensor(tumours["target"].to_numpy())
    results = simulate(
        small, data=given, model=Tied, loss=both, metrics={"right": right}, rounds=4,
        keep_models=True,
    )  # fmt: skip
    assert len(results.models[0]) == 8 * 8 + 8 + 8 + 8 * 2 + 2, "shared once, frozen not at all"
    rows = results.runs[0][1]
    assert rows[-1]["right"] > 0.85 and "accuracy" not in rows[-1]
    assert results.headline.column == "right" and results.table().iloc[0, 0] == rows[-1]["right"]


class Named(dict):
    """A table of outputs with attributes, as models of transformers return it."""

    __getattr__ = dict.__getitem__


class Heads(nn.Module):
    """A network whose outputs come in a form of their own."""

    def __init__(self, form):
        super().__init__()
        self.form, self.body = form, nn.Linear(30, 2)

    def forward(self, x):
        return self.form(self.body(nn.functional.normalize(x)))


Pair = collections.namedtuple("Pair", ["logits", "hidden"])


FORMS = {"table": lambda x: Named(logits=x, hidden=[x, x]), "named": lambda x: Pair(x, (x, x))}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_outputs_keep_their_form(small, tumours, form):
    def loss(outputs, targets):
        assert len(outputs.hidden) == 2 and outputs.hidden[1].shape == outputs.logits.shape
        return nn.functional.cross_entropy(outputs.logits, targets)

    rows = simulate(
        small, data=tumours, model=lambda: Heads(form), loss=loss, training={"batch_size": 16},
        metrics={"hit": lambda outputs, targets: right({"logits": outputs.logits}, targets)},
    ).runs[0][1]  # fmt: skip
    (hit,) = [value for key, value in rows[-1].items() if key.startswith("hit")]  # or "hit#2"
    assert rows[-1]["loss"] < rows[0]["loss"] and 0.3 < hit <= 1


def test_outputs_that_are_no_tensors_are_refused_before_the_start(small, tumours):
    told = "does not take inputs .*outputs are tensors, or tables of them, got set"
    with pytest.raises(ConfigError, match=told):
        simulate(small, data=tumours, model=lambda: Heads(lambda x: (x, {1})))


def test_regression_with_a_loss_of_ours(small):
    x, y = load_diabetes(return_X_y=True)
    results = simulate(
        small, data=(x, (y - 150) / 77), model="linear", loss="mse", metrics=["rmse", "r2"],
        training={"mode": "update", "steps": 5, "lr": 0.1}, server={"lr": 1.0, "momentum": 0.0},
        rounds=10, attack={"name": "sign_flip"},
    )  # fmt: skip
    last = results.runs[0][1][-1]
    assert last["r2"] > 0.3 and last["rmse"] ** 2 == pytest.approx(last["loss"], rel=1e-4)
    assert results.headline.best == "min" and "rmse" in repr(results)
    assert results.table()["worst"].iloc[0] == last["rmse"]
    assert "%" not in results.table("markdown") and results.plot() is not None


def test_a_partition_of_ones_own(small):
    seen = []

    def blocks(labels, *, clients, seed):
        seen.append(len(labels))
        return list(torch.arange(len(labels)).chunk(clients))

    assert simulate(small, partition=blocks).accuracy > 0.5 and seen
    with pytest.raises(DataError, match="must return 10 index tensors, got 9 of them"):
        simulate(small, partition=lambda labels, *, clients, seed: [torch.arange(3)] * 9)
    with pytest.raises(DataError, match="gives one example to two clients"):
        simulate(small, partition=lambda labels, *, clients, seed: [torch.arange(3)] * 10)


def test_a_files_gradients_under_redundancy_take_the_users_model_and_loss(small, tumours):
    x, y = load_diabetes(return_X_y=True)
    table = small | {"clients": 5, "byzantine": 1, "rule": "median", "attack": "constant",
                     "rounds": 3, "training": {}, "server": {"lr": 0.05},
                     "data": (20 * x, (y - 150) / 77),
                     "redundancy": {"name": "aspis", "replication": 3, "batch": 60},
                     "model": lambda shape, classes: nn.Linear(*shape, classes)}  # fmt: skip
    found = [simulate(table, loss="mse", redundancy__vmap_files=k) for k in (1, 5)]
    losses = [[row["loss"] for row in one.runs[0][1] if "loss" in row] for one in found]
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_cannot_work_says_so_before_the_start(small, tumours):
    told = r"model 'Linear(#\d+)?' does not take inputs float32 \(2, 1, 8"
    with pytest.raises(ConfigError, match=told):
        simulate(small, model=nn.Linear(64, 10))
    with pytest.raises(ConfigError, match=r"parameter 'weight' is torch\.float64"):
        simulate(small, model=nn.Linear(64, 10).double())
    with pytest.raises(InputErrors, match="has lazy layers"):
        simulate(small, model=nn.Sequential(nn.Flatten(), nn.LazyLinear(10)))
    with pytest.raises(InputErrors, match="needs 'width', a run hands in shape and classes only"):
        simulate(small, model=lambda width: nn.Linear(64, width))
    with pytest.raises(InputErrors, match="it returned int"):
        simulate(small, model=lambda: 3)
    x, y = load_diabetes(return_X_y=True)
    with pytest.raises(ConfigError, match="needs one class an example, the targets of 'data"):
        simulate(small, data=(x, y), model="linear")
    with pytest.raises(ConfigError, match="loss 'SmoothL1Loss' does not take outputs"):
        simulate(small, data=(x, y), model="linear", loss=nn.SmoothL1Loss())
    with pytest.raises(ConfigError, match=r"metric 'bad' does not take .*must be a number"):
        simulate(small, data=tumours, model="mlp", metrics={"bad": lambda o, t: "good"})
    with pytest.raises(ConfigError, match=r"training\.augment needs images"):
        simulate(small, data=tumours, model="mlp", training__augment="flip")
    with pytest.raises(InputErrors, match="'cnn' takes images, these inputs have the shape"):
        simulate(small, data=tumours, model="cnn")
    with pytest.raises(ConfigError, match="attack 'backdoor' needs images"):
        simulate(small, data=tumours, model="mlp", attack="backdoor:target=1")
    with pytest.raises(ConfigError, match=r"adversarial\.eps needs the loss 'cross_entropy'"):
        simulate(small, loss="mse", adversarial={"eps": 0.1})
    with pytest.raises(ConfigError, match="may not be called 'loss'"):
        simulate(small, metrics={"loss": right})
    with pytest.raises(ConfigError, match="plain values only"):
        simulate(small | {"sweep": {"model": [nn.Linear(2, 2)]}})
    ensemble = {k: small[k] for k in ("data", "model", "clients", "byzantine", "rounds", "seed",
                                      "attack")} | {"ensemble": {"paradigm": "same"}}  # fmt: skip
    told = r"loss 'mse' does not take outputs float32 \(2, 10\) and targets int64 \(2,\)"
    with pytest.raises(ConfigError, match=told):
        simulate(ensemble, loss="mse")
    with pytest.raises(ConfigError, match="an ensemble votes on one class an example"):
        simulate(ensemble | {"model": "linear"}, data=(x, y), loss="mse")
    with pytest.raises(ConfigError, match="'worst_client' is of one global model"):
        simulate(ensemble, metrics=["worst_client"])


InputErrors = (ConfigError, models.ModelError, plugins.PlugInError)


def test_namesakes_are_told_apart(small):
    first, second = nn.Linear(4, 2), nn.Linear(4, 2)
    from experiments.user_plugins import MAKERS

    names = [MAKERS["model"](m)[0] for m in (first, second, first)]
    assert names[0] == names[2] != names[1]
    partials = [functools.partial(network, classes=k) for k in (2, 3)]
    assert len({MAKERS["model"](p)[0] for p in partials}) == 2


def test_labels_may_be_flipped_in_a_table(small, tumours):
    results = simulate(small, data=tumours, model="linear", attack="label_flip")
    assert results.accuracy > 0.8


# ---- files


def test_a_file_brings_what_an_experiment_names(small, mine):
    table = small | {"model": "net", "rule": "middle", "attack": "turned:factor=-2.0"}
    with pytest.raises(ConfigError, match="unknown model 'net'"):
        from_dict(table)
    assert [part.name for part in plugins.use(mine)] == ["net"], "the others are found by name"
    experiment = from_dict(table)
    assert experiment.rule == {"name": "middle", "f": 2}
    assert simulate(table, rounds=15, server__lr=0.2).accuracy > 0.25
    told = plugins.identities(experiment.to_dict())
    assert set(told) == {"model net", "rule middle", "attack turned"}
    assert all(line.startswith("mine.py ") for line in told.values())


def test_a_file_that_has_changed_is_loaded_anew(small, mine):
    plugins.use(mine)
    first = models.build_for("net", data.load("digits"), seed=0)
    mine.write_text(FILE.replace("WIDTH = 16", "WIDTH = 6"))
    plugins.use(mine)
    second = models.build_for("net", data.load("digits"), seed=0)
    assert (first[1].out_features, second[1].out_features) == (16, 6)


def test_a_run_continues_with_the_plug_ins_that_it_began_with(small, mine, tmp_path):
    plugins.use(mine)
    experiment = from_dict(small | {"model": "net", "rule": "middle"})

    class Killed(Exception):
        pass

    def kill(row):
        if row["round"] == 2:
            raise Killed

    folder = RunFolder(tmp_path, experiment)
    with pytest.raises(Killed):
        run_one(experiment, folder=folder, on_row=kill)
    assert set(folder.own) == {"model net", "rule middle"}
    mine.write_text(FILE.replace("WIDTH = 16", "WIDTH = 6"))
    plugins.use(mine)
    plugins.provide(experiment.to_dict())
    with pytest.raises(CheckpointError, match=r"began with model net from mine\.py .*, here it is"):
        run_one(experiment, folder=RunFolder(tmp_path, experiment), resume=True)
    mine.write_text(FILE)
    plugins.use(mine)
    plugins.provide(experiment.to_dict())
    rows = run_one(experiment, folder=RunFolder(tmp_path, experiment), resume=True)
    assert [row["round"] for row in rows] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1 / 0", r"mine\.py' failed: line 1: ZeroDivisionError"),
        ("import fedrobust\n@fedrobust.plugin('modle')\ndef f(): ...", "unknown kind 'modle'"),
        ("import fedrobust\n@fedrobust.plugin('model', 'mlp')\ndef f(): ...",
         r"mine\.py: there is a model 'mlp' already"),
        ("import fedrobust\n@fedrobust.plugin('rule')\ndef krum(updates): ...",
         r"mine\.py: there is a rule 'krum' already"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_says_why(mine, text, sentence):
    mine.write_text(text)
    with pytest.raises(plugins.PlugInError, match=sentence):
        plugins.use(mine)
    with pytest.raises(plugins.PlugInError, match="No such file"):
        plugins.use(mine.parent / "other.py")


def test_objects_travel_to_another_process(small, tumours, tmp_path, monkeypatch):
    """As they do to the hosts of a simulation; a module that nobody could import goes along."""
    from experiments.user_plugins import plugged

    with plugged({"model": network, "data": tumours, "loss": both}) as own:
        plugins.write_parts(tmp_path / "parts", own.parts)
    assert (tmp_path / "parts").stat().st_mode & 0o077 == 0
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "parts"))
    plugins.at_hand()
    try:
        held = {part.kind: part for part, _ in plugins.ROOM.parts.values()}
        assert set(held) == {"model", "data", "loss"}
        assert held["model"].value is not network and held["model"].value((3,), 2)[3].out_features
        plugins.at_hand()  # a second run of the process finds them there
    finally:
        forget()
    assert fedrobust.plugin("rule")(network).__fedrobust_plugin__ == ("rule", "network")
    del network.__fedrobust_plugin__


# ---- a node's own file

TABLE = """
import pandas as pd

def sensors(path=None):
    return pd.read_csv(path or PUBLIC)

def plain():
    return pd.read_csv(PUBLIC)
"""


@pytest.fixture
def sensors(mine, tumours):
    """A data set of a file, and the csv of one node."""
    tumours[:100].to_csv(mine.parent / "public.csv", index=False)
    tumours[100:150].to_csv(mine.parent / "own.csv", index=False)
    mine.write_text(TABLE + f"PUBLIC = {str(mine.parent / 'public.csv')!r}\n")
    plugins.use(mine)
    for name in ("sensors", "plain"):
        plugins.provide({"data": name})
    return mine.parent / "own.csv"


@pytest.mark.parametrize("name", ["sensors", "plain"])
def test_a_nodes_own_table_is_read(sensors, tumours, name):
    from fedrobust.data.own import load_own

    found, public = load_own(sensors, name=name), data.load(name)
    assert len(found.train_labels) == 50 and len(found.test_labels) == 0
    assert found.mean == public.mean and found.classes == public.classes
    expected = torch.tensor(tumours[100:150].drop(columns="target").to_numpy()).float()
    assert torch.equal(found.train_images, expected)


def test_other_files_of_a_node_are_read_or_refused(sensors, tumours):
    from fedrobust.data.own import load_own

    own, folder = tumours[100:150], sensors.parent
    own.to_parquet(folder / "own.parquet")
    x, y = own.drop(columns="target").to_numpy(), own["target"].to_numpy()
    np.savez(folder / "own.npz", inputs=x, targets=y)
    expected = load_own(sensors, name="plain").train_images
    for file in ("own.parquet", "own.npz"):
        assert torch.equal(load_own(folder / file, name="plain").train_images, expected)
    datasets.Dataset.from_pandas(own, preserve_index=False).save_to_disk(folder / "saved")
    parts = datasets.DatasetDict({"train": datasets.Dataset.from_pandas(own, preserve_index=False)})
    parts.save_to_disk(folder / "parts")
    for saved in ("saved", "parts"):
        assert torch.equal(load_own(folder / saved, name="plain").train_images, expected)
    own.assign(target=7).to_csv(folder / "wrong.csv", index=False)
    own.drop(columns="mean area").to_csv(folder / "narrow.csv", index=False)
    (folder / "own.txt").write_text("")
    for file, sentence in (
        ("wrong.csv", "holds the class 7, plain has 0..1"),
        ("narrow.csv", r"inputs of float32 of shape \(29,\), plain has float32 of shape \(30,\)"),
        ("own.txt", "is no csv, parquet or npz file, no folder, and no plug-in of 'plain' reads"),
        ("nowhere.csv", "FileNotFoundError"),
        (".", "cannot read .*FileNotFoundError"),
    ):
        with pytest.raises(DataError, match=sentence):
            load_own(folder / file, name="plain")


def test_a_node_names_what_it_lacks_and_loads_nothing_that_a_server_asks_for(small, mine):
    from flwr.app import Context, RecordDict

    from clients.registry import handlers_of

    plugins.use(mine)
    text = from_dict(small | {"model": "net", "rule": "middle"}).to_toml()
    forget()
    config = {"experiment": text, "use": str(mine)}
    own = {"partition-id": 0, "role": "honest"}

    def context(run, node_config):
        return Context(run, 1, node_config, RecordDict(), config)

    with pytest.raises(ConfigError, match=r"lacks the model 'net', the rule 'middle': start it"):
        handlers_of(context(901, own))
    assert not plugins.ROOM.files
    assert handlers_of(context(902, own | {"use": str(mine)})).train
    forget()
    assert handlers_of(context(903, {"partition-id": 0})).train, "a simulation loads its run's file"
