"""Plug-ins of others in our tables: from a file that a user names, or from installed packages.

A plug-in is a function (or an object) of one of the kinds of ``KINDS``. ``use`` loads a Python file
that the user has named; ``provide`` puts in what an experiment asks for by name and no table
holds, out of those files and out of packages with entry points ``fedrobust.models``, ... Nothing is
ever loaded because a configuration or a message names a file or a module: it names plug-ins.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from torch import nn
from torch.nn.parameter import UninitializedParameter

from fedrobust import aggregation, attacks, data, models
from fedrobust.attacks import threat_model
from fedrobust.data.given import as_dataset, digest_of
from fedrobust.models import GivenModel
from fedrobust.packages import BESIDE
from fedrobust.spec import InputError, by_keyword
from fedrobust.training import METRICS, TASK_LOSSES, Metric

MARK = "__fedrobust_plugin__"
VARIABLE = "FEDROBUST_PARTS"  # names the file with the objects of a notebook
RESERVED = (
    "round",
    "seconds",
    "loss",
    "replies",
    "rejected",
    "kept",
    "weights",
    "alarms",
    "impact",
)


class PlugInError(InputError):
    """A plug-in that cannot be loaded, or is not what its kind asks for."""


@dataclass(frozen=True)
class Part:
    """One plug-in.

    Attributes
    ----------
    kind, name
        A key of ``KINDS``, and the name by which configurations ask for it.
    value
        The function or object.
    origin
        Where it is from, in words: "net.py", "acme-fl 1.2".
    digest
        Hexadecimal digits that change with its source, or with the values that it holds.
    """

    kind: str
    name: str
    value: Any
    origin: str
    digest: str = ""

    @property
    def told(self) -> str:
        """Its origin and digest."""
        return f"{self.origin} {self.digest}".strip()


@contextmanager
def _entered(table: MutableMapping[str, Any], what: str, name: str, value: Any) -> Iterator[None]:
    if name in table:
        raise PlugInError(f"there is a {what} {name!r} already: rename your own")
    table[name] = value
    try:
        yield
    finally:
        del table[name]


def _model(name: str, value: Any) -> AbstractContextManager[None]:
    if not isinstance(value, nn.Module):
        _callable("model", name, value, "a function that returns an nn.Module, or such a module")
    return _entered(models.MODELS, "model", name, GivenModel(name, value))


def _data(name: str, value: Any) -> AbstractContextManager[None]:
    held: dict[Path | None, data.Dataset] = {}

    def load(root: Path | None, download: bool) -> data.Dataset:
        if root not in held:
            held.clear()
            held[root] = as_dataset(name, made(value, root=root, download=download))
        return held[root]

    if "path" in _parameters(value):
        load.reads = lambda path: value(path=path)  # type: ignore[attr-defined]
    load.__doc__ = inspect.getdoc(value) if callable(value) else "Data that were handed over."
    return _entered(data.DATASETS, "data set", name, load)


def made(value: Any, **offered: Any) -> Any:
    """Call a function with as much of the offered as it takes; return anything else as it is."""
    if not _is_function(value):
        return value
    return value(**{key: given for key, given in offered.items() if key in _parameters(value)})


def _is_function(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, partial) or inspect.ismethod(value)


def _parameters(value: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(value).parameters if _is_function(value) else {}


def _partition(name: str, value: Any) -> AbstractContextManager[None]:
    _callable("partition", name, value, "a function (labels, *, clients, seed)")

    @wraps(value)
    def own(labels: Any, **settings: Any) -> Any:
        return value(labels, **settings)

    own.own = True  # type: ignore[attr-defined]
    return _entered(data.PARTITIONERS, "partition", name, own)


def _loss(name: str, value: Any) -> AbstractContextManager[None]:
    _callable("loss", name, value, "a function (outputs, targets)")
    return _entered(TASK_LOSSES, "loss", name, value)


def _metric(name: str, value: Any) -> AbstractContextManager[None]:
    if name in RESERVED:
        raise PlugInError(f"a metric may not be called {name!r}: rows have a column of that name")
    if not isinstance(value, Metric):
        _callable("metric", name, value, "a function (outputs, targets), or a Metric")
        value = Metric(value, getattr(value, "best", "max"))
    return _entered(METRICS, "metric", name, value)


def _rule(name: str, value: Any) -> AbstractContextManager[None]:
    if not isinstance(value, aggregation.Rule):
        _callable("rule", name, value, "a function (updates, *, f), or a Rule")
        value = aggregation.Rule(name=name, compute=by_keyword(value))
    return aggregation.installed(replace(value, name=name))


def _attack(name: str, value: Any) -> AbstractContextManager[None]:
    if not isinstance(value, attacks.Attack):
        _callable("attack", name, value, "a function (honest, *, n, f), or an Attack")
        value = attacks.Attack(name=name, craft=by_keyword(value))
    return attacks.installed(replace(value, name=name))


def _callable(kind: str, name: str, value: Any, form: str) -> None:
    if not callable(value):
        raise PlugInError(f"{kind} {name!r} needs {form}, got {type(value).__name__}")


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in: the names that are taken, how one enters, its group of entry points."""

    table: Mapping[str, Any]
    enter: Callable[[str, Any], AbstractContextManager[None]]
    group: str


