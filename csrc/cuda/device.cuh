#pragma once
// The words that kernels are written in, besides CUDA's own: what differs between architectures, or between nvcc and
// the emulation, has a name here. In the emulation <cuda_runtime.h> is emulation/language's, and brings these words
// along.

#include <cuda_runtime.h>

#include <cstdint>

#include "base/macros.h"
#include "base/scalar.h"

#if defined(__CUDACC__)

#define FUSECELL_DEVICE static __device__ __forceinline__
#define FUSECELL_DEVICE_METHOD __device__ __forceinline__
// `name`: count elements of the block's shared memory.
#define FUSECELL_SHARED(T, name, count) __shared__ __align__(16) T name[count]
// `name`: the bytes that the launch asked for, aligned to 1024.
#define FUSECELL_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

namespace fusecell::device {

template <class T>
FUSECELL_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, lane_mask);
}

FUSECELL_DEVICE int shared_address(const void* shared) { return static_cast<int>(__cvta_generic_to_shared(shared)); }

// ----------------------------------------------------------------------------------------------------- tensor cores
// Of bfloat16 and float16 with sums in float: from sm_80 on. What follows runs there only, by all lanes of a warp.
FUSECELL_DEVICE constexpr bool has_tensor_cores() {
#if __CUDA_ARCH__ >= 800
  return true;
#else
  return false;
#endif
}

// Four matrices of 8 rows of 16 bytes out of shared memory: lanes 8 m to 8 m + 7 give the places of the rows of matrix
// m, so aligned; a lane's part[m] is the word lane % 4 of row lane / 4.
template <class S>
FUSECELL_DEVICE void load_matrices(const S* row, uint32_t (&part)[4]) {
#if __CUDA_ARCH__ >= 800
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

// The same of 8 x 8 elements of 16 bits, transposed: a lane's part[m] are rows 2 (lane % 4) and the next of column lane
// / 4.
template <class S>
FUSECELL_DEVICE void load_matrices_transposed(const S* row, uint32_t (&part)[4]) {
  static_assert(sizeof(S) == 2);
#if __CUDA_ARCH__ >= 800
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

// sum += a b: 16 rows by 16, 16 by 8 columns. Of a, which is the transpose of what load_matrices_transposed was given,
// part 0 has rows 0 to 7 of k = 0 to 7, part 1 the other rows, parts 2 and 3 the other half of k; of b, part 0 has
// k = 0 to 7. A lane's sums: row lane / 4, columns 2 (lane % 4) and the next; then row lane / 4 + 8.
FUSECELL_DEVICE void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4], const bfloat16*) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
FUSECELL_DEVICE void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4], const float16*) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The same of float rounded to TF32, 8 by 8: a word is an element, k = 0 to 3 where 16 bits have 0 to 7.
FUSECELL_DEVICE void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4], const float*) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Words of elements as tensor cores take them: floats are rounded to TF32's 10 bits, to nearest, ties away from zero,
// since tensor cores would cut the others off.
template <int N>
FUSECELL_DEVICE void round_elements(uint32_t (&part)[N], const float*) {
#if __CUDA_ARCH__ >= 800
#pragma unroll
  for (int i = 0; i < N; ++i) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(part[i]) : "f"(__uint_as_float(part[i])));
#endif
}
template <int N, class S>
FUSECELL_DEVICE void round_elements(uint32_t (&)[N], const S*) {}

// --------------------------------------------------------------------------------------- products of a warpgroup
// Hopper's own: four warps, whose first is a multiple of 4, multiply out of shared memory and have their sums later.
// Only code for sm_90a has them.
FUSECELL_DEVICE constexpr bool has_warpgroup_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  return true;
#else
  return false;
#endif
}

// Rows of 128 bytes in shared memory from a multiple of 1024 on, piece p of row r at place p ^ (r % 8).
struct MatrixRows {
  static constexpr int kTransposed = 0;
  uint64_t descriptor;

  // As from the row's piece `piece` on.
  FUSECELL_DEVICE_METHOD MatrixRows from_piece(int piece) const { return {descriptor + uint64_t(piece)}; }
};
// Columns of them, of 16 bits: panels of such rows, each with the next 64 columns.
struct MatrixColumns {
  static constexpr int kTransposed = 1;
  uint64_t descriptor;

  // As from row `row` of each panel on, a multiple of 8.
  FUSECELL_DEVICE_METHOD MatrixColumns from_row(int row) const { return {descriptor + uint64_t(row) * (128 >> 4)}; }
};
// next_panel: bytes from a panel to the next, over 16; of rows it is not read.
FUSECELL_DEVICE uint64_t matrix_descriptor(const void* first, uint64_t next_panel) {
  constexpr uint64_t kEightRows = 1024 >> 4, kTurned128 = 1;  // bytes from 8 rows to the next 8; how places are turned
  const uint64_t address = static_cast<uint64_t>(__cvta_generic_to_shared(first));
  return (address & 0x3FFFF) >> 4 | next_panel << 16 | kEightRows << 32 | kTurned128 << 62;
}
FUSECELL_DEVICE MatrixRows matrix_rows(const void* first) { return {matrix_descriptor(first, 1)}; }
// panel_bytes: from a panel to the next, a multiple of 1024.
FUSECELL_DEVICE MatrixColumns matrix_columns(const void* first, int panel_bytes) {
  return {matrix_descriptor(first, uint64_t(panel_bytes) >> 4)};
}

