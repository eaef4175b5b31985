"""Rows that a simulation's processes share, blocks of replies, and hosts that die."""

import os
from dataclasses import replace

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from clients.client_app import make_app
from clients.modes import handlers_for
from experiments.simulation import run_one
from fedrobust.experiment.load import from_dict
from fedrobust.flower import CohortGrid, InProcessGrid, UpdateMatrix, array_of, tensor_of
from fedrobust.flower.blocks import pack, unpack
from fedrobust.flower.cohort_grid import HostsLostError
from fedrobust.flower.cohort_host import COHORT, ROWS
from fedrobust.flower.serialization import TensorArray, read_setting
from fedrobust.flower.shared_rows import FOLDER, HandleError, RowsFile, dealt, mark
from fedrobust.runs.folder import timeless
from strategies.session import run

LIKE = torch.zeros(4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made = tmp_path / "rows"
    made.mkdir(mode=0o700)
    monkeypatch.setenv(FOLDER, str(made))
    return made


def shared(folder, places=3):
    """Return a server's matrix with rows for clients 5 and 6, and what a host is told of them."""
    file = RowsFile(folder)
    matrix = UpdateMatrix(places, file)
    rows = [matrix.row(client, LIKE) for client in (5, 6)]
    return file, matrix, rows


def test_what_a_host_writes_the_server_reads(folder):
    file, _, rows = shared(folder)
    host = dealt(file.handle.settings([0, 1]), [5, 6])
    host.row(6).copy_(torch.arange(4.0))
    assert rows[1].tolist() == [0, 1, 2, 3] and rows[0].tolist() == [0] * 4
    assert (folder / file.handle.name).stat().st_mode & 0o777 == 0o600
    file.release()
    assert not list(folder.iterdir())
    host.row(5).fill_(7)  # who has it open keeps the memory
    assert rows[0].tolist() == [7] * 4


def told(file, slots=(0, 1), **changes):
    return {**file.handle.settings(slots), **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nonce": "0" * 32}, "another handle"),
        ({"name": "../../etc/passwd"}, "not 32 hexadecimal digits"),
        ({"name": "f" * 32}, "cannot be opened"),
        ({"d": 5}, "not what the server made"),
        ({"rows": 10**9, "d": 10**9}, "not what the server made"),
        ({"rows": True}, "shape True x 4"),
        ({"d": -4}, "shape 3 x -4"),
        ({"slots": [0]}, "not one for each client"),
        ({"slots": [1, 1]}, "not one for each client"),
        ({"slots": [0, 3]}, r"outside 0\.\.2"),
        ({"slots": [-1, 0]}, r"outside 0\.\.2"),
    ],
)
def test_a_handle_that_lies_opens_nothing(folder, changes, words):
    file, _, _ = shared(folder)
    with pytest.raises(HandleError, match=words):
        dealt(told(file, **changes), [5, 6])


def test_a_process_without_the_folder_opens_nothing(folder, monkeypatch):
    file, _, _ = shared(folder)
    monkeypatch.setenv(FOLDER, "")
    assert dealt(told(file), [5, 6]) is None


def test_files_and_folders_that_others_may_reach_are_refused(folder):
    file, _, _ = shared(folder)
    path = folder / file.handle.name
    path.chmod(0o666)
    with pytest.raises(HandleError, match="not what the server made"):
        dealt(told(file), [5, 6])
    path.chmod(0o600)
    real = folder / ("a" * 32)
    path.rename(real)
    path.symlink_to(real)
    with pytest.raises(HandleError, match="cannot be opened"):
        dealt(told(file), [5, 6])
    folder.chmod(0o755)
    with pytest.raises(HandleError, match="no folder of this user's alone"):
        RowsFile(folder)


