// Small kernels, right ones and wrong ones, for test_emulation.py: `probe NAME` prints one line and exits with 0 if the
// answer is right, with 1 if it is wrong (a NaN is wrong), with 2 if the launch failed.

#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "emulation/controls.h"

using fusecell::emulation::launch;
namespace device = fusecell::device;

namespace {

constexpr int kThreads = 256;

struct Grid {
  unsigned sum;  // of all linear indices that the threads worked out
};

// ------------------------------------------------------------------------------------------ sums
template <bool kBarriers>
__global__ void __launch_bounds__(kThreads) block_sum(const float* __restrict__ x, float* __restrict__ y) {
  FUSECELL_SHARED(float, part, kThreads);
  const int t = static_cast<int>(threadIdx.x);
  part[t] = x[blockIdx.x * kThreads + threadIdx.x];
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (kBarriers) __syncthreads();
    if (t < half) part[t] += part[t + half];
  }
  if (kBarriers) __syncthreads();
  if (t == 0) y[blockIdx.x] = part[0];
}

// One barrier is missing between two that are there: only the second of three intervals has a race.
__global__ void late_race(const float* x, float* y) {
  FUSECELL_SHARED(float, first, kThreads);
  FUSECELL_SHARED(float, second, kThreads);
  const unsigned t = threadIdx.x;
  first[t] = x[t];
  __syncthreads();
  second[t] = first[kThreads - 1 - t];
  y[t] = second[(t + kThreads / 2) % kThreads];
  __syncthreads();
}

// Right if the neighbour happens to run first.
__global__ void left_neighbour(const float* x, float* y) {
  FUSECELL_SHARED(float, values, 32);
  const unsigned t = threadIdx.x;
  values[t] = x[t];
  y[t] = t > 0 ? values[t - 1] : 0;
}

__global__ void warp_sum(const float* x, float* y) {
  const unsigned t = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = x[t];
  for (int mask = 16; mask > 0; mask /= 2) sum += device::shuffle_xor(sum, mask);
  y[t] = sum;
}

// The values are handed over by shuffles alone, which order no shared memory.
__global__ void shuffle_is_no_barrier(const float* x, float* y) {
  FUSECELL_SHARED(float, values, 32);
  const unsigned t = threadIdx.x;
  values[t] = x[t];
  const float other = device::shuffle_xor(x[t], 1);
  y[t] = values[t ^ 1] + 0 * other;
}

// ------------------------------------------------------------------------------------------ tensor cores
// Four 8 x 8 matrices, whose rows lie `pitch` apart, and what each lane gets of them.
__global__ void matrices(const uint16_t* x, uint32_t* y, int pitch) {
  FUSECELL_SHARED(uint16_t, tile, 16 * 24);
  for (unsigned i = threadIdx.x; i < 16 * 24; i += 32) tile[i] = x[i];
  __syncthreads();
  const unsigned lane = threadIdx.x, row = lane % 8 + lane / 16 * 8, column = lane / 8 % 2 * 8;
  uint32_t part[4];
  device::load_matrices_transposed(tile + row * static_cast<unsigned>(pitch) + column, part);
  for (unsigned m = 0; m < 4; ++m) y[4 * lane + m] = part[m];
}

// d = a b + d of one warp, the elements given to the lanes as the PTX manual has them, "Matrix Fragments for
// mma.m16n8k16 with floating point type": i-th element of a lane, group = lane / 4, in_group = lane % 4.
template <class S>
__global__ void product(const S* a, const S* b, float* d) {
  const unsigned group = threadIdx.x / 4, in_group = threadIdx.x % 4;
  uint32_t of_a[4] = {}, of_b[2] = {};
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    const unsigned column = in_group * 2 + i % 2 + (i >= 4 ? 8 : 0);
    of_a[i / 2] |= uint32_t{a[16 * row + column].bits} << (16 * (i % 2));
  }
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = in_group * 2 + i % 2 + (i >= 2 ? 8 : 0);
    of_b[i / 2] |= uint32_t{b[8 * row + group].bits} << (16 * (i % 2));
  }
  float sum[4];
  const auto place = [&](unsigned i) { return 8 * (i < 2 ? group : group + 8) + in_group * 2 + i % 2; };
  for (unsigned i = 0; i < 4; ++i) sum[i] = d[place(i)];
  device::multiply_add(of_a, of_b, sum, a);
  for (unsigned i = 0; i < 4; ++i) d[place(i)] = sum[i];
}

