#pragma once
// A convolution with its bias on tensor cores; in tensor_conv2d.cu.

#include <cstdint>

#include "problem/backend.h"

namespace fusecell::cuda {

int64_t tensor_conv2d_forward_scratch(const Conv2dShape& shape);
int64_t tensor_conv2d_backward_scratch(const Conv2dShape& shape);
void tensor_conv2d_forward(const Conv2dForward& args, const Conv2dShape& shape, const Launch& launch);
void tensor_conv2d_backward(const Conv2dBackward& args, const Conv2dShape& shape, const Launch& launch);

}  // namespace fusecell::cuda
