"""Attention of many query rows on NVIDIA's tensor cores, sm_80 and later, as text that CUDA libraries get.

A block keeps ROWS query rows and goes through the keys, KEYS at a time, with a running softmax; scores and weights
never leave registers (FlashAttention-2: Dao 2023, arXiv:2307.08691). Products are mma.sync of 16-bit numbers with sums
in float32; ldmatrix reads them from shared memory and cp.async brings them there (PTX ISA, "Warp-level matrix
instructions" and "Data movement and conversion instructions"). A row is a pair of a token and a query head of one key
head, so that heads that share keys read them once. Lines of shared memory are 16 bytes longer than D numbers: eight of
them then begin in different banks.

Template arguments: D features of a head (a multiple of 16); GROUP query heads of a key head; ROWS of a block and 16 MT
of a warp; KEYS of a step (a multiple of 16); STAGES of them in shared memory (1: values come while scores are computed,
and the next keys while values are added; 2: all of the next step comes during this one); types M of products, TQ of
queries and results, T of keys and values. Where M and T differ, copies convert. Rows that see nothing become zeros, and
their logarithm -1e30. schedules/gpu/flash_attention.py has the tiles.
"""

from __future__ import annotations

RAGGED, PAGED = "flash_ragged", "flash_paged"  # the functions that kernels call
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

static __device__ __forceinline__ void flash_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
static __device__ __forceinline__ void flash_wait() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Keys and values of one head in rows, (tokens, D) with ``stride`` between rows.
template <int D, int KEYS, int THREADS, class M, class T> struct FlashRows {
  static constexpr bool TURNED = false;
  static constexpr int KEY_SIZE = KEYS * (D + 8);
  const T *k, *v;
  int tokens, stride;

  __device__ __forceinline__ int pages_of(int) const { return 0; }
  __device__ __forceinline__ void load(M* to, const T* from, int tile) const {
#pragma unroll (flash_same<M, T> ? 64 : 2)
    for (int i = threadIdx.x; i < KEYS * D / 8; i += THREADS) {
      const int row = i / (D / 8), d = i % (D / 8) * 8, key = tile * KEYS + row;
      flash_copy<M>(to + row * (D + 8) + d, from + (size_t)min(key, tokens - 1) * stride + d, key < tokens);
    }
  }
  __device__ __forceinline__ void load_keys(M* to, int tile, int) const { load(to, k, tile); }
  __device__ __forceinline__ void load_values(M* to, int tile, int) const { load(to, v, tile); }
};

// Keys and values of one head in pages of 16 tokens: keys (D, 16), values (16, D).
template <int D, int KEYS, int THREADS, class M, class T> struct FlashPages {
  static constexpr bool TURNED = true;
  static constexpr int KEY_SIZE = KEYS * D, PAGES = KEYS / 16, CHUNKS = 2 * D;  // chunks of 8 numbers in a page
  const T* pages;  // at the head's keys in page 0
  size_t page_stride;
  int values;  // from the head's keys to its values
  const int* table;
  int tokens;

  // Lane l: the page with tile's keys 16 (l % PAGES) ..
  __device__ __forceinline__ int pages_of(int tile) const {
    return table[min(tile * PAGES + (int)threadIdx.x % PAGES, (tokens - 1) / 16)];
  }
  // Where a line of 8 keys of feature d is: two lines a feature, in an order that gives 8 features 8 banks.
  static __device__ __forceinline__ int key_at(int page, int d, int half) {
    return (page * D + d) * 16 + ((half ^ (d >> 2)) & 1) * 8;
  }
  __device__ __forceinline__ void load_keys(M* to, int tile, int ids) const {
#pragma unroll (flash_same<M, T> ? 64 : 2)
    for (int i = threadIdx.x; i < PAGES * CHUNKS; i += THREADS) {
      const int page = i / CHUNKS, d = i % CHUNKS / 2, half = i % 2;
      const T* from = pages + __shfl_sync(~0u, ids, page) * page_stride + i % CHUNKS * 8;
      flash_copy<M>(to + key_at(page, d, half), from, tile * KEYS + page * 16 < tokens);
    }
  }
  __device__ __forceinline__ void load_values(M* to, int tile, int ids) const {
#pragma unroll (flash_same<M, T> ? 64 : 2)
    for (int i = threadIdx.x; i < PAGES * CHUNKS; i += THREADS) {
      const int page = i / CHUNKS, row = i / (D / 8), d = i % (D / 8) * 8;
      const T* from = pages + __shfl_sync(~0u, ids, page) * page_stride + values + i % CHUNKS * 8;
      flash_copy<M>(to + row * (D + 8) + d, from, tile * KEYS + row < tokens);
    }
  }
};