// d = a^T b of one warpgroup, 16 of 32 rows, from kFrom on: a has 64 columns, which are one panel, b 128, which are
// two. They lie in shared memory as the PTX manual has operands that are "MN" major, with 128 bytes of swizzling.
template <class S, int kFrom>
__global__ void product_of_columns(const S* a, const S* b, float* d) {
  constexpr unsigned kPanel = 32 * 64;
  FUSECELL_SHARED(S, tile, 3 * kPanel);
  for (unsigned i = threadIdx.x; i < 3 * kPanel; i += 128) {
    const unsigned panel = i / kPanel, row = i % kPanel / 64, column = i % 64;
    const unsigned place = row * 64 + (column / 8 ^ row % 8) * 8 + column % 8;
    tile[panel * kPanel + place] = panel == 0 ? a[row * 64 + column] : b[row * 128 + (panel - 1) * 64 + column];
  }
  __syncthreads();
  const auto left = device::matrix_columns(tile, kPanel * 2), right = device::matrix_columns(tile + kPanel, kPanel * 2);
  float sum[2][8][4] = {};
  device::warpgroup_multiply_add(left.from_row(kFrom), right.from_row(kFrom), sum, a);
  device::commit_products();
  device::wait_for_products<0>();
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 64; ++i) {
    const unsigned row = 16 * warp + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
    d[128 * row + column] = sum[i / 32][i / 4 % 8][i % 4];
  }
}

__global__ void leave_before_product(float* y) {
  if (threadIdx.x % 32 == 7 && threadIdx.x >= 32) return;
  const uint32_t a[4] = {}, b[2] = {};
  float sum[4] = {};
  device::multiply_add(a, b, sum, static_cast<const fusecell::float16*>(nullptr));
  y[threadIdx.x] = sum[0];
}

__global__ void product_meets_shuffle(float* y) {
  const uint32_t a[4] = {}, b[2] = {};
  float sum[4] = {};
  if (threadIdx.x < 5) {
    sum[0] = device::shuffle_xor(1.0F, 1);
  } else {
    device::multiply_add(a, b, sum, static_cast<const fusecell::bfloat16*>(nullptr));
  }
  y[threadIdx.x] = sum[0];
}

// Rows that are 8 bytes off, and rows past the end.
template <int kOffset>
__global__ void wrong_rows(float* y) {
  FUSECELL_SHARED(uint16_t, tile, 32 * 8);
  uint32_t part[4];
  for (unsigned i = threadIdx.x; i < 32 * 8; i += 32) tile[i] = 0;
  __syncthreads();
  device::load_matrices_transposed(tile + 8 * threadIdx.x + kOffset, part);
  y[threadIdx.x] = static_cast<float>(part[0]);
}

// ------------------------------------------------------------------------------------------ asynchronous copies
enum class Pipeline { whole, without_wait, without_second_barrier, without_commit };

// y[t] = the sum of x[(t + 4) % threads + k * threads] over the chunks k, two buffers deep.
template <Pipeline kKind>
__global__ void pipeline(const float* x, float* y, int chunks) {
  constexpr int kFloats = 4 * 64;
  FUSECELL_SHARED(float, buffer, 2 * kFloats);
  const int t = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int k) {
    if (k < chunks) device::copy_async_16(buffer + k % 2 * kFloats + 4 * t, x + k * kFloats + 4 * t);
    if (kKind != Pipeline::without_commit) device::copy_async_commit();
  };
  float sum[4] = {};
  fetch(0);
  for (int k = 0; k < chunks; ++k) {
    fetch(k + 1);
    if (kKind != Pipeline::without_wait) device::copy_async_wait<1>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) sum[i] += buffer[k % 2 * kFloats + (4 * t + 4 + i) % kFloats];
    if (kKind != Pipeline::without_second_barrier) __syncthreads();
  }
  for (int i = 0; i < 4; ++i) y[4 * t + i] = sum[i];
}

