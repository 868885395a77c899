"""Build, on any machine, what tools.gpu.check runs on one with a GPU: libraries, weights, and what they must compute.

    python -m tools.gpu.prepare FOLDER [--cells llama-q4f16_1,...] [--target cuda] [--tokens 256]

Each cell becomes FOLDER/<cell>/: artifact/ (built for the GPU), reference/ and dequantized/ (logits of transformers in
float32), verify.json (verify's parameters), cpu.json (what the CPU's library of the same weights says).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from llm_build.app.merge import request_of
from llm_build.app.request import BuildRequest
from llm_build.cli.arguments import parse
from llm_build.core.examine import examine
from llm_build.runtime.engine import Engine
from llm_build.runtime.generate import generate
from tests.conftest import Shell
from tests.matrix.checkpoints import make
from tools.gpu.cells import CELLS, GREEDY_TOKENS, PROMPT
from tools.gpu.speech import greedy


def prepare(folder: Path, cells: list[str], target: str, tokens: int, gpus: int = 1) -> None:
    """Needs everything that a build needs, and no GPU."""
    work = Path(tempfile.gettempdir()) / "llm-build-gpu"
    work.mkdir(exist_ok=True)
    shell = Shell(work, Path(os.environ.get("LLM_BUILD_STORE", work / "store")))
    os.environ["LLM_BUILD_STORE"] = str(shell.store)
    for cell in cells:
        family, scheme = cell.split("-")
        model = ["model=demo"] if family == "llama" else ["model=auto", f"model.source={checkpoint(work, family)}"]
        words = [*model, f"quant={scheme}", f"verify.tokens={tokens}", "verify.window=128", f"name={cell}"]
        for kind in ("cpu", target):
            several = [f"target.gpus={gpus}"] if gpus > 1 and kind == target else []
            shell.run("build", *words, *several, f"target={kind}", f"dist.path={work / kind}")
        into = folder / cell
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(work / target / cell, into / "artifact")
        keep_references(request_of(parse([*words, "target=cpu", f"dist.path={work / 'cpu'}"]).build), into)
        (into / "cpu.json").write_text(json.dumps(said(Engine.from_folder(work / "cpu" / cell), work / "cpu" / cell)))
        print(cell, "built", flush=True)


def checkpoint(work: Path, family: str) -> Path:
    folder = work / "checkpoints" / family
    return folder if (folder / "config.json").exists() else make(family, folder)


def keep_references(request: BuildRequest, into: Path) -> None:
    """The logits that the CPU's verify compared with, and its parameters."""
    found = {verdict.step.name: verdict for verdict in examine(request.plan, request.store).values()}
    for name in ("reference", "dequantized"):
        record = found[f"verify.{name}"].record
        assert record is not None
        for output, stored in record.outputs.items():
            (into / name).mkdir(exist_ok=True)
            shutil.copy(request.store.path(stored.digest), into / name / output)
    (into / "verify.json").write_text(json.dumps(dict(found["verify"].step.params)))


def said(engine: Engine, folder: Path) -> dict[str, Any]:
    """Greedy text of the CPU's library: ids, the distance of each from the second best, and the text."""
    ids, margins = greedy(engine, prompt_ids(folder), GREEDY_TOKENS)
    text = "".join(generate(engine, folder / "tokenizer.json", PROMPT, GREEDY_TOKENS, 0.0, 1.0, 0))
    return {"prompt": prompt_ids(folder), "ids": ids, "margins": margins, "text": text}


def prompt_ids(folder: Path) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(PROMPT).ids)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--cells", default=",".join(CELLS))
    options.add_argument("--target", default="cuda")
    options.add_argument("--tokens", type=int, default=256)
    options.add_argument("--gpus", type=int, default=1)
    given = options.parse_args()
    prepare(given.folder.absolute(), given.cells.split(","), given.target, given.tokens, given.gpus)


if __name__ == "__main__":
    main()
