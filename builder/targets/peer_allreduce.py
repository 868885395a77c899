"""The kernels by which GPUs of one host sum small tensors: the latency of two sums a layer is what several GPUs cost.

Every GPU has a room that the others write into over NVLink or PCIe. A thread sends its pair of numbers to all others,
each number with the turn beside it, and waits until the pairs in its own room carry this turn: no fence, no barrier
and no copy (the line format of NCCL's protocol LL, https://arxiv.org/abs/2507.04786, section III-D; 16 bytes are
written at once). Rooms of odd and even turns are apart: who writes turn k has seen turn k - 1 of all others, who
had then finished turn k - 2. Ranks are added in their order, so that all have the same sum. A second kernel goes on to
the RMS norm of the sum, a block for each row, and with one rank is nothing but that.

Of a decoded token the products themselves send their results, to this GPU as to the others, and a kernel of the
library sums what comes (schedules/gpu/peers.py). It asks for no end of the kernel before: when all results of this GPU
are there, all that came before has been read. Two counts keep the turns: "started" goes up before the next kernel may
start, so that no two of these kernels have the same turn; "done" when a sum is made, and the products of the next turn
read it after their wait.
"""

from __future__ import annotations

NAME, GATHER = "peer_sum", "peer_gather"
THREADS = 256  # of a block, each with two numbers
MOST = 1 << 16  # numbers of a sum; more go through NCCL
LINE_BYTES = 16  # of a pair with its turns
NORM, SUM_NORM = "peer_sum_norm", "llm_build.sum_norm"  # the kernel, and the function that a library calls by name
NORM_THREADS, NORM_PAIRS, NORM_ROWS = 1024, 8192, 8  # of a block; the most pairs of a row; the most rows that peers sum
SET_PEERS = "llm_build_set_peers"  # the library's function (table (TABLE_WORDS,) uint32)
TABLE_WORDS = 4 + 2 * 8  # what they need to know: rank, ranks, the address of the counts, those of the rooms
WEIGHT_TYPES = ("float32", "float16", "bfloat16")
LINES = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

static __device__ __forceinline__ void put(uint4* at, float2 pair, unsigned turn) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(__float_as_uint(pair.x)), "r"(turn),
               "r"(__float_as_uint(pair.y)), "r"(turn) : "memory");
}

static __device__ __forceinline__ float2 awaited(const uint4* at, unsigned turn) {
  uint4 line;
  do {
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(line.x), "=r"(line.y), "=r"(line.z), "=r"(line.w) : "l"(at) : "memory");
  } while (line.y != turn || line.w != turn);
  return make_float2(__uint_as_float(line.x), __uint_as_float(line.z));
}

static __device__ __forceinline__ float weight_at(const void* weight, unsigned type, unsigned at) {
  if (type == 1) return __half2float(((const __half*)weight)[at]);
  if (type == 2) return __bfloat162float(((const __nv_bfloat16*)weight)[at]);
  return ((const float*)weight)[at];
}

// The sum over 1024 threads.
static __device__ __forceinline__ float over_block(float total) {
  __shared__ float squares[32];
  for (unsigned step = 16; step; step >>= 1) total += __shfl_xor_sync(~0u, total, step);
  if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = total;
  __syncthreads();
  total = squares[threadIdx.x % 32];
  for (unsigned step = 16; step; step >>= 1) total += __shfl_xor_sync(~0u, total, step);
  return total;
}
"""
SENDER = r"""
struct Peers {
  unsigned rank, ranks;
  unsigned* counts;  // started, done
  uint4* rooms[8];  // of each rank: [2 turns][ranks][8192 pairs]
};
static __device__ Peers peers;

static __device__ __forceinline__ int keep_peers(const unsigned* table) {
  for (unsigned word = 0; word < sizeof(Peers) / 4; ++word) reinterpret_cast<unsigned*>(&peers)[word] = table[word];
  return 0;
}

static __device__ __forceinline__ unsigned peer_turn() {
  return peers.ranks ? reinterpret_cast<volatile unsigned*>(peers.counts)[1] + 1 : 0;
}

static __device__ __forceinline__ int send_pair(int ahead, int pair, float x, float y, unsigned turn) {
  const unsigned ranks = peers.ranks, rank = peers.rank;
  if (!ranks) return 0;
  put(peers.rooms[(rank + ahead) % ranks] + ((turn & 1) * ranks + rank) * 8192 + pair, make_float2(x, y), turn);
  return 0;
}

// The turn of a sum, which no other has. All threads of the only block come here.
static __device__ __forceinline__ unsigned take_turn() {
  __shared__ unsigned started;
  if (threadIdx.x == 0) started = atomicAdd(peers.counts, 1) + 1;
  __syncthreads();
  return started;
}

// The sum of one row that all ranks sent, and its RMS norm, by 1024 threads.
static __device__ __forceinline__ int sent_norm(const void* weight, int type, float eps, float* sum, float* normed,
                                                int pairs, unsigned turn) {
  const unsigned ranks = peers.ranks, thread = threadIdx.x;
  const uint4* room = peers.rooms[peers.rank] + (turn & 1) * ranks * 8192;
  float2 value[8], gain[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int pair = thread + i * 1024;
    if (pair >= pairs) break;
    gain[i] = make_float2(weight_at(weight, type, 2 * pair), weight_at(weight, type, 2 * pair + 1));
  }
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int pair = thread + i * 1024;
    if (pair >= pairs) break;
    value[i] = make_float2(0.0f, 0.0f);
    for (unsigned from = 0; from < ranks; ++from) {
      const float2 more = awaited(room + from * 8192 + pair, turn);
      value[i].x += more.x;
      value[i].y += more.y;
    }
    total += value[i].x * value[i].x + value[i].y * value[i].y;
  }
  const float scale = 1.0f / sqrtf(over_block(total) / (float)(2 * pairs) + eps);