// What a row sees and how its scores become exponents of 2. Literals where a kernel calls, so that no question is left.
struct FlashScores {
  float scale, cap;  // cap 0: none
  int window, sinks;  // window 0: none
  bool windowed;
};

struct FlashSequence {
  int begin, count, group, heads, first_head;  // rows: (token, head) of the group's heads
  int past, causal, start;  // tokens before the first row's own; causal or not; position of the first key
  const int* position;
};

template <int D, int ROWS, int MT, int KEYS, int STAGES, class M, class TQ, class Source>
static __device__ __forceinline__ void flash_tile(M* memory, const TQ* q, TQ* out, float* lse, const Source& source,
                                                  const FlashSequence& own, const FlashScores& scores, int tile_row) {
  constexpr int THREADS = ROWS / MT * 2, LINE = D + 8, STAGE = Source::KEY_SIZE + KEYS * LINE;
  const int thread = threadIdx.x, lane = thread % 32, warp_row = thread / 32 * (16 * MT);
  const int rows = own.count * own.group;
  M *const queries = memory, *const stages = memory + ROWS * LINE;

#pragma unroll 4
  for (int i = thread; i < ROWS * D / 8; i += THREADS) {
    const int r = i / (D / 8), d = i % (D / 8) * 8, row = min(tile_row + r, rows - 1);
    const size_t place = (size_t)(own.begin + row / own.group) * own.heads + own.first_head + row % own.group;
    flash_copy<M>(queries + r * LINE + d, q + place * D + d, true);
  }

  // Keys that rows see: tiles [0, sink_tiles) and [first_tile, stop); [.., whole) need no mask.
  const int first_token = tile_row / own.group, last_token = min((tile_row + ROWS - 1) / own.group, own.count - 1);
  const int end = own.causal ? min(own.past + last_token + 1, source.tokens) : source.tokens;
  const int whole = own.causal ? min(own.past + first_token + 1, source.tokens) : source.tokens;
  const int stop = (end + KEYS - 1) / KEYS, reach = scores.window - scores.sinks;
  int first_tile = 0, sink_tiles = 0, masked_until = 0;
  if (scores.window && scores.windowed) {
    int least = 0x7fffffff, most = -0x7fffffff;
    for (int token = first_token + lane; token <= last_token; token += 32) {
      const int position = own.position[own.begin + token];
      least = min(least, position);
      most = max(most, position);
    }
    least = __reduce_min_sync(~0u, least);
    most = __reduce_max_sync(~0u, most);
    first_tile = max(least - reach + 1 - own.start, 0) / KEYS;
    masked_until = most - reach + 1 - own.start;
    sink_tiles = (max(scores.sinks - own.start, 0) + KEYS - 1) / KEYS;
  }
  auto next_of = [&](int tile) { return tile >= sink_tiles ? max(tile, first_tile) : tile; };
  int tile = next_of(0), stage = 0;
  int pages = tile < stop ? source.pages_of(tile) : 0;
  if (tile < stop) {
    source.load_keys(stages, tile, pages);
    if (STAGES > 1) source.load_values(stages + Source::KEY_SIZE, tile, pages);
  }
  flash_commit();

  const float to_exponent = scores.cap != 0.0f ? scores.cap * 1.44269504f : scores.scale * 1.44269504f;
  float sums[MT][D / 8][4], top[MT][2], total[MT][2];
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
    top[m][0] = top[m][1] = flash_nothing();
    total[m][0] = total[m][1] = 0.0f;
  }
  const unsigned query_at = flash_address(queries + (warp_row + lane % 16) * LINE + lane / 16 * 8);
  unsigned key_at, value_at = flash_address(stages + Source::KEY_SIZE + lane % 16 * LINE + lane / 16 * 8);
  if constexpr (Source::TURNED)
    key_at = flash_address(stages + Source::key_at(0, lane / 8 % 2 * 8 + lane % 8, lane / 16));
  else
    key_at = flash_address(stages + (lane / 16 * 8 + lane % 8) * LINE + lane / 8 % 2 * 8);

  while (tile < stop) {
    const int next = next_of(tile + 1);
    M* const keys = stages + stage * STAGE;
    flash_wait();
    __syncthreads();
    const unsigned stage_bytes = stage * (STAGE * 2);
    if constexpr (STAGES > 1) {
      stage ^= 1;
      if (next < stop) {
        pages = source.pages_of(next);
        source.load_keys(stages + stage * STAGE, next, pages);
        source.load_values(stages + stage * STAGE + Source::KEY_SIZE, next, pages);
      }
    } else {
      source.load_values(keys + Source::KEY_SIZE, tile, pages);
      if (next < stop) pages = source.pages_of(next);
    }
    flash_commit();

    float s[MT][KEYS / 8][4];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = 0.0f;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      unsigned a[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) flash_matrices<false>(a[m], query_at + (m * 16 * LINE + d) * 2);
#pragma unroll
      for (int n = 0; n < KEYS / 16; ++n) {
        unsigned b[4];
        const int offset = Source::TURNED ? n * 16 * D + d * 16 : n * 16 * LINE + d;
        flash_matrices<Source::TURNED>(b, key_at + stage_bytes + offset * 2);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          flash_mma<M>(s[m][2 * n], a[m], b[0], b[1]);
          flash_mma<M>(s[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }

    if (scores.cap != 0.0f) {
      const float twice = scores.scale / scores.cap * 2.88539008f;  // tanh x = 1 - 2 / (e^2x + 1)
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            s[m][n][i] = 1.0f - __fdividef(2.0f, flash_exp2(fminf(s[m][n][i] * twice, 115.0f)) + 1.0f);
    }
    const int first_key = tile * KEYS;
    if (first_key + KEYS > whole || first_key < masked_until) {
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = min(tile_row + warp_row + m * 16 + half * 8 + lane / 4, rows - 1), token = row / own.group;
          const int limit = own.causal ? min(own.past + token + 1, source.tokens) : source.tokens;
          int low = 0, sinks = 0;
          if (scores.window && scores.windowed) {
            low = own.position[own.begin + token] - reach + 1 - own.start;
            sinks = scores.sinks - own.start;
          }
#pragma unroll
          for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int key = first_key + n * 8 + lane % 4 * 2 + i;
              const bool seen = key < limit && (key >= low || key < sinks);
              if (!seen) s[m][n][half * 2 + i] = flash_nothing();
            }
        }
    }

    if constexpr (STAGES == 1) {
      flash_wait();
      __syncthreads();
      if (next < stop) source.load_keys(keys, next, pages);
      flash_commit();
    }

    unsigned p[MT][KEYS / 16][4];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      float decay[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = top[m][half];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) most = fmaxf(most, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float base = most == flash_nothing() ? 0.0f : most * to_exponent;
        decay[half] = flash_exp2(top[m][half] * to_exponent - base);
        top[m][half] = most;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) s[m][n][half * 2 + i] = flash_exp2(s[m][n][half * 2 + i] * to_exponent - base);
          sum += s[m][n][half * 2] + s[m][n][half * 2 + 1];
        }
        total[m][half] = total[m][half] * decay[half] + sum;
      }