// Two groups under way, one waited for: only the other's 16 bytes may be missing.
__global__ void newest_group_pending(const float* x, float* y) {
  FUSECELL_SHARED(float, buffer, 8);
  device::copy_async_16(buffer, x);
  device::copy_async_commit();
  device::copy_async_16(buffer + 4, x + 4);
  device::copy_async_commit();
  device::copy_async_wait<1>();
  for (int i = 0; i < 8; ++i) y[i] = buffer[i];
}

__global__ void misaligned_copy(const float* x, float* y) {
  FUSECELL_SHARED(float, buffer, 8);
  device::copy_async_16(buffer + threadIdx.x, x);
  y[0] = buffer[0];
}

__global__ void copy_past_the_end(const float* x, float* y) {
  FUSECELL_SHARED(float, buffer, 6);
  device::copy_async_16(buffer + 4 * threadIdx.x, x);
  y[0] = buffer[0];
}

enum class Bulk { whole, without_barrier, without_wait, wrong_turn, not_begun, misaligned, past_the_end };

// y[t] = x[63 - t] + x[127 - t], copied one after the other to the same place.
template <Bulk kKind>
__global__ void bulk(const float* x, float* y) {
  FUSECELL_SHARED(float, buffer, 64);
  FUSECELL_SHARED(device::Arrivals, arrivals, 1);
  const unsigned t = threadIdx.x;
  if (t == 0 && kKind != Bulk::not_begun) device::begin_arrivals(arrivals);
  __syncthreads();
  float sum = 0;
  for (int turn = 0; turn < 2; ++turn) {
    const int bytes = kKind == Bulk::past_the_end ? 272 : 256;
    device::copy_bulk(t == 0, buffer + (kKind == Bulk::misaligned), x + 64 * turn, bytes, arrivals);
    if (kKind != Bulk::without_wait) device::wait_for_bulk(arrivals, turn == 1 && kKind != Bulk::wrong_turn);
    if (kKind != Bulk::without_barrier) __syncthreads();
    sum += buffer[63 - t];
    __syncthreads();
  }
  y[t] = sum;
}

// ------------------------------------------------------------------------------------------ what must be found
__global__ void overrun(float* y) {
  FUSECELL_SHARED(float, values, 32);
  values[threadIdx.x + 1] = 1;
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x];
}

__global__ void unwritten(float* y) {
  FUSECELL_SHARED(float, values, 32);
  if (blockIdx.x == 0) values[threadIdx.x] = 1;  // what one block leaves, no other finds
  y[blockIdx.x * 32 + threadIdx.x] = values[threadIdx.x];
}

__global__ void leave_early() {
  if (blockIdx.x == 1 && threadIdx.x >= 100) return;
  __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 100) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void leave_before_shuffle(float* y) {
  if (threadIdx.x % 32 >= 29 && threadIdx.x >= 64) return;
  y[threadIdx.x] = device::shuffle_xor(1.0F, 1);
}

__global__ void throws() {
  if (threadIdx.x == 3) throw std::runtime_error("out of range");
  __syncthreads();
}

// Every block adds to one number without an atomic.
__global__ void blocks_race(int* y) {
  if (threadIdx.x == 0) *y += 1;
}

// ------------------------------------------------------------------------------------------ the language
__device__ __forceinline__ float* one_site() {
  FUSECELL_SHARED(float, same, 1);
  return same;
}