def test_no_room_is_no_error(folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    file = RowsFile(folder)
    rows = UpdateMatrix(2, file).row(0, LIKE)
    assert rows.shape == (4,) and file.handle is None and not list(folder.iterdir())


def answered(client, update=None, **metrics):
    update = torch.full((4,), float(client)) if update is None else update
    metrics = MetricRecord({"loss": 0.5 + client, **metrics})
    return RecordDict({"arrays": array_of(update=update), "metrics": metrics})


def contents():
    short = array_of(update=torch.zeros(3))
    odd = RecordDict({"arrays": short, "metrics": MetricRecord({"x": 1})})
    lists = MetricRecord({"list": [1, 2]})
    listed = RecordDict({"metrics": lists, "c": ConfigRecord({"a": "b"})})
    told = [answered(5), answered(6), odd, listed, RecordDict(), answered(10, n=3)]
    told.append(answered(11, torch.zeros(4, dtype=torch.float64)))
    return dict(zip(range(5, 12), told, strict=True))


def same(found, expected):
    assert set(found) == set(expected)
    for key, record in expected.items():
        assert type(found[key]) is type(record)
        if isinstance(record, ArrayRecord):
            assert {k: (a.dtype, a.numpy().tolist()) for k, a in found[key].items()} == {
                k: (a.dtype, a.numpy().tolist()) for k, a in record.items()
            }
        else:
            assert dict(found[key]) == dict(record)


@pytest.mark.parametrize("ways", ["bytes", "rows"])
def test_replies_of_a_block_are_what_each_client_answered(folder, ways):
    file, matrix, _ = shared(folder, places=7)
    rows = None
    if ways == "rows":
        for client in range(7, 12):
            matrix.row(client, LIKE)
        clients = list(range(5, 12))
        rows = dealt(file.handle.settings([matrix.slot(c) for c in clients]), clients)
    reply = pack(contents(), UpdateMatrix(), rows)
    sent = sum(a.tensor.numel() for r in reply.array_records.values() for a in r.values())
    assert sent == 3 + 4 + (0 if ways == "rows" else 3 * 4), "updates in rows do not travel"
    parts, wrong = unpack(reply, matrix, file.handle)
    assert not wrong and set(parts) == set(contents())
    for client, content in contents().items():
        same(parts[client], content)


def test_a_row_that_is_not_what_the_host_says_is_not_read(folder):
    file, matrix, rows = shared(folder)
    host = dealt(told(file), [5, 6])
    reply = pack({5: answered(5), 6: answered(6)}, UpdateMatrix(), host)
    rows[1][0] = 99
    parts, wrong = unpack(reply, matrix, file.handle)
    assert set(wrong) == {6} and "client 6" in wrong[6]
    assert tensor_of(parts[5]["arrays"]["update"]).tolist() == [5] * 4
    for handle in (None, RowsFile(folder).handle):
        with pytest.raises(HandleError, match="not shared in this round"):
            unpack(reply, matrix, handle)
    swapped = dealt(told(file, slots=(1, 0)), [5, 6])
    parts, wrong = unpack(pack({5: answered(5), 6: answered(6)}, UpdateMatrix(), swapped),
                          matrix, file.handle)  # fmt: skip
    assert set(wrong) == {5, 6}


def test_a_mark_tells_rows_apart():
    row = torch.randn(100_000)
    assert mark(row) == mark(row.clone()) != mark(torch.randn(100_000))
    assert mark(torch.empty(0)) == 0


def test_rows_that_somebody_may_still_write_are_left(folder):
    file, matrix, rows = shared(folder)
    rows[0].fill_(1)
    array = matrix.array(5, rows[0])
    matrix.withdraw()
    rows[0].fill_(2)  # a host that is late
    assert tensor_of(array).tolist() == [1] * 4
    assert matrix.gather([tensor_of(array)]).tolist() == [[1] * 4]
    matrix.begin()
    name = file.handle.name
    assert matrix.row(5, LIKE) is not None and file.handle.name != name, "a new file"


def engine(e, folder, hosts=2, between=lambda app: app):
    """Run an experiment over hosts in this process; return its rows and the grid."""
    own = handlers_for(e)
    app = between(make_app(lambda context: own))
    file = RowsFile(folder) if folder else None
    grid = CohortGrid(InProcessGrid(app, clients=hosts), clients=e.clients, shared=file,
                      asked=e.clients)  # fmt: skip
    rows = []
    run(grid, e, on_row=rows.append)
    return timeless(rows), grid


ATTACKS = ["none", {"name": "alie", "knowledge": "omniscient"}, "alie", "nan_value", "huge"]


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_shared_rows_give_the_rows_of_the_engine_in_one_process(small, folder, attack):
    e = from_dict(small | {"attack": attack, "worker_momentum": 0.5, "rule": "nnm+trimmed_mean"})
    here = timeless(run_one(e))
    assert engine(e, folder)[0] == here
    assert engine(e, None)[0] == here


def dying(times, node=1, code=0):
    """Wrap an app whose host's training is lost so many times, as Flower's engine says it."""
    left = [times]

    def between(app):
        def host(message, context):
            train = message.metadata.message_type == "train"
            if train and context.node_id == node and left[0]:
                left[0] -= 1
                app(message, context=lost_with_it(context))  # it may have written its rows
                return Message(Error(code=code, reason="ActorDiedError"), reply_to=message)
            return app(message, context)

        return host

    return between


def lost_with_it(context):
    """Return a copy of a context: what a worker that died had changed is lost with it."""
    return replace(context, state=RecordDict(dict(context.state.items())))


@pytest.mark.parametrize("ways", ["bytes", "rows"])
def test_the_work_of_a_host_that_died_is_asked_for_again(small, folder, ways):
    e = from_dict(small | {"attack": "alie", "worker_momentum": 0.5})
    there = folder if ways == "rows" else None
    rows, _ = engine(e, there, between=dying(1))
    assert rows == timeless(run_one(e))
    assert all(row["replies"] == e.clients for row in rows[1:])


@pytest.mark.parametrize("ways", ["bytes", "rows"])
def test_the_clients_of_a_host_that_died_twice_move_to_the_others(small, folder, ways):
    e = from_dict(small)
    rows, grid = engine(e, folder if ways == "rows" else None, hosts=3, between=dying(2))
    assert rows == timeless(run_one(e))
    content = RecordDict({"config": ConfigRecord({"round": 1})})
    asked = [Message(content, node, "train") for node in grid.get_node_ids()]
    assert {host for wave in grid._pack(asked) for host, _ in wave} == {2, 3}


def test_what_clients_remember_is_not_lost_in_silence(small):
    e = from_dict(small | {"worker_momentum": 0.5})
    later = dying(2)

    def second_round(app):
        host, calls = later(app), []

        def between(message, context):
            calls.append(message)
            first = read_setting(message.content, "config", "round") in (None, 1)
            return app(message, context) if first else host(message, context)

        return between

    with pytest.raises(HostsLostError, match="what its clients remember: ActorDiedError"):
        engine(e, None, between=second_round)


def test_a_run_without_half_of_its_hosts_ends_with_the_reason(small):
    e = from_dict(small)
    both = lambda app: dying(9, node=2)(dying(9, node=1)(app))  # noqa: E731
    with pytest.raises(HostsLostError, match=r"2 of 3 hosts died 2 times each.*ActorDiedError"):
        engine(e, None, hosts=3, between=both)


def test_a_host_whose_app_raises_is_not_asked_again(small):
    rows, _ = engine(from_dict(small | {"rounds": 1}), None, between=dying(1, code=2))
    assert rows[1]["replies"] == 5 and "ActorDiedError" in rows[1]["rejected"][0]["reason"]


@pytest.mark.parametrize("said", [[0, 2], list(range(9)), ["x"]])
def test_a_host_that_answers_nonsense_costs_its_clients(small, said):
    def between(app):
        def host(message, context):
            reply = app(message, context)
            if COHORT in message.content and context.node_id == 1 and "arrays" in message.content:
                reply.content["block0"] = ConfigRecord({"clients": said})
            return reply

        return host

    rows, _ = engine(from_dict(small | {"rounds": 1}), None, between=between)
    assert rows[1]["replies"] == 5 and "unreadable" in rows[1]["rejected"][0]["reason"]


def test_a_real_node_refuses_a_handle(small, folder):
    """Whoever gives the node its role owns it: no server makes it open a file."""
    seen = []

    def between(app):
        def host(message, context):
            context.node_config["role"] = "honest"
            reply = app(message, context)
            if ROWS in message.content:
                seen.extend(a for r in reply.content.array_records.values() for a in r.values())
            return reply

        return host

    rows, _ = engine(from_dict(small), folder, between=between)
    assert seen and all(isinstance(a, TensorArray) and a.tensor.dim() == 2 for a in seen)
    assert rows == timeless(run_one(from_dict(small)))
