"""How the code is built: order, sizes, words; the layer test shares what reads it (``floors``).

``python -m experiments.benchmarks.house [ROOT ...]`` prints one column for each source tree (this
one by default), ``--json`` one JSON object a tree. Nothing is imported or run: files are parsed.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import statistics
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments.benchmarks.floors import ROOT, circles, graph, modules, upward

CONFIGURATION = {  # files of configuration, or single functions of files with other work
    "fedrobust/config.py": (), "fedrobust/options.py": (), "fedrobust/checks.py": (),
    "fedrobust/distributed/checking.py": (), "fedrobust/experiment/schema.py": (),
    "fedrobust/experiment/settings.py": (), "fedrobust/experiment/modes.py": (),
    "fedrobust/experiment/load.py": (), "fedrobust/experiment/validate.py": (),
    "fedrobust/experiment/honoured.py": (), "fedrobust/experiment/field_types.py": (),
    "fedrobust/experiment/sentences.py": (), "fedrobust/experiment/renamed.py": (),
    "fedrobust/experiment/adversarial_settings.py": (),
    "fedrobust/experiment/validate_phases.py": (),
    "fedrobust/ensemble/validate.py": (), "fedrobust/redundancy/validate.py": (),
    "fedrobust/distributed/plan.py": ("Plan", "Transfer", "NodeSettings"),
    "fedrobust/training/local.py": ("Recipe",),
    "fedrobust/fleet.py": ("Group", "parse", "_known", "check", "_group_errors", "_recipe_errors"),
    "fedrobust/simulation/stragglers.py": ("check", "_group_errors", "_recipe_errors"),
    "fedrobust/scheme.py": ("Scheme", "filled", "check", "check_attack", "_ranges", "_plain",
                            "_shape", "_adversary"),
    "fedrobust/redundancy/rounds.py": ("filled", "check", "check_attack", "_ranges", "_plain",
                                       "_shape", "_adversary"),
}  # fmt: skip
SETTINGS = (
    "Experiment", "Recipe", "Group", "Server", "Adversarial", "Federated", "FederatedAdversarial",
    "Compression", "Semi", "Pretrain", "Scheme", "Redundancy", "Plan", "EnsembleSettings",
    "Transfer",
)  # fmt: skip
OLD_WORDS = (
    "Workshop", "Site", "Lesson", "Watch", "FileBench", "Liars", "Copies", "Diet", "Regime",
    "enrol", "Said", "Questions", "Ledger", "roll_call", "FleetGrid", "PromiseGrid", "LIES",
    "lie", "lies", "liar", "liars", "lying", "file_liar", "file_bench", "file_worker",
)  # fmt: skip
OLD_MODULES = (
    "options", "checks", "checking", "scheme", "stepping", "adversary", "fleet", "fleets",
    "together", "lessons", "promises", "answers", "listening", "roll_call", "durable", "trusted",
    "stock", "recorded", "traffic", "wire", "packets", "hold", "examination", "planted", "joints",
    "solvers", "archive", "evidence", "verdict", "fields", "calculus", "elsewhere", "plugging",
    "preparing", "showing", "gathering", "workshop", "rundir",
)  # fmt: skip


RULE_TABLES = [("fedrobust.aggregation.tables", "RULES"), ("fedrobust.aggregation", "RULES")]


def measures(root: Path) -> dict[str, object]:
    """Return the figures of one source tree, by what they count."""
    files = modules(root)
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    edges = graph(root)
    lines = sum(text.count("\n") for text in texts.values())
    sizes = sorted(
        (code_lines(node, texts[name]), f"{name}.{node.name}")
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lengths = [size for size, _ in sizes]
    return {
        "files": len(files),
        "lines": lines,
        "circles of files": [len(c) for c in circles(edges)],
        "upward imports": len(upward(edges)),
        "functions that read replies": sum(_readers(t) for n, t in trees.items() if _served(n)),
        "tables that name a rule, at most": _tables(trees),
        "lines of configuration code": _configuration(root),
        "settings": sum(_settings(tree) for tree in trees.values()),
        "type: ignore": sum(text.count("# type: ignore") for text in texts.values()),
        "longest function": f"{sizes[-1][0]} ({sizes[-1][1]})",
        "function, median": statistics.median(lengths),
        "function, 90th percentile": lengths[int(0.9 * len(lengths))],
        "longest file": max((t.count("\n"), name) for name, t in texts.items())[0],
        "comments per 1,000 lines": round(1000 * sum(map(comments, texts.values())) / lines, 1),
        "old words": _old_words(texts),
    }


def code_lines(node: ast.AST, text: str) -> int:
    """Return the lines of a function or class that hold code: no docstring, comment or blank."""
    documented = {
        number
        for inner in ast.walk(node)
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module)
        and ast.get_docstring(inner) is not None
        for number in range(inner.body[0].lineno, (inner.body[0].end_lineno or 0) + 1)
    }
    lines = text.splitlines()
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", len(lines))
    return sum(
        1
        for number in range(first, last + 1)
        if number not in documented and lines[number - 1].strip()
        and not lines[number - 1].lstrip().startswith("#")
    )  # fmt: skip


def comments(text: str) -> int:
    """Count the comments that speak to a reader, not to a tool."""
    return sum(
        token.type == tokenize.COMMENT
        and not re.match(r"#\s*(noqa|type:|fmt:|mypy:|!)", token.string)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )


def _served(module: str) -> bool:
    return module.startswith(("strategies", "fedrobust.flower"))


def _readers(tree: ast.Module) -> int:
    """Count the functions that ask a reply whether it is an error: each is a collector."""
    return sum(
        any(isinstance(n, ast.Attribute) and n.attr == "has_error" for n in ast.walk(function))
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
    )


def _tables(trees: Mapping[str, ast.Module]) -> int:
    """Return in how many tables of the library the rule that is in most of them is named."""
    named: dict[object, int] = {}
    rules: set[object] = set()
    for module, tree in trees.items():
        if module.startswith("fedrobust."):
            for target, words in _constants(tree):
                rules |= words if (module, target) in RULE_TABLES else set()
                for word in words:
                    named[word] = named.get(word, 0) + 1
    return max((count for word, count in named.items() if word in rules or not rules), default=0)


def _constants(tree: ast.Module) -> Iterator[tuple[str, set[object]]]:
    """Yield each table of a module, an assignment to capitals, with the strings and names in it."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id.isupper():
                nodes = list(ast.walk(node.value))
                strings = {n.value for n in nodes if isinstance(n, ast.Constant)}
                yield target.id, strings | {n.id for n in nodes if isinstance(n, ast.Name)}


