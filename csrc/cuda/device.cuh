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

namespace fusecell::device {

template <class T>
FUSECELL_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, lane_mask);
}

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
