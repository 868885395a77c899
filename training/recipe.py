"""The demo model's whole training: TEACHERS, then STUDENTS of the best of them; the best student is the demo model.

    python training/recipe.py TEXT_FOLDER WORK_FOLDER OUT_FOLDER

Best means the lowest validation loss. Each line of the two tables is the command line of one run of train.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TEACHERS = (
    "seed=5 epochs=16 hidden=512 layers=6 dropout=0.2 weight_decay=2 lr=2e-3",
    "seed=6 epochs=20 hidden=512 layers=6 dropout=0.25 weight_decay=3 lr=2e-3",
    "seed=7 epochs=20 hidden=512 dropout=0.2 weight_decay=1.5 lr=3e-3",
    "seed=8 epochs=22 batch=8 dropout=0.2 weight_decay=1 lr=3e-3",
    "seed=1 epochs=20 dropout=0.2 weight_decay=1 lr=4e-3",
    "seed=2 epochs=20 dropout=0.15 weight_decay=2 lr=4e-3",
    "seed=3 epochs=30 dropout=0.2 weight_decay=2 lr=4e-3",
    "seed=4 epochs=25 dropout=0.2 weight_decay=2 lr=6e-3",
)
TEACHERS_KEPT = 4
STUDENTS = (
    "seed=11 epochs=40 dropout=0.05 weight_decay=0.5 lr=4e-3 distill=0.9",
    "seed=12 epochs=50 dropout=0.0 weight_decay=0.5 lr=4e-3 distill=1.0",
    "seed=13 epochs=40 dropout=0.1 weight_decay=1 lr=4e-3 distill=0.8",
    "seed=14 epochs=40 dropout=0.1 weight_decay=0.5 lr=4e-3 distill=1.0",
)
AT_ONCE = 8


def train_one(texts: Path, out: Path, words: str) -> float:
    """The validation loss of one run; a run that fails counts as infinitely bad."""
    command = [sys.executable, str(Path(__file__).with_name("train.py")), str(texts), str(out), *words.split()]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(f"{out.name} failed: {words}\n{done.stdout[-1500:]}", flush=True)
        return float("inf")
    record = json.loads((out / "result.json").read_text())
    losses = " ".join(f"{value:.3f}" for _, _, value in record["history"])
    print(f"{record['validation_loss']:.4f} {out.name} | {words} | {record['seconds']} s | {losses}", flush=True)
    return float(record["validation_loss"])


def train_all(texts: Path, work: Path, name: str, runs: list[str]) -> list[Path]:
    """The folders of the runs, best first."""
    folders = [work / f"{name}-{i}" for i in range(len(runs))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        losses = list(pool.map(lambda pair: train_one(texts, *pair), zip(folders, runs, strict=True)))
    return [folder for _, folder in sorted(zip(losses, folders, strict=True))]


def main(texts: Path, work: Path, out: Path) -> None:
    """Train everything and copy the best student to `out`."""
    teachers = train_all(texts, work, "teacher", list(TEACHERS))[:TEACHERS_KEPT]
    names = ",".join(str(folder) for folder in teachers)
    best = train_all(texts, work, "student", [f"{words} teachers={names}" for words in STUDENTS])[0]
    print(f"best: {best.name}")
    shutil.copytree(best, out, dirs_exist_ok=True)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} TEXT_FOLDER WORK_FOLDER OUT_FOLDER")
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
