"""CUDA text of products on tensor cores for sm_90a: y = x @ weight.T, the weight read as it is stored.

A block computes OUTPUTS outputs of some rows of x, turned: y.T = weight @ x.T. So the weight is the operand that wgmma
takes from registers, where packed values become pairs of 16-bit floats, and x is the one that it takes from shared
memory. Four warps fetch, some steps of INPUTS inputs ahead; each four others have 64 outputs and sum in float32.

x comes in panels, one for each step: (rows, INPUTS), rows a multiple of PANEL_ROWS, of which the eight 16-byte chunks
of row r are in the order chunk ^ (r % 8), as wgmma reads them. So one bulk copy brings what a block needs of a step.
Rows past x's last are read for no result; inputs past the last are zero.

Integers become floats by their place in the mantissa of 1024 (of 128 in bfloat16), as in Kim et al. 2022,
arXiv:2211.10017. wgmma, its descriptors of shared memory, swizzles, mbarrier and cp.async.bulk: PTX ISA 8.0, sections
9.7.13 to 9.7.15.
"""

from __future__ import annotations

from math import gcd

TOKENS = (16, 64, 128, 256)  # rows of a block, by which the code differs
OUTPUTS = 128  # of a block
THREADS = 3 * 128  # of a block: two groups that multiply, one that fetches
INPUTS = 64  # of a step
PANEL_ROWS = 256  # that the rows of a panel are a multiple of
NAMESPACE = "tensor_products"  # of the device functions
_KINDS = {"f16": "__half", "bf16": "__nv_bfloat16"}


def shared_bytes(tokens: int, weight_bytes: int) -> int:
    """Of a block; ``weight_bytes``: of INPUTS inputs of an output in shared memory."""
    return stages(tokens, weight_bytes) * (tokens * 2 * INPUTS + OUTPUTS * weight_bytes) + 1024 + 256


