#pragma once
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a counter and a key in, four
// numbers out. No state, so every backend and any number of threads draws the same mask.

#include <cstdint>

#include "base/macros.h"

namespace fusecell {

struct Philox4 {
  uint32_t word[4];
};

FUSECELL_HD Philox4 philox4x32(Philox4 counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * counter.word[0];
    const uint64_t product1 = uint64_t(0xCD9E8D57u) * counter.word[2];
    counter = {{uint32_t(product1 >> 32) ^ counter.word[1] ^ key0, uint32_t(product1),
                uint32_t(product0 >> 32) ^ counter.word[3] ^ key1, uint32_t(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The four numbers of elements 4 * group .. 4 * group + 3 in the given stream of (seed, offset).
FUSECELL_HD Philox4 philox_group(uint64_t seed, uint64_t offset, uint32_t stream, uint64_t group) {
  const uint64_t position = offset + group;
  return philox4x32({{uint32_t(position), uint32_t(position >> 32), stream, 0}}, uint32_t(seed), uint32_t(seed >> 32));
}

// A number below it: an event of this probability, to 2^-32.
inline uint64_t bernoulli_threshold(double rate) { return static_cast<uint64_t>(rate * 4294967296.0 + 0.5); }

}  // namespace fusecell