__global__ void sites(int* y) {
  FUSECELL_SHARED(double, first, 3);
  FUSECELL_SHARED(double, second, 3);
  if (threadIdx.x == 0) y[0] = one_site() == one_site() && first != second;
  if (threadIdx.x == 0) y[1] = reinterpret_cast<uintptr_t>(first) % 16 + reinterpret_cast<uintptr_t>(second) % 16;
}

__global__ void places(unsigned* seen, const Grid grid) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  seen[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread + grid.sum;
}

__global__ void by_value(Grid grid, unsigned* y) {
  grid.sum += threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = grid.sum;
}

// Written without a barrier, so that the order shows: each thread notes when it ran in each of two intervals.
__global__ void note_order(int* clock, int* first, int* second) {
  first[blockIdx.x * blockDim.x + threadIdx.x] = (*clock)++;
  __syncthreads();
  second[blockIdx.x * blockDim.x + threadIdx.x] = (*clock)++;
}

__global__ void many_barriers(float* y, int barriers) {
  FUSECELL_SHARED(float, values, kThreads);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  for (int i = 0; i < barriers; ++i) {
    __syncthreads();
    const float next = values[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
    values[threadIdx.x] = next;
  }
  y[threadIdx.x] = values[threadIdx.x];
}

// ------------------------------------------------------------------------------------------ probes
int failed(cudaError_t error) {
  std::printf("%s: %s\n", cudaGetErrorName(error), fusecell::emulation::last_fault().c_str());
  return cudaGetLastError() == error && cudaPeekAtLastError() == cudaSuccess ? 2 : 3;
}

int answer(bool right) {
  std::puts(right ? "right" : "wrong");
  return right ? 0 : 1;
}

std::vector<float> numbers(int n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) x[static_cast<size_t>(i)] = static_cast<float>(i % 97 - 30);
  return x;
}

float sum_of(const std::vector<float>& x, size_t begin, size_t count) {
  float sum = 0;
  for (size_t i = begin; i < begin + count; ++i) sum += x[i];
  return sum;
}

template <bool kBarriers>
int sum_blocks() {
  const int blocks = 5;
  const auto x = numbers(blocks * kThreads);
  std::vector<float> y(blocks);
  const auto error = launch("block_sum", block_sum<kBarriers>, blocks, kThreads, nullptr, x.data(), y.data());
  if (error != cudaSuccess) return failed(error);
  bool right = true;
  for (size_t b = 0; b < y.size(); ++b) right = right && y[b] == sum_of(x, b * kThreads, kThreads);
  return answer(right);
}

int sum_warps() {
  const auto x = numbers(3 * 96);
  std::vector<float> y(x.size());
  const auto error = launch("warp_sum", warp_sum, 3, 96, nullptr, x.data(), y.data());
  if (error != cudaSuccess) return failed(error);
  bool right = true;
  for (size_t i = 0; i < y.size(); ++i) right = right && y[i] == sum_of(x, i / 32 * 32, 32);
  const auto counted = fusecell::emulation::statistics();
  return answer(right && counted.shuffles == 5 * 9 && counted.most_threads == 96 && counted.blocks == 3);
}

int load_matrices() {
  const int pitch = 24;
  std::vector<uint16_t> x(16 * pitch);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(1000 + 7 * i);
  std::vector<uint32_t> y(4 * 32);
  const auto error = launch("matrices", matrices, 1, 32, nullptr, x.data(), y.data(), pitch);
  if (error != cudaSuccess) return failed(error);
  bool right = fusecell::emulation::statistics().matrix_loads == 1;
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t m = 0; m < 4; ++m) {  // matrices 0 and 1 side by side, 2 and 3 below them
      const size_t row = m / 2 * 8 + 2 * (lane % 4), column = m % 2 * 8 + lane / 4;
      const uint32_t low = x[row * pitch + column], high = x[(row + 1) * pitch + column];
      right = right && y[4 * lane + m] == (low | high << 16);
    }
  }
  return answer(right);
}

