// Random masks.

#include "cuda/masks.cuh"

#include "cuda/launch.h"
#include "problem/backend.h"

namespace fusecell::backend {

void bernoulli(const Tensor& out, double rate, uint64_t seed, uint64_t offset, uint32_t stream, const Tensor& counter,
               const Launch& launch) {
  const cuda::Context context("bernoulli", launch);
  const cuda::BernoulliArgs args = {.out = out.as<uint8_t>(),
                                    .counter = counter.as<const uint64_t>(),
                                    .size = out.size(),
                                    .seed = seed,
                                    .offset = offset,
                                    .threshold = bernoulli_threshold(rate),
                                    .stream = stream,
                                    .aligned = reinterpret_cast<uintptr_t>(out.data) % 4 == 0};
  context.run("bernoulli", cuda::bernoulli, cuda::grid_for(cuda::ceil_div(args.size, 4)), args);
}

}  // namespace fusecell::backend
