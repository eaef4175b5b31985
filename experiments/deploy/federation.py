"""A federation of real Flower processes on one machine, for rehearsals and drills.

Each node lives in a network namespace of its own where the machine allows it (root on Linux), so
that its cable can be cut; on loopback otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from experiments import flower_processes
from experiments.deployment import connection, node_command

HERE = Path(__file__).parent
SUBNET = "10.97.{}"
STARTED = "Starting Flower SuperNode"
BARE = "flower-superlink"
POLL = 1.0  # seconds between two looks of an idle node, at most
LOOK = 0.5  # seconds between two looks at what processes say


class FederationError(RuntimeError):
    """Processes that do not do what they were started for."""


@dataclass
class Federation:
    """A SuperLink and its nodes.

    Attributes
    ----------
    home
        Certificates, keys, logs and the SuperLink's database.
    address
        HOST:PORT of the SuperLink.
    environment
        In which ``flwr`` finds the SuperLink.
    bridge
        Name of the namespaces' bridge; empty on loopback.
    gate
        Whether the SuperLink is started behind the gate.
    warm
        Whether nodes have their messages answered by forks of a warm process.
    processes
        What runs, by name.
    """

    home: Path
    address: str
    environment: dict[str, str]
    bridge: str = ""
    gate: bool = True
    warm: bool = True
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start_superlink(self) -> None:
        """Start the SuperLink with TLS, node authentication, and a state that survives it.

        It is behind the gate; without one where a drill shows what strangers do there.
        """
        host, port = self.address.split(":")
        command = [
            *((sys.executable, "-m", "experiments.deploy.superlink") if self.gate else (BARE,)),
            *("--host", host, "--port", port, "--enable-supernode-auth"),
            *("--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt"),
            *("--ssl-keyfile", "server.key", "--database", "state.db"),
            "--disable-runtime-dependency-installation",
        ]
        self._start("superlink", command)
        self.wait_for_log("superlink", "running on", limit=180)

    def start_node(
        self, number: int, config: dict[str, Any], *, key: str | None = None, tls: bool = True
    ) -> str:
        """Start one node with its key; return the process's name."""
        name = key or f"node-{number}"
        command = node_command(
            self.address,
            config,
            certificates=self.home / "ca.crt" if tls else None,
            key=self.home / name if tls else None,
            insecure=not tls,
            port=flower_processes.free_port(),
            warm=self.warm,
            poll=POLL,
        )
        # Strangers: they are to fail at once, not to try for minutes.
        command += ["--max-retries", "1"] if key or not tls else []
        inside = ["ip", "netns", "exec", self.namespace(number)] if self.bridge else []
        label = name if tls else f"{name}-plain"
        (self.home / f"home-{label}").mkdir(exist_ok=True)
        self._start(label, [*inside, *command], FLWR_HOME=str(self.home / f"home-{label}"))
        return label

    def register(self, number: int) -> None:
        """Make a node's key pair and register the public half as ``client-NUMBER``."""
        self.make_key(f"node-{number}")
        public = str(self.home / f"node-{number}.pub")
        words = ["supernode", "register", public, "own", "--name", f"client-{number}"]
        flower_processes.flwr(words, self.environment)

    def register_all(self, count: int, *, first: int = 0) -> None:
        """Register ``client-FIRST`` to ``client-COUNT-1``, several processes at a time."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.register, range(first, count)))

    def make_key(self, name: str) -> None:
        """Make a key pair."""
        subprocess.run(["sh", str(HERE / "make_key.sh"), str(self.home / name)], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    def nodes(self) -> list[dict[str, Any]]:
        """Return the SuperLink's register of nodes."""
        answer = flower_processes.flwr(["supernode", "list", "own"], self.environment)
        return list(answer.get("nodes", []))

    def wait_for_nodes(self, count: int, limit: float = 300) -> None:
        """Wait until so many nodes are on line."""
        end = time.monotonic() + limit
        while sum(entry.get("status") == "online" for entry in self.nodes()) < count:
            if time.monotonic() > end:
                raise FederationError(f"not {count} nodes on line: {self.nodes()}")
            time.sleep(LOOK)

    def wait_for_log(self, name: str, words: str, limit: float = 120) -> None:
        """Wait until a process has said something."""
        end = time.monotonic() + limit
        while words not in self.log(name):
            ended = self.processes[name].poll() is not None
            if time.monotonic() > end or ended:
                raise FederationError(f"{name} did not say {words!r}:\n{self.log(name)[-2000:]}")
            time.sleep(LOOK)

    def log(self, name: str) -> str:
        """Return what a process has said."""
        return (self.home / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """End a process and all that it started, at once."""
        process = self.processes.pop(name)
        for child in family(process.pid):
            send(child, signal.SIGKILL)
        with suppress(ProcessLookupError):  # those whose parent had ended before
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def namespace(self, number: int) -> str:
        """Return the name of a node's network namespace."""
        return f"{self.bridge}-{number}"

    def cable(self, number: int, *, plugged: bool) -> None:
        """Cut a node's network, or heal it; needs namespaces."""
        _ip("link", "set", f"{self.bridge}v{number}", "up" if plugged else "down")

    def _start(self, name: str, command: list[str], **variables: str) -> None:
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=self.home, env=self.environment | variables, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip


@contextmanager
def federation(
    home: Path, *, nodes: int, namespaces: bool | None = None, gate: bool = True
) -> Iterator[Federation]:
    """Lay a network, make certificates, start a SuperLink; clean everything up at the end.

    Parameters
    ----------
    nodes
        How many network namespaces; two more serve those who are refused.
    namespaces
        None uses them where the machine allows it.
    gate
        Whether the SuperLink is behind the gate.
    """
    home.mkdir(parents=True, exist_ok=True)
    allowed = namespaces_allowed() if namespaces is None else namespaces
    # Short: Linux allows an interface 15 characters, and the cables' names are longer than this.
    bridge = f"fr{os.getpid() % 100000}" if allowed else ""
    processes: dict[str, subprocess.Popen] = {}
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        host = _lay(bridge, nodes + 2) if bridge else "127.0.0.1"
        address = f"{host}:{flower_processes.free_port()}"
        made = subprocess.run(
            ["sh", str(HERE / "make_certificates.sh"), str(home), host, "127.0.0.1", "localhost"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        sys.stderr.write(made.stdout)
        (home / "cli").mkdir(exist_ok=True)
        environment = connection(home / "cli", address, certificates=home / "ca.crt")
        environment.pop("OMP_NUM_THREADS", None)
        it = Federation(home, address, environment, bridge, gate, processes=processes)
        it.start_superlink()
        yield it
    finally:
        for name in list(processes):
            it.kill(name)
        if bridge:
            _take_down(bridge, nodes + 2)
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: object) -> NoReturn:
    """Let SIGTERM end the block as an error does, so that everything is cleaned up."""
    raise SystemExit(128 + number)


def namespaces_allowed() -> bool:
    """Try whether this user may lay a network."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"frtry{os.getpid() % 100000}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if tried.returncode == 0:
        _ip("netns", "del", name)
    return tried.returncode == 0


def _lay(bridge: str, nodes: int) -> str:
    """Lay one cable from a bridge to each node's namespace; return the bridge's address."""
    # By process, so that two federations of one machine hardly ever share a network.
    net = SUBNET.format(os.getpid() % 250)
    _ip("link", "add", bridge, "type", "bridge")
    _ip("addr", "add", f"{net}.1/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    for number in range(nodes):
        inside, cable = f"{bridge}-{number}", f"{bridge}v{number}"
        _ip("netns", "add", inside)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", inside)
        _ip("link", "set", cable, "master", bridge)
        _ip("link", "set", cable, "up")
        _ip("-n", inside, "addr", "add", f"{net}.{number + 10}/24", "dev", "eth0")
        _ip("-n", inside, "link", "set", "eth0", "up")
        _ip("-n", inside, "link", "set", "lo", "up")
    return f"{net}.1"


def _take_down(bridge: str, nodes: int) -> None:
    """Remove what is there of a network: a laying that failed has left a part of it."""
    for number in range(nodes):
        _ip("netns", "del", f"{bridge}-{number}", check=False)
    _ip("link", "del", bridge, check=False)


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


def family(pid: int) -> list[int]:
    """List a process and its descendants: Flower starts sessions of their own."""
    found = [pid]
    # The list grows while it is gone through, by the children of children.
    for parent in found:
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False
        )
        found += [int(word) for word in listed.stdout.split()]
    return found


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def as_json(value: Any) -> str:
    """Return one line of JSON."""
    return json.dumps(value, sort_keys=True)