template <class S>
int multiply() {
  std::vector<S> a(16 * 16), b(16 * 8);
  std::vector<float> d(16 * 8), expected(16 * 8);
  const auto number = [](size_t i, size_t by) { return static_cast<float>(int(i * by % 41) - 20); };
  for (size_t i = 0; i < a.size(); ++i) a[i] = fusecell::narrow<S>(number(i, 17));
  for (size_t i = 0; i < b.size(); ++i) b[i] = fusecell::narrow<S>(number(i, 29));
  for (size_t i = 0; i < d.size(); ++i) d[i] = expected[i] = number(i, 11) / 1024;
  for (size_t i = 0; i < d.size(); ++i) {
    for (size_t k = 0; k < 16; ++k) expected[i] += widen(a[i / 8 * 16 + k]) * widen(b[k * 8 + i % 8]);
  }
  const auto error = launch("product", product<S>, 1, 32, nullptr, a.data(), b.data(), d.data());
  if (error != cudaSuccess) return failed(error);
  return answer(d == expected && fusecell::emulation::statistics().matrix_products == 1);
}

template <int kFrom>
int multiply_columns() {
  using S = fusecell::bfloat16;
  std::vector<S> a(32 * 64), b(32 * 128);
  std::vector<float> d(64 * 128), expected(64 * 128);
  for (size_t i = 0; i < a.size(); ++i) a[i] = fusecell::narrow<S>(static_cast<float>(int(i * 17 % 41) - 20));
  for (size_t i = 0; i < b.size(); ++i) b[i] = fusecell::narrow<S>(static_cast<float>(int(i * 29 % 43) - 20));
  for (size_t i = 0; i < d.size(); ++i) {
    for (size_t k = kFrom; k < kFrom + 16 && k < 32; ++k)
      expected[i] += widen(a[k * 64 + i / 128]) * widen(b[k * 128 + i % 128]);
  }
  const auto error =
      launch("product_of_columns", product_of_columns<S, kFrom>, 1, 128, nullptr, a.data(), b.data(), d.data());
  if (error != cudaSuccess) return failed(error);
  return answer(d == expected && fusecell::emulation::statistics().warpgroup_products == 128);
}

template <Pipeline kKind>
int run_pipeline() {
  const int chunks = 5, floats = 256;
  const auto x = numbers(chunks * floats);
  std::vector<float> y(floats);
  const auto error = launch("pipeline", pipeline<kKind>, 1, 64, nullptr, x.data(), y.data(), chunks);
  if (error != cudaSuccess) return failed(error);
  bool right = fusecell::emulation::statistics().async_copies == chunks * 64;
  for (int i = 0; i < floats; ++i) {
    float sum = 0;
    for (int k = 0; k < chunks; ++k) sum += x[static_cast<size_t>(k * floats + (i + 4) % floats)];
    right = right && y[static_cast<size_t>(i)] == sum;
  }
  return answer(right);
}

template <class... P>
int of_floats(const char* name, void (*kernel)(P...), unsigned blocks, unsigned threads) {
  const auto x = numbers(64 + static_cast<int>(threads));
  std::vector<float> y(size_t{blocks} * threads);
  cudaError_t error;
  if constexpr (sizeof...(P) == 0) {
    error = launch(name, kernel, blocks, threads, nullptr);
  } else if constexpr (sizeof...(P) == 1) {
    error = launch(name, kernel, blocks, threads, nullptr, y.data());
  } else {
    error = launch(name, kernel, blocks, threads, nullptr, x.data(), y.data());
  }
  if (error != cudaSuccess) return failed(error);
  bool any_nan = false;
  for (float value : y) any_nan = any_nan || std::isnan(value);
  return answer(!any_nan);
}

