"""Nodes that answer at once: pauses, forks of a warm process, and what a child leaves behind."""

import inspect
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from experiments.deploy import executor, supernode
from experiments.deploy.supernode import BUSY, LEAST, Pauses
from experiments.deployment import node_command, warm_here
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower import _compat_processes as _compat

pytestmark = pytest.mark.skipif(not warm_here(), reason="nodes are warm on Linux only")


class Clock:
    """Time that passes where somebody waits."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        self.waits.append(seconds)


def pauses(longest=3.0, notify=lambda: None, check=lambda: None):
    clock = Clock()
    return Pauses(longest, notify, check, clock=clock, wait=clock.wait), clock


def test_an_idle_node_looks_less_and_less_often_and_at_once_after_a_message():
    it, clock = pauses()
    while clock.now < 100:
        it.sleep(3)
    assert clock.waits[0] == LEAST and clock.waits == sorted(clock.waits)
    assert clock.waits[-1] == 3.0 and len(clock.waits) < 100
    late = [wait / max(1e-9, sum(clock.waits[:i])) for i, wait in enumerate(clock.waits) if i > 20]
    assert max(late) < 0.11
    with it.answering():
        it.sleep(0.5)
    it.sleep(3)
    assert clock.waits[-2:] == [BUSY, LEAST]


def test_the_executor_is_told_of_each_message_and_its_end_is_noticed():
    told, checked = [], []
    it, _ = pauses(notify=lambda: told.append(1), check=lambda: checked.append(1))
    for _ in range(3):
        with it.answering():
            it.sleep(0.5)
    assert len(told) == len(checked) == 3
    read, write = os.pipe()
    os.close(read)
    supernode.notify(write)  # an executor that is gone is no traceback: ``check`` tells
    os.close(write)


def test_the_secret_is_read_once_and_lies_on_no_disk():
    path = f"/dev/fd/{supernode.readable(b'secret')}"
    with open(path, "rb") as file:
        assert file.read() == b"secret"
    with open(path, "rb") as file:
        assert file.read() == b""


def test_flower_sleeps_where_this_project_thinks_that_it_does():
    """The two pauses and the seam that a warm SuperNode replaces."""
    from flwr.supernode import start_client_internal as loop

    source = inspect.getsource(loop)
    calls = re.findall(r"(?<![\w.])time\.\w+\(.*?\)", source)
    assert sorted(calls) == ["time.sleep(0.5)", "time.sleep(0.5)", "time.sleep(3)"]
    assert list(inspect.signature(loop._push_messages).parameters) == [
        "state", "object_store", "send", "push_object"
    ]  # fmt: skip
    assert source.count("            _push_messages(\n                state=state,") == 1


def test_a_supernode_runs_with_pauses_of_ours(monkeypatch):
    from flwr.supernode import cli
    from flwr.supernode import start_client_internal as loop

    seen = []
    monkeypatch.setattr(loop, "_push_messages", lambda **given: seen.append(given))
    monkeypatch.setattr(loop, "time", loop.time)
    monkeypatch.setattr("sys.argv", ["x"])

    def node():
        loop.time.sleep(3)
        loop._push_messages(state=1, object_store=2, send=3, push_object=4)

    monkeypatch.setattr(cli, "flower_supernode", node)
    it, clock = pauses(notify=lambda: seen.append("told"))
    _compat.run_supernode(["--insecure"], sleep=it.sleep, answering=it.answering)
    assert seen == ["told", {"state": 1, "object_store": 2, "send": 3, "push_object": 4}]
    assert clock.waits == [LEAST] and sys.argv == ["flower-supernode", "--insecure"]


@pytest.fixture
def forked(monkeypatch, tmp_path):
    """Serve some tokens, whose children do what is given; return what they wrote, by token.

    The node ends once nothing is left to do; with ``early``, while the first child is at work.
    """

    def serve(work, *tokens, early=False):
        read, write = os.pipe()
        waiting = list(tokens)

        def next_task(client):
            if not waiting:
                os.close(write)
            return waiting.pop(0) if waiting else ""

        def run_task(address, token, parent, received):
            (tmp_path / token).write_text(f"{os.getpid()} {parent}")
            work(token)
            raise SystemExit(0)

        monkeypatch.setattr(_compat, "run_task", run_task)
        monkeypatch.setattr(_compat, "next_task", next_task)
        monkeypatch.setattr(executor, "threads", list)  # pytest's own process has some
        os.write(write, b"m")
        if early:
            os.close(write)
        executor.serve("x:1", read, None)
        os.close(read)
        return {token: (tmp_path / token).read_text().split() for token in tokens}

    return serve


def gone(pid):
    """Whether a process has ended and has been collected."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return False