#pragma unroll
      for (int n = 0; n < KEYS / 16; ++n) {
        p[m][n][0] = flash_pair<M>(s[m][2 * n][0], s[m][2 * n][1]);
        p[m][n][1] = flash_pair<M>(s[m][2 * n][2], s[m][2 * n][3]);
        p[m][n][2] = flash_pair<M>(s[m][2 * n + 1][0], s[m][2 * n + 1][1]);
        p[m][n][3] = flash_pair<M>(s[m][2 * n + 1][2], s[m][2 * n + 1][3]);
      }
      if (__any_sync(~0u, decay[0] != 1.0f || decay[1] != 1.0f)) {
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][n][i] *= decay[i / 2];
      }
    }
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k)
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        unsigned b[4];
        flash_matrices<true>(b, value_at + stage_bytes + (k * 16 * LINE + n * 16) * 2);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          flash_mma<M>(sums[m][2 * n], p[m][k], b[0], b[1]);
          flash_mma<M>(sums[m][2 * n + 1], p[m][k], b[2], b[3]);
        }
      }
    tile = next;
  }
  flash_wait();
  __syncthreads();  // the queries' place takes results

#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = total[m][half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const float share = sum > 0.0f ? 1.0f / sum : 0.0f;
      const int r = warp_row + m * 16 + half * 8 + lane / 4, row = tile_row + r;
      const size_t place = (size_t)(own.begin + row / own.group) * own.heads + own.first_head + row % own.group;
      if (row < rows && lane % 4 == 0)
        lse[place] = sum > 0.0f ? top[m][half] * to_exponent + log2f(sum) : -1e30f;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const float x = sums[m][n][half * 2] * share, y = sums[m][n][half * 2 + 1] * share;
        if constexpr (sizeof(TQ) == 4) {
          if (row < rows) *reinterpret_cast<float2*>(out + place * D + n * 8 + lane % 4 * 2) = make_float2(x, y);
        } else {
          *reinterpret_cast<unsigned*>(queries + r * LINE + n * 8 + lane % 4 * 2) = flash_pair<TQ>(x, y);
        }
      }
    }
  if constexpr (sizeof(TQ) == 2) {
    __syncwarp();
    for (int i = lane; i < 16 * MT * D / 8; i += 32) {
      const int r = warp_row + i / (D / 8), d = i % (D / 8) * 8, row = tile_row + r;
      const size_t place = (size_t)(own.begin + row / own.group) * own.heads + own.first_head + row % own.group;
      if (row < rows)
        *reinterpret_cast<uint4*>(out + place * D + d) = *reinterpret_cast<const uint4*>(queries + r * LINE + d);
    }
  }
}

