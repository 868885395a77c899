"""Attention of many query rows on NVIDIA's tensor cores, sm_80 and later, as text that CUDA libraries get.

A block keeps ROWS query rows and goes through the keys, KEYS at a time, with a running softmax; scores and weights
never leave registers (FlashAttention-2: Dao 2023, arXiv:2307.08691). Products are of 16-bit numbers, with sums in
float32. A row is a pair of a token and a query head of one key head, so that heads that share keys read them once.
Rows that see nothing become zeros, and their logarithm -1e30.

FlashTile multiplies by mma.sync, whose operands ldmatrix reads from shared memory and cp.async brings there (PTX ISA,
"Warp-level matrix instructions" and "Data movement and conversion instructions"). Lines of shared memory are 16 bytes
longer than D numbers: eight of them then begin in different banks. FlashWideTile, for sm_90a alone, multiplies by wgmma
(PTX ISA, "Asynchronous warpgroup level matrix instructions"): 1.3 to 1.8 times as fast on an H200.

Template arguments: D features of a head (a multiple of 16); GROUP query heads of a key head; ROWS of a block; KEYS of a
step (a multiple of 16, or of 64); types M of products, TQ of queries and results, T of keys and values. Where M and T
differ, copies convert. FlashTile: 16 MT rows of a warp; STAGES of steps in shared memory (1: values come while scores
are computed, and the next keys while values are added; 2: all of the next step comes during this one).
schedules/gpu/flash_attention.py has the tiles.
"""

from __future__ import annotations

import re

_CALL = re.compile(r"\bflash_(?:wide_)?(?:ragged|paged)<")
_WIDE_CALL = re.compile(r"\bflash_wide_(?:ragged|paged)<(\d+), \d+, \d+, (\d+),")  # D and KEYS


def declared(source: str) -> str:
    """The functions here that kernels of a source call, as text to put in front of it; "" where they call none."""
    if not _CALL.search(source):
        return ""
    columns = sorted({int(size) for sizes in _WIDE_CALL.findall(source) for size in sizes})
    return SOURCE + ("".join(_wgmma(size) for size in columns) + WIDE_SOURCE if columns else "")


def _wgmma(columns: int) -> str:
    """flash_wgmma for sums (64, columns) += a (64, 16) b (16, columns): a in shared memory or in registers."""
    count = columns // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"+f"(d[{i // 4}][{i % 4}])' for i in range(count))

    def shared(kind: str) -> str:
        return (
            f'asm volatile("{{.reg .pred p; setp.ne.b32 p, %{count + 2}, 0; wgmma.mma_async.sync.aligned.m64n{columns}'
            f'k16.f32.{kind}.{kind} {{{sums}}}, %{count}, %{count + 1}, p, 1, 1, 0, %{count + 3};}}"\n'
            f'                 : {outputs} : "l"(a), "l"(b), "r"((int)keep), "n"(TURNED ? 1 : 0));'
        )

    def registers(kind: str) -> str:
        return (
            f'asm volatile("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} {{{sums}}}, '
            f'{{%{count}, %{count + 1}, %{count + 2}, %{count + 3}}}, %{count + 4}, 1, 1, 1, 1;"\n'
            f'                 : {outputs} : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));'
        )

    d = f"float (&d)[{columns // 8}][4]"
    functions = (
        ("class M, bool TURNED", f"{d}, unsigned long long a, unsigned long long b, bool keep", shared),
        ("class M", f"{d}, const unsigned (&a)[4], unsigned long long b", registers),
    )
    return "".join(
        f"\ntemplate <{types}>\nstatic __device__ __forceinline__ void flash_wgmma({arguments}) {{\n"
        f"  if constexpr (flash_same<M, __half>)\n    {text('f16')}\n  else\n    {text('bf16')}\n}}\n"
        for types, arguments, text in functions
    )


SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <class A, class B> static constexpr bool flash_same = false;
template <class A> static constexpr bool flash_same<A, A> = true;