#pragma unroll
  for (int i = 0; i < 8; ++i) {  // not before all have come: until then others may read what is written here
    const int pair = thread + i * 1024;
    if (pair >= pairs) break;
    reinterpret_cast<float2*>(sum)[pair] = value[i];
    value[i] = make_float2(value[i].x * scale * gain[i].x, value[i].y * scale * gain[i].y);
    reinterpret_cast<float2*>(normed)[pair] = value[i];
  }
  if (thread == 0) peers.counts[1] = turn;
  return 0;
}
"""
SOURCE = r"""
struct Rooms {
  uint4* at[8];
};

// This block's turn, once its inputs are there. turns: one count for each block.
static __device__ __forceinline__ unsigned next_turn(unsigned* turns) {
  next_may_start();
  inputs_ready();
  unsigned turn = turns[blockIdx.x] + 1;
  __syncthreads();
  if (threadIdx.x == 0) turns[blockIdx.x] = turn;
  return turn;
}

static __device__ __forceinline__ void put_to_others(const Rooms& rooms, size_t at, float2 pair, unsigned turn,
                                                     unsigned rank, unsigned ranks) {
#pragma unroll
  for (unsigned other = 0; other < 8; ++other)
    if (other < ranks && other != rank) put(rooms.at[other] + at, pair, turn);
}

// rooms.at[r]: rank r's room, as this GPU sees it: [2 turns][ranks][most pairs]; own: this rank's.
extern "C" __global__ void peer_sum(const float2* part, float2* sum, unsigned pairs, const Rooms rooms,
                                    const uint4* own_room, unsigned* turns, unsigned most, unsigned rank,
                                    unsigned ranks) {
  const unsigned turn = next_turn(turns), pair = blockIdx.x * blockDim.x + threadIdx.x;
  if (pair >= pairs) return;
  const float2 own = part[pair];
  const size_t side = (size_t)(turn & 1) * ranks;
  put_to_others(rooms, (side + rank) * most + pair, own, turn, rank, ranks);
  float2 total = make_float2(0.0f, 0.0f);
  for (unsigned from = 0; from < ranks; ++from) {
    float2 value = from == rank ? own : awaited(own_room + (side + from) * most + pair, turn);
    total.x += value.x;
    total.y += value.y;
  }
  sum[pair] = total;
}

// whole: the parts of all ranks, one after the other.
extern "C" __global__ void peer_gather(const float2* part, float2* whole, unsigned pairs, const Rooms rooms,
                                       const uint4* own_room, unsigned* turns, unsigned most, unsigned rank,
                                       unsigned ranks) {
  const unsigned turn = next_turn(turns), pair = blockIdx.x * blockDim.x + threadIdx.x;
  if (pair >= pairs) return;
  const float2 own = part[pair];
  const size_t side = (size_t)(turn & 1) * ranks;
  put_to_others(rooms, (side + rank) * most + pair, own, turn, rank, ranks);
  for (unsigned from = 0; from < ranks; ++from)
    whole[from * pairs + pair] = from == rank ? own : awaited(own_room + (side + from) * most + pair, turn);
}

// A block of 1024 threads for each row. rooms.at[r]: [2 turns][ranks][8 rows][8192 pairs].
extern "C" __global__ void __launch_bounds__(1024) peer_sum_norm(
    const float2* part, const void* weight, unsigned type, float eps, float2* sum, float2* normed, unsigned pairs,
    const Rooms rooms, const uint4* own_room, unsigned* turns, unsigned rank, unsigned ranks) {
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
  }
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned pair = thread + i * 1024;
    if (pair >= pairs) break;
#pragma unroll
    for (unsigned other = 0; other < 8; ++other) {
      if (other >= ranks || other == rank) continue;
      put(rooms.at[other] + ((side + rank) * 8 + row) * 8192 + pair, value[i], turn);
    }
  }
  float total = 0.0f;
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned pair = thread + i * 1024;
    if (pair >= pairs) break;
    const float2 own = value[i];
    value[i] = make_float2(0.0f, 0.0f);
    for (unsigned from = 0; from < ranks; ++from) {
      const float2 more = from == rank ? own : awaited(own_room + ((side + from) * 8 + row) * 8192 + pair, turn);
      value[i].x += more.x;
      value[i].y += more.y;
    }
    sum[row * pairs + pair] = value[i];
    total += value[i].x * value[i].x + value[i].y * value[i].y;
  }
  const float scale = 1.0f / sqrtf(over_block(total) / (float)(2 * pairs) + eps);
#pragma unroll
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned pair = thread + i * 1024;
    if (pair >= pairs) break;
    normed[row * pairs + pair] = make_float2(value[i].x * scale * gain[i].x, value[i].y * scale * gain[i].y);
  }
  if (ranks > 1 && thread == 0) turns[row] = turn;
}
"""