def stages(tokens: int, weight_bytes: int) -> int:
    """Steps in shared memory: as many as fit beside as many blocks as registers allow."""
    room = 226 << 10 if tokens >= 128 else 110 << 10
    return max(3, min(8, (room - 1280) // (tokens * 2 * INPUTS + OUTPUTS * weight_bytes)))


def bytes_of_step(per_word: int, turned: bool) -> int:
    """Of INPUTS inputs of an output in shared memory, of a weight with ``per_word`` values in a word: whole chunks of
    four words, or words where outputs lie beside each other (``turned``), wherever in one the inputs begin."""
    unit = per_word if turned else 4 * per_word
    units = (unit - gcd(INPUTS, unit) + INPUTS - 1) // unit + 1
    return units * (4 if turned else 16)


def source(kernels: str) -> str:
    """The text that goes before the source of ``kernels``: "" if they call nothing of it."""
    if f"{NAMESPACE}::" not in kernels:
        return ""
    products = [
        _wgmma(n, kind, registers)
        for kind, name in _KINDS.items()
        for registers, weight in ((True, "Packed"), (False, "Plain"))
        for n in TOKENS
        if f"{weight}<{name}" in kernels
    ]
    return _START + "\n".join(products) + _PRODUCT


def _wgmma(n: int, kind: str, registers: bool) -> str:
    """``multiply``: sums += a (64, 16) @ b (16, n), a from registers or from shared memory."""
    count = n // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    if registers:
        kind_of_a, a = "const u32 (&a)[4]", f"{{{', '.join(f'%{count + i}' for i in range(4))}}}"
        inputs, b, turned = '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])', count + 4, "0"
    else:
        kind_of_a, a, inputs, b, turned = "u64 a", f"%{count}", '"l"(a)', count + 1, "0, 0"
    return f"""
static __device__ __forceinline__ void multiply({_KINDS[kind]}, float (&d)[{count}], {kind_of_a}, u64 b) {{
  asm volatile("wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} {{{sums}}}, {a}, %{b}, 1, 1, 1, {turned};"
    : {outputs} : {inputs}, "l"(b));
}}
"""


_START = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>
namespace tensor_products {
using u32 = unsigned;
using u64 = unsigned long long;
#define INLINE static __device__ __forceinline__

INLINE u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
INLINE void barrier_make(u32 at, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(arrivals));
}
INLINE void arrive(u32 at) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(at) : "memory"); }
INLINE void arrive_expecting(u32 at, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
INLINE void wait(u32 at, u32 phase) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@done bra past;\nbra again;\npast:\n}" ::"r"(at), "r"(phase)
      : "memory");
}
INLINE void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
INLINE void copy16(u32 to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}
INLINE void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
INLINE void copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
INLINE void fence_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
INLINE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
INLINE void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
INLINE void products_but() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N>
INLINE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
INLINE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// rows of 128 bytes whose chunks are swizzled
INLINE u64 matrix_at(u32 at) { return (u64)((at & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62); }
"""

_PRODUCT = r"""
INLINE u32 load1(u32 at) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}
INLINE void load4(u32 (&v)[4], u32 at) {
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at));
}
INLINE u32 and_or(u32 a, u32 mask, u32 other) {
  u32 r;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "r"(mask), "r"(other));
  return r;
}
// pairs of 16-bit floats
template <class E>
struct Pair;
template <>
struct Pair<__half> {
  static constexpr u32 ONE_UNIT = 0x6400, MANTISSA = 10;  // 1024: its last bit is worth 1
  static INLINE_ u32 bits(__half2 v) { return *(u32*)&v; }
  static INLINE_ u32 sub(u32 a, u32 b) { return bits(__hsub2(*(__half2*)&a, *(__half2*)&b)); }
  static INLINE_ u32 mul(u32 a, u32 b) { return bits(__hmul2(*(__half2*)&a, *(__half2*)&b)); }
  static INLINE_ u32 of(float a, float b) { return bits(__floats2half2_rn(a, b)); }
};
template <>
struct Pair<__nv_bfloat16> {
  static constexpr u32 ONE_UNIT = 0x4300, MANTISSA = 7;
  static INLINE_ u32 bits(__nv_bfloat162 v) { return *(u32*)&v; }
  static INLINE_ u32 sub(u32 a, u32 b) { return bits(__hsub2(*(__nv_bfloat162*)&a, *(__nv_bfloat162*)&b)); }
  static INLINE_ u32 mul(u32 a, u32 b) { return bits(__hmul2(*(__nv_bfloat162*)&a, *(__nv_bfloat162*)&b)); }
  static INLINE_ u32 of(float a, float b) { return bits(__floats2bfloat162_rn(a, b)); }
};
INLINE u32 twice(unsigned short v) { return v | (u32)v << 16; }

// A weight that is kept as it is: rows of 16-bit floats, in shared memory as wgmma reads them.
template <class E_>
struct Plain {
  using E = E_;
  static constexpr bool PLAIN = true;
  static constexpr int GROUP = 0, UNIT = 8, LINES = OUTPUTS, PIECES = 8, LINE = 128;
  static constexpr bool ROW_SCALE = false, TURNED = false;
};

enum { INTEGER, INT8, E4M3, E5M2 };

// A packed weight: words of PER values, BITS each, lowest first; a scale of type E per GROUP inputs (0: one per
// row, of type SCALE, applied to the sums; ONE: or of the matrix); LEVEL: what an integer has too much; ZEROS: groups
// have a level of their own; TURNED: layout KN.
template <class E_, class SCALE_, int KIND_, int BITS_, int PER_, int GROUP_, int LEVEL_, bool TURNED_, bool ZEROS_,
          bool ONE_>