int run_newest_group_pending() {
  const auto x = numbers(8);
  std::vector<float> y(8);
  const auto error = launch("newest_group_pending", newest_group_pending, 1, 1, nullptr, x.data(), y.data());
  if (error != cudaSuccess) return failed(error);
  if (std::memcmp(x.data(), y.data(), 16) != 0) return answer(false);
  for (size_t i = 4; i < 8; ++i) std::printf("%s ", std::isnan(y[i]) ? "pending" : y[i] == x[i] ? "there" : "wrong");
  std::printf("\n");
  return 0;
}

int run_late_race() {
  const auto x = numbers(kThreads);
  std::vector<float> y(kThreads);
  const auto error = launch("late_race", late_race, 1, kThreads, nullptr, x.data(), y.data());
  if (error != cudaSuccess) return failed(error);
  bool right = true;
  for (size_t t = 0; t < y.size(); ++t) right = right && y[t] == x[kThreads - 1 - (t + kThreads / 2) % kThreads];
  return answer(right);
}

int run_unwritten() {
  std::vector<float> y(4 * 32);
  const auto error = launch("unwritten", unwritten, 4, 32, nullptr, y.data());
  if (error != cudaSuccess) return failed(error);
  bool right = true;
  for (size_t i = 0; i < y.size(); ++i) right = right && (i < 32 ? y[i] == 1 : std::isnan(y[i]));
  return answer(right);
}

int run_blocks_race() {
  int y = 0;
  const auto error = launch("blocks_race", blocks_race, 2, 32, nullptr, &y);
  return error == cudaSuccess ? answer(y == 2) : failed(error);
}

int run_sites() {
  int y[2] = {0, 1};
  const auto error = launch("sites", sites, 1, 32, nullptr, &y[0]);
  return error == cudaSuccess ? answer(y[0] == 1 && y[1] == 0) : failed(error);
}

int run_places() {
  const dim3 grid(2, 3, 5), block(7, 3, 2);
  const unsigned blocks = 30, threads = 42;
  std::vector<unsigned> seen(blocks * threads, ~0U);
  const auto error = launch("places", places, grid, block, nullptr, seen.data(), Grid{5});
  if (error != cudaSuccess) return failed(error);
  bool right = fusecell::emulation::statistics().blocks == blocks;
  for (unsigned i = 0; i < seen.size(); ++i) right = right && seen[i] == 1000 * (i / threads) + i % threads + 5;
  return answer(right);
}

int run_by_value() {
  std::vector<unsigned> y(64);
  const auto error = launch("by_value", by_value, 1, 64, nullptr, Grid{7}, y.data());
  if (error != cudaSuccess) return failed(error);
  bool right = true;
  for (unsigned t = 0; t < 64; ++t) right = right && y[t] == 7 + t;
  return answer(right);
}

int print_order() {
  int clock = 0;
  std::vector<int> first(8), second(8);
  const auto error = launch("note_order", note_order, 2, 4, nullptr, &clock, first.data(), second.data());
  if (error != cudaSuccess) return failed(error);
  for (int when : first) std::printf("%d ", when);
  std::printf("| ");
  for (int when : second) std::printf("%d ", when);
  std::printf("\n");
  return 0;
}

int two_host_threads() {
  constexpr int kBlocks = 2, kLaunches = 8;
  bool right[2] = {true, true};
  const auto run = [&right](int which) {
    const auto x = numbers(kBlocks * kThreads);
    for (int i = 0; i < kLaunches; ++i) {
      std::vector<float> y(kBlocks);
      const auto error = launch("block_sum", block_sum<true>, kBlocks, kThreads, nullptr, x.data(), y.data());
      right[which] = right[which] && error == cudaSuccess && y[1] == sum_of(x, kThreads, kThreads);
    }
  };
  std::thread other(run, 1);
  run(0);
  other.join();
  return answer(right[0] && right[1] && fusecell::emulation::launched_kernels()["block_sum"] == 2 * kLaunches);
}