static __device__ __forceinline__ float flash_float(float x) { return x; }
static __device__ __forceinline__ float flash_float(__half x) { return __half2float(x); }
static __device__ __forceinline__ float flash_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// Two numbers as a pair of type M in a register, the first in the low half.
template <class M> static __device__ __forceinline__ unsigned flash_pair(float low, float high) {
  if constexpr (flash_same<M, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const unsigned&>(pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const unsigned&>(pair);
  }
}

static __device__ __forceinline__ float flash_nothing() { return __int_as_float(0xff800000); }  // minus infinity

static __device__ __forceinline__ float flash_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// sum (16, 8) += a (16, 16) b (16, 8): PTX ISA, "Matrix Fragments for mma.m16n8k16".
template <class M>
static __device__ __forceinline__ void flash_mma(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (flash_same<M, __half>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 from shared memory; ``at`` of lane l: where row l % 8 of matrix l / 8 is.
template <bool TURNED> static __device__ __forceinline__ void flash_matrices(unsigned (&to)[4], unsigned at) {
  if constexpr (TURNED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at));
}

static __device__ __forceinline__ unsigned flash_address(const void* shared) {
  return (unsigned)__cvta_generic_to_shared(shared);
}

// Eight numbers from global into shared memory, of type M there; zeros where not ``inside``.
template <class M, class T> static __device__ __forceinline__ void flash_copy(M* to, const T* from, bool inside) {
  if constexpr (flash_same<M, T>) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(flash_address(to)), "l"(from),
                 "r"(inside ? 16 : 0) : "memory");
  } else {
    uint4 packed = make_uint4(0, 0, 0, 0);
    if (inside) {
      T own[8];
#pragma unroll
      for (int i = 0; i < (int)sizeof(T) / 2; ++i)
        reinterpret_cast<uint4*>(own)[i] = reinterpret_cast<const uint4*>(from)[i];
      packed.x = flash_pair<M>(flash_float(own[0]), flash_float(own[1]));
      packed.y = flash_pair<M>(flash_float(own[2]), flash_float(own[3]));
      packed.z = flash_pair<M>(flash_float(own[4]), flash_float(own[5]));
      packed.w = flash_pair<M>(flash_float(own[6]), flash_float(own[7]));
    }
    *reinterpret_cast<uint4*>(to) = packed;
  }
}

static __device__ __forceinline__ void flash_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }


// body(i) for 0 <= i < COUNT: i = the thread, the thread + THREADS, ...
template <int COUNT, int THREADS, int UNROLLED, class Body>
static __device__ __forceinline__ void flash_each(Body body) {
#pragma unroll UNROLLED
  for (int n = 0; n < (COUNT + THREADS - 1) / THREADS; ++n) {
    const int i = n * THREADS + threadIdx.x;
    if (COUNT % THREADS == 0 || i < COUNT) body(i);
  }
}

// Where things are in shared memory, in numbers: lines of D padded so that eight begin in different banks, and turned
// keys as pages have them, two chunks of eight a feature, in an order with the same effect.
template <int D, int ROWS> struct FlashLines {
  static constexpr int SIZE = ROWS * (D + 8), TURNED_SIZE = ROWS * D;
  static __device__ __forceinline__ int line(int row, int d) { return row * (D + 8) + d; }
  static __device__ __forceinline__ int turned(int page, int d, int half) {
    return (page * D + d) * 16 + ((half ^ (d >> 2)) & 1) * 8;
  }
};

// Keys and values of one head in rows, (tokens, D) with ``stride`` between rows.
template <int D, int KEYS, int THREADS, class M, class T, class Place> struct FlashRows {
  static constexpr bool TURNED = false;
  static constexpr int KEY_SIZE = Place::SIZE, SIZE = KEY_SIZE + Place::SIZE;
  const T *k, *v;
  int tokens, stride;

  __device__ __forceinline__ int pages_of(int) const { return 0; }
  __device__ __forceinline__ void load(M* to, const T* from, int tile) const {
    flash_each<KEYS * D / 8, THREADS, flash_same<M, T> ? 64 : 2>([&](int i) {
      const int row = i / (D / 8), d = i % (D / 8) * 8, key = tile * KEYS + row;
      flash_copy<M>(to + Place::line(row, d), from + (size_t)min(key, tokens - 1) * stride + d, key < tokens);
    });
  }
  __device__ __forceinline__ void load_keys(M* to, int tile, int) const { load(to, k, tile); }
  __device__ __forceinline__ void load_values(M* to, int tile, int) const { load(to, v, tile); }
};