def _configuration(root: Path) -> int:
    total = 0
    for name, parts in CONFIGURATION.items():
        if not (path := root / name).exists():
            continue
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        named = [node for node in tree.body if getattr(node, "name", "") in parts]
        total += sum(code_lines(node, text) for node in (named if parts else [tree]))
    return total


def _settings(tree: ast.Module) -> int:
    return sum(
        isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.dump(field.annotation)
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in SETTINGS
        for field in node.body
    )


def _old_words(texts: Mapping[str, str]) -> int:
    """Count the old names: words anywhere but here, and modules that still carry them."""
    words = re.compile(rf"\b({'|'.join(OLD_WORDS)})\b")
    files = sum(name.rpartition(".")[2] in OLD_MODULES for name in texts)
    here = __name__ if __name__ != "__main__" else "experiments.benchmarks.house"
    # This file holds the list itself.
    # ``renamed`` says of each old key what it is called today: it must name them.
    apart = {here, "fedrobust.experiment.renamed"}
    return files + sum(len(words.findall(t)) for name, t in texts.items() if name not in apart)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("roots", nargs="*", type=Path, default=[ROOT])
    parser.add_argument("--json", action="store_true", help="one JSON object a tree")
    parser.add_argument("--show", action="store_true", help="name circles and upward imports")
    given = parser.parse_args()
    columns = [measures(root) for root in given.roots]
    if given.json:
        for root, column in zip(given.roots, columns, strict=True):
            print(json.dumps({"root": root.name, **column}))
        return
    print("| |" + "".join(f" {root.resolve().name} |" for root in given.roots))
    print("| --- |" + " ---: |" * len(columns))
    for name in columns[0]:
        print(f"| {name} |" + "".join(f" {column[name]} |" for column in columns))
    for root in given.roots if given.show else ():
        edges = graph(root)
        print("", *(" <-> ".join(c) for c in circles(edges)), *upward(edges), sep="\n")


if __name__ == "__main__":
    main()