// Before the first product that reads registers, or shared memory that other instructions wrote.
FUSECELL_DEVICE void begin_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// Ends a group of products; waits for all but the newest N groups.
FUSECELL_DEVICE void commit_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int N>
FUSECELL_DEVICE void wait_for_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
}
// What this thread wrote into shared memory, by copies too, is there for products after the next barrier.
FUSECELL_DEVICE void show_to_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Products write registers behind the compiler's back, until they have been waited for: here it may not assume that it
// knows what stands in them.
FUSECELL_DEVICE void products_own(float (&sum)[2][8][4]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(sum[i / 32][i / 4 % 8][i % 4])::"memory");
#endif
}

// sum += a b^T: 64 rows of a times 64 rows of b, or 128 in two halves, over 32 bytes of each. A lane's sums: of its
// warp's 16 rows of a row lane / 4, rows 8 j + 2 (lane % 4) and the next of b; then row lane / 4 + 8. Of MatrixColumns
// the same with columns for rows, over 16 rows of each.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FUSECELL_FOUR_SUMS(s) "+f"((s)[0]), "+f"((s)[1]), "+f"((s)[2]), "+f"((s)[3])
#define FUSECELL_SUMS(s)                                                                                          \
  FUSECELL_FOUR_SUMS((s)[0]), FUSECELL_FOUR_SUMS((s)[1]), FUSECELL_FOUR_SUMS((s)[2]), FUSECELL_FOUR_SUMS((s)[3]), \
      FUSECELL_FOUR_SUMS((s)[4]), FUSECELL_FOUR_SUMS((s)[5]), FUSECELL_FOUR_SUMS((s)[6]), FUSECELL_FOUR_SUMS((s)[7])
#define FUSECELL_FIRST_32                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FUSECELL_NEXT_32                                                             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FUSECELL_MULTIPLY_64(type)                                                                \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" FUSECELL_FIRST_32 \
               "}, "                                                                              \
               "%32, %33, 1, 1, 1, %34, %34;"                                                     \
               : FUSECELL_SUMS(sum)                                                               \
               : "l"(a.descriptor), "l"(b.descriptor), "n"(Matrix::kTransposed))
#define FUSECELL_MULTIPLY_128(type)                                                                \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" FUSECELL_FIRST_32 \
               ", " FUSECELL_NEXT_32 "}, %64, %65, 1, 1, 1, %66, %66;"                             \
               : FUSECELL_SUMS(sum[0]), FUSECELL_SUMS(sum[1])                                      \
               : "l"(a.descriptor), "l"(b.descriptor), "n"(Matrix::kTransposed))
#else
#define FUSECELL_MULTIPLY_64(type)
#define FUSECELL_MULTIPLY_128(type)
#endif
template <class Matrix>
FUSECELL_DEVICE void warpgroup_multiply_add(const Matrix& a, const Matrix& b, float (&sum)[8][4], const bfloat16*) {
  FUSECELL_MULTIPLY_64("bf16");
}
template <class Matrix>
FUSECELL_DEVICE void warpgroup_multiply_add(const Matrix& a, const Matrix& b, float (&sum)[8][4], const float16*) {
  FUSECELL_MULTIPLY_64("f16");
}
template <class Matrix>
FUSECELL_DEVICE void warpgroup_multiply_add(const Matrix& a, const Matrix& b, float (&sum)[2][8][4], const bfloat16*) {
  FUSECELL_MULTIPLY_128("bf16");
}
template <class Matrix>
FUSECELL_DEVICE void warpgroup_multiply_add(const Matrix& a, const Matrix& b, float (&sum)[2][8][4], const float16*) {
  FUSECELL_MULTIPLY_128("f16");
}

// ---------------------------------------------------------------------------------------------- launches that overlap
// Of a launch that may begin before the one before it has ended (from sm_90 on): waits until it has, and all that it
// wrote is there. Else nothing.
FUSECELL_DEVICE void wait_for_launch_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next launch may begin when every block has come here.
FUSECELL_DEVICE void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ------------------------------------------------------------------------------------------------- memory
// Loads before it are issued before loads after it. All threads of a warp come here together. Without it nvcc 13.0
// moves sixteen loads' addresses to the front, and spills them.
FUSECELL_DEVICE void keep_loads_apart() { __syncwarp(); }

// 8 or 16 bytes to global memory in one access. An assignment is not enough: nvcc 13.0 splits it where another branch
// writes the same place piece by piece.
FUSECELL_DEVICE void store_global(void* to, const uint32_t (&word)[2]) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(word[0]), "r"(word[1])
               : "memory");
}
FUSECELL_DEVICE void store_global(void* to, const uint32_t (&word)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word[0]),
               "r"(word[1]), "r"(word[2]), "r"(word[3])
               : "memory");
}

