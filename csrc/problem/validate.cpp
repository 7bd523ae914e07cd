#include "problem/validate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/size.h"
#include "cell/statistics.h"
#include "problem/winograd.h"

namespace fusecell {

std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  if (shape.size() == 1) text += ",";
  return text + ")";
}

Strides Tensor::image_strides() const {
  const size_t B = shape.size() - 4, C = B + 1, H = B + 2, W = B + 3;
  const int64_t pixels = shape[H] * shape[W];
  if (strides.empty()) return contiguous_frames<void>(nullptr, shape[B], shape[C], pixels).by;
  const auto stride = [&](size_t axis) { return shape[axis] > 1 ? strides[axis] : 0; };  // of one element: any number
  return {B > 0 ? stride(0) : 0, stride(B), stride(C), shape[W] > 1 ? strides[W] : pixels > 1 ? strides[H] : 1};
}

namespace {

// --------------------------------------------------------------------------------------------------- small rules
std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

void expect_present(const std::string& name, const Tensor& tensor) {
  if (!tensor.present) type_error(name, "an array", "None");
}

void expect_dtype(const std::string& name, const Tensor& tensor, DType dtype) {
  if (tensor.dtype != dtype) type_error(name, std::string("dtype ") + dtype_name(dtype), tensor.dtype_given);
}

void expect_rank(const std::string& name, const Tensor& tensor, const char* dimensions, size_t rank) {
  if (tensor.shape.size() != rank) value_error(name, std::string("shape ") + dimensions, to_string(tensor.shape));
}

void expect_shape(const std::string& name, const Tensor& tensor, const Shape& shape) {
  if (tensor.shape != shape) value_error(name, to_string(shape), to_string(tensor.shape));
}

void expect_at_least(const std::string& name, int64_t value, int64_t least) {
  if (value < least) value_error(name, "at least " + std::to_string(least), std::to_string(value));
}

void expect_finite(const std::string& name, double value) {
  if (!std::isfinite(value)) value_error(name, "a finite number", number(value));
}

void expect_half(const std::string& name, double value) {
  if (value != 0.0 && value != 0.5 && value != 1.0) value_error(name, "0, 0.5 or 1", number(value));
}

void expect_floating_dtype(const std::string& name, const Tensor& tensor) {
  expect_present(name, tensor);
  if (tensor.dtype == DType::float32 || tensor.dtype == DType::float64) return;
  const bool half = backend::traits().half_precision;
  if (half && is_half_precision(tensor.dtype)) return;
  type_error(name, half ? "dtype float32, float64, bfloat16 or float16" : "dtype float32 or float64",
             tensor.dtype_given);
}

bool is_empty(const Shape& shape) { return std::find(shape.begin(), shape.end(), 0) != shape.end(); }

[[noreturn]] void refuse_strides(const std::string& name, const Tensor& tensor, const std::string& expected) {
  value_error(name, expected, "strides " + to_string(tensor.strides));
}

void expect_stride_of_each_axis(const std::string& name, const Tensor& tensor) {
  if (tensor.strides.size() != tensor.shape.size()) {
    refuse_strides(name, tensor, std::to_string(tensor.shape.size()) + " strides");
  }
}

void expect_array(const std::string& name, const Tensor& tensor, DType dtype) {
  expect_present(name, tensor);
  expect_dtype(name, tensor, dtype);
  expect_contiguous(name, tensor);
}

enum class Need { required, optional };

void expect(const std::string& name, const Tensor& tensor, DType dtype, const Shape& shape, Need need) {
  if (!tensor.present && need == Need::optional) return;
  expect_array(name, tensor, dtype);
  expect_shape(name, tensor, shape);
}

Need required_at_run(Stage stage) { return stage == Stage::run ? Need::required : Need::optional; }

Shape joined(Shape front, const Shape& back) {
  front.insert(front.end(), back.begin(), back.end());
  return front;
}

// A tensor of `blocks` channels that is either per channel or per pixel; says which.
bool expect_per_channel_or_pixel(const std::string& name, const Tensor& tensor, DType dtype, int64_t blocks,
                                 const Shape& spatial) {
  if (!tensor.present) return false;
  expect_array(name, tensor, dtype);
  const Shape per_channel = {blocks}, per_pixel = joined({blocks}, spatial);
  if (tensor.shape != per_channel && tensor.shape != per_pixel) {
    value_error(name, to_string(per_channel) + " or " + to_string(per_pixel), to_string(tensor.shape));
  }
  return tensor.shape != per_channel;
}

// --------------------------------------------------------------------------------------------------------- strides
enum class Role { input, output };

// The axes along which there is more than one element, the one with the smallest stride first.
std::vector<size_t> axes_by_stride(const Tensor& tensor) {
  std::vector<size_t> axes;
  for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
    if (tensor.shape[axis] > 1) axes.push_back(axis);
  }
  std::sort(axes.begin(), axes.end(), [&](size_t a, size_t b) { return tensor.strides[a] < tensor.strides[b]; });
  return axes;
}