def test_each_message_has_a_child_of_its_own_that_ends_with_it(forked):
    memory = []
    found = forked(memory.append, "a", "b", "c")
    pids = {pid for pid, _ in found.values()}
    assert len(pids) == 3 and all(map(gone, pids)) and memory == []
    assert {parent for _, parent in found.values()} == {str(os.getpid())}


def test_a_child_that_crashes_costs_its_own_message(forked):
    def work(token):
        if token == "a":
            os.kill(os.getpid(), signal.SIGKILL)
        if token == "b":
            raise MemoryError

    assert list(forked(work, "a", "b", "c")) == ["a", "b", "c"]


def test_a_child_ends_with_the_node(forked, tmp_path):
    began = time.monotonic()
    with pytest.raises(SystemExit):
        forked(lambda token: time.sleep(60), "a", "b", early=True)
    assert time.monotonic() - began < 30 and not (tmp_path / "b").exists()
    written = [path.read_text().split() for path in tmp_path.glob("a")]
    pids = [words[0] for words in written if words]  # it may be killed before it wrote
    assert all(map(gone, pids))


@pytest.mark.slow
def test_a_child_never_outlives_its_message():
    done = subprocess.run([sys.executable, "-c", EXPIRES], check=False, timeout=300)
    assert done.returncode == -signal.SIGALRM  # 0, had it slept to its end


EXPIRES = """
import time
from flwr.app import Message, RecordDict
from experiments.deploy import executor
from fedrobust.flower.in_process import identify
identify()
executor.limit(Message(RecordDict(), 1, "train", ttl=0.2))
time.sleep(50)
"""


def test_a_fork_with_threads_is_refused(monkeypatch):
    monkeypatch.setattr(executor, "threads", lambda: ["pool"])
    with pytest.raises(RuntimeError, match="an import has started threads"):
        executor.answer("x:1", "token", 0)


@pytest.mark.slow
def test_the_warm_process_has_no_threads_and_not_the_app():
    """The app comes with each message: what is installed here may be another version of it."""
    program = (
        "import sys\nfrom experiments.deploy import executor\nexecutor.preload()\n"
        "print(executor.threads(), 'torch._dynamo' in sys.modules, 'clients' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          check=False, timeout=120)  # fmt: skip
    assert done.stdout.split("\n")[0] == "[] True False", done.stderr


def test_the_plain_way_is_flowers_own():
    given = {"certificates": None, "key": None, "insecure": True, "port": 9100}
    assert node_command("s:1", {}, **given)[0] == "flower-supernode"
    warm = node_command("s:1", {}, **given, warm=True, poll=0.5)
    assert warm[1:6] == ["-P", "-m", "experiments.deploy.supernode", "--poll", "0.5"]
    assert warm[6:] == node_command("s:1", {}, **given)[1:]
    for poll in (0, -1.0, 61.0, float("nan")):
        with pytest.raises(ConfigError, match=r"--poll is in \(0, 60\] seconds"):
            node_command("s:1", {}, **given, warm=True, poll=poll)


def test_a_nodes_tasks_are_for_whoever_knows_its_secret():
    """With Flower's own way (no secret) any user of the machine takes them."""
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.main import create_app
    from flwr.supernode.nodestate import NodeStateFactory
    from starlette.testclient import TestClient

    def ask(secret, own):
        state = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        client = _compat.executor_client("127.0.0.1:1", own)
        app = create_app(state_factory=state, superexec_auth_secret=secret)
        client._client = TestClient(app, base_url="http://127.0.0.1:1")
        return _compat.next_task(client)

    assert ask(b"secret", b"secret") == ""
    assert ask(None, b"whatever") == ""
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        ask(b"secret", b"guess")


def test_a_node_that_demands_signed_apps_refuses_ours():
    """Signatures come with apps from Flower's hub: what an operator submits has none."""
    from flwr.app import Message, RecordDict
    from flwr.supercore.fab import Fab
    from flwr.supercore.inflatable.inflatable_object import get_object_tree
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.run import Run
    from flwr.supernode import start_client_internal as loop
    from flwr.supernode.nodestate import NodeStateFactory

    from fedrobust.flower.in_process import identify, stamp

    identify()
    objects = ObjectStoreFactory()
    state = NodeStateFactory(objectstore_factory=objects).state()
    state.set_node_id(1)
    asked = stamp(Message(RecordDict(), 1, "train"), "asked")
    loop._pull_and_store_message(
        state=state, object_store=objects.store(), node_config={},
        receive=lambda: (asked, get_object_tree(asked)), get_run=Run.create_empty,
        get_fab=lambda name, run: Fab(name, b"an app", {}),
        pull_object=lambda run, name: pytest.fail("nothing of it is fetched"),
        confirm_message_received=lambda run, name: None,
        trusted_entities={"fpk_1": "ssh-ed25519 AAAA"},
    )  # fmt: skip
    (reply,) = state.get_messages_legacy(is_reply=True)
    assert reply.error.reason == "The FAB could not be verified."