int refused() {
  const dim3 wrong[][2] = {{0, 32},         {1, 0},          {1, 1025},          {1, {32, 33}},
                           {1, {1, 1, 65}}, {{1, 65536}, 1}, {{1, 1, 65536}, 1}, {0x80000000, 1}};
  bool right = true;
  for (const auto& [grid, block] : wrong) {
    right = right && launch("leave_early", leave_early, grid, block, nullptr) == cudaErrorInvalidConfiguration;
    right = right && cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess;
  }
  return answer(right && fusecell::emulation::statistics().launches == 0);
}

int api() {
  int device = 7, count = 0, major = 0;
  bool right = cudaGetDevice(&device) == cudaSuccess && device == 0 && cudaSetDevice(1) == cudaErrorInvalidDevice &&
               cudaGetDeviceCount(&count) == cudaSuccess && count == 1 &&
               cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && major == 9;
  int source[2] = {1, 2}, target[2] = {};
  right = right && cudaMemcpyAsync(target, source, sizeof source, cudaMemcpyDefault, nullptr) == cudaSuccess &&
          target[1] == 2 && cudaMemsetAsync(target, 0xff, sizeof target, nullptr) == cudaSuccess && target[0] == -1 &&
          cudaMemcpyAsync(nullptr, source, 4, cudaMemcpyDefault, nullptr) == cudaErrorInvalidValue;
  cudaStreamCaptureStatus status;
  right = right && cudaStreamIsCapturing(nullptr, &status) == cudaSuccess && status == cudaStreamCaptureStatusNone &&
          cudaStreamSynchronize(nullptr) == cudaSuccess;
  auto controls = fusecell::emulation::controls();
  controls.capturing = true;
  fusecell::emulation::set_controls(controls);
  right = right && cudaStreamIsCapturing(nullptr, &status) == cudaSuccess && status == cudaStreamCaptureStatusActive &&
          cudaStreamSynchronize(nullptr) == cudaErrorStreamCaptureUnsupported;
  return answer(right && std::strcmp(cudaGetErrorName(cudaErrorNotSupported), "cudaErrorNotSupported") == 0);
}

// The parent has launched before, so that with threads it has teams, of which the child has none.
int after_a_fork() {
  bool right = sum_blocks<true>() == 0;
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) std::exit(sum_blocks<true>());
  int status = 1;
  right = right && waitpid(child, &status, 0) == child && status == 0 && sum_blocks<true>() == 0;
  return answer(right);
}

// A launch that fails leaves nothing behind: the next one is right.
int after_a_fault() {
  bool right = true;
  for (int i = 0; i < 3; ++i) {
    right = right && launch("leave_early", leave_early, 3, kThreads, nullptr) == cudaErrorLaunchFailure;
    right = right && sum_blocks<true>() == 0 && launch("throws", throws, 1, 64, nullptr) == cudaErrorLaunchFailure;
  }
  return answer(right);
}

int time_barriers() {
  std::vector<float> y(kThreads);
  const bool fibres = fusecell::emulation::controls().engine == fusecell::emulation::Engine::fibres;
  const int launches = fibres ? 300 : 20;
  launch("many_barriers", many_barriers, 1, kThreads, nullptr, y.data(), 10);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < launches; ++i) launch("many_barriers", many_barriers, 1, kThreads, nullptr, y.data(), 10);
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  std::printf("%.3f ms for 256 threads x 20 barriers\n", time.count() / launches);
  return y[0] == 10 ? 0 : 1;
}

int print_launched() {
  sum_warps();
  sum_blocks<true>();
  sum_blocks<true>();
  for (const auto& [name, count] : fusecell::emulation::launched_kernels()) {
    std::printf("%s %lld\n", name.c_str(), static_cast<long long>(count));
  }
  return 0;
}

template <Bulk kKind>
int run_bulk() {
  const auto x = numbers(128);
  std::vector<float> y(64);
  const auto error = launch("bulk", bulk<kKind>, 1, 64, nullptr, x.data(), y.data());
  if (error != cudaSuccess) return failed(error);
  bool right = fusecell::emulation::statistics().bulk_copies == 2;
  for (size_t t = 0; t < 64; ++t) right = right && y[t] == x[63 - t] + x[127 - t];
  return answer(right);
}