// Of a sequence or a state: H and W are one axis, and no element of an output stands in another's place.
void expect_strides(const std::string& name, const Tensor& tensor, Role role) {
  const Shape &shape = tensor.shape, &strides = tensor.strides;
  const auto refuse = [&](const std::string& expected) { refuse_strides(name, tensor, expected); };
  if (strides.empty()) return;
  expect_stride_of_each_axis(name, tensor);
  if (is_empty(shape)) return;
  int64_t span = 0;  // from the first element to the last, along the axes so far
  for (size_t axis : axes_by_stride(tensor)) {
    if (strides[axis] < 0) refuse("strides of at least 0");
    if (role == Role::output && strides[axis] <= span) refuse("strides that keep the elements of an output apart");
    if (strides[axis] > (kLargestSize - span) / (shape[axis] - 1)) refuse("strides within 2^46 elements");
    span += (shape[axis] - 1) * strides[axis];
  }
  const size_t H = shape.size() - 2, W = shape.size() - 1;
  const int64_t stride_h = shape[W] * strides[W];
  if (shape[H] > 1 && shape[W] > 1 && strides[H] != stride_h) {
    refuse("strides with H and W as one axis, the last two " + to_string({stride_h, strides[W]}));
  }
}

// [..., C, H, W] that is C-contiguous as [..., H, W, C].
void expect_channels_last(const std::string& name, const Tensor& tensor) {
  if (!tensor.present || is_empty(tensor.shape)) return;
  const size_t rank = tensor.shape.size(), C = rank - 3;
  const auto turned = [C](Shape axes) {
    std::rotate(axes.begin() + std::ptrdiff_t(C), axes.begin() + std::ptrdiff_t(C) + 1, axes.end());
    return axes;
  };
  Tensor as_stored = tensor;
  as_stored.shape = turned(tensor.shape);
  if (tensor.strides.empty()) {  // the same order only where there is one channel, or one pixel
    if (tensor.shape[C] == 1 || tensor.shape[C + 1] * tensor.shape[C + 2] == 1) return;
    value_error(name, "neighbouring channels", "neighbouring pixels");
  }
  as_stored.strides = turned(tensor.strides);
  expect_contiguous(name, as_stored);
}

void expect_images(const std::string& name, const Tensor& tensor, DType dtype, const Shape& shape, Need need,
                   Role role) {
  if (!tensor.present && need == Need::optional) return;
  expect_present(name, tensor);
  expect_dtype(name, tensor, dtype);
  expect_shape(name, tensor, shape);
  expect_strides(name, tensor, role);
}

// ---------------------------------------------------------------------------------------------------- convolution
constexpr std::array<const char*, 2> kAxis = {"height", "width"};