struct Packed {
  using E = E_;
  using SCALE = SCALE_;
  static constexpr bool PLAIN = false, TURNED = TURNED_, ZEROS = ZEROS_, ROW_SCALE = GROUP_ == 0, ONE = ONE_;
  static constexpr int KIND = KIND_, BITS = BITS_, PER = PER_, GROUP = GROUP_, LEVEL = LEVEL_;
  // of a step of 64 inputs: words of a row that may be touched, counted from the first of a chunk (a word, if turned)
  static constexpr int UNIT = TURNED ? PER : 4 * PER;
  static constexpr int COMMON = (UNIT & -UNIT) < 64 ? UNIT & -UNIT : 64;  // the largest divisor of it and 64
  static constexpr int UNITS = (UNIT - COMMON + 63) / UNIT + 1;
  static constexpr int LINES = TURNED ? UNITS : OUTPUTS;       // lines of shared memory
  static constexpr int PIECES = TURNED ? OUTPUTS / 4 : UNITS;  // 16-byte chunks of a line
  static constexpr int LINE = PIECES * 16;
  static constexpr int GROUPS = GROUP == 0 || GROUP % 64 == 0 ? 1
                                : 64 % GROUP                  ? (64 + GROUP - 2) / GROUP + 1
                                                              : 64 / GROUP;
  static constexpr bool STEADY = GROUP == 0 || GROUP % 64 == 0 || 64 % GROUP == 0;  // groups begin with a step
};

// where a chunk of a line is: lines of 32 bytes in turns, so that eight rows are read at once
template <class W>
INLINE u32 place_of(int line, int piece) {
  if (W::PLAIN) return line * 128 + ((piece ^ (line & 7)) << 4);
  if (!W::TURNED && W::LINE == 32) return line * 32 + ((piece ^ (line >> 2 & 1)) << 4);
  if (!W::TURNED && W::LINE == 64) return line * 64 + ((piece ^ (line >> 1 & 3)) << 4);
  return line * W::LINE + (piece << 4);
}

// two FP8 numbers as a pair of halves
template <int KIND>
INLINE u32 pair_of_bytes(unsigned short two) {
  u32 pair;
  if (KIND == E4M3)
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(two));
  else
    asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(pair) : "h"(two));
  return pair;
}

// a number of a packed weight, as a float
template <class W>
INLINE float value_of(u32 code, int level) {
  if (W::KIND == INTEGER) return (float)((int)code - level);
  if (W::KIND == INT8) return (float)(signed char)code;
  u32 pair = pair_of_bytes<W::KIND>((unsigned short)code);
  return __half2float(((__half*)&pair)[0]);
}

