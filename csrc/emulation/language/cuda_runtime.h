#pragma once
// What nvcc knows without being told, for g++. The runtime's functions and dim3 come from whichever cuda_runtime_api.h
// is on the path: ours in ../api, or NVIDIA's, to check the launch files against it (with -fsyntax-only).

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/scalar.h"
#include "emulation/engine.h"

// NVIDIA's crt/host_defines.h may have been here: its __launch_bounds__ is an attribute that g++ does not know.
#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;

// The line tells apart two barriers in two branches, which CUDA does not allow to stand for each other.
inline void __syncthreads(int line = __builtin_LINE()) { fusecell::emulation::barrier(line); }

// The static's address is the site: one per place in the source and per instantiation of the function around it.
#define FUSECELL_SHARED(T, name, count)                                \
  static_assert(alignof(T) <= 16 && std::is_trivially_copyable_v<T>);  \
  T* const name = static_cast<T*>(::fusecell::emulation::shared_array( \
      []() -> const void* {                                            \
        static char site;                                              \
        return &site;                                                  \
      }(),                                                             \
      ::std::integral_constant<::std::size_t, sizeof(T) * static_cast<::std::size_t>(count)>::value))

#define FUSECELL_DYNAMIC_SHARED(name) \
  unsigned char* const name = static_cast<unsigned char*>(::fusecell::emulation::dynamic_shared())

namespace fusecell::device {

template <class T>
T shuffle_xor(T value, int lane_mask) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  T result;
  emulation::shuffle(&value, &result, sizeof(T), lane_mask);
  return result;
}

inline void keep_loads_apart() {}
inline void wait_for_launch_before() {}
inline void let_next_launch_begin() {}
inline int shared_address(const void*) { return 16; }  // not aligned any further than it must be

inline bool has_tensor_cores() { return emulation::has_tensor_cores(); }
template <class S>
void load_matrices(const S* row, uint32_t (&part)[4]) {
  emulation::load_matrices(row, false, part);
}
template <class S>
void load_matrices_transposed(const S* row, uint32_t (&part)[4]) {
  static_assert(sizeof(S) == 2);
  emulation::load_matrices(row, true, part);
}
template <class S>
void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4], const S*) {
  emulation::multiply_add(a, b, sum, [](uint16_t bits) { return widen(S{bits}); });
}
inline void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4], const float*) {
  emulation::multiply_add_tf32(a, b, sum);
}
template <int N, class S>
void round_elements(uint32_t (&part)[N], const S*) {
  if constexpr (sizeof(S) == 4) {
    for (uint32_t& word : part) word = emulation::round_to_tf32(word);
  }
}

inline bool has_warpgroup_products() { return emulation::has_tensor_cores(); }
struct MatrixRows {
  emulation::Rows rows;

  MatrixRows from_piece(int piece) const { return {{rows.first, rows.from + piece}}; }
};
struct MatrixColumns {
  emulation::Rows rows;

  MatrixColumns from_row(int row) const { return {{rows.first, rows.from + row, rows.panel_bytes}}; }
};
inline MatrixRows matrix_rows(const void* first) { return {{first, 0}}; }
inline MatrixColumns matrix_columns(const void* first, int panel_bytes) { return {{first, 0, panel_bytes}}; }
inline void begin_products() {}
inline void show_to_products() {}
inline void products_own(float (&)[2][8][4]) {}
inline void commit_products() { emulation::commit_products(); }
template <int N>
void wait_for_products() {
  emulation::wait_for_products(N);
}
template <class Matrix, class S>
void warpgroup_multiply_add(const Matrix& a, const Matrix& b, float (&sum)[8][4], const S*) {
  const auto as_float = [](uint16_t bits) { return widen(S{bits}); };
  emulation::warpgroup_multiply_add(a.rows, b.rows, &sum[0][0], 8, as_float);
}
template <class Matrix, class S>
void warpgroup_multiply_add(const Matrix& a, const Matrix& b, float (&sum)[2][8][4], const S*) {
  const auto as_float = [](uint16_t bits) { return widen(S{bits}); };
  emulation::warpgroup_multiply_add(a.rows, b.rows, &sum[0][0][0], 16, as_float);
}

inline void copy_async_16(void* shared, const void* global) { emulation::copy_async(shared, global); }
inline void copy_async_16_or_zero(void* shared, const void* global, bool inside) {
  emulation::copy_async(shared, inside ? global : nullptr);
}
inline void copy_async_commit() { emulation::copy_commit(); }

struct Arrivals {
  uint64_t begun;  // copies
};
inline void begin_arrivals(Arrivals* arrivals) { arrivals->begun = 0; }
inline void copy_bulk(bool begins, void* shared, const void* global, int bytes, Arrivals* arrivals) {
  if (begins) emulation::copy_bulk(shared, global, static_cast<size_t>(bytes), &arrivals->begun);
}
inline void wait_for_bulk(Arrivals* arrivals, bool odd) { emulation::wait_for_bulk(&arrivals->begun, odd); }

template <int kWords>
void store_global(void* to, const uint32_t (&word)[kWords]) {
  emulation::store_global(to, word, sizeof word);
}

template <int N>
void copy_async_wait() {
  static_assert(N >= 0);
  emulation::copy_wait(N);
}

}  // namespace fusecell::device