ConvolutionShape convolution_shape(const ConvolutionOptions& options, const std::string& input_name,
                                   const int64_t in[2], const Tensor& weight) {
  ConvolutionShape conv;
  conv.out_channels = weight.shape[0];
  conv.in_channels = weight.shape[1];
  const bool same = options.padding == "same";
  if (!same && options.padding != "valid" && options.padding != "explicit") {
    value_error("padding", "\"same\", \"valid\", an int, (h, w) or ((low, high), (low, high))",
                "\"" + options.padding + "\"");
  }
  for (int axis = 0; axis < 2; ++axis) {
    expect_at_least("stride", options.stride[axis], 1);
    expect_at_least("dilation", options.dilation[axis], 1);
    const int64_t stride = options.stride[axis], dilation = options.dilation[axis];
    const int64_t reach = dilation * (weight.shape[size_t(2 + axis)] - 1) + 1;
    int64_t low = 0, high = 0;
    if (same) {  // Keras: ceil(in / stride) outputs, the odd padding pixel at the high end
      const int64_t out = (in[axis] + stride - 1) / stride;
      const int64_t total = std::max<int64_t>((out - 1) * stride + reach - in[axis], 0);
      low = total / 2;
      high = total - low;
    } else if (options.padding == "explicit") {
      low = options.pad[axis][0];
      high = options.pad[axis][1];
      expect_at_least("padding", std::min(low, high), 0);
    }
    const int64_t padded = in[axis] + low + high;
    if (padded < reach) {
      value_error(input_name,
                  std::string(kAxis[size_t(axis)]) + " of at least " + std::to_string(reach - low - high) +
                      " for this kernel, dilation and padding",
                  std::to_string(in[axis]));
    }
    conv.in[axis] = in[axis];
    conv.kernel[axis] = weight.shape[size_t(2 + axis)];
    conv.stride[axis] = stride;
    conv.dilation[axis] = dilation;
    conv.pad_low[axis] = low;
    conv.out[axis] = (padded - reach) / stride + 1;
  }
  return conv;
}

constexpr int64_t kLargestExtent = int64_t(1) << 40;

void expect_extents(const std::string& name, const Tensor& tensor, size_t first, int64_t least) {
  for (size_t axis = first; axis < tensor.shape.size(); ++axis) {
    if (tensor.shape[axis] < least || tensor.shape[axis] > kLargestExtent) {
      value_error(name,
                  "every extent from axis " + std::to_string(first) + " on from " + std::to_string(least) + " to " +
                      std::to_string(kLargestExtent),
                  to_string(tensor.shape));
    }
  }
}

void expect_moderate(const ConvolutionOptions& options) {  // with kLargestExtent: no padded extent overflows
  constexpr int64_t kLargest = int64_t(1) << 20;
  for (int axis = 0; axis < 2; ++axis) {
    if (options.stride[axis] > kLargest) value_error("stride", "at most 1048576", std::to_string(options.stride[axis]));
    if (options.dilation[axis] > kLargest) {
      value_error("dilation", "at most 1048576", std::to_string(options.dilation[axis]));
    }
    for (int end = 0; end < 2; ++end) {
      if (options.pad[axis][end] > kLargest) {
        value_error("padding", "at most 1048576", std::to_string(options.pad[axis][end]));
      }
    }
  }
}

// What keeps the convolutions from products of bfloat16; empty: nothing.
std::string bfloat16_obstacle(DType dtype, std::initializer_list<const ConvolutionShape*> convolutions) {
  for (const ConvolutionShape* conv : convolutions) {
    if (const std::string obstacle = step_obstacle(*conv); !obstacle.empty()) return obstacle;
  }
  if (dtype != DType::float32) return std::string(dtype_name(dtype)) + " arrays";
  return backend::bfloat16_obstacle();
}

