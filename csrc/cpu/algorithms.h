#pragma once
// Which algorithm computes the convolutions, and for how many samples at once.

#include <algorithm>
#include <memory>
#include <type_traits>

#include "cpu/bfloat16.h"
#include "cpu/direct.h"
#include "cpu/winograd.h"

namespace fusecell::cpu {

template <class S>
std::unique_ptr<Convolutions<S>> make_convolutions(const ConvolutionSet& set, const Wanted& wanted, Arena& arena,
                                                   int workers) {
  if (set.algorithm == Algorithm::winograd) {
    return std::make_unique<WinogradConvolutions<S>>(set, wanted, arena, workers);
  }
  if constexpr (std::is_same_v<S, float>) {
    if (set.algorithm == Algorithm::bfloat16) {
      return std::make_unique<Bfloat16Convolutions>(set, wanted, arena, workers);
    }
  }
  return std::make_unique<DirectConvolutions<S>>(set, wanted, arena, workers);
}

// Samples of which `channels` planes fill at most some bytes, and one at least: the same for any number of threads.
template <class S>
int64_t samples_at_once(const ConvolutionShape& conv, int64_t batch, int64_t channels, int64_t bytes) {
  const int64_t of_sample = channels * conv.out_pixels() * static_cast<int64_t>(sizeof(S));
  return std::min(batch, std::max<int64_t>(bytes / std::max<int64_t>(of_sample, 1), 1));
}

}  // namespace fusecell::cpu
