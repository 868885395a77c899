"""Weights leave their tuple where they are used first."""

from __future__ import annotations

from llm_build.targets.tvm_import import import_tvm

import_tvm()

from tvm import relax  # noqa: E402

from llm_build.lowering.passes import lazy_param_load  # noqa: E402

TENSOR = relax.TensorType((4,), "float32")


def test_each_weight_is_taken_once_before_its_first_use():
    builder = relax.BlockBuilder()
    x, weights = relax.Var("x", TENSOR), relax.Var("weights", relax.TupleType([TENSOR] * 4))
    with builder.function("f", [x, weights]):
        first, unused, second, last = (builder.emit(relax.TupleGetItem(weights, index)) for index in range(4))
        assert unused is not None
        one = builder.emit(relax.op.add(x, first))
        two = builder.emit(relax.op.add(one, second))
        three = builder.emit(relax.op.multiply(two, first))
        builder.emit_func_output(relax.Tuple([three, last]))
    function = lazy_param_load.load_at_first_use()(builder.get())["f"]
    steps = [binding.value for block in function.body.blocks for binding in block.bindings]
    found = [each.index if isinstance(each, relax.TupleGetItem) else each.op.name for each in steps]
    assert found == [0, "relax.add", 2, "relax.add", "relax.multiply", 3]
