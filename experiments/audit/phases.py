"""The phases of an audit: clean runs, broken replies, attacks on updates, defences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from experiments.audit.application import Application
from experiments.audit.cell import CLEAN, GRID, WRAPPER, Cell, Run, attack_text
from experiments.audit.classification import classify
from experiments.audit.outcomes import HOLDS, NO_RESULT, Finding, judge
from experiments.audit.plan import (
    ABOUT,
    ATTACK,
    BROKEN_REPLY,
    CLEAN_RUN,
    DEFENCE,
    DEFENCES,
    FIRST_LIMIT,
    FROM,
    LEAST,
    QUICK_BROKEN,
    QUICK_DEFENCES,
    QUICK_LEAST,
    QUICK_VECTOR,
    REPEAT,
    TIMES,
    VECTOR,
    Defence,
    Options,
    Outcome,
)  # fmt: skip
from experiments.audit.processes import Cells
from experiments.audit.quality import DISTANCE, Judge, choose
from fedrobust import aggregation
from fedrobust.attacks import ATTACKS
from fedrobust.flower.broken_replies import BROKEN
from fedrobust.flower.rule_spelling import read_rule, rule_name


class Phases:
    """Conduct an audit.

    Parameters
    ----------
    say
        Called with (cells done, cells planned, what runs next).
    """

    def __init__(
        self,
        application: Application,
        options: Options,
        cells: Cells,
        say: Callable[[int, int, str], None] = lambda done, planned, text: None,
    ) -> None:
        self.application, self.options, self.cells, self._say = application, options, cells, say
        self.f = options.f or math.ceil(application.nodes / 5)
        self.out = Outcome()
        self._done = self._planned = 0

    def conduct(self) -> Outcome:
        """Run all phases, as far as the app allows."""
        out = self.out
        if not self._clean():
            return out
        assert out.kind is not None
        broken = self._asked(BROKEN, QUICK_BROKEN)
        vector = self._asked(ATTACKS, QUICK_VECTOR, VECTOR) if out.kind.vector else []
        defences = self._defences() if out.kind.vector and out.kind.together else []
        self._planned = self._done + len(broken) + len(vector) + (len(vector) + 1) * len(defences)
        self._say(self._done, self._planned, self._estimate())
        self._attacked(BROKEN_REPLY, [Cell(attack=name, k=1) for name in broken])
        self._attacked(ATTACK, [Cell(attack=name, k=self.f) for name in vector])
        if vector and self.options.attacks is None:
            out.not_tried.append(("the other members of auto", "--attack auto tries them"))
        if self.f > 1 and vector:
            if self.options.quick:
                out.not_tried.append(("from which f on", "--quick"))
            else:
                self._bisect()
        self._defend(defences)
        if self.options.grid == "flower":
            self._repeat_with_flower()
        return out

    def _estimate(self) -> str:
        """Say how long the planned cells take, if they take as long as the fastest clean one."""
        fastest = min(f.run.seconds for f in self.out.of(CLEAN_RUN))
        seconds = (self._planned - self._done) * fastest / self.cells.workers
        return f"{ABOUT} {seconds:.0f} s for {self._planned - self._done} cells"

    def only(self, cell: Cell) -> Outcome:
        """Run the clean cells and one more."""
        if self._clean():
            self._attacked(DEFENCE if cell.defence != CLEAN else ATTACK, [cell])
        return self.out

    def _clean(self) -> bool:
        """Run without attackers, classify, choose the number; False where that is the end."""
        out, options = self.out, self.options
        seeds = min(options.seeds, 2) if options.quick else options.seeds
        self._planned = seeds
        self._say(0, seeds, CLEAN_RUN)
        self.cells.limit = options.limit or FIRST_LIMIT
        first = self._run([Cell()])[0]
        out.kind = classify(first)
        out.notes += out.kind.notes
        out.not_tried += out.kind.not_tried
        if out.kind.stop:
            out.stop = out.kind.stop
            return False
        least = QUICK_LEAST if options.quick else LEAST
        self.cells.limit = options.limit or max(least, TIMES * first.seconds)
        names = self.options.defences or (QUICK_DEFENCES if options.quick else DEFENCES)
        rules = [r for name in names if (r := self._with_f(name)) is not None]
        self.cells.warm(first.facts.get("modules", ()), rules)
        clean = self._run([Cell(seed=seed) for seed in range(1, seeds + 1)])
        return self._chosen(clean)

    def _chosen(self, clean: list[Run]) -> bool:
        out = self.out
        metric, unknown = choose(clean, self.options.metric)
        arrays = [self.cells.arrays.get(run.cell, {}) for run in clean]
        if unknown:
            out.notes.append(
                f"of {', '.join(unknown[:6])} nobody knows whether more is better: name one with "
                f"--metric {unknown[0]}:max or :min to judge by it"
            )
        if metric.source == DISTANCE and len(clean) < 2:
            out.stop = "without a metric a second clean seed is needed: --seeds 2"
            return False
        out.judge = Judge(metric, clean, arrays, self.options.tolerance)
        self._judge(CLEAN_RUN, clean)
        odd = next((f for f in out.of(CLEAN_RUN) if f.outcome != HOLDS), None)
        if odd is not None and metric.source != DISTANCE:
            out.stop = f"the clean run with seed {odd.run.cell.seed}: {odd.outcome} {odd.reason}"
        elif out.judge.learned() is False:
            baseline = out.judge.baseline
            out.stop = (
                f"nothing to break: {metric.name} is {baseline.before:.4g} before training and "
                f"{baseline.mean:.4g} after it; let the app train more rounds"
            )
        return not out.stop

    def _asked(
        self, table: Iterable[str], quick: Sequence[str], full: Sequence[str] | None = None
    ) -> list[str]:
        """Return the attacks of one table to try, in text."""
        known = set(table)
        if self.options.attacks is not None:
            texts = [a if isinstance(a, str) else attack_text(a) for a in self.options.attacks]
            chosen = [text for text in texts if text.partition(":")[0] in known]
            # A name of both tables is a crafted update: broken replies have names of their own.
            return [t for t in chosen if table is not BROKEN or t.partition(":")[0] not in ATTACKS]
        names = quick if self.options.quick else (full or tuple(table))
        left = [name for name in (full or tuple(table)) if name not in names]
        self.out.not_tried += [(name, "--quick") for name in left if self._exists(name)]
        return [name for name in names if self._exists(name)]

    @staticmethod
    def _exists(name: str) -> bool:
        return name.partition(":")[0] in {**ATTACKS, **BROKEN}

    def _defences(self) -> list[str]:
        """Return the defences that the number of nodes allows, with f written out."""
        usable = []
        names = self.options.defences
        for name in names if names is not None else DEFENCES:
            text = self._with_f(name)
            if names is None and self.options.quick and name not in QUICK_DEFENCES:
                self.out.not_tried.append((f"defence {text or name}", "--quick"))
                continue
            if text is None:
                rule = name if isinstance(name, str) else rule_name(name)
                why = f"{self.application.nodes} nodes are too few for it with f={self.f}"
                self.out.not_tried.append((f"defence {rule}", why))
                continue
            usable.append(text)
        return usable

    def _with_f(self, defence: Any) -> str | None:
        """Write a defence with the audit's f, where it takes one; None if nodes are too few."""
        text = defence if isinstance(defence, str) else rule_name(*read_rule(defence))
        try:
            rule, pre = read_rule(text)
            aggregation.build(rule, pre=pre)  # type: ignore[arg-type]  # text is no function
        except ValueError:
            rule, pre = read_rule(f"{text}{',' if ':' in text else ':'}f={self.f}")
        try:
            aggregation.check(rule, n=self.application.nodes, pre=pre)  # type: ignore[arg-type]
        except ValueError:
            return None
        return rule_name(rule, pre)

    def _attacked(self, phase: str, cells: list[Cell]) -> list[Finding]:
        return self._judge(phase, self._run(cells))

    def _bisect(self) -> None:
        """Find the least f that breaks, of each attack that breaks with the most."""
        for finding in self.out.of(ATTACK):
            if not finding.broke:
                continue
            # It breaks at ``high``; that fewer attackers do no more harm is taken for granted.
            attack, low, high = finding.run.cell.attack, 1, self.f
            while low < high:
                middle = (low + high) // 2
                (tried,) = self._attacked(FROM, [Cell(attack=attack, k=middle)])
                low, high = (low, middle) if tried.broke else (middle + 1, high)
            self.out.starts[attack] = high

    def _defend(self, defences: list[str]) -> None:
        """Run each defence without an attack, then against everything that broke the app."""
        broke = [f.run.cell for f in self.out.of(BROKEN_REPLY, ATTACK) if f.broke]
        assert self.out.kind is not None
        seam = self.out.kind.seam
        if defences and seam == WRAPPER:
            seam = self._seam(defences[0])
        for name in defences:
            quiet = Cell(defence=name, seam=seam)
            cells = [Cell(attack=c.attack, k=c.k, defence=name, seam=seam) for c in broke]
            findings = self._attacked(DEFENCE, [quiet, *cells])
            self.out.defences.append(self._summed(name, seam, findings))

    def _seam(self, defence: str) -> str:
        """Return where defences sit: the grid, if the strategy cannot be wrapped."""
        run = self._run([Cell(defence=defence, seam=WRAPPER)])[0]
        if run.status == "finished" and run.facts.get("defended"):
            return WRAPPER
        why = run.error or "the strategy is not started by its start"
        self.out.notes.append(f"Robust cannot be put around the strategy ({why}): RobustGrid is")
        return GRID

    def _summed(self, name: str, seam: str, findings: list[Finding]) -> Defence:
        quiet, *attacked = findings
        # The first clean run also imports what the app needs: the fastest one is the measure.
        clean = min(finding.run.seconds for finding in self.out.of(CLEAN_RUN)) or 1e-9
        results = [finding for finding in attacked if finding.outcome != NO_RESULT]
        saved = sum(finding.outcome == HOLDS for finding in results)
        why = "" if quiet.outcome == HOLDS else f"without an attack: {quiet.outcome} {quiet.reason}"
        refused = quiet.run.facts.get("refused_honest", "")
        if refused:
            why = why or f"it refuses honest replies: {refused}"
        slower = quiet.run.seconds / clean
        return Defence(name, seam, saved, len(results), quiet.fall, slower, why)

    def _repeat_with_flower(self) -> None:
        """Run the clean and the worst cell through Flower's own engine."""
        falls = [f for f in self.out.of(ATTACK, BROKEN_REPLY) if f.broke]
        # A run that ended has no fall: it is worse than any.
        worst = max(falls, key=lambda f: f.fall if f.fall is not None else math.inf, default=None)
        cells = [Cell(engine="flower")]
        if worst is not None:
            held = worst.run.cell
            cells.append(Cell(attack=held.attack, k=held.k, engine="flower"))
        self.cells.limit = self.options.limit or max(self.cells.limit, FIRST_LIMIT)  # Ray is slow
        for cell in cells:  # one engine at a time
            self._attacked(REPEAT, [cell])

    def _run(self, cells: list[Cell]) -> list[Run]:
        def count(run: Run) -> None:
            self._done += 1
            self._planned = max(self._planned, self._done)
            self._say(self._done, self._planned, run.cell.label)

        ran = self.cells.run(cells, count)
        return [ran[cell] for cell in cells]

    def _judge(self, phase: str, runs: list[Run]) -> list[Finding]:
        assert self.out.judge is not None
        arrays = self.cells.arrays
        found = [judge(run, self.out.judge, arrays.get(run.cell, {})) for run in runs]
        self.out.findings += [(phase, finding) for finding in found]
        return found
