"""The gate by itself: an ASGI app in front of another, and requests as nodes and strangers send."""

import asyncio
import hashlib
import logging
import time

import httpx
import pytest
from flwr.proto.message_pb2 import Message as Proto
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node

from experiments.deploy.gate import BODY, SMALL_BODY, Gate, network
from experiments.deploy.gate_ledger import MIB, Limits
from experiments.deploy.superlink import _parser, executor_of, main, own_log, settings_of
from fedrobust.flower import _compat as flower

HERE, STRANGER, OPERATOR = "127.0.0.1", "127.0.0.2", "10.1.2.3"
ME, OTHER = 5, 7


def name(text):
    return hashlib.sha256(str(text).encode()).hexdigest()


def tree(*ids, root="root"):
    return flower.ObjectTree(
        object_id=name(root), children=[flower.ObjectTree(object_id=name(i)) for i in ids]
    )


def metadata(**more):
    now = time.time()
    return Metadata(**{"message_id": name("root"), "created_at": now, "ttl": 60.0, **more})


class SuperLink:
    """What is behind the gate: answers 200, or what it was told, and remembers what it saw."""

    def __init__(self):
        self.seen, self.answers, self.status = [], {}, 200

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            self.seen.append("lifespan")
            return
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        self.seen.append((scope["path"], body))
        content = self.answers.get(scope["path"], b"")
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": content})


class Site:
    """A gate with a SuperLink behind it, and whoever calls it."""

    def __init__(self, **settings):
        self.behind = SuperLink()
        self.gate = Gate(self.behind, **settings)

    def call(self, path, body=b"", *, source=STRANGER, host=HERE, method="POST", headers=None):
        async def send():
            transport = httpx.ASGITransport(app=self.gate, client=(source, 4))
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await client.request(method, path, content=body, headers=headers)

        return asyncio.run(send())

    def node(self, route, request, **more):
        return self.call(f"/v1/fleet/{route}", request.SerializeToString(), **more)

    def tell(self, node, *ids, message="asked", ttl=60.0):
        """Let the server give a node a message."""
        data = metadata(message_id=name(message), dst_node_id=node, ttl=ttl)
        response = flower.PullMessagesResponse(
            messages_list=[Proto(metadata=data)], message_object_trees=[tree(*ids, root=message)]
        )
        self.behind.answers["/v1/fleet/pull-messages"] = response.SerializeToString()
        request = flower.PullMessagesRequest(node=Node(node_id=node))
        assert self.node("pull-messages", request).status_code == 200
        self.behind.answers.clear()

    def push(self, node, *ids, root="root", asked="asked", source=None, trees=None):
        """Let a node announce a reply."""
        data = metadata(
            message_id=name(root),
            src_node_id=node if source is None else source,
            reply_to_message_id=name(asked) if asked else "",
        )
        request = flower.PushMessagesRequest(
            node=Node(node_id=node),
            messages_list=[Proto(metadata=data)],
            message_object_trees=[tree(*ids, root=root)] if trees is None else trees,
        )
        return self.node("push-messages", request)

    def object(self, node, text, size=100):
        request = flower.PushObjectRequest(
            node=Node(node_id=node), object_id=name(text), object_content=b"x" * size
        )
        return self.node("push-object", request)

    def count(self):
        return len(self.behind.seen)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/control/list-nodes", "/v1/control/stop-run", "/v1/runtime/acquire-task", "/docs"),
        *("/openapi.json", "/", "/v1/fleet", "/V1/fleet/x", "//v1/fleet/x", "/v1/runtime/"),
    ],
)
def test_strangers_reach_the_nodes_routes_and_nothing_else(path):
    site = Site()
    for source in (STRANGER, OPERATOR, "::ffff:127.0.0.2", "fe80::1", "nobody"):
        answer = site.call(path, source=source)
        assert answer.status_code == 403 and "operators" in answer.json()["detail"]
    assert not site.behind.seen
    assert site.call(path, source=HERE).status_code == 200
    assert site.call(path, source="::ffff:127.0.0.1").status_code == 200


