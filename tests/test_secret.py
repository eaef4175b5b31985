"""The server's secret: draws that a Byzantine client must not foresee."""

import stat

import pytest
import torch

from experiments.simulation import run_one
from experiments.sweep import Sweep
from experiments.user_plugins import plugged
from fedrobust import secret
from fedrobust.experiment.load import from_dict
from fedrobust.flower import Robust
from fedrobust.runs import checkpoint
from fedrobust.runs.checkpoint import CheckpointError
from fedrobust.runs.folder import CHECKPOINT, RunFolder, timeless
from fedrobust.secret import SecretError
from fedrobust.seeds import generator
from strategies.server_app import server_secret

SEED, LOOKED_AT = 3, 60
DNC = {"name": "dnc", "f": 2, "coordinates": LOOKED_AT}


def foresee(honest, *, f, round=0):
    """Look honest on the coordinates that the seed of everybody's configuration would choose."""
    chosen = torch.randperm(honest.shape[1], generator=generator(SEED, "rule", round=round + 1))[
        :LOOKED_AT
    ]
    wrong = -30 * honest.mean(0)
    wrong[chosen] = honest.mean(0)[chosen]
    return wrong.expand(f, -1)


def with_byzantine(small, **more):
    """Run DnC on a part of the coordinates against attackers that know the experiment."""
    with plugged({"attack": foresee}) as plug:
        table = {"attack": plug.named["attack"] | {"knowledge": "omniscient"}}
        e = from_dict(small | table | {"seed": SEED, "rule": DNC, "rounds": 8})
        return run_one(e, **more)


def test_attackers_that_know_the_seed_know_nothing_of_a_secret(small):
    """Before there was a secret they passed DnC in every round, and the model was theirs."""
    known, unknown = with_byzantine(small), with_byzantine(small, secret=12345)
    assert all(row["bypass"] > 0 for row in known[1:])
    assert all(row["bypass"] == 0 for row in unknown[1:])
    assert known[-1]["accuracy"] < 0.3 < 0.6 < unknown[-1]["accuracy"]


def test_a_secret_is_written_for_its_owner_and_read_back(tmp_path):
    made = {secret.fresh() for _ in range(50)}
    assert len(made) == 50 and max(made) > 2**120
    for number in (*made, 0, 2**128 - 1):
        secret.write(tmp_path / "secret", number)
        assert secret.read(tmp_path / "secret") == number
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", [b"", b"12345", b"x" * 32, b"\xff" * 32, b"0" * 33])
def test_a_file_that_holds_no_secret_is_refused(tmp_path, text):
    (tmp_path / "secret").write_bytes(text)
    with pytest.raises(SecretError, match="holds no secret: 32 hexadecimal digits"):
        secret.read(tmp_path / "secret")
    with pytest.raises(SecretError, match=r"no secret in .*: No such file"):
        secret.read(tmp_path / "nothing")


def drawing(small):
    return from_dict(small | {"rule": DNC, "attack": "alie", "rounds": 3})


def test_the_secret_is_in_the_folder_and_the_checkpoint_and_a_run_can_be_repeated(small, tmp_path):
    e = drawing(small)
    folder = RunFolder(tmp_path / "first", e)
    rows = run_one(e, folder=folder, secret=77)
    assert secret.held(folder.path) == 77
    assert checkpoint.load(folder.path / CHECKPOINT)[secret.KEY] == 77
    assert "77" not in (folder.path / "config.toml").read_text()
    assert timeless(run_one(e, secret=secret.held(folder.path))) == timeless(rows)
    others = [timeless(run_one(e, secret=number)) for number in (78, 79, 80)]
    assert any(other != timeless(rows) for other in others)


def test_a_resumed_run_keeps_its_secret(small, tmp_path, monkeypatch):
    e = drawing(small)
    whole = timeless(run_one(e, secret=77))
    monkeypatch.setattr("strategies.checkpointing.SHARE", 0.0)
    folder = RunFolder(tmp_path, e)

    def stop(row):
        if row["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_one(e, folder=folder, secret=77, on_row=stop)
    with pytest.raises(CheckpointError, match="another secret"):
        run_one(e, folder=folder, secret=78, resume=True)
    assert timeless(run_one(e, folder=folder, resume=True)) == whole


def test_without_a_secret_one_seed_gives_one_result(small):
    e = drawing(small)
    assert timeless(run_one(e)) == timeless(run_one(e)) == timeless(run_one(e, secret=e.seed))


def test_a_real_server_draws_its_own_keeps_it_and_sends_none(small, tmp_path):
    e = drawing(small)
    config = {"nodes": "clients", "experiment": e.to_toml()}
    with RunFolder(tmp_path, e).recording() as folder:
        first = server_secret(config, folder)
        assert first is not None and first == secret.held(folder.path)
        assert first != server_secret(config, folder)
    assert str(first) not in str(config) and f"{first:x}" not in str(config)
    secret.write(tmp_path / "mine", 5)
    assert server_secret(config | {"secret-file": str(tmp_path / "mine")}, None) == 5
    folder.saved = {secret.KEY: 9}
    assert server_secret(config, folder) is None  # the checkpoint's own
    assert secret.settled(None, folder.saved, seed=e.seed) == 9


def test_the_drop_in_draws_from_the_systems_entropy():
    from flwr.serverapp.strategy import FedAvg

    made = [Robust(FedAvg(), rule=DNC) for _ in range(2)]
    seeds = [strategy._core._seed for strategy in made]
    assert seeds[0] != seeds[1] and min(seeds) > 2**64
    assert Robust(FedAvg(), rule=DNC, seed=4)._core._seed == 4


def test_a_finished_run_without_the_secret_is_run_again_with_it(small, tmp_path):
    e = drawing(small)
    Sweep([e], tmp_path, workers=1).run(lambda e, row: None)
    seen = []
    Sweep([e], tmp_path, workers=1).run(lambda e, row: seen.append(row))
    assert not seen
    for _ in range(2):
        Sweep([e], tmp_path, workers=1, secret=8).run(lambda e, row: seen.append(row))
    assert len(seen) == e.rounds + 1
