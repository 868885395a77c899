"""What a model family says of itself, and what is read off that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from llm_build.architectures import config_json, table, weights
from llm_build.architectures.cuts import Cut
from llm_build.architectures.fields import check_config
from llm_build.architectures.folds import Fold
from llm_build.architectures.parts.decoder import Decoder, copies, droppable, graph_modules, rows_of
from llm_build.architectures.table import Row
from llm_build.architectures.weights import Parameter, WeightMap


@dataclass(frozen=True, slots=True)
class Family:
    """``Config`` is a frozen dataclass whose ``asdict`` is the recipe's architecture. ``read``: a checkpoint's
    config.json, in old or new transformers spelling, as the fields of a Config. ``describe``: the model's parts.
    ``free``: fields that a recipe may change, as the weights do not fix them. ``chat_config``: what this family alone
    has in the ``model_config`` block of mlc-chat-config.json.
    """

    name: str
    Config: type[Any]
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    describe: Callable[[Any], Decoder]
    free: tuple[str, ...]
    chat_config: Callable[[Any], Mapping[str, Any]] = lambda _: {}

    def from_hf(self, config: Mapping[str, Any]) -> Any:
        """A Config from config.json.

        Raises:
            UserError: a field is missing or of the wrong type, or changes the computation and is not implemented.
        """
        check_config(config, [field.name for field in fields(self.Config)])
        return self.from_architecture(self.read(config))

    def from_architecture(self, architecture: Mapping[str, Any]) -> Any:
        """The inverse of ``dataclasses.asdict``. Unknown and missing keys are UserErrors."""
        return config_json.strict(self.Config, self.name, architecture)

    def apply_overrides(self, config: Any, overrides: Mapping[str, Any]) -> Any:
        """The recipe's values over the checkpoint's: free ones win, the others must agree with the weights."""
        return config_json.merge(config, self.name, overrides, self.free)

    def rows(self, config: Any) -> Iterator[Row]:
        """The table of parameters, in the artifact's order."""
        return rows_of(self.describe(config))

    def parameters(self, config: Any) -> tuple[Parameter, ...]:
        """The compiled model's parameters in the artifact's order; matrices are (output, input)."""
        return tuple(row.parameter for row in self.rows(config))

    def weight_map(self, config: Any, layout: Mapping[str, Any]) -> WeightMap:
        """Each parameter as slices of the checkpoint's tensors, checked both ways, and where input channels may be
        scaled; see ``weights.weight_map``."""
        decoder = self.describe(config)
        rows = list(rows_of(decoder))
        checked = weights.weight_map(table.entries_of(rows), droppable(decoder), layout)
        return replace(checked, folds=tuple(table.folds_of(rows)))

    def copies(self, config: Any) -> dict[str, str]:
        """Tensors that are left out if they are copies, and of what; see ``parts.decoder.copies``."""
        return copies(self.describe(config))

    def folds(self, config: Any) -> Iterator[Fold]:
        """Where input channels may be scaled, for quant.method=awq."""
        return table.folds_of(self.rows(config))

    def cuts(self, config: Any) -> dict[str, Cut]:
        """What tensor parallelism cuts, by module."""
        return table.cuts_of(self.rows(config))

    def graph_modules(self, config: Any) -> tuple[str, ...]:
        """The modules that build this model's parts of a graph."""
        return graph_modules(self.describe(config))

    def model_config(self, config: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The ``model_config`` block of mlc-chat-config.json: the architecture in MLC's names, and run-time sizes."""
        return {**config_json.chat_fields(config), **self.chat_config(config), **config_json.run_time_sizes(metadata)}
