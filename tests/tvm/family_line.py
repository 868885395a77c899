"""A tiny random transformers model of any family, saved as transformers saves it, and an artifact built from those
files; and the ways through the artifact's engine, each compared with transformers in float32."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from llm_build import architectures
from llm_build.architectures.weights import WeightMap, to_source
from llm_build.quant import layout, reference
from llm_build.quant.layout import Scheme
from llm_build.runtime.engine import Engine
from llm_build.steps import lower
from tests.tvm import tiny

METADATA = {**tiny.METADATA, "context_window_size": 160}
TOKENS = 128


@dataclass(frozen=True)
class Built:
    """A transformers model (with the weights that the artifact stands for), its config.json, and the artifact.
    ``view``: (window, sinks) that the model is to look through, if not its own."""

    model: Any
    config_json: dict[str, Any]
    folder: Path
    view: tuple[int, int] | None = None

    def engine(self) -> Engine:
        return Engine.from_folder(self.folder)

    def expected(self, tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            mask = None if self.view is None else visible(len(tokens), *self.view)
            return self.model(torch.tensor([tokens]), attention_mask=mask, use_cache=False).logits[0].numpy()


def visible(length: int, window: int, sinks: int) -> torch.Tensor:
    """What is added to the scores: 0 for the first ``sinks`` tokens and the last window - sinks, else -infinity."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    seen = (key <= query) & ((key < sinks) | (key > query - (window - sinks)))
    return torch.where(seen, 0.0, -torch.inf)[None, None]


def save(
    folder: Path, family: str, fields: Mapping[str, Any], seed: int = 0, change: Callable[[Any], None] | None = None
) -> Any:
    """A model in float32 whose weights are large enough that logits differ from token to token. ``change`` may give it
    others."""
    config = transformers.CONFIG_MAPPING[family](**fields, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    centre = 0.0 if family.startswith("gemma") else 1.0  # of a norm's weights
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if name.endswith("norm.weight"):
                parameter.copy_(centre + 0.2 * noise)
            else:
                parameter.copy_(noise * (0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5))
        if change:
            change(model)
    model.save_pretrained(folder)
    return model


def build(
    folder: Path,
    family: str,
    fields: Mapping[str, Any],
    scheme: Scheme = tiny.SCHEMES["q0f32"],
    metadata: Mapping[str, Any] | None = None,
    change: Callable[[Any], None] | None = None,
) -> Built:
    """Save the model, read it as the product does, and write the artifact; the model gets the dequantized weights."""
    model = save(folder / "checkpoint", family, fields, change=change)
    config_json = json.loads((folder / "checkpoint" / "config.json").read_text())
    tensors = load_file(folder / "checkpoint" / "model.safetensors")
    module = architectures.load(architectures.recognise(config_json))
    config = module.from_hf(config_json)
    shapes = {name: {"dtype": "F32", "shape": list(array.shape)} for name, array in tensors.items()}
    weight_map = module.weight_map(config, {"tensors": shapes})
    pieces, arrays = store(module.parameters(config), weight_map, tensors, scheme)
    write_shard(folder, pieces)
    target_params = tiny.lower_params({}, scheme)
    given = {**METADATA, **(metadata or {})}
    params = {**target_params, "family": config_json["model_type"], "architecture": asdict(config), "metadata": given}
    lower.run(params, {}, tiny.FolderOut(folder))
    reload(model, folder / "checkpoint", to_source(weight_map.entries, arrays))
    return Built(model, config_json, folder)


def store(
    parameters: Any, weight_map: WeightMap, tensors: Mapping[str, np.ndarray], scheme: Scheme
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The artifact's tensors, and the parameters as they stand for them."""
    pieces: dict[str, np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    for parameter, entry in zip(parameters, weight_map.entries, strict=True):
        parts = [
            tensors[source.tensor][source.start : source.stop].reshape(-1, *parameter.shape[1:])
            for source in entry.sources
        ]
        array = np.concatenate(parts)
        assert array.shape == parameter.shape
        kept = layout.stored_tensors(parameter, scheme)
        if len(kept) == 1:
            pieces[kept[0].name] = array.astype(scheme.dtype)
            arrays[parameter.name] = pieces[kept[0].name].astype(np.float32)
            continue
        values = reference.quantize(array, scheme)
        pieces |= {piece.name: value for piece, value in zip(kept, values, strict=True)}
        arrays[parameter.name] = reference.dequantize(*values, parameter.shape[1], scheme)
    return pieces, arrays


def write_shard(folder: Path, pieces: Mapping[str, np.ndarray]) -> None:
    records, offset = [], 0
    with (folder / "params_shard_0.bin").open("wb") as file:
        for name, array in pieces.items():
            file.write(np.ascontiguousarray(array).tobytes())
            records.append(
                {"name": name, "shape": list(array.shape), "dtype": str(array.dtype), "format": "raw"}
                | {"nbytes": array.nbytes, "byteOffset": offset}
            )
            offset += array.nbytes
    shard = {"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": offset, "records": records}
    (folder / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": [shard]}))


def reload(model: Any, checkpoint: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Put checkpoint tensors into the model, through transformers' own loading."""
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=state, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())


def paths(built: Built, vocab: int, length: int = TOKENS) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(way, logits found, logits expected): one shot, chunks, pieces, decode, and two sequences together."""
    one, two = (np.random.default_rng(seed).integers(0, vocab, length).tolist() for seed in (1, 2))
    expected, other = built.expected(one), built.expected(two)
    engine = built.engine()
    sequence = engine.add_sequence()
    yield "one shot", engine.logits(sequence, one[: engine.chunk]), expected[: engine.chunk]
    yield "chunked", engine.logits(sequence, one[engine.chunk :]), expected[engine.chunk :]
    engine.remove_sequence(sequence)
    sequence, start, pieces = engine.add_sequence(), 0, (5, 1, 23, 16, 2, 40)
    while start < length:
        stop = min(start + pieces[start % len(pieces)], length)
        yield "prefill", engine.prefill(sequence, one[start:stop]), expected[stop - 1]
        start = stop
    engine.remove_sequence(sequence)
    sequence = engine.add_sequence()
    first = engine.prefill(sequence, one[:3])
    rest = [engine.decode(sequence, token) for token in one[3:]]
    yield "decode", np.stack([first, *rest]), expected[2:]
    engine.remove_sequence(sequence)
    a, b = engine.add_sequence(), engine.add_sequence()
    engine.prefill(a, one[:7])
    engine.prefill(b, two[:45])
    for step in range(40):
        found = engine.decode_batch([b, a], [two[45 + step], one[7 + step]])
        yield "interleaved", found, np.stack([other[45 + step], expected[7 + step]])
    yield "interleaved", engine.logits(a, one[47:]), expected[47:]


def errors(built: Built, vocab: int, length: int = TOKENS) -> dict[str, float]:
    """The largest difference of each way, in units of the reference's spread."""
    found: dict[str, float] = {}
    for way, logits, expected in paths(built, vocab, length):
        assert logits.shape == expected.shape
        assert np.isfinite(logits).all()
        spread = built.expected(np.random.default_rng(1).integers(0, vocab, length).tolist()).std() if not found else 0
        found.setdefault("spread", float(spread))
        found[way] = max(found.get(way, 0.0), float(np.abs(logits - expected).max()) / found["spread"])
    return {way: error for way, error in found.items() if way != "spread"}