def test_operators_are_named_and_the_machine_is_one_by_the_address_it_is_reached_at():
    site = Site(operators=("10.0.0.0/8",))
    task = "/v1/runtime/acquire-task"
    assert site.call(task, source=OPERATOR).status_code == 200
    assert site.call(task, source=HERE, host="192.0.2.1").status_code == 403
    assert site.call(task, source="192.0.2.1", host="192.0.2.1").status_code == 200
    assert (
        site.call(task, source=STRANGER, headers={"X-Forwarded-For": OPERATOR}).status_code == 403
    )
    assert site.call("/health", source=STRANGER, method="GET").status_code == 200


def test_a_node_may_ask_for_its_objects_before_the_gate_has_returned():
    """A node that was quick was told that there is no such object, and lost its message."""
    site, found = Site(), []
    data = metadata(message_id=name("asked"), dst_node_id=ME)
    told = flower.PullMessagesResponse(
        messages_list=[Proto(metadata=data)], message_object_trees=[tree("a", root="asked")]
    )
    site.behind.answers["/v1/fleet/pull-messages"] = told.SerializeToString()
    body = flower.PullMessagesRequest(node=Node(node_id=ME)).SerializeToString()
    events = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return events.pop()

    async def send(event):
        if event["type"] == "http.response.body":
            wanted = flower.PullObjectRequest(node=Node(node_id=ME), object_id=name("a"))
            transport = httpx.ASGITransport(app=site.gate, client=(STRANGER, 5))
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{HERE}") as client:
                await client.post("/v1/fleet/pull-object", content=wanted.SerializeToString())
            found.append([path for path, _ in site.behind.seen])

    scope = {"type": "http", "path": "/v1/fleet/pull-messages", "headers": [],
             "client": (STRANGER, 4), "server": (HERE, 80)}  # fmt: skip
    asyncio.run(site.gate(scope, receive, send))
    assert found == [["/v1/fleet/pull-messages", "/v1/fleet/pull-object"]]


