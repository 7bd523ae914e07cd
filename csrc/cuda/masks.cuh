#pragma once
// Random masks: a thread draws a group of Philox's four numbers.

#include <cuda_runtime.h>

#include <cstdint>

#include "cell/philox.h"
#include "cuda/device.cuh"
#include "cuda/packs.cuh"

namespace fusecell::cuda {

struct BernoulliArgs {
  uint8_t* out;
  const uint64_t* counter;  // added to the offset; null: none
  int64_t size;
  uint64_t seed, offset, threshold;  // 1 with probability threshold / 2^32
  uint32_t stream;
  bool aligned;  // to 4 bytes
};

__global__ void __launch_bounds__(kThreads) bernoulli(const BernoulliArgs args) {
  const int64_t group = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (group * 4 >= args.size) return;
  const uint64_t offset = args.offset + (args.counter ? *args.counter : 0);
  const Philox4 numbers = philox_group(args.seed, offset, args.stream, uint64_t(group));
  Chunk<uint8_t, 4> drawn;
#pragma unroll
  for (int j = 0; j < 4; ++j) drawn.element[j] = numbers.word[j] < args.threshold;
  uint8_t* const out = args.out + group * 4;
  const Span span = span_at<4>(group * 4, args.size, args.aligned);
  if (span.whole) {
    *reinterpret_cast<Chunk<uint8_t, 4>*>(out) = drawn;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < span.count) out[j] = drawn.element[j];
    }
  }
}

}  // namespace fusecell::cuda