// Keys and values of one head in pages of 16 tokens: keys (D, 16), values (16, D).
template <int D, int KEYS, int THREADS, class M, class T, class Place> struct FlashPages {
  static constexpr bool TURNED = true;
  static constexpr int KEY_SIZE = Place::TURNED_SIZE, SIZE = KEY_SIZE + Place::SIZE;
  static constexpr int PAGES = KEYS / 16, CHUNKS = 2 * D;  // chunks of 8 numbers in a page
  const T* pages;  // at the head's keys in page 0
  size_t page_stride;
  int values;  // from the head's keys to its values
  const int* table;
  int tokens;

  // Lane l: the page with tile's keys 16 (l % PAGES) ..
  __device__ __forceinline__ int pages_of(int tile) const {
    return table[min(tile * PAGES + (int)threadIdx.x % PAGES, (tokens - 1) / 16)];
  }
  __device__ __forceinline__ void load_keys(M* to, int tile, int ids) const {
    flash_each<PAGES * CHUNKS, THREADS, flash_same<M, T> ? 64 : 2>([&](int i) {
      const int page = i / CHUNKS, d = i % CHUNKS / 2, half = i % 2;
      const T* from = pages + __shfl_sync(~0u, ids, page) * page_stride + i % CHUNKS * 8;
      flash_copy<M>(to + Place::turned(page, d, half), from, tile * KEYS + page * 16 < tokens);
    });
  }
  __device__ __forceinline__ void load_values(M* to, int tile, int ids) const {
    flash_each<PAGES * CHUNKS, THREADS, flash_same<M, T> ? 64 : 2>([&](int i) {
      const int page = i / CHUNKS, row = i / (D / 8), d = i % (D / 8) * 8;
      const T* from = pages + __shfl_sync(~0u, ids, page) * page_stride + values + i % CHUNKS * 8;
      flash_copy<M>(to + Place::line(row, d), from, tile * KEYS + row < tokens);
    });
  }
};

// How scores become exponents of 2, and which keys rows see.
struct FlashScores {
  float scale, cap;  // cap 0: none
  int window, sinks;  // window 0: none
  bool windowed;

  __device__ __forceinline__ bool has_window() const { return window && windowed; }
  __device__ __forceinline__ float to_exponent() const { return (cap != 0.0f ? cap : scale) * 1.44269504f; }
};

// Query rows of a sequence: (token, head) of the heads that share a key head.
struct FlashSequence {
  int begin, count, group, heads, first_head;
  int past, causal, start;  // tokens before the first row's own; causal or not; position of the first key
  const int* position;

  __device__ __forceinline__ int rows() const { return count * group; }
  __device__ __forceinline__ size_t place(int row) const {  // of all tokens and heads
    return (size_t)(begin + row / group) * heads + first_head + row % group;
  }
};

// Steps of KEYS that rows of a tile see: [0, sinks) and [first, stop); keys before ``whole`` and from ``masked`` on are
// seen by all rows.
struct FlashSteps {
  int first, sinks, stop, whole, masked;

  __device__ __forceinline__ int from(int step) const { return step >= sinks ? max(step, first) : step; }
};

template <int ROWS, int KEYS>
static __device__ __forceinline__ FlashSteps flash_steps(const FlashSequence& own, const FlashScores& scores,
                                                         int tokens, int tile_row) {
  const int first_token = tile_row / own.group, last_token = min((tile_row + ROWS - 1) / own.group, own.count - 1);
  const int end = own.causal ? min(own.past + last_token + 1, tokens) : tokens;
  FlashSteps steps{0, 0, (end + KEYS - 1) / KEYS, own.causal ? min(own.past + first_token + 1, tokens) : tokens, 0};
  if (scores.has_window()) {
    const int reach = scores.window - scores.sinks;
    int least = 0x7fffffff, most = -0x7fffffff;
    for (int token = first_token + threadIdx.x % 32; token <= last_token; token += 32) {
      const int position = own.position[own.begin + token];
      least = min(least, position);
      most = max(most, position);
    }
    steps.first = max(__reduce_min_sync(~0u, least) - reach + 1 - own.start, 0) / KEYS;
    steps.masked = __reduce_max_sync(~0u, most) - reach + 1 - own.start;
    steps.sinks = (max(scores.sinks - own.start, 0) + KEYS - 1) / KEYS;
  }
  return steps;
}