def test_lifespan_passes_and_other_protocols_do_not():
    site, sent = Site(), []

    async def send(event):
        sent.append(event)

    asyncio.run(site.gate({"type": "websocket", "path": "/v1/fleet/x"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    asyncio.run(site.gate({"type": "lifespan"}, None, send))
    assert site.behind.seen == ["lifespan"]


def test_bodies_are_bounded_announced_or_not():
    site = Site()

    async def endless():
        for _ in range(100):
            yield b"x" * MIB

    for path, limit in (*BODY.items(), ("/v1/fleet/get-run", SMALL_BODY)):
        assert site.call(path, b"x" * (limit + 1)).status_code == 413
        assert site.call(path, endless()).status_code == 413
    lying = {"content-length": "-5"}
    assert site.call("/v1/fleet/get-run", b"x", headers=lying).status_code == 413
    assert not site.behind.seen and site.gate._waiting == 0
    assert site.call("/v1/fleet/get-run", b"x" * SMALL_BODY).status_code == 200
    assert site.behind.seen == [("/v1/fleet/get-run", b"x" * SMALL_BODY)]


def test_a_body_that_does_not_come_and_too_many_of_them(monkeypatch):
    monkeypatch.setattr("experiments.deploy.gate.LONGEST_WAIT", 0.05)
    site = Site()

    async def stuck():
        yield b"x"
        await asyncio.sleep(5)

    async def gone():
        return {"type": "http.disconnect"}

    sent = []

    async def send(event):
        sent.append(event)

    assert site.call("/v1/fleet/get-run", stuck()).status_code == 408
    scope = {"type": "http", "path": "/v1/fleet/get-run", "headers": [], "client": (HERE, 1)}
    asyncio.run(site.gate(scope, gone, send))
    assert sent[0]["status"] == 400 and site.gate._waiting == 0
    small = Site(buffered=1000)
    assert small.call("/v1/fleet/get-run", b"x" * 1001).status_code == 503
    assert small.call("/v1/fleet/get-run", b"x" * 999).status_code == 200
    assert small.gate._waiting == 0


@pytest.mark.parametrize("route", ["pull-messages", "push-messages", "push-object", "pull-object"])
def test_bytes_that_are_no_request_are_refused(route):
    site = Site()
    assert site.call(f"/v1/fleet/{route}", b"\xff" * 30).status_code == 400
    assert not site.behind.seen


def test_a_reply_in_anothers_name_is_refused_with_the_right_id_too():
    site = Site()
    site.tell(ME)
    site.tell(OTHER, message="theirs")
    before = site.count()
    assert site.push(ME, source=OTHER, asked="theirs").status_code == 403
    assert site.push(ME, asked="theirs").status_code == 200  # Flower's answer to an unknown one
    assert site.push(ME, asked="").status_code == 403  # no reply: nodes do not send orders
    assert site.count() == before
    assert site.push(OTHER, asked="theirs").status_code == 200 and site.count() == before + 1


def test_one_reply_a_message_and_the_same_once_more():
    site = Site()
    site.tell(ME)
    assert site.push(ME, "a", "b").status_code == 200
    assert site.push(ME, "a", "b").status_code == 200  # its answer was lost
    assert site.push(ME, "a", "c").status_code == 409
    assert site.push(ME, "a", "b", root="another").status_code == 409
    flowers = [path for path, _ in site.behind.seen if path.endswith("push-messages")]
    assert len(flowers) == 2


def test_a_push_that_flower_refuses_leaves_nothing_behind():
    site = Site()
    site.tell(ME)
    site.behind.status = 401
    assert site.push(ME, "a").status_code == 401
    site.behind.status = 200
    assert site.push(ME, "b").status_code == 200
    site.behind.status = 500
    assert site.object(ME, "b").status_code == 500
    assert site.gate._ledger._nodes[ME].pushed[name("asked")].stored == 0


def test_trees_are_bounded():
    site = Site(limits=Limits(objects=20, depth=4))
    site.tell(ME)
    deep = tree(root="root")
    for i in range(4):
        deep = flower.ObjectTree(object_id=name("root" if i == 3 else i), children=[deep])
    assert site.push(ME, *range(20)).status_code == 413
    assert site.push(ME, trees=[deep]).status_code == 413
    assert site.push(ME, trees=[]).status_code == 400
    assert site.push(ME, trees=[tree(), tree()]).status_code == 400
    assert site.push(ME, trees=[tree(root="other")]).status_code == 400
    assert site.push(ME, *range(19)).status_code == 200
    assert len([path for path, _ in site.behind.seen if path.endswith("push-messages")]) == 1


def test_a_wide_tree_is_refused_by_default():
    site = Site()
    site.tell(ME)
    assert site.push(ME, *range(2000)).status_code == 413
    assert site.push(ME, *range(200_000)).status_code == 413


def test_objects_go_to_whom_they_were_sent():
    site = Site()
    site.tell(ME, "model")
    before = site.count()
    wanted = {"object_id": name("model")}
    mine = flower.PullObjectRequest(node=Node(node_id=ME), **wanted)
    theirs = flower.PullObjectRequest(node=Node(node_id=OTHER), **wanted)
    answer = site.node("pull-object", theirs)
    assert answer.status_code == 200 and site.count() == before
    assert not flower.PullObjectResponse.FromString(answer.content).object_found
    assert site.node("pull-object", mine).status_code == 200 and site.count() == before + 1
    asked = {"message_object_id": name("asked")}
    theirs = flower.ConfirmMessageReceivedRequest(node=Node(node_id=OTHER), **asked)
    assert site.node("confirm-message-received", theirs).status_code == 200
    assert site.count() == before + 1
    mine = flower.ConfirmMessageReceivedRequest(node=Node(node_id=ME), **asked)
    assert site.node("confirm-message-received", mine).status_code == 200
    assert site.count() == before + 2


def test_only_announced_objects_are_pushed():
    site = Site()
    site.tell(ME)
    site.push(ME, "a")
    before = site.count()
    answer = site.object(ME, "b")
    assert not flower.PushObjectResponse.FromString(answer.content).stored
    assert not flower.PushObjectResponse.FromString(site.object(OTHER, "a").content).stored
    assert site.count() == before
    site.object(ME, "a")
    assert site.count() == before + 1


def test_a_reply_has_a_quota_and_so_has_a_node():
    site = Site(limits=Limits(reply_bytes=MIB))
    statuses = []
    for i in range(6):  # replies that the server never reads
        site.tell(ME, message=f"asked {i}")
        site.push(ME, f"{i} a", f"{i} b", f"{i} c", root=f"root {i}", asked=f"asked {i}")
        statuses.append([site.object(ME, f"{i} {c}", 450_000).status_code for c in "abc"])
    assert statuses[:4] == [[200, 200, 413]] * 4
    assert statuses[4:] == [[200, 413, 413], [413, 413, 413]]  # 4.1 MB lie there, 4 MiB may
    read = flower.ConfirmMessageReceivedRequest(message_object_id=name("root 0"))
    confirm = read.SerializeToString()
    site.call("/v1/runtime/confirm-message-received", confirm, source=HERE)
    assert site.object(ME, "5 a", 450_000).status_code == 200
    assert site.object(ME, "0 c", 450_000).status_code == 200  # Flower's to answer: it is gone


def test_a_large_model_may_be_answered_by_a_large_reply():
    site = Site(limits=Limits(reply_bytes=MIB))
    site.tell(ME, "model")
    site.behind.answers["/v1/fleet/pull-object"] = b"x" * 3 * MIB
    for _ in range(5):  # once counts, however often it is fetched
        site.node("pull-object", flower.PullObjectRequest(
            node=Node(node_id=ME), object_id=name("model")))  # fmt: skip
    site.push(ME, *range(9))
    assert [site.object(ME, i, MIB - 200).status_code for i in range(7)] == [200] * 6 + [413]


def test_what_has_expired_is_forgotten():
    site = Site()
    now = time.time()
    site.gate._ledger._clock = lambda: now
    site.tell(ME, ttl=10)
    site.push(ME, "a")
    now += 11
    before = site.count()
    assert site.push(ME, "a").status_code == 200 and site.count() == before
    node = site.gate._ledger._nodes[ME]
    assert not node.told and len(node.pushed) == 1
    now += 3600
    site.push(ME, "a")
    assert not node.pushed


def test_guesses_leave_nothing_in_memory_and_few_lines_in_the_log(caplog):
    site = Site()
    for node in range(300):
        site.push(node, "a", asked=f"guess {node}")
        site.object(node, "a")
    assert not site.gate._ledger._nodes
    own = [record for record in caplog.records if record.name == "fedrobust.gate"]
    assert len(own) == 20  # of one kind and source
    site.call("/v1/con%1b[31mtrol", source=STRANGER)
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_the_settings_are_checked(monkeypatch, capsys):
    for words, told in (
        (["--operators", "10.0.0.0/8,home"], "'home' is no address or network"),
        (["--reply-mib", "0"], "at least 1"),
        (["--objects", "3"], "at least 8"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2 and told in capsys.readouterr().err
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with pytest.raises(SystemExit):
        main([])
    assert "name the proxy" in capsys.readouterr().err
    monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    monkeypatch.setenv("FEDROBUST_OPERATORS", "10.0.0.0/8,::1")
    given, rest = _parser().parse_known_args(["--port", "1", "--insecure"])
    assert settings_of(given)["operators"] == ("10.0.0.0/8", "::1")
    assert rest == ["--port", "1", "--insecure"]
    assert settings_of(given)["limits"] == Limits()
    with pytest.raises(ValueError, match=r"'x' is no address"):
        network("x")


def test_the_gates_log_leaves_flowers_as_it_is(monkeypatch):
    root = list(logging.getLogger().handlers)
    logger = logging.getLogger("fedrobust.gate")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logger.level)
    assert own_log() is logger and len(logger.handlers) == 1 and not logger.propagate
    assert logging.getLogger().handlers == root


def test_a_setting_in_the_environment_that_is_no_number_is_a_wrong_call(monkeypatch, capsys):
    monkeypatch.setenv("FEDROBUST_OBJECTS", "many")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2 and "invalid int value: 'many'" in capsys.readouterr().err


def test_the_executor_is_ours_unless_the_operator_says_otherwise(monkeypatch):
    monkeypatch.delenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", raising=False)
    tls = ["--ssl-ca-certfile", "ca.crt", "--ssl-keyfile", "k", "--host", "0.0.0.0", "--port", "92"]
    start = ["flower-superexec", "--runtime-api-address"]
    rooted = [*start, "127.0.0.1:92", "--root-certificates", "ca.crt"]
    installs = "--allow-runtime-dependency-installation"
    assert executor_of(tls) == [*rooted, installs]
    assert executor_of([*tls, "--disable-runtime-dependency-installation"]) == rooted
    assert executor_of(["--insecure", "--host", "::"]) == [
        *start,
        "[::1]:8000",
        "--insecure",
        installs,
    ]
    for own in (["--isolation", "process"], ["--superexec-auth-secret-file", "x"], ["--help"]):
        assert executor_of([*tls, *own]) is None