// 16 bytes from global to shared memory, both aligned to 16, past the registers where the machine can (sm_80 on).
FUSECELL_DEVICE void copy_async_16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}
// The same, and zeros instead where `inside` is false: nothing is read then. Keeps what it reads in the first-level
// cache, for what many threads of a block read in turn.
FUSECELL_DEVICE void copy_async_16_or_zero(void* shared, const void* global, bool inside) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(inside ? 16 : 0) : "memory");
#else
  *static_cast<uint4*>(shared) = inside ? *static_cast<const uint4*>(global) : uint4{};
#endif
}
FUSECELL_DEVICE void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all but the newest N groups of this thread are there. Others see them after the next barrier.
template <int N>
FUSECELL_DEVICE void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ------------------------------------------------------------------------------------------------- bulk copies
// Hopper's own, where has_warpgroup_products(): one thread asks for many bytes, which come past registers and the
// first-level cache. In shared memory: counts what has come to one place, turn after turn.
struct Arrivals {
  uint64_t state;
};

FUSECELL_DEVICE unsigned shared_word(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// By one thread, before the block's next barrier.
FUSECELL_DEVICE void begin_arrivals(Arrivals* arrivals) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_word(arrivals)) : "memory");
  show_to_products();  // the unit that copies sees it as they do
#endif
}
// `bytes` from global to shared memory, a multiple of 16 as both addresses, by the one thread whose `begins` is true.
// One copy is under way to a place at a time. Without a branch: at one, nvcc 13.0 would stop the products under way.
FUSECELL_DEVICE void copy_bulk(bool begins, void* shared, const void* global, int bytes, Arrivals* arrivals) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{.reg .pred p; setp.ne.u32 p, %0, 0;"
      "@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%4], %3;"
      "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%1], [%2], %3, [%4];}" ::"r"(
          unsigned(begins)),
      "r"(shared_word(shared)), "l"(global), "r"(bytes), "r"(shared_word(arrivals))
      : "memory");
#endif
}
// Until the first (even), second (odd) and so on of an Arrivals' copies is there. All threads wait, with a barrier
// after it.
FUSECELL_DEVICE void wait_for_bulk(Arrivals* arrivals, bool odd) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  unsigned there;
  do {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(there)
                 : "r"(shared_word(arrivals)), "r"(unsigned(odd))
                 : "memory");
  } while (!there);
#endif
}

}  // namespace fusecell::device

#else
#define FUSECELL_DEVICE static inline __attribute__((always_inline))
#define FUSECELL_DEVICE_METHOD inline __attribute__((always_inline))
#endif

namespace fusecell::cuda {

constexpr int kThreads = 256;  // of every block

// Division is what index arithmetic costs most; in 32 bits, which nearly every size fits, it costs a third.
FUSECELL_DEVICE int64_t quotient(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

// ----------------------------------------------------------------------------------------------- 16 bytes at a time
template <class S>
constexpr int kPack = 16 / int(sizeof(S));  // elements that a thread handles at once

template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Chunk {
  T element[N];
};

// Up to kPack elements, `stride` apart. whole: all of them, neighbours, at an aligned address.
struct Span {
  int count;
  bool whole;
  int64_t stride = 1;
};

template <class T, int V, class A>
FUSECELL_DEVICE void load(const T* from, const Span& span, A (&to)[V]) {
  if (span.whole) {
    constexpr int kEach = int(sizeof(T)) * V < 16 ? V : 16 / int(sizeof(T));
#pragma unroll
    for (int first = 0; first < V; first += kEach) {
      const auto chunk = *reinterpret_cast<const Chunk<T, kEach>*>(from + first);
#pragma unroll
      for (int j = 0; j < kEach; ++j) to[first + j] = A(widen(chunk.element[j]));
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = j < span.count ? A(widen(from[j * span.stride])) : A(0);
  }
}

template <int kWords>
struct Words {
  uint32_t word[kWords];
};

// To global memory.
template <class T, int V, class A>
FUSECELL_DEVICE void store(T* to, const Span& span, const A (&from)[V]) {
  constexpr int kBytes = int(sizeof(T)) * V < 16 ? int(sizeof(T)) * V : 16, kEach = kBytes / int(sizeof(T));
  if (kBytes < 8 || !span.whole) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (j < span.count) to[j * span.stride] = narrow<T>(from[j]);
    }
    return;
  }
  if constexpr (kBytes >= 8) {
#pragma unroll
    for (int first = 0; first < V; first += kEach) {
      Words<kBytes / 4> words;
      if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int j = 0; j < kEach; j += 2) words.word[j / 2] = narrow_two(from[first + j], from[first + j + 1], to);
      } else {
        Chunk<T, kEach> chunk;
#pragma unroll
        for (int j = 0; j < kEach; ++j) chunk.element[j] = narrow<T>(from[first + j]);
        words = __builtin_bit_cast(Words<kBytes / 4>, chunk);
      }
      device::store_global(to + first, words.word);
    }
  }
}

}  // namespace fusecell::cuda
