"""The reference: the model as transformers knows it, in float32 on the CPU, one module's weights in memory at a time.

transformers builds the module tree and ties names to parameters itself (``from_pretrained``), but from placeholders:
one float per tensor, expanded to its shape. A hook before each module's forward then puts that module's real weights
in place, in float32, and a hook after it takes them away. So the peak is the largest module in float32 plus what its
source takes, not the model: a float16 Llama 7B (13.5 GB) peaks at 1.2 GB and takes 2 minutes for 512 tokens on 2 cores.
Every window goes through in one batch, so that each weight is read and widened once.

Where transformers does more than rename (experts fused into one tensor), the whole model is loaded in float32 instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llm_build.core.errors import UserError
from llm_build.core.step_io import File, Json
from llm_build.verification import measure

Tensor: TypeAlias = torch.Tensor
Fetch = Callable[[str], Tensor]  # checkpoint tensor name -> its value, float32
_ROUNDING_TOKENS = 32
Tick = Callable[[int, int], None]  # (modules done, modules in all)

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read(file: File, dtype: str, shape: list[int]) -> torch.Tensor:
    """A tensor of the checkpoint in float32. Read, not mapped: mapped pages would count as memory used.

    Raises:
        UserError: the file ends early (it was changed while the build ran).
    """
    data = np.fromfile(file.path, dtype=np.uint8, count=file.nbytes, offset=file.offset)
    if data.nbytes != file.nbytes:
        raise UserError(f"{file.path} ends {file.nbytes - data.nbytes} bytes early", "was it changed during the build?")
    tensor: torch.Tensor = torch.from_numpy(data).view(DTYPES[dtype]).reshape(shape).to(torch.float32)
    return tensor


def as_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def load(config: Mapping[str, Json], shapes: Mapping[str, list[int]], fetch: Fetch, tick: Tick) -> Any:
    """A transformers model for ``config`` that takes its weights from ``fetch``, tensor by tensor, as it runs."""
    return load_named(config, shapes, fetch, tick)[0]


def load_named(
    config: Mapping[str, Json], shapes: Mapping[str, list[int]], fetch: Fetch, tick: Tick
) -> tuple[Any, dict[str, str]]:
    """The model of ``load``, and {parameter as transformers names it: checkpoint tensor}, without those that are
    made of several tensors: the model is loaded whole then.

    Args:
        config: config.json; that its weights are quantized is left out, as ``fetch`` gives what they stand for.
        shapes: {checkpoint tensor name: shape}.
        fetch: a tensor's value.
        tick: called after each module.

    Raises:
        UserError: transformers does not know the model, or the tensors are not the model's.
    """
    assert len(shapes) < 1 << 24, "placeholders number the tensors in float32"
    names = sorted(shapes)
    numbers = {name: torch.tensor(float(i)).expand(shapes[name]) for i, name in enumerate(names)}
    model = _instantiate(config, numbers)
    sources = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        source = _source(parameter, names, shapes)
        if source is not None:
            sources[name] = source
    if len(sources) < len(list(model.named_parameters(remove_duplicate=False))):
        del model, parameter  # it has the size of the one that is made now
        return _instantiate(config, {name: fetch(name) for name in names}), sources
    _stream(model, sources, fetch, tick)
    return model, sources


def _source(parameter: Any, names: list[str], shapes: Mapping[str, list[int]]) -> str | None:
    """The tensor whose placeholder this is (transformers may have copied it); None if it was made of several."""
    first = parameter[(0,) * parameter.ndim]
    if any(parameter.stride()) and not bool((parameter == first).all()):
        return None
    name = names[int(first)]
    return name if list(parameter.shape) == list(shapes[name]) else None


def _instantiate(config: Mapping[str, Json], tensors: dict[str, torch.Tensor]) -> Any:
    """The model of config.json over these tensors, every parameter filled."""
    kind = config.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"transformers {transformers.__version__} knows no causal model_type {kind!r}", "verify=off")
    name = (config.get("architectures") or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]])[0]
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise UserError(f"config.json: architectures names {name!r}, which is no causal language model", "verify=off")
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    read = _config_of(str(kind), config)
    try:
        model, loading_info = getattr(transformers, name).from_pretrained(
            None,
            config=read,
            state_dict=tensors,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are reported below, with the rest
        )
    except (
        TypeError,
        ValueError,
        AttributeError,
        KeyError,
        AssertionError,
    ) as error:  # of a field that only transformers reads
        raise _not_taken(error) from error
    for problem in ("missing_keys", "mismatched_keys"):
        if loading_info[problem]:
            shown = ", ".join(str(key) for key in sorted(loading_info[problem], key=str)[:5])
            raise UserError(f"transformers finds {problem.replace('_', ' ')} in the checkpoint: {shown}", "verify=off")
    return model.eval()


def _config_of(kind: str, config: Mapping[str, Json]) -> Any:
    """transformers' own reading of config.json. Raises UserError where it refuses a field."""
    try:
        return CONFIG_MAPPING[kind].from_dict({k: v for k, v in config.items() if k != "quantization_config"})
    except Exception as error:  # each version has types of its own
        raise _not_taken(error) from error


