"""The documentation: each snippet runs, each rule has its formula, the site builds strictly."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from experiments import cli, listing
from fedrobust.experiment.load import expand, read

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "experiments" / "docs"
PAGES = sorted((DOCS / "pages").rglob("*.md"))
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Lines of shell that a test cannot run here: they install, build, take minutes or start Ray, and
# have tests or a rehearsal of their own.
ELSEWHERE = re.compile(
    r"make( \w+)?|python3? -m venv .*|pip install .*|git clone .*|cd \w+|flwr run .*|docker .*"
    r"|fedrobust run \S+ --grid (flower|ray)|fedrobust sweep .*--on ray.*|ray .*"
    r"|fedrobust aggregate .*--ray.*"
    r"|fedrobust run experiments/(fleet|papers/\S+)\.toml.*"
    r"|fedrobust (node|attack|benchmark) .*|python -m experiments.*"
)
# On top of each `fedrobust run` and `sweep`: the same command on something small.
SMALL = ["-o", "rounds=1", "-o", "data=digits", "-o", "model=linear", "--workers", "1", "-q"]


def snippets(path):
    """Return (language, text) of each fenced block."""
    return FENCE.findall(path.read_text(encoding="utf-8"))


def lines(text):
    """Return the commands of a shell block, comments off."""
    found = (line.split(" #")[0].strip() for line in text.splitlines())
    return [line for line in found if line and not line.startswith("#")]


def command(line):
    """Run one ``fedrobust`` command in this process; return its exit code."""
    words = shlex.split(line)[1:]
    if words[0] in ("run", "sweep"):
        words += SMALL
    before, sys.argv = sys.argv, ["fedrobust", *words]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main()
    except SystemExit as ended:
        return ended.code or 0
    finally:
        sys.argv = before
    return 0


def test_there_are_pages_and_snippets():
    assert len(PAGES) >= 15
    kinds = [kind for path in [*PAGES, README] for kind, _ in snippets(path)]
    assert kinds.count("python") >= 15 and kinds.count("bash") >= 8
    assert set(kinds) <= {"python", "bash", "toml", "json", "text"}, "no snippet of unknown kind"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(DOCS / "pages")))
def test_each_snippet_of_a_page_runs(path, tmp_path, monkeypatch):
    """In order and in one namespace; the page's own TOML and JSON lie beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    tutorial = dict(snippets(DOCS / "pages" / "tutorial.md"))["toml"]
    (tmp_path / "mine.toml").write_text(tutorial)
    namespace = {}
    for number, (kind, text) in enumerate(snippets(path)):
        if kind == "python":
            exec(compile(text, f"{path.name} block {number}", "exec"), namespace)
        elif kind == "json":
            json.loads(text)
            (tmp_path / "config.json").write_text(text)
        elif kind == "toml":
            assert expand(read(text))
        elif kind == "bash":
            prepared(text)
            for line in lines(text):
                known = ELSEWHERE.fullmatch(line)
                assert known or command(line) == 0, f"{path.name}: {line}"


def prepared(text):
    """Give ``fedrobust report results/mine`` something to report on."""
    if "report results/mine" in text and not Path("results/mine").exists():
        assert command("fedrobust run mine.toml") == 0


def test_every_rule_has_its_formula_and_paper():
    written = tomllib.loads((DOCS / "formulas.toml").read_text())
    entries = [e for kind in ("rules", "pre-aggregators") for e in listing.tables(kind)[kind]]
    assert set(written) == {entry["name"] for entry in entries} and len(entries) >= 32
    assert all(told["formula"] and told["breakdown"] for told in written.values())
    assert all(entry["paper"] for entry in entries)


def test_every_page_is_in_the_navigation():
    named = re.findall(r"[\w/]+\.md", (DOCS / "mkdocs.yml").read_text())
    assert sorted(named) == sorted(str(p.relative_to(DOCS / "pages")) for p in PAGES)


def test_links_between_files_of_the_repository_lead_somewhere():
    seen = 0
    for path in [README, *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
            seen += 1
    assert seen >= 5


def test_the_citation_is_of_this_version():
    text = (DOCS / "CITATION.cff").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {version}\n" in text and "cff-version: 1.2.0" in text


def test_every_claim_names_tests_and_commands_that_are_there():
    text = (DOCS / "pages" / "reference" / "measured.md").read_text()
    claims = text[text.index("## Every claim") :]
    tests = set(re.findall(r"`((?:\w+/)?test_\w+\.py)`", claims))
    assert len(tests) >= 30
    assert not [name for name in tests if not (ROOT / "tests" / name).is_file()]
    modules = set(re.findall(r"python -m experiments\.(?:benchmarks\.)?(\w+)", claims))
    places = (ROOT / "experiments" / "benchmarks", ROOT / "experiments")
    assert len(modules) >= 8
    assert not [m for m in modules if not any((p / f"{m}.py").is_file() for p in places)]


def test_papers_that_are_linked_are_cited():
    entries = [entry for table in listing.tables().values() for entry in table]
    found = tomllib.loads((DOCS / "papers.toml").read_text())
    cited = " ".join(entry["paper"] for entry in entries)
    assert len(found["titles"]) >= 40 and all(title in cited for title in found["titles"])
    assert set(found["names"]) <= {entry["name"] for entry in entries}
    addresses = [*found["titles"].values(), *found["names"].values()]
    good = r"https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/10\.\S+|openreview\.net/\S+|www\.usenix\.org/\S+)"
    assert all(re.fullmatch(good, address) for address in addresses)


@pytest.mark.slow
def test_the_site_builds_with_warnings_as_errors(tmp_path):
    if not all(
        importlib.util.find_spec(name)
        for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml")
    ):
        pytest.skip("needs fedrobust[docs]")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path / "site",
         "-f", DOCS / "mkdocs.yml"],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rules = (tmp_path / "site" / "reference" / "rules.html").read_text()
    assert "n &gt;= 2 f + 3" in rules and "n &gt;= 4 f + 3" in rules
    assert rules.count("<math") >= 25 and "arxiv.org/abs/1703.02757" in rules
    page = (tmp_path / "site" / "notebooks" / "own_rule.html").read_text()
    gallery = (tmp_path / "site" / "notebooks" / "gallery.html").read_text()
    assert "data:image/png;base64," in page and "<table class='heat'" in page
    assert gallery.count('<a href="own_rule.html"><img') >= 1
    assert gallery.count("<figure>") >= 8
    commands = (tmp_path / "site" / "reference" / "cli.html").read_text()
    assert "fedrobust sweep" in commands and "--over" in commands
    assert "fonts.googleapis" not in rules


def test_the_image_is_made_of_what_is_there():
    text = (ROOT / "experiments" / "deploy" / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()]
    assert len(sources) == 7 and all((ROOT / source).exists() for source in sources)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert re.search(r'^ENTRYPOINT \["(\w+)"\]$', text, re.M)[1] in scripts
    assert "\nUSER lab\n" in text, "nothing runs as root"