// The 64 inputs of a step of output ``row`` as wgmma's operand: value pairs 2 q, 2 q + 1 and 8 more, of each 16
// inputs.
// ``step``: which; ``scale`` and ``level``: of the step's groups.
template <class W, int H>
INLINE void fragment(u32 (&a)[4][4], u32 at, int row, int q, int step, const u32 (&scale)[W::GROUPS][2],
                     const u32 (&level)[W::GROUPS][2]) {
  using P = Pair<typename W::E>;
  constexpr bool FAST4 = !W::TURNED && W::KIND == INTEGER && W::BITS == 4 && W::STEADY;
  constexpr bool FAST8 = !W::TURNED && W::KIND == INTEGER && W::BITS == 8 && W::STEADY && P::MANTISSA == 10;
  constexpr bool FAST1 = !W::TURNED && W::KIND != INTEGER && W::STEADY && P::MANTISSA == 10;
  if constexpr (FAST4) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      u32 v[4];
      load4(v, at + place_of<W>(row, c));
      u32 pick = q | ((q + 4) << 4);
      u32 all = __byte_perm(__byte_perm(v[0], v[1], pick), __byte_perm(v[2], v[3], pick), 0x5410), up = all >> 4;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        constexpr u32 unit = P::ONE_UNIT | P::ONE_UNIT << 16;
        int group = W::GROUP && 64 % W::GROUP == 0 ? (c * 32 + b * 8) / W::GROUP : 0;
        u32 pair = __byte_perm(all, up, (u32)(b | b << 4 | (b + 4) << 8 | (b + 4) << 12));
        pair = P::sub(and_or(pair, 0x000F000Fu, unit), level[group][H]);
        a[c * 2 + b / 2][H + 2 * (b & 1)] = W::ROW_SCALE ? pair : P::mul(pair, scale[group][H]);
      }
    }
  } else if constexpr (FAST8 || FAST1) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      u32 v[4];
      load4(v, at + place_of<W>(row, c));
      int group = W::GROUP && 64 % W::GROUP == 0 ? c * 16 / W::GROUP : 0;
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        u32 word = q & 2 ? v[2 * b + 1] : v[2 * b], pair;
        if constexpr (FAST8 || W::KIND == INT8) {
          u32 code = W::KIND == INT8 ? word ^ 0x80808080u : word;
          pair = __byte_perm(code, 0x64646464u, q & 1 ? 0x4342u : 0x4140u);
          pair = P::sub(pair, W::KIND == INT8 ? twice(0x6480) : level[group][H]);
        } else {
          unsigned short two = q & 1 ? word >> 16 : word;
          pair = pair_of_bytes<W::KIND>(two);
        }
        a[c][H + 2 * b] = W::ROW_SCALE ? pair : P::mul(pair, scale[group][H]);
      }
    }
  } else {
    int first = step * 64 / W::UNIT * W::UNIT, first_group = W::GROUP ? step * 64 / max(W::GROUP, 1) : 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      int k = step * 64 + j * 8 + 2 * q;
      u32 codes[2];
      u32 pair_scale = scale[0][H], pair_level = level[0][H];
      if (W::GROUP) {
        int group =
            W::STEADY ? 64 % max(W::GROUP, 1) ? 0 : j * 8 / max(W::GROUP, 1) : k / max(W::GROUP, 1) - first_group;
#pragma unroll
        for (int g = 1; g < W::GROUPS; ++g)
          if (group == g) {
            pair_scale = scale[g][H];
            pair_level = level[g][H];
          }
      }
      auto word_of = [&](int k) {
        int word = (k - first) / W::PER;
        return load1(W::TURNED ? at + word * W::LINE + row * 4 : at + place_of<W>(row, word / 4) + word % 4 * 4);
      };
      u32 word = word_of(k), bit = (k - first) % W::PER * W::BITS, pair;
      codes[0] = word >> bit;
      codes[1] = W::PER % 2 ? word_of(k + 1) >> (k + 1 - first) % W::PER * W::BITS : codes[0] >> W::BITS;
      if constexpr (W::KIND == INTEGER && W::BITS <= P::MANTISSA) {
        constexpr u32 mask = (1u << W::BITS) - 1;
        pair = and_or(codes[0], mask, P::ONE_UNIT | P::ONE_UNIT << 16) | (codes[1] & mask) << 16;
        pair = P::sub(pair, pair_level);
      } else {
        pair = P::of(value_of<W>(codes[0] & ((1u << W::BITS) - 1), (int)pair_level),
                     value_of<W>(codes[1] & ((1u << W::BITS) - 1), (int)pair_level));
      }
      a[j / 2][H + 2 * (j & 1)] = W::ROW_SCALE ? pair : P::mul(pair, pair_scale);
    }
  }
}

// Whether ``level`` is a pair that is taken off a pair, or an integer.
template <class W>
struct Level {
  static constexpr bool PAIR = W::KIND == INTEGER && W::BITS <= Pair<typename W::E>::MANTISSA;
};

