"""python -m tests.fuzz: see tests/fuzz/__init__.py."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice, takewhile
from pathlib import Path

from tests.fuzz.cases import Identity, Verdict
from tests.fuzz.kinds import Kind, all_kinds

_MOST_SHOWN = 20  # breaches
_REPORT_S = 30.0


@dataclass
class Figures:
    """Of a run, by kind."""

    cases: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    cpu_s: Counter[str] = field(default_factory=Counter)
    most_s: Counter[str] = field(default_factory=Counter)
    most_bytes: Counter[str] = field(default_factory=Counter)
    breaches: list[tuple[Identity, str]] = field(default_factory=list)

    def add(self, case: Identity, verdict: Verdict) -> None:
        self.cases[case.kind] += 1
        self.refused[case.kind] += bool(verdict.answer)
        self.cpu_s[case.kind] += verdict.cpu_s  # type: ignore[assignment]
        self.most_s[case.kind] = max(self.most_s[case.kind], verdict.cpu_s)  # type: ignore[assignment]
        self.most_bytes[case.kind] = max(self.most_bytes[case.kind], verdict.peak_bytes)
        if verdict.breach:
            self.breaches.append((case, verdict.breach))

    def table(self) -> str:
        lines = [f"{'kind':12} {'cases':>7} {'refused':>8} {'ms each':>8} {'longest':>8} {'memory':>8}"]
        for kind, cases in sorted(self.cases.items()):
            each = 1e3 * self.cpu_s[kind] / cases
            lines.append(f"{kind:12} {cases:7} {self.refused[kind]:8} {each:8.1f} {self.most_s[kind]:6.2f} s "
                         f"{self.most_bytes[kind] / 1e6:5.0f} MB")  # fmt: skip
        return "\n".join(lines)


def options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--cases", type=int, help="stop after so many (1000, unless --minutes is given)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", action="append", default=[], metavar="KIND", help="of these kinds (again for another)"
    )
    parser.add_argument("--number", type=int, help="this case of --only KIND, and no other")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where the run works; cases that fail stay in its folder 'failed'")
    return parser.parse_args(words)


def cases_of(kinds: Sequence[Kind], seed: int) -> Iterator[Identity]:
    """Without end, every kind by its share, well mixed."""
    numbers: Counter[str] = Counter()
    for _ in count():
        for turn in range(max(kind.share for kind in kinds)):
            for kind in kinds:
                if turn < kind.share:
                    yield Identity(kind.name, seed, numbers[kind.name])
                    numbers[kind.name] += 1


def main(words: Sequence[str]) -> int:
    """0 where no rule was broken, else 1."""
    given = options(words)
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", RUST_BACKTRACE="0")
    sys.dont_write_bytecode = True
    root = (given.folder or Path(tempfile.mkdtemp(prefix="llm-build-fuzz-"))).absolute()
    if (root / "samples").exists():
        shutil.rmtree(root)
    os.environ["LLM_BUILD_KEYS"] = str(root / "keys")
    kinds = all_kinds()
    if unknown := set(given.only) - kinds.keys():
        print(f"no such kind: {', '.join(unknown)}; allowed: {', '.join(kinds)}", file=sys.stderr)
        return 2
    chosen = [kinds[name] for name in given.only or kinds]
    figures = run(kinds, chosen, root, given)
    print(figures.table())
    return report(figures, root, keep=given.folder is not None)


def run(kinds: dict[str, Kind], chosen: list[Kind], root: Path, given: argparse.Namespace) -> Figures:
    from tests.fuzz import samples
    from tests.fuzz.workers import Pool

    if os.fork() == 0:  # what makes them starts threads, and nothing with threads may be forked
        samples.make(root / "samples")
        os._exit(0)
    if os.wait()[1]:
        raise RuntimeError("the samples were not made")
    start = time.monotonic()
    end = start + 60 * given.minutes if given.minutes else float("inf")
    most = given.cases or (None if given.minutes else 1000)
    cases: Iterator[Identity] = islice(cases_of(chosen, given.seed), most)
    if given.number is not None:
        cases = iter([Identity(chosen[0].name, given.seed, given.number)])
    cases = takewhile(lambda _: time.monotonic() < end, cases)
    figures, said = Figures(), start
    pool = Pool(kinds, root, given.jobs)
    try:
        for case, verdict in pool.run(cases):
            figures.add(case, verdict)
            if verdict.breach or time.monotonic() - said > _REPORT_S:
                said = time.monotonic()
                done = sum(figures.cases.values())
                print(f"{done} cases in {said - start:.0f} s, {len(figures.breaches)} broke a rule", flush=True)
            if verdict.breach and len(figures.breaches) <= _MOST_SHOWN:
                print(f"{case}\n{verdict.breach}\n", flush=True)
    finally:
        pool.stop()
    seconds = time.monotonic() - start
    total = sum(figures.cases.values())
    print(f"{total} cases in {seconds:.0f} s ({total / seconds:.0f} a second), {len(figures.breaches)} broke a rule")
    return figures


def report(figures: Figures, root: Path, keep: bool) -> int:
    if not figures.breaches:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
        return 0
    print(f"cases that broke a rule lie in {root / 'failed'}; each again with:")
    for case, breach in figures.breaches[:_MOST_SHOWN]:
        lines = breach.strip().splitlines()
        print(f"  python -m tests.fuzz {case}   {lines[-1 if breach.startswith('Traceback') else 0][:120]}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