// The algorithm that computes the convolutions: as the caller names it, or, of float32, Winograd's where it `pays`.
Algorithm choose_algorithm(const std::string& algorithm, DType dtype,
                           std::initializer_list<const ConvolutionShape*> convolutions, bool winograd_pays) {
  if (algorithm == "direct") return Algorithm::direct;
  if (algorithm == "bfloat16") {
    const std::string obstacle = bfloat16_obstacle(dtype, convolutions);
    if (obstacle.empty()) return Algorithm::bfloat16;
    value_error("algorithm",
                "\"auto\" or \"direct\" (bfloat16 takes float32 arrays, stride 1 and dilation 1, on a processor with "
                "AMX-BF16)",
                "\"bfloat16\" with " + obstacle);
  }
  const bool half = is_half_precision(dtype), tensor_cores = backend::traits().tensor_cores;
  if (algorithm == "tensor_cores" || algorithm == "tf32" || (algorithm == "auto" && half && tensor_cores)) {
    const bool wants_half = algorithm != "tf32";
    if (tensor_cores && (wants_half ? half : dtype == DType::float32)) {
      return wants_half ? Algorithm::tensor_cores : Algorithm::tf32;
    }
    value_error("algorithm",
                "\"auto\" or \"direct\" (tensor_cores takes 16-bit arrays, tf32 float32 ones, on GPUs from compute "
                "capability 8.0 on)",
                "\"" + algorithm + "\" with " + (tensor_cores ? dtype_name(dtype) : "no such GPU"));
  }
  const std::string obstacle =
      backend::traits().winograd ? winograd_obstacle(convolutions) : "arrays that CUDA's kernels compute on";
  if (algorithm == "auto") {
    return obstacle.empty() && dtype == DType::float32 && winograd_pays ? Algorithm::winograd : Algorithm::direct;
  }
  if (algorithm != "winograd") {
    value_error("algorithm", "\"auto\", \"direct\", \"winograd\", \"bfloat16\", \"tensor_cores\" or \"tf32\"",
                "\"" + algorithm + "\"");
  }
  if (!obstacle.empty()) {
    value_error("algorithm",
                "\"auto\" or \"direct\" (winograd takes 3x3 or 5x5 kernels, equal for input and recurrent convolution, "
                "stride 1 and dilation 1, on the CPU)",
                "\"winograd\" with " + obstacle);
  }
  return Algorithm::winograd;
}

// ----------------------------------------------------------------------------------------------------------- cell
CellShape validate_cell(const CellOptions& options) {
  CellShape cell;
  cell.gate_kind = activation_from_name("recurrent_activation", options.recurrent_activation);
  const bool gate_allowed = cell.gate_kind == Activation::sigmoid || cell.gate_kind == Activation::hard_sigmoid ||
                            cell.gate_kind == Activation::hard_sigmoid_keras2;
  if (!gate_allowed) {
    value_error("recurrent_activation", "sigmoid, hard_sigmoid or hard_sigmoid_keras2", options.recurrent_activation);
  }
  cell.state_kind = activation_from_name("activation", options.activation);
  switch (cell.state_kind) {
    case Activation::tanh:
    case Activation::relu:
    case Activation::leaky_relu:
    case Activation::hard_tanh:
    case Activation::softsign:
    case Activation::identity:
      break;
    default:
      value_error("activation", "tanh, relu, leaky_relu, hard_tanh, softsign or identity", options.activation);
  }
  expect_finite("slope", options.slope);
  expect_half("relu_at_zero", options.relu_at_zero);
  expect_rate("zoneout_h", options.zoneout_h);
  expect_rate("zoneout_c", options.zoneout_c);
  return cell;
}

void validate_lengths(const Tensor& lengths, int64_t steps, int64_t batch) {
  expect("lengths", lengths, DType::int64, {batch}, Need::optional);
  if (!backend::traits().host_memory) return;  // a kernel only compares them with t
  for (int64_t b = 0; lengths.present && b < batch; ++b) {
    const int64_t length = lengths.as<const int64_t>()[b];
    if (length < 0 || length > steps) {
      value_error("lengths", "values from 0 to " + std::to_string(steps), std::to_string(length));
    }
  }
}

}  // namespace

// ------------------------------------------------------------------------------------------------------ public
Activation activation_from_name(const std::string& argument, const std::string& name) {
  static constexpr std::pair<const char*, Activation> kNames[] = {
      {"identity", Activation::identity},
      {"sigmoid", Activation::sigmoid},
      {"tanh", Activation::tanh},
      {"relu", Activation::relu},
      {"leaky_relu", Activation::leaky_relu},
      {"elu", Activation::elu},
      {"softplus", Activation::softplus},
      {"hard_sigmoid", Activation::hard_sigmoid},
      {"hard_sigmoid_keras2", Activation::hard_sigmoid_keras2},
      {"hard_tanh", Activation::hard_tanh},
      {"softsign", Activation::softsign},
  };
  std::string known;
  for (const auto& [text, kind] : kNames) {
    if (name == text) return kind;
    if (!known.empty()) known += ", ";
    known += text;
  }
  value_error(argument, "one of " + known, "\"" + name + "\"");
}

void expect_rate(const std::string& name, double rate) {
  if (!(rate >= 0.0 && rate <= 1.0)) value_error(name, "a rate between 0 and 1", number(rate));
}

