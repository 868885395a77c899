"""The steps of one recipe as far as verify needs them, one after another in this process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llm_build import architectures
from llm_build.config.schema import Quant
from llm_build.core.digest import digest_of_file
from llm_build.core.step_io import File
from llm_build.planner.schemes import schemes
from llm_build.steps import dequantized, lower, package, reference, verify
from llm_build.targets.cpu import resolve as resolve_cpu
from llm_build.verification.limits import COST, stated_limits
from tests.weights.weights_line import Built, FolderOut, run_weights

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "builder" / "demo"
HELDOUT = DEMO / "heldout.txt"
METADATA = {
    "context_window_size": 512, "sliding_window_size": -1, "prefill_chunk_size": 96, "attention_sink_size": 0,
    "max_batch_size": 2, "tensor_parallel_shards": 1,
}  # fmt: skip


def target() -> dict[str, Any]:
    cpu, features = resolve_cpu("host", None)
    return {"kind": "cpu", "triple": "x86_64-linux-gnu", "cpu": cpu, "features": list(features)}


def whole(path: Path) -> File:
    return File(path, digest_of_file(path), path.stat().st_size)


def sample(text: Path = HELDOUT, tokens: int = 128, window: int = 64) -> dict[str, Any]:
    """Params that both references share."""
    digest = "sha256:" + sha256(text.read_bytes()).hexdigest()
    return {
        "text": {"name": text.name, "digest": digest}, "tokens": tokens, "window": window, "logits_bytes": 1 << 27
    }  # fmt: skip


def scheme_of(name: str) -> dict[str, Any]:
    return schemes.scheme_of(Quant(**yaml.safe_load((ROOT / "conf" / "quant" / f"{name}.yaml").read_text())))


def architecture_of(checkpoint: Path) -> tuple[str, dict[str, Any]]:
    config = json.loads((checkpoint / "config.json").read_text())
    family = architectures.recognise(config)
    return family, asdict(architectures.load(family).from_hf(config))


@dataclass
class Line:
    """A checkpoint with its weights quantized."""

    folder: Path
    family: str
    architecture: dict[str, Any]
    scheme: dict[str, Any]
    built: Built

    def shards(self) -> dict[str, File]:
        return {
            f"{i}/{name}": file for i, item in enumerate(self.built.quantize) for name, file in item.outputs().items()
        }

    def reference_inputs(self) -> dict[str, Any]:
        fetched = self.built.fetch.outputs()
        tensors = {name: file for name, file in fetched.items() if name.startswith("tensor/")}
        names = {"layout": "layout.json", "config": "file/config.json", "tokenizer": "file/tokenizer.json"}
        return {"tensors": tensors, **{port: fetched[name] for port, name in names.items() if name in fetched}}

    def dequantized_inputs(self) -> dict[str, Any]:
        maps = self.built.convert.outputs()["weight_map.json"], self.built.shard.outputs()["parameters.json"]
        return self.reference_inputs() | {"shards": self.shards(), "weight_map": maps[0], "parameters": maps[1]}

    def library(self, name: str, **changes: Any) -> File:
        """Lower with an architecture that has ``changes``."""
        out = FolderOut(self.folder / name)
        architecture = {**self.architecture, **changes}
        params = {"family": self.family, "architecture": architecture, "scheme": self.scheme}
        lower.run({**params, "target": target(), "metadata": METADATA}, {}, out)
        return out.outputs()["library.so"]

    def package(self, library: File, name: str = "package") -> dict[str, File]:
        """The artifact's files."""
        out = FolderOut(self.folder / name)
        fetched = self.built.fetch.outputs("file/")
        params = {
            "name": "it", "library": "it.so", "family": self.family, "architecture": self.architecture,
            "scheme": self.scheme, "metadata": METADATA, "conv_template": None, "method": "rtn",
            "quantization": self.scheme["name"],
        }  # fmt: skip
        parameters = self.built.shard.outputs()["parameters.json"]
        ports = {"shards": self.shards(), "library": library, "files": fetched, "parameters": parameters}
        package.run(params, ports, out)
        return out.outputs()

    def references(self, **changes: Any) -> dict[str, dict[str, File]]:
        """Both references of the weights as they are now."""
        original, stored = self.out("reference"), self.out("dequantized")
        reference.run(sample(**changes), self.reference_inputs(), original)
        dequantized.run(
            {**sample(**changes), "scheme": self.scheme, "method": "rtn"}, self.dequantized_inputs(), stored
        )
        return {"reference": original.outputs(), "dequantized": stored.outputs()}

    def verify(self, files: dict[str, File], references: dict[str, dict[str, File]], name: str = "verify") -> FolderOut:
        """Verify an artifact with the shipped limits; StepError if it is red."""
        out = FolderOut(self.folder / name)
        table = yaml.safe_load((ROOT / "conf" / "verify" / "default.yaml").read_text())
        rounded = [table["exact_rounded"][activation] for activation in schemes.activations_of(self.scheme)]
        exact = {
            "exact_max": max([table["exact_max"], *(limits["max_error"] for limits in rounded)]),
            "exact_rms": max([table["exact_rms"], *(limits["rms_error"] for limits in rounded)]),
        }
        params = {
            "name": "it",
            "scheme": self.scheme["name"],
            "limits": stated_limits({name: table[name] for name in COST}, exact),
        }
        verify.run(params, {"package": files, **references}, out)
        return out

    def out(self, name: str, text: Path = HELDOUT) -> FolderOut:
        return FolderOut(self.folder / name, context={"text": str(text)})


def stored_array(made: Line, piece: str, files: dict[str, File]) -> np.ndarray:
    """A packed piece of the weight files, mapped for writing."""
    table = json.loads(made.built.shard.outputs()["parameters.json"].path.read_text())["parameters"]
    place = next(entry for entry in table if entry["name"] == piece)
    path = files[f"params_shard_{place['shard']}.bin"].path
    return np.memmap(path, place["dtype"], "r+", place["offset"], tuple(place["shape"]))


def line(checkpoint: Path, scheme_name: str, folder: Path) -> Line:
    """fetch, convert, shard, quantize."""
    family, architecture = architecture_of(checkpoint)
    scheme = scheme_of(scheme_name)
    built = run_weights(checkpoint, folder, architecture, scheme, family=family, max_shard_bytes=1 << 20)
    return Line(folder, family, architecture, scheme, built)