// Which sequence and rows a block has: ``index`` counts the tiles of all sequences; the last of a sequence come first,
// as they see most. Returns the sequence, or -1 past the last; ``index`` becomes the tile's.
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
template <int D, int GROUP, int ROWS, int MT, int KEYS, int STAGES, class M, class TQ, class T>
static __device__ __forceinline__ int flash_ragged(void* memory, const void* q, const int* q_indptr, const void* k,
                                                   const void* v, const int* k_indptr, const int* position,
                                                   const int* k_start, void* out, float* lse, int batch, int key_heads,
                                                   int causal, float encoded, float cap, int window, int sinks,
                                                   int index, int head) {
  const int sequence = flash_sequence(q_indptr, batch, GROUP, ROWS, index);
  if (sequence < 0) return 0;
  const int begin = q_indptr[sequence], count = q_indptr[sequence + 1] - begin;
  const int k_begin = k_indptr[sequence], tokens = k_indptr[sequence + 1] - k_begin;
  const size_t from = ((size_t)k_begin * key_heads + head) * D;
  const FlashRows<D, KEYS, ROWS / MT * 2, M, T> source{(const T*)k + from, (const T*)v + from, tokens, key_heads * D};
  const FlashSequence own{begin, count, GROUP, key_heads * GROUP, head * GROUP, tokens - count, causal,
                          window ? k_start[sequence] : 0, position};
  const FlashScores scores{window ? fabsf(encoded) : encoded, cap, window, sinks, encoded < 0.0f};
  flash_tile<D, ROWS, MT, KEYS, STAGES>((M*)memory, (const TQ*)q, (TQ*)out, lse, source, own, scores, index * ROWS);
  return 0;
}

// The new tokens against everything that the pages held before them. pages: (pages, 2, heads / GROUP, 16 D).
template <int D, int GROUP, int ROWS, int MT, int KEYS, int STAGES, class M, class TQ, class T>
static __device__ __forceinline__ int flash_paged(void* memory, const void* q, const int* q_indptr, const void* pages,
                                                  const int* indptr, const int* table, const int* last_len,
                                                  const int* k_start, const int* position, void* out, float* lse,
                                                  int batch, int key_heads, float encoded, float cap, int window,
                                                  int sinks, int index, int head) {
  const int sequence = flash_sequence(q_indptr, batch, GROUP, ROWS, index);
  if (sequence < 0) return 0;
  const int begin = q_indptr[sequence], count = q_indptr[sequence + 1] - begin;
  const int first = indptr[sequence], held = indptr[sequence + 1] - first;
  const int tokens = held > 0 ? (held - 1) * 16 + last_len[sequence] : 0;
  const int values = key_heads * (16 * D);
  const FlashPages<D, KEYS, ROWS / MT * 2, M, T> source{(const T*)pages + head * (16 * D), (size_t)(2 * values), values,
                                                        table + first, tokens};
  const FlashSequence own{begin, count, GROUP, key_heads * GROUP, head * GROUP, tokens, 0,
                          window ? k_start[sequence] : 0, position};
  const FlashScores scores{window ? fabsf(encoded) : encoded, cap, window, sinks, encoded < 0.0f};
  flash_tile<D, ROWS, MT, KEYS, STAGES>((M*)memory, (const TQ*)q, (TQ*)out, lse, source, own, scores, index * ROWS);
  return 0;
}
"""