ActivationParameters<double> activation_parameters(double slope, double alpha, double at_zero) {
  expect_finite("slope", slope);
  expect_finite("alpha", alpha);
  expect_half("at_zero", at_zero);
  return {slope, alpha, at_zero};
}

void expect_contiguous(const std::string& name, const Tensor& tensor) {
  if (tensor.strides.empty()) return;
  expect_stride_of_each_axis(name, tensor);
  int64_t stride = 1;
  for (size_t axis = tensor.shape.size(); axis-- > 0 && !is_empty(tensor.shape);) {
    const int64_t extent = tensor.shape[axis];
    if (extent > 1 && tensor.strides[axis] != stride) refuse_strides(name, tensor, "a C-contiguous array");
    stride = checked_product(name, {stride, extent});
  }
}

void expect_floating(const std::string& name, const Tensor& tensor) {
  expect_floating_dtype(name, tensor);
  expect_contiguous(name, tensor);
}

void expect_one(const std::string& name, const Tensor& tensor, DType dtype) {
  expect(name, tensor, dtype, {1}, Need::required);
}

void expect_like(const std::string& name, const Tensor& tensor, const Tensor& other, const std::string& other_name) {
  expect_present(name, tensor);
  if (tensor.dtype != other.dtype) {
    type_error(name, std::string("dtype ") + dtype_name(other.dtype) + ", that of " + other_name, tensor.dtype_given);
  }
  if (tensor.shape != other.shape) {
    value_error(name, to_string(other.shape) + ", that of " + other_name, to_string(tensor.shape));
  }
  expect_contiguous(name, tensor);
}

Conv2dShape validate(const Conv2dForward& args, Stage stage) {
  expect_floating("x", args.x);
  const DType dtype = args.x.dtype;
  expect_rank("x", args.x, "[B, I, H, W]", 4);
  expect_extents("x", args.x, 1, 1);
  expect_array("weight", args.weight, dtype);
  expect_rank("weight", args.weight, "[O, I, kh, kw]", 4);
  expect_extents("weight", args.weight, 0, 1);
  const Shape& w = args.weight.shape;
  expect_shape("weight", args.weight, {w[0], args.x.shape[1], w[2], w[3]});
  expect_moderate(args.options);
  Conv2dShape shape = {dtype, args.x.shape[0], convolution_shape(args.options, "x", &args.x.shape[2], args.weight)};
  shape.algorithm = choose_algorithm(args.options.algorithm, dtype, {&shape.conv}, winograd_pays(shape));
  checked_product("y", {shape.batch, w[0], shape.conv.out[0], shape.conv.out[1]});
  expect("bias", args.bias, dtype, {w[0]}, Need::optional);
  expect("y", args.y, dtype, {shape.batch, w[0], shape.conv.out[0], shape.conv.out[1]}, required_at_run(stage));
  return shape;
}

Conv2dShape validate(const Conv2dBackward& args, Stage stage) {
  const Conv2dShape shape = validate(static_cast<const Conv2dForward&>(args), Stage::plan);
  expect("dy", args.dy, shape.dtype, {shape.batch, shape.conv.out_channels, shape.conv.out[0], shape.conv.out[1]},
         required_at_run(stage));
  expect("dx", args.dx, shape.dtype, args.x.shape, Need::optional);
  expect("dweight", args.dweight, shape.dtype, args.weight.shape, Need::optional);
  expect("dbias", args.dbias, shape.dtype, {shape.conv.out_channels}, Need::optional);
  return shape;
}

