#include "bindings/emulated_gradient.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "cuda/tensor_gradient.h"

namespace fusecell::bindings {
namespace {

namespace py = pybind11;
using Bytes = py::array;  // of any type: 16 bits come as they are
using Lengths = std::optional<py::array_t<int64_t>>;

// `f` of bfloat16, float16 or float.
template <class F>
py::object with_type(const std::string& name, F&& f) {
  if (name == "bfloat16") return f(bfloat16{});
  if (name == "float16") return f(float16{});
  if (name == "float32") return f(float{});
  throw std::invalid_argument("type: expected 'bfloat16', 'float16' or 'float32', got '" + name + "'");
}

// frames: [T, B, P, pitch], from time `time` on; initial: [B, P, pitch of its own].
template <class T>
cuda::Images<T> images_of(const Bytes& frames, const std::optional<Bytes>& initial, const Lengths& lengths,
                          int64_t time, int64_t steps, int shift) {
  const auto strides = [](int64_t batch, int64_t pixels, int64_t pitch) {
    return Strides{batch * pixels * pitch, pixels * pitch, 1, pitch};
  };
  cuda::Images<T> images{};
  images.frames = {static_cast<const T*>(frames.data()), strides(frames.shape(1), frames.shape(2), frames.shape(3))};
  if (initial) {
    images.initial = {static_cast<const T*>(initial->data()),
                      strides(initial->shape(0), initial->shape(1), initial->shape(2))};
  }
  images.batch = frames.shape(1);
  images.time = time;
  images.steps = steps;
  images.lengths = lengths ? lengths->data() : nullptr;
  images.shift = shift;
  return images;
}

struct GradientCall {
  std::string type;
  Bytes frames, dz;  // dz: [samples, P, pitch]
  std::optional<Bytes> initial;
  Lengths lengths;
  int64_t time, steps;
  int shift;
  std::vector<int32_t> geometry;  // extent, columns, step, low
  py::array_t<int32_t> taps;      // [pieces, 4]
  int64_t rows, channels, kernel, part;
  int row_shift, buffers;  // 0 or fewer buffers: as the core chooses
};

template <class S>
py::object tensor_gradient(const GradientCall& call) {
  cuda::TensorGradientArgs<S> args{};
  args.images = images_of<S>(call.frames, call.initial, call.lengths, call.time, call.steps, call.shift);
  const auto& g = call.geometry;
  args.geometry = {{g.at(0), g.at(1)}, g.at(2), {g.at(3), g.at(4)}, {g.at(5), g.at(6)}, {1, 1}};
  std::vector<cuda::Tap> taps;
  const auto tap = call.taps.unchecked<2>();
  for (py::ssize_t k = 0; k < tap.shape(0); ++k) {
    const bool none = tap(k, 0) < 0;
    taps.push_back(none ? cuda::Tap{0, cuda::kNowhere, cuda::kNowhere, 0}
                        : cuda::Tap{tap(k, 0), tap(k, 1), tap(k, 2), tap(k, 3)});
  }
  args.taps = taps.data();
  args.pieces = static_cast<int>(taps.size());
  args.dz = static_cast<const S*>(call.dz.data());
  args.samples = call.dz.shape(0);
  args.pixels = call.dz.shape(1);
  args.dz_pitch = call.dz.shape(2);
  args.rows = call.rows;
  args.channels = call.channels;
  args.kernel = call.kernel;
  const int64_t total = args.samples * args.pixels, count = args.channels * args.kernel;
  Parts parts = cuda::tensor_gradient_parts_of<S>(args.rows, args.pieces, total);
  if (call.part > 0) parts = Parts{0, call.part}.of(total);
  py::array_t<float> partial({parts.count, args.rows, count}), bias({parts.count, args.rows});
  args.partial = partial.mutable_data();
  args.bias_partial = bias.mutable_data();
  std::fill_n(args.partial, partial.size(), __builtin_nanf(""));
  std::fill_n(args.bias_partial, bias.size(), __builtin_nanf(""));
  const cuda::Context context("tensor_gradient", Launch{});
  if (call.buffers > 0) {
    cuda::launch_tensor_gradient(context, args, parts, call.row_shift, call.buffers);
  } else {
    cuda::tensor_gradient_parts(context, args, parts);
  }
  return py::make_tuple(partial, bias);
}

// What the core chooses: the tile's rows, stages, bytes of shared memory, parts and the pixels of each.
template <class S>
py::object tensor_gradient_plan(int64_t rows, int64_t pieces, int64_t total, int shared) {
  const int row_shift = cuda::tensor_gradient_tiles(rows, pieces * cuda::kPiece<S>).row_shift;
  const int buffers = cuda::tensor_gradient_buffers<S>(row_shift, shared);
  const Parts parts = cuda::tensor_gradient_parts_of<S>(rows, pieces, total);
  return py::make_tuple(cuda::kWarpRows << row_shift, buffers, cuda::tensor_gradient_shared<S>(row_shift, buffers),
                        parts.count, parts.size);
}

struct ParameterCall {
  std::string type;
  Bytes dz, c;  // [samples, P, pitch]; [T, B, P, C]
  std::optional<Bytes> gates, initial;
  Lengths lengths;
  int64_t time, steps;
  int shift;
  int64_t rows, part;
  bool peephole, per_pixel;
  int gate_kind, state_kind;  // of cell/activation.h
};

template <class S>
py::object tensor_parameter_gradient(const ParameterCall& call) {
  cuda::TensorParameterGradientArgs<S> args{};
  args.dz = static_cast<const S*>(call.dz.data());
  args.samples = call.dz.shape(0);
  args.pixels = call.dz.shape(1);
  args.dz_pitch = call.dz.shape(2);
  args.dz_rows = call.rows;
  args.peephole = call.peephole;
  args.per_pixel = call.per_pixel;
  args.gates = call.gates ? static_cast<const S*>(call.gates->data()) : nullptr;
  args.c_before = images_of<float>(call.c, call.initial, call.lengths, call.time, call.steps, call.shift);
  args.gate_kind = static_cast<Activation>(call.gate_kind);
  args.state_kind = static_cast<Activation>(call.state_kind);
  args.activation = {0.25f, 1.0f, 0.0f};
  const int64_t total = args.samples * args.pixels, rows = call.peephole ? call.rows / 4 * 3 : call.rows;
  Parts parts = cuda::tensor_parameter_parts_of(call.peephole ? call.rows / 4 : call.rows, total);
  if (call.part > 0) parts = Parts{0, call.part}.of(total);
  py::array_t<double> partial(call.per_pixel ? std::vector<int64_t>{rows, args.pixels}
                                             : std::vector<int64_t>{parts.count, rows});
  args.partial = partial.mutable_data();
  std::fill_n(args.partial, partial.size(), __builtin_nan(""));
  cuda::tensor_parameter_gradient_parts(cuda::Context("tensor_parameter_gradient", Launch{}), args, parts);
  return partial;
}

}  // namespace

void define_tensor_gradient(py::module_& m) {
  m.def(
      "tensor_gradient",
      [](const std::string& type, const Bytes& frames, const Bytes& dz, const std::optional<Bytes>& initial,
         const Lengths& lengths, int64_t time, int64_t steps, int shift, const std::vector<int32_t>& geometry,
         const py::array_t<int32_t>& taps, int64_t rows, int64_t channels, int64_t kernel, int64_t part, int row_shift,
         int buffers) {
        const GradientCall call = {type,     frames, dz,   initial,  lengths, time, steps,     shift,
                                   geometry, taps,   rows, channels, kernel,  part, row_shift, buffers};
        return with_type(type, [&](auto s) { return tensor_gradient<decltype(s)>(call); });
      },
      py::kw_only(), py::arg("type"), py::arg("frames"), py::arg("dz"), py::arg("initial") = py::none(),
      py::arg("lengths") = py::none(), py::arg("time") = 0, py::arg("steps"), py::arg("shift") = 0, py::arg("geometry"),
      py::arg("taps"), py::arg("rows"), py::arg("channels"), py::arg("kernel"), py::arg("part") = 0,
      py::arg("row_shift") = 0, py::arg("buffers") = 0);
  m.def(
      "tensor_gradient_plan",
      [](const std::string& type, int64_t rows, int64_t pieces, int64_t total, int shared) {
        return with_type(type, [&](auto s) { return tensor_gradient_plan<decltype(s)>(rows, pieces, total, shared); });
      },
      py::kw_only(), py::arg("type"), py::arg("rows"), py::arg("pieces"), py::arg("total"), py::arg("shared"));
  m.def(
      "tensor_parameter_gradient",
      [](const std::string& type, const Bytes& dz, const Bytes& c, const std::optional<Bytes>& gates,
         const std::optional<Bytes>& initial, const Lengths& lengths, int64_t time, int64_t steps, int shift,
         int64_t rows, int64_t part, bool peephole, bool per_pixel, int gate_kind, int state_kind) {
        const ParameterCall call = {type,  dz,   c,    gates,    initial,   lengths,   time,      steps,
                                    shift, rows, part, peephole, per_pixel, gate_kind, state_kind};
        return with_type(type, [&](auto s) { return tensor_parameter_gradient<decltype(s)>(call); });
      },
      py::kw_only(), py::arg("type"), py::arg("dz"), py::arg("c"), py::arg("gates") = py::none(),
      py::arg("initial") = py::none(), py::arg("lengths") = py::none(), py::arg("time") = 0, py::arg("steps"),
      py::arg("shift") = 0, py::arg("rows"), py::arg("part") = 0, py::arg("peephole") = false,
      py::arg("per_pixel") = false, py::arg("gate_kind"), py::arg("state_kind"));
}

}  // namespace fusecell::bindings