// y (rows, n) = x @ weight.T * row_scale + (bias + residual) * share, for a tile of rows and one of outputs. With
// several
// ``splits`` of the inputs a block has one of them, and they go to parts (splits, rows, n) as they are. ``units``:
// words of a row, or of a column, if the weight is turned; ``groups``: of a row. What there is not is a null pointer.
template <int TOKENS, int STAGES, class W>
INLINE int product(const void* panels, const void* stored, const void* scales_, const void* zeros_, float* y,
                   float* parts, const float* row_scale, const void* bias, const float* residual, float share,
                   int rows, int padded, int n, int k, int units, int groups, int splits, int block, int row_tile,
                   void* memory) {
  using E = typename W::E;
  constexpr int GROUPS_OF_WARPS = OUTPUTS / 64, X = TOKENS * 128, WEIGHT = W::LINES * W::LINE,
                STAGE = X + (WEIGHT + 1023) / 1024 * 1024;
  constexpr bool MANY = TOKENS >= 128;
  int thread = threadIdx.x, part = __shfl_sync(0xffffffff, thread / 128, 0);
  u32 base = (address(memory) + 1023) & ~1023u, full = base + STAGES * STAGE, empty = full + 8 * STAGES;
  if (thread == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_make(full + 8 * s, 129);
      barrier_make(empty + 8 * s, GROUPS_OF_WARPS * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  int split = block % splits, n0 = block / splits * OUTPUTS, m0 = row_tile * TOKENS;
  int steps = (k + 63) / 64, each = (steps + splits - 1) / splits, first = split * each,
      count = min(steps, first + each) - first;
  if (part == GROUPS_OF_WARPS) {
    if (MANY) give_registers<40>();
    constexpr int BEHIND = STAGES - 2 < 3 ? STAGES - 2 : 3;  // steps whose copies are under way
    constexpr int COPIES = W::LINES * W::PIECES / 128, LEFT = W::LINES * W::PIECES % 128;
    constexpr bool EVEN =
        !W::TURNED && 128 % W::PIECES == 0 && 64 % W::UNIT == 0;  // a thread keeps to a chunk of each step
    int t = thread - GROUPS_OF_WARPS * 128;
    const char* weight = (const char*)stored;
    const char* x = (const char*)panels + ((size_t)first * padded + m0) * 128;
    int row_bytes = W::PLAIN ? k * 2 : units * 4;
    // of an even weight: where the thread's chunk of the first line is, how far to its next line, and which lines
    // there are
    int line = t / W::PIECES, piece = t % W::PIECES, left = row_bytes - (first * W::PIECES + piece) * 16;
    const char* even = weight + (size_t)(n0 + line) * row_bytes + (first * W::PIECES + piece) * 16;
    size_t turn = (size_t)(128 / W::PIECES) * row_bytes;
    u32 place = place_of<W>(line, piece);
    int last_turn = (n - n0 - line + 128 / W::PIECES - 1) / (128 / W::PIECES);
    int stage = 0, phase = 1, done = 0;
    for (int it = 0; it < count + BEHIND; ++it) {
      if (it < count) {
        if (it >= STAGES) wait(empty + 8 * stage, phase);
        u32 xs = base + stage * STAGE, ws = xs + X;
        if (t == 0) {
          arrive_expecting(full + 8 * stage, X);
          bulk_copy(xs, x, X, full + 8 * stage);
        }
        x += (size_t)padded * 128;
        if constexpr (EVEN) {
          const char* from = even;
#pragma unroll
          for (int i = 0; i < COPIES; ++i) {
            bool real = left > 0 && i < last_turn;
            copy16(ws + place + i * (128 / W::PIECES) * W::LINE, real ? from : weight, real);
            from += turn;
          }
          even += W::PIECES * 16;
          left -= W::PIECES * 16;
        } else {
          int step = first + it;
          auto fetch = [&](int index) {
            int line = index / W::PIECES, piece = index % W::PIECES;
            int unit = step * 64 / W::UNIT + (W::TURNED ? line : piece);
            bool real = W::TURNED ? unit < units && n0 + piece * 4 < n : n0 + line < n && unit * 4 < units;
            size_t at =
                W::TURNED ? ((size_t)unit * n + n0 + piece * 4) * 4 : ((size_t)(n0 + line) * units + unit * 4) * 4;
            copy16(ws + place_of<W>(line, piece), real ? weight + at : weight, real);
          };
#pragma unroll
          for (int i = 0; i < COPIES; ++i) fetch(t + i * 128);
          if (LEFT && t < LEFT) fetch(t + COPIES * 128);
        }
        if (++stage == STAGES) {
          stage = 0;
          phase ^= 1;
        }
      }
      copies_end();
      if (it >= BEHIND) {
        copies_but<BEHIND>();
        if (W::PLAIN) fence_for_wgmma();
        arrive(full + 8 * done);
        if (++done == STAGES) done = 0;
      }
    }
    return 0;
  }
  if (MANY) take_registers<232>();
  float d[TOKENS / 2];
#pragma unroll
  for (int i = 0; i < TOKENS / 2; ++i) d[i] = 0.f;
  int lane = thread & 31, g = lane >> 2, q = lane & 3, own = part * 64 + (thread >> 5 & 3) * 16 + g;
  int stage = 0, phase = 0, before = 0;
  auto next_stage = [&](int it) {
    products_end();
    products_but<1>();
    if (it && lane == 0) arrive(empty + 8 * before);
    before = stage;
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  };
  if constexpr (W::PLAIN) {
    for (int it = 0; it < count; ++it) {
      wait(full + 8 * stage, phase);
      u32 xs = base + stage * STAGE;
      u64 a = matrix_at(xs + X + part * 64 * 128), b = matrix_at(xs);
      products_begin();
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply(E(), d, a + 2 * j, b + 2 * j);
      next_stage(it);
    }
  } else {
    constexpr int GROUPS = W::GROUPS;
    u32 a[2][4][4];
    const unsigned short* scales = (const unsigned short*)scales_;
    const u32* zeros = (const u32*)zeros_;
    unsigned short next[GROUPS][2];
    u32 next_level[GROUPS][2];
    int r[2] = {min(n0 + own, n - 1), min(n0 + own + 8, n - 1)};
    auto fetch = [&](int step) {
      if (W::ROW_SCALE) return;
#pragma unroll
      for (int i = 0; i < GROUPS; ++i) {
        int group = min(step * 64 / max(W::GROUP, 1) + i, groups - 1);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          next[i][h] = scales[W::TURNED ? (size_t)group * n + r[h] : (size_t)r[h] * groups + group];
          if (W::ZEROS) {
            u32 word = zeros[(size_t)r[h] * ((groups + W::PER - 1) / W::PER) + group / W::PER];
            next_level[i][h] = word >> (group % W::PER * W::BITS) & ((1u << W::BITS) - 1);
          }
        }
      }
    };
    if (count > 0) fetch(first);
    auto run = [&](int it, u32(&a)[4][4]) {
      u32 scale[GROUPS][2], level[GROUPS][2];
#pragma unroll
      for (int i = 0; i < GROUPS; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          scale[i][h] = W::ROW_SCALE ? 0 : twice(next[i][h]);
          u32 off = W::ZEROS ? next_level[i][h] : W::LEVEL;
          level[i][h] = Level<W>::PAIR ? twice(Pair<E>::ONE_UNIT + off) : off;
        }
      if (it + 1 < count) fetch(first + it + 1);
      wait(full + 8 * stage, phase);
      u32 xs = base + stage * STAGE;
      fragment<W, 0>(a, xs + X, own, q, first + it, scale, level);
      fragment<W, 1>(a, xs + X, own + 8, q, first + it, scale, level);
      u64 b = matrix_at(xs);
      products_begin();
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply(E(), d, a[j], b + 2 * j);
      next_stage(it);
    };
    int it = 0;
    for (; it + 1 < count; it += 2) {
      run(it, a[0]);
      run(it + 1, a[1]);
    }
    if (it < count) run(it, a[0]);
  }
  products_but<0>();
  if (splits > 1) {
    y = parts + (size_t)split * rows * n;
    row_scale = residual = nullptr;
    bias = nullptr;
  }
  int row = m0 + q * 2, left = rows - row;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    int out = n0 + own + 8 * h;
    if (out >= n) continue;
    float factor = 1.f, added = bias ? (float)((const E*)bias)[out] * share : 0.f;
    if constexpr (W::ROW_SCALE) factor = (float)((const typename W::SCALE*)scales_)[W::ONE ? 0 : out];
    size_t at = (size_t)row * n + out;
    float* to = y + at;
    const float* also = residual ? residual + at : nullptr;
#pragma unroll
    for (int j = 0; j < TOKENS / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (j * 8 + e < left) {
          float value = d[j * 4 + h * 2 + e] * factor;
          if (row_scale) value *= row_scale[row + j * 8 + e];
          value += added;
          if (also) value += *also * share;
          *to = value;
        }
        to += n;
        if (also) also += n;
      }
      to += 6 * (size_t)n;
      if (also) also += 6 * (size_t)n;
    }
  }
  return 0;
}
#undef INLINE
}  // namespace tensor_products
""".replace("INLINE_", "__device__ __forceinline__").replace("OUTPUTS", str(OUTPUTS))