LstmGatesShape validate(const LstmGatesForward& args, Stage stage) {
  expect_floating("z", args.z);
  const DType dtype = args.z.dtype, cell_dtype = state_dtype(dtype);
  expect_array("c", args.c, cell_dtype);
  if (args.c.shape.size() < 2) value_error("c", "shape [B, C, ...]", to_string(args.c.shape));
  expect_extents("c", args.c, 1, 1);
  LstmGatesShape shape;
  shape.dtype = dtype;
  shape.batch = args.c.shape[0];
  shape.channels = args.c.shape[1];
  shape.spatial.assign(args.c.shape.begin() + 2, args.c.shape.end());
  shape.pixels = 1;
  for (int64_t extent : shape.spatial) shape.pixels *= extent;
  shape.cell = validate_cell(args.options);

  const Shape gates = joined({shape.batch, 4 * shape.channels}, shape.spatial);
  expect("z", args.z, dtype, gates, Need::required);
  shape.cell.bias_per_pixel = expect_per_channel_or_pixel("bias", args.bias, dtype, 4 * shape.channels, shape.spatial);
  shape.cell.peephole_per_pixel =
      expect_per_channel_or_pixel("peephole", args.peephole, dtype, 3 * shape.channels, shape.spatial);
  const bool zoneout_h = args.zoneout_mask_h.present || args.options.zoneout_h > 0;
  expect("h", args.h, dtype, args.c.shape, zoneout_h ? Need::required : Need::optional);
  expect("zoneout_mask_h", args.zoneout_mask_h, DType::uint8, args.c.shape, Need::optional);
  expect("zoneout_mask_c", args.zoneout_mask_c, DType::uint8, args.c.shape, Need::optional);
  expect("h_out", args.h_out, dtype, args.c.shape, required_at_run(stage));
  expect("c_out", args.c_out, cell_dtype, args.c.shape, required_at_run(stage));
  expect("gates", args.gates, dtype, gates, Need::optional);
  return shape;
}

LstmGatesShape validate(const LstmGatesBackward& args, Stage stage) {
  const LstmGatesShape shape = validate(static_cast<const LstmGatesForward&>(args), Stage::plan);
  const Shape gates = joined({shape.batch, 4 * shape.channels}, shape.spatial);
  expect("gates", args.gates, shape.dtype, gates, Need::required);
  expect("dh", args.dh, shape.dtype, args.c.shape, Need::optional);
  expect("dc", args.dc, state_dtype(shape.dtype), args.c.shape, Need::optional);
  expect("dz", args.dz, shape.dtype, gates, required_at_run(stage));
  expect("dc_before", args.dc_before, state_dtype(shape.dtype), args.c.shape, required_at_run(stage));
  expect("dh_before", args.dh_before, shape.dtype, args.c.shape, Need::optional);
  if (args.dbias.present) expect("dbias", args.dbias, shape.dtype, args.bias.shape, Need::required);
  if (args.dpeephole.present) expect("dpeephole", args.dpeephole, shape.dtype, args.peephole.shape, Need::required);
  return shape;
}

