"""The passes that kernels for CPUs and for GPUs share, in order: out of blocks, to plain code, to functions of C.

Each is a list of (name, pass). Kernels have no blocks; small functions of the graph may.
"""

from __future__ import annotations

from tvm import s_tir, tirx

LOOPS = [
    ("reduction starts", s_tir.transform.LowerInitBlock()),
    ("buffer places", s_tir.transform.PlanAndUpdateBufferAllocationLocation()),
    ("block variables", s_tir.transform.ConvertBlocksToOpaque()),
    ("matched buffers", s_tir.transform.LowerMatchBuffer()),
    ("blocks", s_tir.transform.LowerOpaqueBlock()),
    ("flat buffers", tirx.transform.FlattenBuffer()),
    ("bfloat16 values", tirx.transform.BF16ComputeLegalize()),
]
PLAIN = [
    ("vectors", tirx.transform.VectorizeLoop(True)),
    ("simplification", tirx.transform.StmtSimplify()),
]
FUNCTIONS = [
    ("memory check", tirx.transform.VerifyMemory()),
    ("entry", tirx.transform.AnnotateEntryFunc()),
    ("host and device", tirx.transform.SplitHostDevice()),
    ("calling convention", tirx.transform.MakePackedAPI()),
    ("bfloat16 as integers", tirx.transform.BF16StorageLegalize()),
]
