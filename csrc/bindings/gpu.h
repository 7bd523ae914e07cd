#pragma once
// What the CUDA backend's module has besides, on a GPU or emulated.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cuda/devices.h"

namespace fusecell::bindings {

inline void define_gpu(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("devices", [] {
    py::list list;
    for (const cuda::Device& device : cuda::devices()) {
      py::dict entry;
      entry["name"] = device.name;
      entry["compute_capability"] = std::to_string(device.major) + "." + std::to_string(device.minor);
      entry["memory"] = device.memory;
      list.append(entry);
    }
    return list;
  });
  m.def("build_info", [] {
    py::dict info;
    info["version"] = FUSECELL_VERSION;
    info["runtime"] = cuda::runtime_version();
    info["driver"] = cuda::driver_version();
    return info;
  });
  m.def("hopper_wanted", &cuda::hopper_wanted);
  m.def("want_hopper", &cuda::want_hopper);
  m.def("expect_no_capture", [](const std::string& argument, int device, uintptr_t stream) {
    Launch launch;
    launch.device = device;
    launch.stream = reinterpret_cast<void*>(stream);
    cuda::expect_no_capture(argument, launch);
  });
}

}  // namespace fusecell::bindings