template <int D, int ROWS, int THREADS, class M, class Place, class TQ>
static __device__ __forceinline__ void flash_load_queries(M* to, const TQ* q, const FlashSequence& own, int tile_row) {
  flash_each<ROWS * D / 8, THREADS, 4>([&](int i) {
    const int r = i / (D / 8), d = i % (D / 8) * 8;
    flash_copy<M>(to + Place::line(r, d), q + own.place(min(tile_row + r, own.rows() - 1)) * D + d, true);
  });
}

template <int N> static __device__ __forceinline__ void flash_zero(float (&x)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) x[n][i] = 0.0f;
}

// tanh(scores * scale / cap): tanh x = 1 - 2 / (e^2x + 1).
template <int N> static __device__ __forceinline__ void flash_cap(float (&s)[N][4], const FlashScores& scores) {
  if (scores.cap == 0.0f) return;
  const float twice = scores.scale / scores.cap * 2.88539008f;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      s[n][i] = 1.0f - __fdividef(2.0f, flash_exp2(fminf(s[n][i] * twice, 115.0f)) + 1.0f);
}

// Scores of rows ``row`` and row + 8 that these do not see become minus infinity.
template <int N>
static __device__ __forceinline__ void flash_mask(float (&s)[N][4], int row, int first_key, int tokens,
                                                  const FlashSequence& own, const FlashScores& scores) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = min(row + half * 8, own.rows() - 1) / own.group;
    const int limit = own.causal ? min(own.past + token + 1, tokens) : tokens;
    int low = 0, sinks = 0;
    if (scores.has_window()) {
      low = own.position[own.begin + token] - (scores.window - scores.sinks) + 1 - own.start;
      sinks = scores.sinks - own.start;
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = first_key + n * 8 + threadIdx.x % 4 * 2 + i;
        if (key >= limit || (key < low && key >= sinks)) s[n][half * 2 + i] = flash_nothing();
      }
  }
}

// The running softmax of two rows.
struct FlashRunning {
  float top[2], total[2], decay[2];
};

// Scores become weights by the new top of their rows; ``decay``: what the sums so far are worth by it.
template <int N>
static __device__ __forceinline__ void flash_weights(float (&s)[N][4], FlashRunning& running, float to_exponent) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = running.top[half];
#pragma unroll
    for (int n = 0; n < N; ++n) most = fmaxf(most, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    const float base = most == flash_nothing() ? 0.0f : most * to_exponent;
    running.decay[half] = flash_exp2(running.top[half] * to_exponent - base);
    running.top[half] = most;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = half * 2; i < half * 2 + 2; ++i) s[n][i] = flash_exp2(s[n][i] * to_exponent - base);
      sum += s[n][half * 2] + s[n][half * 2 + 1];
    }
    running.total[half] = running.total[half] * running.decay[half] + sum;
  }
}

template <int N> static __device__ __forceinline__ void flash_decay(float (&sums)[N][4], const FlashRunning& running) {
  if (!__any_sync(~0u, running.decay[0] != 1.0f || running.decay[1] != 1.0f)) return;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] *= running.decay[i / 2];
}

// Weights as the first operand of a product, by 16 keys.
template <class M, int N> static __device__ __forceinline__ void flash_pack(unsigned (&p)[N / 2][4], float (&s)[N][4]) {
#pragma unroll
  for (int n = 0; n < N / 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) p[n][i] = flash_pair<M>(s[2 * n + i / 2][i % 2 * 2], s[2 * n + i / 2][i % 2 * 2 + 1]);
}

// The results of 16 rows from tile_row + r on; 16 bits go through the queries' place, for whole lines.
template <int D, class Place, class M, class TQ>
static __device__ __forceinline__ void flash_store(const float (&sums)[D / 8][4], FlashRunning& running, M* queries,
                                                   int r, int tile_row, TQ* out, float* lse, const FlashSequence& own,
                                                   float to_exponent) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = running.total[half];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float share = sum > 0.0f ? 1.0f / sum : 0.0f;
    const int at = r + half * 8 + lane / 4, row = tile_row + at;
    if (row < own.rows() && lane % 4 == 0)
      lse[own.place(row)] = sum > 0.0f ? running.top[half] * to_exponent + log2f(sum) : -1e30f;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const float x = sums[n][half * 2] * share, y = sums[n][half * 2 + 1] * share;
      if constexpr (sizeof(TQ) == 2)
        *reinterpret_cast<unsigned*>(queries + Place::line(at, n * 8) + lane % 4 * 2) = flash_pair<TQ>(x, y);
      else if (row < own.rows())
        *reinterpret_cast<float2*>(out + own.place(row) * D + n * 8 + lane % 4 * 2) = make_float2(x, y);
    }
  }
  if constexpr (sizeof(TQ) == 2) {
    __syncwarp();
    for (int i = lane; i < 2 * D; i += 32) {
      const int at = r + i / (D / 8), d = i % (D / 8) * 8;
      if (tile_row + at < own.rows())
        *reinterpret_cast<uint4*>(out + own.place(tile_row + at) * D + d) =
            *reinterpret_cast<const uint4*>(queries + Place::line(at, d));
    }
  }
}