EVERY_ATTACK = ChainMap[str, Any](
    {threat_model.NONE: None}, attacks.ATTACKS, attacks.POISONS, attacks.TRAINED,
    dict(threat_model.FAULTS), dict(threat_model.ANSWERS),
)  # fmt: skip
KINDS: dict[str, Kind] = {
    "model": Kind(models.MODELS, _model, "fedrobust.models"),
    "data": Kind(data.DATASETS, _data, "fedrobust.datasets"),
    "partition": Kind(data.PARTITIONERS, _partition, "fedrobust.partitions"),
    "loss": Kind(TASK_LOSSES, _loss, "fedrobust.losses"),
    "metric": Kind(METRICS, _metric, "fedrobust.metrics"),
    "rule": Kind(aggregation.RULES, _rule, "fedrobust.rules"),
    "attack": Kind(EVERY_ATTACK, _attack, "fedrobust.attacks"),
}


class _Room:
    """What this process holds of others: files that were named, parts that were put in."""

    def __init__(self) -> None:
        self.files: dict[Path, tuple[str, ModuleType]] = {}
        self.parts: dict[tuple[str, str], tuple[Part, ExitStack]] = {}

    def put(self, part: Part) -> ExitStack:
        """Put a part into its table."""
        stack = ExitStack()
        try:
            stack.enter_context(KINDS[part.kind].enter(part.name, part.value))
        except PlugInError as error:
            raise PlugInError(f"{part.origin}: {error}") from error
        except ValueError as error:  # the tables of rules and attacks raise these
            raise PlugInError(f"{part.origin}: {error}") from error
        self.parts[part.kind, part.name] = (part, stack)
        return stack

    def take(self, kind: str, name: str) -> None:
        """Take a part out again."""
        _, stack = self.parts.pop((kind, name))
        stack.close()


ROOM = _Room()


@contextmanager
def installed(part: Part) -> Iterator[None]:
    """Let a plug-in stand in its table inside the block, like any of ours.

    Raises
    ------
    PlugInError
        If there is one of that name, or it is not what its kind asks for.
    """
    ROOM.put(part)
    try:
        yield
    finally:
        ROOM.take(part.kind, part.name)


def use(path: str | Path) -> list[Part]:
    """Load a Python file of the user's; what is marked by ``fedrobust.plugin`` enters its table.

    Other functions of the file are found by name, once an experiment asks for them. A file that was
    loaded before and has not changed is not loaded again.

    Raises
    ------
    PlugInError
        If the file is not there or fails, or a name in it is taken.
    """
    file = Path(path).expanduser().resolve()
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise PlugInError(f"--use {str(path)!r}: {error.strerror}") from error
    if file in ROOM.files and ROOM.files[file][0] == digest:
        return [part for part, _ in ROOM.parts.values() if part.digest == digest]
    for kind, name in [key for key, (part, _) in ROOM.parts.items() if part.origin == file.name]:
        ROOM.take(kind, name)
    module = _loaded(file)
    ROOM.files[file] = (digest, module)
    found = [Part(*mark, value, file.name, digest) for mark, value in _marked(module)]
    for part in found:
        ROOM.put(part)
    return found


def _marked(module: ModuleType) -> list[tuple[tuple[str, str], Any]]:
    """Return what a module itself marks by ``fedrobust.plugin``, each thing once."""
    own = {id(v): v for v in vars(module).values() if _home(v) == module.__name__}
    marks = [(getattr(value, MARK, None), value) for value in own.values()]
    return [(mark, value) for mark, value in marks if isinstance(mark, tuple)]