ConvLstmShape validate(const ConvLstmForward& args, Stage stage) {
  expect_floating_dtype("x", args.x);
  const DType dtype = args.x.dtype;
  expect_rank("x", args.x, "[T, B, Cin, Hin, Win]", 5);
  expect_extents("x", args.x, 2, 1);
  expect_strides("x", args.x, Role::input);
  const auto expect_weight = [dtype](const char* name, const Tensor& weight, const char* dimensions) {
    expect_array(name, weight, dtype);
    expect_rank(name, weight, dimensions, 4);
    expect_extents(name, weight, 0, 1);
  };
  expect_weight("weight_ih", args.weight_ih, "[4C, Cin, kh, kw]");
  expect_weight("weight_hh", args.weight_hh, "[4C, C, kh, kw]");
  const Shape& w = args.weight_ih.shape;
  if (w[0] % 4 != 0) value_error("weight_ih", "a first extent that is 4 times the hidden channels", to_string(w));
  expect_shape("weight_ih", args.weight_ih, {w[0], args.x.shape[2], w[2], w[3]});
  expect_shape("weight_hh", args.weight_hh, {w[0], w[0] / 4, args.weight_hh.shape[2], args.weight_hh.shape[3]});
  expect_moderate(args.options.input);

  ConvLstmShape shape;
  shape.dtype = dtype;
  shape.steps = args.x.shape[0];
  shape.batch = args.x.shape[1];
  shape.channels = w[0] / 4;
  shape.input = convolution_shape(args.options.input, "x", &args.x.shape[3], args.weight_ih);
  shape.recurrent = convolution_shape(ConvolutionOptions{}, "h_0", shape.input.out, args.weight_hh);
  shape.algorithm =
      choose_algorithm(args.options.input.algorithm, dtype, {&shape.input, &shape.recurrent}, winograd_pays(shape));
  shape.cell = validate_cell(args.options.cell);
  if (args.options.truncation < 0) {
    value_error("truncation", "0 (none) or a number of steps", std::to_string(args.options.truncation));
  }

  checked_product("gates", {shape.steps, shape.batch, w[0], shape.input.out[0], shape.input.out[1]});
  checked_product("gates", {shape.batch, w[0], shape.input.out[0], shape.input.out[1]});  // T may be 0
  const DType cell_dtype = state_dtype(dtype);
  const Shape spatial = {shape.input.out[0], shape.input.out[1]};
  const Shape state = joined({shape.batch, shape.channels}, spatial);
  const Shape sequence = joined({shape.steps}, state);
  shape.cell.bias_per_pixel = expect_per_channel_or_pixel("bias", args.bias, dtype, w[0], spatial);
  shape.cell.peephole_per_pixel =
      expect_per_channel_or_pixel("peephole", args.peephole, dtype, 3 * shape.channels, spatial);
  expect_images("h_0", args.h_0, dtype, state, Need::optional, Role::input);
  expect_images("c_0", args.c_0, cell_dtype, state, Need::optional, Role::input);
  validate_lengths(args.lengths, shape.steps, shape.batch);
  expect("dropout_mask", args.dropout_mask, dtype, state, Need::optional);
  expect("zoneout_mask_h", args.zoneout_mask_h, DType::uint8, sequence, Need::optional);
  expect("zoneout_mask_c", args.zoneout_mask_c, DType::uint8, sequence, Need::optional);
  expect_images("y", args.y, dtype, sequence, required_at_run(stage), Role::output);
  expect_images("h_n", args.h_n, dtype, state, required_at_run(stage), Role::output);
  expect_images("c_n", args.c_n, cell_dtype, state, required_at_run(stage), Role::output);
  const Shape gates = joined({shape.steps, shape.batch, w[0]}, spatial);
  expect_images("gates", args.gates, dtype, gates, Need::optional, Role::output);
  expect_images("c", args.c, cell_dtype, sequence, Need::optional, Role::output);
  if (on_tensor_cores(shape.algorithm)) {
    expect_channels_last("gates", args.gates);
  } else {
    expect_contiguous("gates", args.gates);
    expect_contiguous("c", args.c);
  }
  return shape;
}

ConvLstmShape validate(const ConvLstmBackward& args, Stage stage) {
  const ConvLstmShape shape = validate(static_cast<const ConvLstmForward&>(args), Stage::plan);
  const DType cell_dtype = state_dtype(shape.dtype);
  const Shape state = {shape.batch, shape.channels, shape.input.out[0], shape.input.out[1]};
  const Shape sequence = joined({shape.steps}, state);
  expect_images("y", args.y, shape.dtype, sequence, required_at_run(stage), Role::output);
  if (stage == Stage::run) expect_present("c", args.c);
  expect_images("dy", args.dy, shape.dtype, sequence, Need::optional, Role::input);
  expect_images("dh_n", args.dh_n, shape.dtype, state, Need::optional, Role::input);
  expect_images("dc_n", args.dc_n, cell_dtype, state, Need::optional, Role::input);
  expect_images("dx", args.dx, shape.dtype, args.x.shape, Need::optional, Role::output);
  expect("dweight_ih", args.dweight_ih, shape.dtype, args.weight_ih.shape, Need::optional);
  expect("dweight_hh", args.dweight_hh, shape.dtype, args.weight_hh.shape, Need::optional);
  if (args.dbias.present) expect("dbias", args.dbias, shape.dtype, args.bias.shape, Need::required);
  if (args.dpeephole.present) expect("dpeephole", args.dpeephole, shape.dtype, args.peephole.shape, Need::required);
  expect_images("dh_0", args.dh_0, shape.dtype, state, Need::optional, Role::output);
  expect_images("dc_0", args.dc_0, cell_dtype, state, Need::optional, Role::output);
  if (args.statistics.present) {
    expect("statistics", args.statistics, DType::float64,
           {shape.steps, backend::conv_lstm_statistics_parts(shape), kStepStatistics}, Need::required);
  }
  return shape;
}

