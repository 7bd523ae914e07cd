#include "cuda/devices.h"

#include <atomic>
#include <cstdlib>

#include "cuda/launch.h"

namespace fusecell::cuda {
namespace {

Device describe(int number) {
#if defined(FUSECELL_EMULATED)
  (void)number;
  return {"the host", 0, 0, 0};
#else
  cudaDeviceProp properties{};
  check("devices", cudaGetDeviceProperties(&properties, number));
  return {properties.name, properties.major, properties.minor, static_cast<int64_t>(properties.totalGlobalMem)};
#endif
}

std::atomic<bool>& hopper() {
  static std::atomic<bool> wanted = [] {
    const char* given = std::getenv("FUSECELL_HOPPER");
    const std::string text = given && *given ? given : "off";
    if (text != "on" && text != "off") value_error("FUSECELL_HOPPER", "on or off", text);
    return text == "on";
  }();
  return wanted;
}

}  // namespace

std::vector<Device> devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return {};
  }
  std::vector<Device> found;
  for (int number = 0; number < count; ++number) found.push_back(describe(number));
  return found;
}

bool hopper_wanted() { return hopper(); }
void want_hopper(bool wanted) { hopper() = wanted; }

int runtime_version() {
  int version = 0;
  check("runtime_version", cudaRuntimeGetVersion(&version));
  return version;
}

int driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess) (void)cudaGetLastError();
  return version;
}

void expect_no_capture(const std::string& argument, const Launch& launch) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(argument.c_str(), cudaStreamIsCapturing(static_cast<cudaStream_t>(launch.stream), &status));
  if (status == cudaStreamCaptureStatusNone) return;
  throw Error(
      Error::Kind::runtime,
      argument + ": expected no graph capture, since the value has to be waited for, got a stream that captures");
}

}  // namespace fusecell::cuda

namespace {

// Of all GPUs or none: which one a call is for is not known where its plan is made.
bool tensor_cores() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) (void)cudaGetLastError();
  for (int number = 0; number < count; ++number) {
    int major = 0;
    fusecell::cuda::check("devices", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number));
    if (major < 8) return false;
  }
  return true;
}

}  // namespace

// Emulated, the host could read the arrays; it does not, so that the tests meet what a GPU meets.
fusecell::backend::Traits fusecell::backend::traits() { return {false, true, false, tensor_cores()}; }

std::string fusecell::backend::bfloat16_obstacle() { return "arrays that CUDA's kernels compute on"; }
