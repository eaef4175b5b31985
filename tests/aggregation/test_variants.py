"""The page of variants: every spec on it builds, and gives ByzFL's numbers where that is named."""

import tomllib
from itertools import combinations
from pathlib import Path

import pytest
import torch

import fedrobust
from fedrobust.aggregation import PREAGGREGATORS, RULES, aggregate, preaggregate
from fedrobust.attacks import ATTACKS, craft

PAGE = Path(fedrobust.__file__).parent / "aggregation" / "VARIANTS.md"
ROWS = [
    (cells[0].strip(), tomllib.loads(f"spec = {cells[1].strip().strip('`')}")["spec"])
    for cells in (line.strip("|").split("|") for line in PAGE.read_text().splitlines())
    if len(cells) == 3 and "`" in cells[1]
]


def updates(n=12, d=20, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answer(spec, rows):
    name = spec if isinstance(spec, str) else spec["name"]
    of_model = {"lasa": {"layers": [["w", [10, 2]]]}, "alignins": {"model": torch.ones(20)}}
    if name in of_model:
        spec = spec | of_model[name]
    if name in RULES:
        return aggregate(rows, spec, generator=torch.Generator().manual_seed(0))
    return craft(rows[:10], spec, n=12, f=2)[0]


def test_the_page_names_every_switch():
    assert len(ROWS) == 52
    text = PAGE.read_text()
    for table in (RULES, ATTACKS):
        named = {s if isinstance(s, str) else s["name"] for _, s in ROWS}
        assert named & set(table)
    for variant in ("byzfl", "epfl", "alie_code", "plain", "fourth_power", "plato", "one_pass",
                    "byzpy", "flower"):  # fmt: skip
        assert f'variant = "{variant}"' in text


@pytest.mark.parametrize(("elsewhere", "spec"), ROWS, ids=str)
def test_every_spec_on_the_page_builds(elsewhere, spec):
    result = answer(spec, updates())
    assert result.shape == (20,)
    assert torch.isfinite(result).all()


def test_variants_of_one_rule_differ():
    same = ("byzpy", "flower")  # another variant's score, for another number of updates
    for name in ("krum", "bulyan", "median", "trimmed_mean", "meamed"):
        specs = [
            spec
            for _, spec in ROWS
            if (spec if isinstance(spec, str) else spec["name"]) == name
            and not (isinstance(spec, dict) and spec.get("variant") in same)
        ]
        answers = [
            torch.stack([answer(spec, updates(seed=i)[:, :2]) for i in range(40)]) for spec in specs
        ]
        pairs = list(combinations(answers, 2))
        assert pairs, name
        assert not any(torch.allclose(one, other) for one, other in pairs), name


BYZFL = {
    "Krum": {"name": "krum", "f": 2, "variant": "byzfl"},
    "MultiKrum": {"name": "multi_krum", "f": 2, "variant": "byzfl"},
    "Median": "median",
    "TrMean": {"name": "trimmed_mean", "f": 2},
    "Meamed": {"name": "meamed", "f": 2},
    "MDA": {"name": "mda", "f": 2},
    "GeometricMedian": {"name": "rfa", "start": "zero", "nu": 0.1},
    "CenteredClipping": {"name": "centered_clipping", "tau": 100.0},
    "NNM": {"name": "nnm", "f": 2},
    "ARC": {"name": "arc", "f": 2},
    "Clipping": {"name": "clip", "bound": 2.0},
    "ALittleIsEnough": {"name": "alie", "z": 1.5, "sign": 1, "ddof": 1},
    "InnerProductManipulation": {"name": "ipm", "epsilon": 2.0},
    "SignFlipping": "sign_flip",
}


@pytest.mark.parametrize("theirs", BYZFL)
def test_the_page_gives_byzfls_numbers(theirs):
    byzfl = pytest.importorskip("byzfl", reason="needs byzfl: pip install byzfl")
    spec, rows = BYZFL[theirs], updates()
    made = getattr(byzfl, theirs)
    takes_f = "f" in made.__init__.__code__.co_varnames
    rule = made(**({"f": 2} if takes_f else {}))
    name = spec if isinstance(spec, str) else spec["name"]
    if name in PREAGGREGATORS:
        ours, given = preaggregate(rows, spec), rows.clone()
    else:
        ours, given = answer(spec, rows), rows if name in RULES else rows[:10]
    assert torch.allclose(ours, torch.as_tensor(rule(given)).double(), atol=1e-5)
