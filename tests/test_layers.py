"""Dependencies point one way: experiments -> strategies, clients -> fedrobust.flower -> core."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for room in ("fedrobust", "strategies", "clients", "experiments")
    for path in (ROOT / room).rglob("*.py")
)  # fmt: skip
DOOR = "fedrobust/__init__.py"  # fedrobust.simulate opens upwards, on purpose


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def layer(name):
    if name.split(".")[:2] == ["fedrobust", "flower"]:
        return 1
    return {"fedrobust": 0, "strategies": 2, "clients": 2, "experiments": 3}.get(name.split(".")[0])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_upward_import(path):
    relative = path.relative_to(ROOT)
    own = layer(".".join(relative.with_suffix("").parts))
    for name in imports(path):
        other = layer(name)
        if other is None or str(relative) == DOOR:
            continue
        assert other <= own, f"{relative} imports {name} from above"
        if own == other == 2:
            assert name.split(".")[0] == relative.parts[0], f"{relative} imports its neighbour"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_flower_and_ray_stay_at_the_edge(path):
    relative = str(path.relative_to(ROOT))
    top = {name.split(".")[0] for name in imports(path)}
    if relative.startswith("fedrobust/") and not relative.startswith("fedrobust/flower/"):
        assert "flwr" not in top
    if relative.startswith("fedrobust/"):
        assert "ray" not in top
    assert "pickle" not in top


def test_it_saw_the_rooms():
    assert len(FILES) > 25