def _not_taken(error: Exception) -> UserError:
    why = " ".join(str(error).split())
    return UserError(
        f"config.json: transformers does not take it: {type(error).__name__}: {why[:300]}",
        "correct the field, or build with verify=off",
    )


def _stream(model: Any, sources: Mapping[str, str], fetch: Fetch, tick: Tick) -> None:
    """Hook every module that owns parameters: its weights are there while it runs, and NaN at any other time."""
    owners = [(name, module) for name, module in model.named_modules() if module._parameters]
    nothing = torch.full((1,), torch.nan)
    for done, (prefix, module) in enumerate(owners, 1):
        tensors = {
            name: sources[f"{prefix}.{name}" if prefix else name]
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        empty = {name: nothing.expand(module._parameters[name].shape) for name in tensors}
        _hook(module, tensors, empty, fetch, partial(tick, done, len(owners)))


def _hook(
    module: Any, tensors: dict[str, str], empty: dict[str, torch.Tensor], fetch: Fetch, finished: Callable[[], None]
) -> None:
    def before(*_: object) -> None:
        for name, source in tensors.items():
            module._parameters[name] = fetch(source)

    def after(*_: object) -> None:
        module._parameters.update(empty)
        finished()

    module._parameters.update(empty)
    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def logits(model: Any, tokens_NW: np.ndarray, threads: int) -> np.ndarray:
    """Logits of every position, float32 [N, W, V], all windows in one batch.

    Raises:
        UserError: they are not all finite.
    """
    torch.set_num_threads(max(1, threads))
    with torch.inference_mode():
        logits_NWV: np.ndarray = model(torch.from_numpy(tokens_NW).long(), use_cache=False).logits.float().numpy()
    if not np.isfinite(logits_NWV).all():
        n, w = np.argwhere(~np.isfinite(logits_NWV).all(axis=-1))[0]
        raise UserError(
            f"the reference logits hold NaN or infinity, first in window {n} at position {w}",
            "the checkpoint itself overflows, or holds NaN; build with verify=off to use it all the same",
        )
    return logits_NWV


def rounding(model: Any, tokens_NW: np.ndarray, logits_NWV: np.ndarray) -> dict[str, float]:
    """What float32 loses against float64 in this model: the largest ("max") and the root mean square ("rms") difference
    of a logit, in units of the spread, over the first tokens of the first window (the largest activations of a model
    are often those of its first token).

    Args:
        model: see ``load``; it computes in float64 from here on.
        tokens_NW: the tokens.
        logits_NWV: of ``logits``.
    """
    model.set_experts_implementation("eager")  # the grouped products of torch know no float64
    for module in model.modules():
        if module._parameters:
            _compute_in_float64(module)
    tokens_BW = torch.from_numpy(tokens_NW[:1, :_ROUNDING_TOKENS]).long()
    with torch.inference_mode():
        exact_BV = model(tokens_BW, use_cache=False).logits[0].double().numpy()
    errors = measure.errors(exact_BV, logits_NWV[0, : len(exact_BV)], measure.spread(exact_BV))
    return {"max": errors.max_error, "rms": errors.rms_error}


def _compute_in_float64(module: Any) -> None:
    """A module's weights are widened while it runs. Its hooks lie inside those of ``_hook``."""
    narrow: dict[str, Any] = {}

    def before(*_: object) -> None:
        narrow.update(module._parameters)
        wide = {name: p.detach().double() if p is not None else None for name, p in narrow.items()}
        module._parameters.update(wide)

    def after(*_: object) -> None:
        module._parameters.update(narrow)
        narrow.clear()

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, prepend=True)