// A tile of rows by mma.sync.
template <int D, int ROWS, int MT, int KEYS, int STAGES, class M> struct FlashTile {
  static constexpr int THREADS = ROWS / MT * 2;
  using Place = FlashLines<D, KEYS>;

  template <class Source>
  static __device__ __forceinline__ void scores_of(float (&s)[MT][KEYS / 8][4], unsigned query_at, unsigned key_at) {
#pragma unroll
    for (int m = 0; m < MT; ++m) flash_zero(s[m]);
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      unsigned a[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) flash_matrices<false>(a[m], query_at + Place::line(m * 16, d) * 2);
#pragma unroll
      for (int n = 0; n < KEYS / 16; ++n) {
        unsigned b[4];
        flash_matrices<Source::TURNED>(b, key_at + (Source::TURNED ? (n * D + d) * 16 : Place::line(n * 16, d)) * 2);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          flash_mma<M>(s[m][2 * n], a[m], b[0], b[1]);
          flash_mma<M>(s[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  static __device__ __forceinline__ void add_values(float (&sums)[MT][D / 8][4], const unsigned (&p)[MT][KEYS / 16][4],
                                                    unsigned value_at) {
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k)
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        unsigned b[4];
        flash_matrices<true>(b, value_at + Place::line(k * 16, n * 16) * 2);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          flash_mma<M>(sums[m][2 * n], p[m][k], b[0], b[1]);
          flash_mma<M>(sums[m][2 * n + 1], p[m][k], b[2], b[3]);
        }
      }
  }

  template <class TQ, class Source>
  static __device__ __forceinline__ void run(M* memory, const TQ* q, TQ* out, float* lse, const Source& source,
                                             const FlashSequence& own, const FlashScores& scores, int tile_row) {
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * (16 * MT);
    M *const queries = memory, *const stages = memory + Place::line(ROWS, 0);
    const FlashSteps steps = flash_steps<ROWS, KEYS>(own, scores, source.tokens, tile_row);
    int step = steps.from(0), stage = 0, pages = 0;
    flash_load_queries<D, ROWS, THREADS, M, Place>(queries, q, own, tile_row);
    if (step < steps.stop) {
      pages = source.pages_of(step);
      source.load_keys(stages, step, pages);
      if (STAGES > 1) source.load_values(stages + Source::KEY_SIZE, step, pages);
    }

    const float to_exponent = scores.to_exponent();
    float sums[MT][D / 8][4];
    FlashRunning running[MT];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      flash_zero(sums[m]);
      running[m] = {{flash_nothing(), flash_nothing()}, {0.0f, 0.0f}, {1.0f, 1.0f}};
    }
    // Of lane l, for ldmatrix: where line l % 8 of matrix l / 8 is.
    const unsigned query_at = flash_address(queries + Place::line(warp_row + lane % 16, lane / 16 * 8));
    const unsigned value_at = flash_address(stages + Source::KEY_SIZE + Place::line(lane % 16, lane / 16 * 8));
    const unsigned key_at = flash_address(
        stages + (Source::TURNED ? Place::turned(0, lane % 16, lane / 16)
                                 : Place::line(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8)));

    while (step < steps.stop) {
      const int next = steps.from(step + 1), stage_bytes = stage * (Source::SIZE * 2);
      flash_wait();
      __syncthreads();
      if constexpr (STAGES > 1) {
        stage ^= 1;
        if (next < steps.stop) {
          pages = source.pages_of(next);
          source.load_keys(stages + stage * Source::SIZE, next, pages);
          source.load_values(stages + stage * Source::SIZE + Source::KEY_SIZE, next, pages);
        }
      } else {
        source.load_values(stages + Source::KEY_SIZE, step, pages);
        if (next < steps.stop) pages = source.pages_of(next);
      }

      float s[MT][KEYS / 8][4];
      scores_of<Source>(s, query_at, key_at + stage_bytes);
      const int first_key = step * KEYS;
      const bool masked = first_key + KEYS > steps.whole || first_key < steps.masked;
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        flash_cap(s[m], scores);
        if (masked)
          flash_mask(s[m], tile_row + warp_row + m * 16 + lane / 4, first_key, source.tokens, own, scores);
      }
      if constexpr (STAGES == 1) {
        flash_wait();
        __syncthreads();
        if (next < steps.stop) source.load_keys(stages, next, pages);
      }

      unsigned p[MT][KEYS / 16][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        flash_weights(s[m], running[m], to_exponent);
        flash_pack<M>(p[m], s[m]);
        flash_decay(sums[m], running[m]);
      }
      add_values(sums, p, value_at + stage_bytes);
      step = next;
    }
    flash_wait();
    __syncthreads();  // the queries' place takes results
#pragma unroll
    for (int m = 0; m < MT; ++m)
      flash_store<D, Place>(sums[m], running[m], queries, warp_row + m * 16, tile_row, out, lse, own, to_exponent);
  }
};

