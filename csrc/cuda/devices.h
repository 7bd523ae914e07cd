#pragma once
// What there is to compute on, asked without a kernel.

#include <cstdint>
#include <string>
#include <vector>

#include "problem/backend.h"

namespace fusecell::cuda {

struct Device {
  std::string name;
  int major, minor;  // compute capability
  int64_t memory;    // bytes
};

// Empty where there is no driver, or no GPU.
std::vector<Device> devices();

// Whether 16-bit convolutions multiply by warpgroups: on Hopper (9.0) where FUSECELL_WARPGROUPS says on. Off by
// default, since no GPU has run them yet. Throws Error (value).
bool use_warpgroups(int major, int minor);

// 12040 is 12.4; the driver's is 0 where there is none.
int runtime_version();
int driver_version();

// Throws Error (runtime) if the stream records a graph: then nobody can wait for a value.
void expect_no_capture(const std::string& argument, const Launch& launch);

}  // namespace fusecell::cuda
