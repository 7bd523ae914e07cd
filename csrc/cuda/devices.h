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

// Whether Hopper's own instructions are wanted, where a device has them: products of warpgroups, bulk copies, and
// launches that begin before the one before has ended. As FUSECELL_HOPPER says, on or off; off by default, since no GPU
// has run them yet. Throws Error (value).
bool hopper_wanted();
void want_hopper(bool wanted);

// 12040 is 12.4; the driver's is 0 where there is none.
int runtime_version();
int driver_version();

// Throws Error (runtime) if the stream records a graph: then nobody can wait for a value.
void expect_no_capture(const std::string& argument, const Launch& launch);

}  // namespace fusecell::cuda