// Which sequence a block has: ``index`` counts the tiles of all sequences, the last of each first, as they see most.
// Returns the sequence, or -1 past the last; ``index`` becomes the number of its tile.
static __device__ __forceinline__ int flash_sequence(const int* q_indptr, int batch, int group, int rows_of_tile,
                                                     int& index) {
  for (int sequence = 0; sequence < batch; ++sequence) {
    const int rows = (q_indptr[sequence + 1] - q_indptr[sequence]) * group;
    const int tiles = (rows + rows_of_tile - 1) / rows_of_tile;
    if (index < tiles) {
      index = tiles - 1 - index;
      return sequence;
    }
    index -= tiles;
  }
  return -1;
}

// The new tokens of each sequence among themselves. q, out: (tokens, heads, D); k, v: (tokens, heads / GROUP, D).
template <class Tile, int D, int GROUP, int ROWS, int KEYS, class M, class TQ, class T>
static __device__ __forceinline__ int flash_ragged_by(void* memory, const void* q, const int* q_indptr, const void* k,
                                                      const void* v, const int* k_indptr, const int* k_start,
                                                      const int* position, void* out, float* lse, int batch,
                                                      int key_heads, int causal, float encoded, float cap, int window,
                                                      int sinks, int index, int head) {
  const int sequence = flash_sequence(q_indptr, batch, GROUP, ROWS, index);
  if (sequence < 0) return 0;
  const int begin = q_indptr[sequence], count = q_indptr[sequence + 1] - begin;
  const int k_begin = k_indptr[sequence], tokens = k_indptr[sequence + 1] - k_begin;
  const size_t from = ((size_t)k_begin * key_heads + head) * D;
  const FlashRows<D, KEYS, Tile::THREADS, M, T, typename Tile::Place> source{(const T*)k + from, (const T*)v + from,
                                                                             tokens, key_heads * D};
  const FlashSequence own{begin, count, GROUP, key_heads * GROUP, head * GROUP, tokens - count, causal,
                          window ? k_start[sequence] : 0, position};
  const FlashScores scores{window ? fabsf(encoded) : encoded, cap, window, sinks, encoded < 0.0f};
  Tile::run((M*)memory, (const TQ*)q, (TQ*)out, lse, source, own, scores, index * ROWS);
  return 0;
}

// The new tokens against everything that the pages held before them. pages: (pages, 2, heads / GROUP, 16 D).
template <class Tile, int D, int GROUP, int ROWS, int KEYS, class M, class TQ, class T>
static __device__ __forceinline__ int flash_paged_by(void* memory, const void* q, const int* q_indptr,
                                                     const void* pages, const int* indptr, const int* table,
                                                     const int* last_len, const int* k_start, const int* position,
                                                     void* out, float* lse, int batch, int key_heads, float encoded,
                                                     float cap, int window, int sinks, int index, int head) {
  const int sequence = flash_sequence(q_indptr, batch, GROUP, ROWS, index);
  if (sequence < 0) return 0;
  const int begin = q_indptr[sequence], count = q_indptr[sequence + 1] - begin;
  const int first = indptr[sequence], held = indptr[sequence + 1] - first;
  const int tokens = held > 0 ? (held - 1) * 16 + last_len[sequence] : 0, values = key_heads * (16 * D);
  const FlashPages<D, KEYS, Tile::THREADS, M, T, typename Tile::Place> source{
      (const T*)pages + head * (16 * D), (size_t)(2 * values), values, table + first, tokens};
  const FlashSequence own{begin, count, GROUP, key_heads * GROUP, head * GROUP, tokens, 0,
                          window ? k_start[sequence] : 0, position};
  const FlashScores scores{window ? fabsf(encoded) : encoded, cap, window, sinks, encoded < 0.0f};
  Tile::run((M*)memory, (const TQ*)q, (TQ*)out, lse, source, own, scores, index * ROWS);
  return 0;
}