const std::map<std::string, int (*)()> kProbes = {
    {"block_sum", sum_blocks<true>},
    {"block_sum_without_barriers", sum_blocks<false>},
    {"late_race", run_late_race},
    {"left_neighbour", [] { return of_floats("left_neighbour", left_neighbour, 1, 32); }},
    {"warp_sum", sum_warps},
    {"shuffle_is_no_barrier", [] { return of_floats("shuffle_is_no_barrier", shuffle_is_no_barrier, 1, 32); }},
    {"load_matrices", load_matrices},
    {"multiply_bfloat16", multiply<fusecell::bfloat16>},
    {"multiply_float16", multiply<fusecell::float16>},
    {"multiply_columns", multiply_columns<16>},
    {"columns_from_within_a_turn", multiply_columns<4>},
    {"columns_past_the_end", multiply_columns<24>},
    {"leave_before_product", [] { return of_floats("leave_before_product", leave_before_product, 1, 64); }},
    {"product_meets_shuffle", [] { return of_floats("product_meets_shuffle", product_meets_shuffle, 1, 32); }},
    {"product_of_half_a_warp", [] { return of_floats("leave_before_product", leave_before_product, 1, 16); }},
    {"misaligned_rows", [] { return of_floats("misaligned_rows", wrong_rows<4>, 1, 32); }},
    {"rows_past_the_end", [] { return of_floats("rows_past_the_end", wrong_rows<8>, 1, 32); }},
    {"pipeline", run_pipeline<Pipeline::whole>},
    {"pipeline_without_wait", run_pipeline<Pipeline::without_wait>},
    {"pipeline_without_second_barrier", run_pipeline<Pipeline::without_second_barrier>},
    {"pipeline_without_commit", run_pipeline<Pipeline::without_commit>},
    {"misaligned_copy", [] { return of_floats("misaligned_copy", misaligned_copy, 1, 4); }},
    {"copy_past_the_end", [] { return of_floats("copy_past_the_end", copy_past_the_end, 1, 2); }},
    {"bulk", run_bulk<Bulk::whole>},
    {"bulk_without_barrier", run_bulk<Bulk::without_barrier>},
    {"bulk_without_wait", run_bulk<Bulk::without_wait>},
    {"bulk_wrong_turn", run_bulk<Bulk::wrong_turn>},
    {"bulk_not_begun", run_bulk<Bulk::not_begun>},
    {"bulk_misaligned", run_bulk<Bulk::misaligned>},
    {"bulk_past_the_end", run_bulk<Bulk::past_the_end>},
    {"overrun", [] { return of_floats("overrun", overrun, 1, 32); }},
    {"unwritten", run_unwritten},
    {"leave_early", [] { return of_floats("leave_early", leave_early, 2, kThreads); }},
    {"two_barriers", [] { return of_floats("two_barriers", two_barriers, 1, kThreads); }},
    {"leave_before_shuffle", [] { return of_floats("leave_before_shuffle", leave_before_shuffle, 1, kThreads); }},
    {"partial_warp", [] { return of_floats("warp_sum", warp_sum, 1, 40); }},
    {"throws", [] { return of_floats("throws", throws, 1, 64); }},
    {"blocks_race", run_blocks_race},
    {"sites", run_sites},
    {"places", run_places},
    {"by_value", run_by_value},
    {"order", print_order},
    {"two_host_threads", two_host_threads},
    {"refused", refused},
    {"api", api},
    {"after_a_fault", after_a_fault},
    {"after_a_fork", after_a_fork},
    {"newest_group_pending", run_newest_group_pending},
    {"time", time_barriers},
    {"launched", print_launched},
};

}  // namespace

int main(int count, char** words) {
  const auto probe = kProbes.find(count > 1 ? words[1] : "");
  if (probe == kProbes.end()) return 9;
  try {
    return probe->second();
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 4;
  }
}
