#pragma once
// Where Winograd's algorithm takes the place of the direct one: F(4x4, 3x3) and F(2x2, 5x5), each on tiles of 6x6
// pixels.

#include <algorithm>
#include <initializer_list>
#include <string>

#include "problem/conv_lstm.h"
#include "problem/convolution.h"

namespace fusecell {

// What keeps Winograd from computing these convolutions, which share one transform; empty: nothing.
inline std::string winograd_obstacle(std::initializer_list<const ConvolutionShape*> convolutions) {
  const int64_t size = (*convolutions.begin())->kernel[0];
  std::string kernels;
  bool alike = size == 3 || size == 5;
  for (const ConvolutionShape* conv : convolutions) {
    if (const std::string obstacle = step_obstacle(*conv); !obstacle.empty()) return obstacle;
    alike = alike && conv->kernel[0] == size && conv->kernel[1] == size;
    kernels +=
        (kernels.empty() ? "" : " and ") + std::to_string(conv->kernel[0]) + "x" + std::to_string(conv->kernel[1]);
  }
  return alike ? "" : "kernels " + kernels;
}

// Whether "auto" takes it where it can be had. Below some channels, and some tiles to fill a vector with, the
// transforms cost more than the products that they save (measured, an EPYC 9005 with AVX-512). T and B have no say: a
// step has the bits of a sequence of one, and a sample those it has in any batch.
inline bool winograd_pays(const ConvolutionShape& conv, int64_t channels) {
  const int64_t tile = conv.kernel[0] == 3 ? 4 : 2;
  return channels >= 8 && ((conv.out[0] + tile - 1) / tile) * ((conv.out[1] + tile - 1) / tile) >= 16;
}
inline bool winograd_pays(const ConvLstmShape& shape) { return winograd_pays(shape.recurrent, shape.channels); }
inline bool winograd_pays(const Conv2dShape& shape) {
  return winograd_pays(shape.conv, std::min(shape.conv.in_channels, shape.conv.out_channels));
}

}  // namespace fusecell