template <int D, int GROUP, int ROWS, int MT, int KEYS, int STAGES, class M, class TQ, class T, class... Args>
static __device__ __forceinline__ int flash_ragged(Args... args) {
  return flash_ragged_by<FlashTile<D, ROWS, MT, KEYS, STAGES, M>, D, GROUP, ROWS, KEYS, M, TQ, T>(args...);
}

template <int D, int GROUP, int ROWS, int MT, int KEYS, int STAGES, class M, class TQ, class T, class... Args>
static __device__ __forceinline__ int flash_paged(Args... args) {
  return flash_paged_by<FlashTile<D, ROWS, MT, KEYS, STAGES, M>, D, GROUP, ROWS, KEYS, M, TQ, T>(args...);
}
"""
WIDE_SOURCE = r"""
// Lines of 128 bytes, 64 numbers each, in the order of the 128-byte swizzle (PTX ISA, "Asynchronous warpgroup level
// matrix shared memory layout"). Turned keys: a line has 64 keys of one feature.
template <int D, int ROWS> struct FlashSwizzled {
  static constexpr int SIZE = (D + 63) / 64 * (ROWS * 64), TURNED_SIZE = (ROWS + 63) / 64 * (D * 64);
  static __device__ __forceinline__ int line(int row, int d) {
    return d / 64 * (ROWS * 64) + row * 64 + ((d / 8 ^ row) & 7) * 8;
  }
  static __device__ __forceinline__ int turned(int page, int d, int half) {
    return page / 4 * (D * 64) + d * 64 + (((page * 2 + half) ^ d) & 7) * 8;
  }
};

