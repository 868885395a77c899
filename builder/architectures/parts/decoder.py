"""A decoder: what its layers are made of, in which order, and what comes before and after them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_build.architectures import cuts, table
from llm_build.architectures.folds import Fold
from llm_build.architectures.parts.attention import Attention
from llm_build.architectures.parts.norms import Norm
from llm_build.architectures.parts.rotary import Rotary
from llm_build.architectures.table import Row

SCALED = "llm_build.ops.gemma:scaled"
SOFT_CAP = "llm_build.ops.gemma:soft_cap"
_OLD_ANGLES = ("model.rotary_emb.inv_freq", "model.layers.{layer}.self_attn.rotary_emb.inv_freq")  # transformers < 4.32


class Part(Protocol):
    """A module of a layer."""

    @property
    def graph(self) -> str: ...

    def operations(self) -> tuple[str, ...]: ...

    def rows(self, name: str, fold: Fold | None) -> Iterator[Row]: ...


@dataclass(frozen=True, slots=True)
class Residual:
    """x + after(block(before(x))); the names of modules, "" where there is no norm."""

    block: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """``modules`` by name, in the artifact's order. ``residuals``: what is computed; each reads what the one before it
    gives, or all of them read the layer's input (``parallel``)."""

    modules: Mapping[str, Part]
    residuals: Sequence[Residual]
    parallel: bool = False

    @property
    def attention(self) -> Attention:
        (attention,) = (module for module in self.modules.values() if isinstance(module, Attention))
        return attention


def pre_norm(norm: Norm, attention: Attention, mlp: Part, mlp_name: str = "mlp") -> Layer:
    """Norms before attention and MLP, as in Llama."""
    return Layer(
        {"input_layernorm": norm, "self_attn": attention, "post_attention_layernorm": norm, mlp_name: mlp},
        (Residual("self_attn", before="input_layernorm"), Residual(mlp_name, before="post_attention_layernorm")),
    )


def sandwich_norm(norm: Norm, attention: Attention, mlp: Part) -> Layer:
    """Norms before and after attention and MLP, as in Gemma 2."""
    return Layer(
        {
            "input_layernorm": norm,
            "self_attn": attention,
            "post_attention_layernorm": norm,
            "pre_feedforward_layernorm": norm,
            "mlp": mlp,
            "post_feedforward_layernorm": norm,
        },
        (
            Residual("self_attn", "input_layernorm", "post_attention_layernorm"),
            Residual("mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        ),
    )


@dataclass(frozen=True, slots=True)
class Decoder:
    """The whole model. ``rotary``: what the KV cache does to queries and keys (None: nothing). ``window`` (tokens): how
    far windowed layers see; with ``recipe_window`` the recipe says it (model.sliding_window_size), sinks included.
    ``score_cap``, ``logit_cap``: a value s becomes cap * tanh(s / cap). ``unused``: tensors that a checkpoint may hold
    and nobody reads, "{layer}" standing for each layer's number.
    """

    vocab: int
    hidden: int
    layers: Sequence[Layer]
    norm: Norm
    tied: bool
    rotary: Rotary | None = None
    window: int | None = None
    recipe_window: bool = False
    score_cap: float | None = None
    embedding_scale: float | None = None
    logit_cap: float | None = None
    unused: Sequence[str] = _OLD_ANGLES
    stem: str = "model"
    embedding_name: str = "embed_tokens"
    norm_name: str = "norm"
    head_name: str = "lm_head"

    @property
    def attention(self) -> Attention:
        """The first layer's; all layers have as many heads."""
        return self.layers[0].attention


def rows_of(decoder: Decoder) -> Iterator[Row]:
    """The table of parameters, in the artifact's order; matrices are (output, input)."""
    shape, stem = (decoder.vocab, decoder.hidden), decoder.stem
    yield table.matrix(f"{stem}.{decoder.embedding_name}.weight", shape, "embedding")
    for index, layer in enumerate(decoder.layers):
        yield from _layer_rows(f"{stem}.layers.{index}", layer)
    norm = f"{stem}.{decoder.norm_name}"
    yield from decoder.norm.rows(norm)
    if not decoder.tied:
        cut, fold = cuts.rows(cuts.vocabulary(decoder.vocab)), decoder.norm.fold(norm)
        yield table.matrix(f"{decoder.head_name}.weight", shape, "head", cut, fold)


def _layer_rows(name: str, layer: Layer) -> Iterator[Row]:
    """A block reads the norm before it; without one it reads a sum, into which nothing can be folded."""
    reads = {residual.block: residual.before for residual in layer.residuals}
    for module, part in layer.modules.items():
        norm = layer.modules.get(reads.get(module, ""))
        yield from part.rows(
            f"{name}.{module}", norm.fold(f"{name}.{reads[module]}") if isinstance(norm, Norm) else None
        )


def droppable(decoder: Decoder) -> Iterator[str]:
    """Tensors that a checkpoint may hold and the model does not need: unused ones, and those of ``copies``."""
    for name in decoder.unused:
        yield from dict.fromkeys(name.format(layer=index) for index in range(len(decoder.layers)))
    yield from copies(decoder)


def copies(decoder: Decoder) -> dict[str, str]:
    """{tensor: the tensor that it has to be a copy of to be left out}: a tied head, of the embedding."""
    head, embedding = f"{decoder.head_name}.weight", f"{decoder.stem}.{decoder.embedding_name}.weight"
    return {head: embedding} if decoder.tied else {}


def graph_modules(decoder: Decoder) -> tuple[str, ...]:
    """The modules that build the parts of the graph, beside llm_build.models.decoder: what a library's code is."""
    operations = {*decoder.norm.operations()}
    operations |= {SCALED} if decoder.embedding_scale is not None else set()
    operations |= {SOFT_CAP} if decoder.logit_cap is not None else set()
    for layer in decoder.layers:
        operations.update(*(part.operations() for part in layer.modules.values()))
    return tuple(sorted({name.partition(":")[0] for name in operations}))
