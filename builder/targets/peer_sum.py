"""The kernel by which GPUs of one host sum small tensors: the latency of two sums a layer is what several GPUs cost.

Every GPU has a room that the others write into over NVLink or PCIe. A thread sends its pair of numbers to all others,
each number with the turn beside it, and waits until the pairs in its own room carry this turn: no fence, no barrier
and no copy (the line format of NCCL's protocol LL, https://arxiv.org/abs/2507.04786, section III-D; 16 bytes are
written at once). Rooms of odd and even turns are apart: who writes turn k has seen turn k - 1 of all others, who
had then finished turn k - 2. Ranks are added in their order, so that all have the same sum. A second kernel goes on to
the RMS norm of the sum, a block for each row, and with one rank is nothing but that.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from builder.targets.cuda import EARLY_START, compile_kernels

NAME = "peer_sum"
THREADS = 256  # of a block, each with two numbers
MOST = 1 << 16  # numbers of a sum; more go through NCCL
LINE_BYTES = 16  # of a pair with its turns
NORM, SUM_NORM = "peer_sum_norm", "llm_build.sum_norm"  # the kernel, and the function that a library calls by name
NORM_THREADS, NORM_PAIRS, NORM_ROWS = 1024, 8192, 8  # of a block; the most pairs of a row; the most rows that peers sum
WEIGHT_TYPES = ("float32", "float16", "bfloat16")
SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ __forceinline__ void put(uint4* at, float2 pair, unsigned turn) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(__float_as_uint(pair.x)), "r"(turn),
               "r"(__float_as_uint(pair.y)), "r"(turn) : "memory");
}

__device__ __forceinline__ float2 awaited(const uint4* at, unsigned turn) {
  uint4 line;
  do {
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(line.x), "=r"(line.y), "=r"(line.z), "=r"(line.w) : "l"(at) : "memory");
  } while (line.y != turn || line.w != turn);
  return make_float2(__uint_as_float(line.x), __uint_as_float(line.z));
}

// rooms[r]: rank r's room, as this GPU sees it: [2 turns][ranks][most pairs]. turns: one count for each block.
extern "C" __global__ void peer_sum(const float2* part, float2* sum, unsigned pairs, uint4* const* rooms,
                                    unsigned* turns, unsigned most, unsigned rank, unsigned ranks) {
  next_may_start();
  inputs_ready();
  unsigned turn = turns[blockIdx.x] + 1;
  __syncthreads();
  if (threadIdx.x == 0) turns[blockIdx.x] = turn;
  unsigned pair = blockIdx.x * blockDim.x + threadIdx.x;
  if (pair >= pairs) return;
  float2 own = part[pair], total = make_float2(0.0f, 0.0f);
  size_t side = (size_t)(turn & 1) * ranks;
  for (unsigned other = 0; other < ranks; ++other)
    if (other != rank) put(rooms[other] + (side + rank) * most + pair, own, turn);
  for (unsigned from = 0; from < ranks; ++from) {
    float2 value = from == rank ? own : awaited(rooms[rank] + (side + from) * most + pair, turn);
    total.x += value.x;
    total.y += value.y;
  }
  sum[pair] = total;
}

__device__ __forceinline__ float weight_at(const void* weight, unsigned type, unsigned at) {
  if (type == 1) return __half2float(((const __half*)weight)[at]);
  if (type == 2) return __bfloat162float(((const __nv_bfloat16*)weight)[at]);
  return ((const float*)weight)[at];
}

// A block of 1024 threads for each row. rooms[r]: [2 turns][ranks][8 rows][8192 pairs].
extern "C" __global__ void __launch_bounds__(1024) peer_sum_norm(
    const float2* part, const void* weight, unsigned type, float eps, float2* sum, float2* normed, unsigned pairs,
    uint4* const* rooms, unsigned* turns, unsigned rank, unsigned ranks) {
  __shared__ float squares[32];
  const unsigned row = blockIdx.x, thread = threadIdx.x;
  float2 value[8], gain[8];
  next_may_start();
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned pair = thread + i * 1024;
    if (pair >= pairs) break;
    gain[i] = make_float2(weight_at(weight, type, 2 * pair), weight_at(weight, type, 2 * pair + 1));
  }
  inputs_ready();
  const unsigned turn = ranks > 1 ? turns[row] + 1 : 0;
  const size_t side = (size_t)(turn & 1) * ranks;
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned pair = thread + i * 1024;
    if (pair >= pairs) break;
    value[i] = part[row * pairs + pair];
    for (unsigned other = 0; other < ranks; ++other)
      if (other != rank) put(rooms[other] + ((side + rank) * 8 + row) * 8192 + pair, value[i], turn);
  }
  float total = 0.0f;
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned pair = thread + i * 1024;
    if (pair >= pairs) break;
    const float2 own = value[i];
    value[i] = make_float2(0.0f, 0.0f);
    for (unsigned from = 0; from < ranks; ++from) {
      const float2 more = from == rank ? own : awaited(rooms[rank] + ((side + from) * 8 + row) * 8192 + pair, turn);
      value[i].x += more.x;
      value[i].y += more.y;
    }
    sum[row * pairs + pair] = value[i];
    total += value[i].x * value[i].x + value[i].y * value[i].y;
  }
  for (unsigned step = 16; step; step >>= 1) total += __shfl_xor_sync(~0u, total, step);
  if (thread % 32 == 0) squares[thread / 32] = total;
  __syncthreads();
  total = squares[thread % 32];
  for (unsigned step = 16; step; step >>= 1) total += __shfl_xor_sync(~0u, total, step);
  const float scale = 1.0f / sqrtf(total / (float)(2 * pairs) + eps);
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned pair = thread + i * 1024;
    if (pair >= pairs) break;
    normed[row * pairs + pair] = make_float2(value[i].x * scale * gain[i].x, value[i].y * scale * gain[i].y);
  }
  if (ranks > 1 && thread == 0) turns[row] = turn;
}
"""


def code(arch: Sequence[str]) -> str:
    """The kernel's machine code for these architectures, in base64 for ``_metadata``."""
    return base64.b64encode(compile_kernels(EARLY_START + SOURCE, arch)).decode()