def _loaded(file: Path) -> ModuleType:
    """Run a file as a module of its own name, so that its classes and functions have a home."""
    name = f"fedrobust_use_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PlugInError(f"--use {str(file)!r} is no Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before = list(sys.path)
    sys.path.insert(0, str(file.parent))  # it may import its neighbours, as a script would
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # foreign code: whatever it raises is its mistake
        del sys.modules[name]
        where = f"line {_line(error, file)}: " if _line(error, file) else ""
        raise PlugInError(
            f"--use {str(file)!r} failed: {where}{type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path[:] = before
    return module


def _line(error: BaseException, file: Path) -> int:
    """Return the last line of a file that an error passed through; 0 for none."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def functions_in(path: str | Path) -> list[str]:
    """Return the public functions that a file in use defines itself, in its order."""
    _, module = ROOM.files[Path(path).expanduser().resolve()]
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def digest(path: str | Path) -> str:
    """Return the first twelve digits of a used file's SHA-256."""
    return ROOM.files[Path(path).expanduser().resolve()][0]


def at_hand(paths: str = "") -> None:
    """Put in what this process was started with, for a run on Flower.

    Parameters
    ----------
    paths
        Files of ``use``, joined as in PATH.

    Notes
    -----
    The objects of a notebook come in a file that its own process wrote, for the simulation that it
    started; only the environment names that file, never a message or a configuration.
    """
    use_all(paths)
    file = os.environ.get(VARIABLE)
    if file and Path(file).is_file():
        for part in cloudpickle.loads(Path(file).read_bytes()):
            if (part.kind, part.name) not in ROOM.parts:
                ROOM.put(part)


def write_parts(file: Path, parts: Sequence[Part]) -> None:
    """Write objects for the processes of a simulation of this one's own; see ``at_hand``.

    Raises
    ------
    PlugInError
        If an object cannot be sent to another process.
    """
    with ExitStack() as stack:
        for name in {_home(part.value) for part in parts}:
            stack.enter_context(_by_value(sys.modules.get(name)))
        try:
            text = cloudpickle.dumps(list(parts))
        except Exception as error:  # whatever an object's own code raises
            raise PlugInError(
                f"an object of yours cannot be sent to another process ({type(error).__name__}:"
                f" {error}): put it into a file and name that by --use, or run in process"
            ) from error
    file.touch(mode=0o600)
    file.write_bytes(text)


def _home(value: Any) -> str:
    """Return the module in which an object's function or class is written."""
    value = getattr(value, "compute", getattr(value, "craft", value))
    while isinstance(value, partial):
        value = value.func
    return str(getattr(value, "__module__", None) or type(value).__module__)


@contextmanager
def _by_value(module: ModuleType | None) -> Iterator[None]:
    """Send a module's functions whole, where another process could not import it by its name."""
    file = getattr(module, "__file__", None)
    packages = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib")]
    packages += [Path(__file__).parents[1] / name for name in ("fedrobust", *BESIDE)]
    if module is None or not file or any(p in Path(file).resolve().parents for p in packages):
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def used() -> str:
    """Return the files that this process has loaded, joined as in PATH."""
    return os.pathsep.join(map(str, ROOM.files))


def use_all(paths: str) -> None:
    """Load several files, their paths joined as in PATH; nothing for the empty text."""
    for path in filter(None, paths.split(os.pathsep)):
        use(path)


def entry_points() -> list[importlib.metadata.EntryPoint]:
    """Return every plug-in that an installed package offers: the one place that reads them."""
    groups = [kind.group for kind in KINDS.values()]
    return [point for group in groups for point in importlib.metadata.entry_points(group=group)]


def offered(kind: str, name: str) -> Part | None:
    """Return the plug-in of a kind and a name that an installed package offers, loaded.

    Raises
    ------
    PlugInError
        If it cannot be loaded, or two packages offer one name; with the packages' names.
    """
    group = KINDS[kind].group
    found = [p for p in entry_points() if p.group == group and p.name == name]
    makers = list(dict.fromkeys(package_of(point) for point in found))
    if len(makers) > 1:
        raise PlugInError(f"{kind} {name!r} is offered by {' and '.join(makers)}: uninstall one")
    return part_of(kind, found[0]) if found else None


def part_of(kind: str, point: importlib.metadata.EntryPoint) -> Part:
    """Load what an entry point names.

    Raises
    ------
    PlugInError
        With the package's name, if that fails.
    """
    try:
        value = point.load()
    except Exception as error:  # foreign code: whatever it raises is its mistake
        raise PlugInError(
            f"{kind} {point.name!r} of the package {package_of(point)} cannot be loaded:"
            f" {type(error).__name__}: {error}"
        ) from error
    return Part(kind, point.name, value, package_of(point), _source_digest(point.module))


def package_of(point: importlib.metadata.EntryPoint) -> str:
    """Return the name and version of the package that an entry point belongs to."""
    package = point.dist
    return f"{package.name} {package.version}" if package is not None else "a package without name"


def _source_digest(module: str) -> str:
    file = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else ""


def provide(document: Mapping[str, Any]) -> None:
    """Put in what an experiment asks for by name and no table holds, where somebody offers it.

    What nobody offers is left to the checks, which say what there is.

    Raises
    ------
    PlugInError
        If what is offered cannot be loaded.
    """
    for kind, name in asked(document):
        if name in KINDS[kind].table or (kind, name) in ROOM.parts:
            continue
        part = _in_files(kind, name) or offered(kind, name)
        if part is not None:
            ROOM.put(part)


def lacking(document: Mapping[str, Any]) -> list[str]:
    """Name what an experiment asks for and nobody here offers: ``the model 'net'``."""
    provide(document)
    missing = [
        pair for pair in dict.fromkeys(asked(document)) if pair[1] not in KINDS[pair[0]].table
    ]
    return [f"the {kind} {name!r}" for kind, name in missing]


def _in_files(kind: str, name: str) -> Part | None:
    """Find a function by its name in the files that were named."""
    for file, (digest, module) in ROOM.files.items():
        value = vars(module).get(name)
        if value is not None and not inspect.ismodule(value) and not name.startswith("_"):
            return Part(kind, name, value, file.name, digest)
    return None


def names_in(path: str | Path, kind: str) -> set[str]:
    """Return the names of one kind that have come from a file so far."""
    name = Path(path).expanduser().resolve().name
    return {n for (k, n), (part, _) in ROOM.parts.items() if k == kind and part.origin == name}


def asked(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the kinds and names of plug-ins that an experiment's document asks for."""
    ensemble, transfer = document.get("ensemble"), document.get("transfer")
    places = [
        ("model", document.get("model")),
        ("data", document.get("data")),
        ("loss", document.get("loss")),
        ("partition", document.get("partition")),
        ("attack", document.get("attack")),
    ]
    places += [("metric", one) for one in _listed(document.get("metrics"))]
    for name in _names(document.get("rule")):
        places += [("rule", one) for one in name.split("+")]
    if isinstance(ensemble, Mapping):
        places += [("model", one) for one in _listed(ensemble.get("architectures"))]
    if isinstance(transfer, Mapping):
        places += [("model", one) for one in _listed(transfer.get("surrogates"))]
    return [(kind, name) for kind, value in places for name in _names(value)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _names(value: Any) -> list[str]:
    """Return the name in a spec, if there is one."""
    name = value.get("name") if isinstance(value, Mapping) else value
    return [name.partition(":")[0].strip()] if isinstance(name, str) else []


def identities(document: Mapping[str, Any], *, root: str | None = None) -> dict[str, str]:
    """Return "kind name" -> origin and digest of each plug-in of others that an experiment uses.

    Of a data set the digest of its examples goes with it, of a model that of the names, shapes and
    types of its parameters: what a run that continues must find again.
    """
    found = {}
    for kind, name in dict.fromkeys(asked(document)):
        if (kind, name) not in ROOM.parts:
            continue
        told = ROOM.parts[kind, name][0].told
        if kind == "data":
            told += f" {digest_of(data.load(name, root=root))}"
        elif kind == "model":
            told += f" {_layout(name, data.load(str(document['data']), root=root))}"
        found[f"{kind} {name}"] = told
    return found


def _layout(name: str, dataset: data.Dataset) -> str:
    """Return the digest of a model's state: names, shapes and types, no values."""
    state = models.build_for(name, dataset, seed=0).state_dict()
    lines = [f"{key} {value.dtype} {tuple(value.shape)}" for key, value in state.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def value_digest(kind: str, value: Any) -> str:
    """Return the digest of what an object holds: a module's parameters, a data set's examples."""
    if isinstance(value, data.Dataset):
        return digest_of(value)
    if kind == "model" and isinstance(value, nn.Module):
        if any(isinstance(p, UninitializedParameter) for p in value.parameters()):
            raise PlugInError(
                f"the model {type(value).__name__} has lazy layers: run one batch through it first"
            )
        found = hashlib.sha256(repr(value).encode())
        for key, tensor in value.state_dict().items():
            found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).numpy().tobytes())
        return found.hexdigest()[:12]
    return ""