RnnShape validate(const RnnForward& args, Stage stage) {
  expect_floating("x", args.x);
  const DType dtype = args.x.dtype;
  expect_rank("x", args.x, "[T, B, I]", 3);
  expect_extents("x", args.x, 2, 1);
  expect_array("weight_ih", args.weight_ih, dtype);
  expect_rank("weight_ih", args.weight_ih, "[C, I]", 2);
  expect_extents("weight_ih", args.weight_ih, 0, 1);
  RnnShape shape;
  shape.dtype = dtype;
  shape.steps = args.x.shape[0];
  shape.batch = args.x.shape[1];
  shape.inputs = args.x.shape[2];
  shape.channels = args.weight_ih.shape[0];
  const int64_t C = shape.channels;
  expect_shape("weight_ih", args.weight_ih, {C, shape.inputs});
  expect("weight_hh", args.weight_hh, dtype, {C, C}, Need::required);
  expect("bias", args.bias, dtype, {C}, Need::optional);
  expect("h_0", args.h_0, dtype, {shape.batch, C}, Need::optional);
  shape.kind = activation_from_name("activation", args.options.activation);
  expect_half("relu_at_zero", args.options.relu_at_zero);
  shape.parameters = activation_parameters(args.options.slope, args.options.alpha, args.options.relu_at_zero);
  checked_product("y", {shape.steps, shape.batch, C});
  checked_product("h_n", {shape.batch, C});  // T may be 0
  const Need kept = shape.keeps_a() ? required_at_run(stage) : Need::optional;
  expect("y", args.y, dtype, {shape.steps, shape.batch, C}, required_at_run(stage));
  expect("a", args.a, dtype, {shape.steps, shape.batch, C}, kept);
  expect("h_n", args.h_n, dtype, {shape.batch, C}, required_at_run(stage));
  return shape;
}

RnnShape validate(const RnnBackward& args, Stage stage) {
  const RnnShape shape = validate(static_cast<const RnnForward&>(args), Stage::plan);
  const Shape state = {shape.batch, shape.channels}, sequence = joined({shape.steps}, state);
  expect("y", args.y, shape.dtype, sequence, required_at_run(stage));
  expect("a", args.a, shape.dtype, sequence, shape.keeps_a() ? required_at_run(stage) : Need::optional);
  expect("dy", args.dy, shape.dtype, sequence, Need::optional);
  expect("dh_n", args.dh_n, shape.dtype, state, Need::optional);
  expect("dx", args.dx, shape.dtype, args.x.shape, Need::optional);
  expect("dweight_ih", args.dweight_ih, shape.dtype, args.weight_ih.shape, Need::optional);
  expect("dweight_hh", args.dweight_hh, shape.dtype, args.weight_hh.shape, Need::optional);
  if (args.dbias.present) expect("dbias", args.dbias, shape.dtype, args.bias.shape, Need::required);
  expect("dh_0", args.dh_0, shape.dtype, state, Need::optional);
  expect("statistics", args.statistics, DType::float64, {shape.steps, kRnnStatistics}, Need::optional);
  return shape;
}

void validate(const backend::Update& args) {
  const auto expect_list = [&](const std::string& name, const std::vector<Tensor>& list, bool slot) {
    if (slot && list.empty()) return;
    if (list.size() != args.values.size()) {
      value_error(name, std::to_string(args.values.size()) + " arrays, one for each parameter",
                  std::to_string(list.size()));
    }
    for (size_t i = 0; i < list.size(); ++i) {
      const Tensor& value = args.values[i];
      expect(name + "[" + std::to_string(i) + "]", list[i], slot ? state_dtype(value.dtype) : value.dtype, value.shape,
             Need::required);
    }
  };
  const bool adam = args.rule == UpdateRule::adam;
  expect_list("gradients", args.gradients, false);
  expect_list(adam ? "means" : "velocities", args.first, true);
  expect_list("squares", args.second, true);
  if (args.first.empty() && !args.values.empty() && (adam || args.parameters.momentum != 0.0)) {
    type_error(adam ? "means" : "velocities", "arrays", "none");
  }
  if (adam && args.second.empty() && !args.values.empty()) type_error("squares", "arrays", "none");
  if (args.norm.present) expect_one("norm", args.norm, DType::float64);
  if (args.step.present) expect_one("step", args.step, DType::int64);
}

}  // namespace fusecell