// A matrix in shared memory for wgmma, 128-byte swizzle; ``next`` bytes between its columns of 64 numbers where these
// lie along the result's rows.
static __device__ __forceinline__ unsigned long long flash_descriptor(const void* shared, int next) {
  const unsigned long long at = (flash_address(shared) & 0x3ffff) >> 4;
  return at | (unsigned long long)(next >> 4) << 16 | 64ull << 32 | 1ull << 62;
}
static __device__ __forceinline__ void flash_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void flash_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but LEFT groups of products are done; nothing reads x before.
template <int LEFT, int N> static __device__ __forceinline__ void flash_await(float (&x)[N][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#pragma unroll
  for (int n = 0; n < N; ++n) asm volatile("" : "+f"(x[n][0]), "+f"(x[n][1]), "+f"(x[n][2]), "+f"(x[n][3])::"memory");
}
static __device__ __forceinline__ void flash_publish() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A tile of rows by wgmma, 64 of each group of 4 warps. While the values of a step are added, the weights of the next
// one are made (FlashAttention-3: Shah et al. 2024, arXiv:2407.08608, section 3.2).
template <int D, int ROWS, int KEYS, class M> struct FlashWideTile {
  static constexpr int THREADS = ROWS * 2;
  using Place = FlashSwizzled<D, KEYS>;
  using QueryPlace = FlashSwizzled<D, ROWS>;

  template <class Source>
  static __device__ __forceinline__ void scores_of(float (&s)[KEYS / 8][4], const M* queries, const M* keys) {
    flash_fence();
    const unsigned long long a = flash_descriptor(queries, 16), b = flash_descriptor(keys, D * 128);
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      const int a_at = (d / 64 * (ROWS * 64) + d % 64) / 8;
      const int b_at = Source::TURNED ? d * 64 / 8 : (d / 64 * (KEYS * 64) + d % 64) / 8;
      flash_wgmma<M, Source::TURNED>(s, a + a_at, b + b_at, d > 0);
    }
    flash_group();
  }

  static __device__ __forceinline__ void add_values(float (&sums)[D / 8][4], const unsigned (&p)[KEYS / 16][4],
                                                    const M* values) {
    flash_fence();
    const unsigned long long b = flash_descriptor(values, KEYS * 128);
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) flash_wgmma<M>(sums, p[k], b + k * (16 * 64 / 8));
    flash_group();
  }

  template <class TQ, class Source>
  static __device__ __forceinline__ void run(M* memory, const TQ* q, TQ* out, float* lse, const Source& source,
                                             const FlashSequence& own, const FlashScores& scores, int tile_row) {
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    M* const queries = memory + (-(int)flash_address(memory) & 1023) / 2;  // the swizzle counts from 1024 bytes
    M *const all_keys = queries + QueryPlace::SIZE, *const all_values = all_keys + 2 * Source::KEY_SIZE;
    const FlashSteps steps = flash_steps<ROWS, KEYS>(own, scores, source.tokens, tile_row);
    const float to_exponent = scores.to_exponent();
    float sums[D / 8][4], s[KEYS / 8][4];
    unsigned p[KEYS / 16][4];
    FlashRunning running{{flash_nothing(), flash_nothing()}, {0.0f, 0.0f}, {1.0f, 1.0f}};
    flash_zero(sums);
    int step = steps.from(0), next = steps.from(step + 1), stage = 0;
    auto weights = [&](int at) {
      const int first_key = at * KEYS;
      flash_cap(s, scores);
      if (first_key + KEYS > steps.whole || first_key < steps.masked)
        flash_mask(s, tile_row + warp_row + lane / 4, first_key, source.tokens, own, scores);
      flash_weights(s, running, to_exponent);
    };
    const M* const own_queries = queries + threadIdx.x / 128 * (64 * 64);

    flash_load_queries<D, ROWS, THREADS, M, QueryPlace>(queries, q, own, tile_row);
    if (step < steps.stop) {
      int pages = source.pages_of(step);
      source.load_keys(all_keys, step, pages);
      source.load_values(all_values, step, pages);
      flash_wait();
      flash_publish();
      __syncthreads();
      scores_of<Source>(s, own_queries, all_keys);
      if (next < steps.stop) {
        pages = source.pages_of(next);
        source.load_keys(all_keys + Source::KEY_SIZE, next, pages);
      }
      flash_await<0>(s);
      weights(step);
      flash_pack<M>(p, s);
      while (next < steps.stop) {
        const int later = steps.from(next + 1);
        flash_wait();
        flash_publish();
        __syncthreads();  // the next keys are there, and all are done with those of this step
        scores_of<Source>(s, own_queries, all_keys + (stage ^ 1) * Source::KEY_SIZE);
        add_values(sums, p, all_values + stage * Place::SIZE);
        source.load_values(all_values + (stage ^ 1) * Place::SIZE, next, pages);
        if (later < steps.stop) {
          pages = source.pages_of(later);
          source.load_keys(all_keys + stage * Source::KEY_SIZE, later, pages);
        }
        flash_await<1>(s);
        weights(next);
        flash_await<0>(sums);
        flash_decay(sums, running);
        flash_pack<M>(p, s);
        step = next;
        next = later;
        stage ^= 1;
      }
      flash_wait();
      flash_publish();
      __syncthreads();
      add_values(sums, p, all_values + stage * Place::SIZE);
      flash_await<0>(sums);
    }
    flash_wait();
    __syncthreads();  // the queries' place takes results
    flash_store<D, QueryPlace>(sums, running, queries, warp_row, tile_row, out, lse, own, to_exponent);
  }
};

template <int D, int GROUP, int ROWS, int KEYS, class M, class TQ, class T, class... Args>
static __device__ __forceinline__ int flash_wide_ragged(Args... args) {
  return flash_ragged_by<FlashWideTile<D, ROWS, KEYS, M>, D, GROUP, ROWS, KEYS, M, TQ, T>(args...);
}

template <int D, int GROUP, int ROWS, int KEYS, class M, class TQ, class T, class... Args>
static __device__ __forceinline__ int flash_wide_paged(Args... args) {
  return flash_paged_by<FlashWideTile<D, ROWS, KEYS, M>, D, GROUP, ROWS, KEYS, M, TQ, T>(args...);
}
"""
