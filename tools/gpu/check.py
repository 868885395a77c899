"""Run on a GPU what tools.gpu.prepare built, on this machine or another: ``python -m tools.gpu.check FOLDER``.

Needs TVM's runtime, CUDA's runtime library, numpy and tokenizers; no compiler, no torch. Each cell goes through verify:
all paths of the runtime against transformers in float32, within the scheme's limits. Then 64 greedy tokens are held
against those of the CPU's library of the same weights. FOLDER/results.json gets what was found.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llm_build.core.errors import BuildError
from llm_build.core.step_io import File
from llm_build.runtime.engine import Engine
from llm_build.runtime.generate import generate
from llm_build.steps import verify
from tools.gpu import sampling
from tools.gpu.cells import GREEDY_TOKENS, PROMPT, TIE
from tools.gpu.speech import greedy


class Facts:
    """Takes what a step reports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.facts = folder, dict[str, Any]()

    def path(self, name: str) -> Path:
        return self.folder / name

    def fact(self, name: str, value: Any) -> None:
        self.facts[name] = value

    def progress(self, *_: Any) -> None: ...

    def warn(self, text: str) -> None:
        raise AssertionError(text)


def check(cell: Path) -> dict[str, Any]:
    """What one cell does here; raises where it does it wrong."""
    engine, found = compared(cell, "kind", "cuda")
    text = "".join(generate(engine, cell / "artifact" / "tokenizer.json", PROMPT, GREEDY_TOKENS, 0.0, 1.0, 0))
    if engine.metadata["tensor_parallel_shards"] == 1:
        sampling.check(engine)
    return {**found, "text": text, "tokens_per_second": round(speed(engine))}


def compared(cell: Path, key: str, value: str) -> tuple[Engine, dict[str, Any]]:
    """The engine of a cell and what verify and its greedy tokens say; raises where they are wrong, or where the library
    is not for the target whose ``key`` has this value."""
    params = json.loads((cell / "verify.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        out = Facts(Path(name))
        verify.run(params, {port: files(cell / part) for port, part in PORTS.items()}, out)  # type: ignore[arg-type]
    engine = Engine.from_folder(cell / "artifact")
    assert engine.metadata["target"][key] == value
    expected = json.loads((cell / "cpu.json").read_text())
    ids, _ = greedy(engine, expected["prompt"], GREEDY_TOKENS)
    found = {**out.facts, **difference(ids, expected)}
    assert found["same"] == GREEDY_TOKENS or found["margin"] < TIE[engine.metadata.get("arithmetic", "float32")], found
    return engine, found


PORTS = {"package": "artifact", "reference": "reference", "dequantized": "dequantized"}


def files(folder: Path) -> dict[str, File]:
    return {path.name: File(path, "", path.stat().st_size) for path in folder.iterdir()}


def difference(ids: list[int], expected: dict[str, Any]) -> dict[str, Any]:
    """How many tokens are the same from the start, and how close the decision was where they part."""
    pairs = enumerate(zip(ids, expected["ids"], strict=True))
    first = next((place for place, (here, there) in pairs if here != there), len(ids))
    return {"same": first, "margin": expected["margins"][first] if first < len(ids) else None}


def speed(engine: Engine) -> float:
    """Tokens per second of decode, from Python."""
    sequence = engine.add_sequence()
    engine.prefill(sequence, [5, 6, 7])
    for token in range(8):
        engine.decode(sequence, token)
    started = time.perf_counter()
    for token in range(64):
        engine.decode(sequence, token)
    engine.remove_sequence(sequence)
    return 64 / (time.perf_counter() - started)


def device() -> str:
    said = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return said.stdout.strip()


def markdown(cells: dict[str, Any]) -> str:
    """The table of docs/guides/cuda.md."""
    lines = [
        "| family, scheme | from transformers, stored weights | from transformers, original | KL "
        "| greedy tokens as on the CPU |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in sorted(cells.items()):
        said = "failed" if "failed" in found else f"{found['same']} of {GREEDY_TOKENS}"
        errors = ["" if key not in found else f"{found[key]:.1e}" for key in ("exact_error", "max_error", "kl")]
        lines.append(f"| {name.replace('-', ' ')} | {' | '.join(errors)} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    folder = Path(sys.argv[1])
    cells: dict[str, Any] = {}
    for cell in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            cells[cell.name] = check(cell)
        except (AssertionError, BuildError) as error:
            cells[cell.name] = {"failed": str(error)}
        print(cell.name, json.dumps(cells[cell.name]), flush=True)
    (folder / "results.json").write_text(json.dumps({"device": device(), "cells": cells}, indent=1) + "\n")
    print(markdown(cells))
    return 1 if any("failed" in found for found in cells.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
