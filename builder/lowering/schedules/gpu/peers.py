"""What kernels of CUDA libraries for several GPUs do with the others (targets/peer_allreduce.py has their code)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.ir import T
from llm_build.targets.peer_allreduce import NORM_THREADS, TABLE_WORDS, WEIGHT_TYPES


def set_peers(traits: GpuTraits) -> tirx.PrimFunc:
    """Keeps for the library's other kernels where the GPUs' rooms are; the runtime calls it once."""

    def body(table: Buffer) -> None:
        with b.launch(traits.threads, b.i32(1)) as (_, _, thread):
            traits.wait()
            with b.when(tirx.EQ(thread, 0)):
                T.evaluate(tirx.call_extern("int32", "keep_peers", tirx.address_of(b.load(table, 0))))

    return b.kernel([Arg("table", (TABLE_WORDS,), "uint32")], body)


def sent_norm(width: int, dtype: str, eps: float, traits: GpuTraits) -> tirx.PrimFunc:
    """The sum of one row (1, width) that all GPUs sent, and its RMS norm with ``weight``. What this GPU sent is in
    ``part``, which is not read: that the sum comes after it is enough."""
    row = (1, width)

    def body(_part: Buffer, weight: Buffer, total: Buffer, normed: Buffer) -> None:
        with b.launch(NORM_THREADS, b.i32(1)):
            sum_index = T.Bind(tirx.call_extern("uint32", "take_turn"))
            traits.trigger_next()
            places = [tirx.address_of(b.load(each, 0)) for each in (weight, total, normed)]
            kind = b.i32(WEIGHT_TYPES.index(dtype))
            values = (places[0], kind, b.f32(eps), *places[1:], b.i32(width // 2), sum_index)
            T.evaluate(tirx.call_extern("int32", "sent_norm", *values))
            traits.wait()

    args = [Arg("part", row), Arg("weight", (width,), dtype), Arg("total", row), Arg("normed", row)]
    return b.kernel(args, body)


@dataclass(frozen=True, slots=True)
class PeerSender:
    """gemv.Sender, by the functions of targets/peer_allreduce.py."""

    ranks: int

    def next_sum(self) -> Expr:
        return T.Bind(tirx.call_extern("uint32", "peer_turn"))

    def send(self, ahead: Expr, pair: Expr, values: Sequence[Expr], sum_index: Expr) -> None:
        T.evaluate(tirx.call_extern("int32", "send_pair", ahead, pair, *values, sum_index))
