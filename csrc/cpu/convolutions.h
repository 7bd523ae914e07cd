#pragma once
// What a step asks of its convolutions, however they are computed: z = sum over sources of weight * source, the sources
// being the input and, in a ConvLSTM, the state; and the adjoint. conv_lstm_*.cpp and conv2d.cpp know no more than
// this.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/arena.h"
#include "cpu/packing.h"
#include "cpu/pixels.h"
#include "problem/convolution.h"
#include "problem/frames.h"

namespace fusecell::cpu {

// Rows m0 to m1 - 1 of z at some pixels of sample b: whole image rows, or a piece of one row where rows are cut. Either
// way its pixels are neighbours in memory.
struct Block {
  int64_t b, m0, m1, row0, row1, column0, column1;

  int64_t columns() const { return column1 - column0; }
  int64_t pixels() const { return (row1 - row0) * columns(); }
};

struct ConvolutionSet {
  std::vector<ConvolutionShape> sources;  // one or two, alike in out_channels and out
  int64_t batch;
  // Rows of z are interleaved, row = channel * interleave + gate, so that a block of rows holds whole channels; 1: not.
  int64_t interleave;
  Algorithm algorithm;
};

// What will be asked for; nothing is kept for the rest.
struct Wanted {
  bool outputs = false;
  bool gradient = false;  // a place for z's gradient, whoever reads it
  bool weight_gradients[2] = {false, false}, input_gradients[2] = {false, false};

  bool any_weight_gradient() const { return weight_gradients[0] || weight_gradients[1]; }
};

// Where a source's gradient goes. accumulate: dx += mask * (...), otherwise dx = (...). null data: not this time.
template <class S>
struct InputGradientTarget {
  Frames<S> dx;
  const S* mask = nullptr;
  bool accumulate = false;
};

template <class S>
class Convolutions {
 public:
  // Rows of z at a block, `pitch` apart.
  using Consume = std::function<void(const Block&, const S* z, int64_t pitch)>;
  using ImageOf = std::function<Image<const S>(int64_t b)>;
  using Active = std::vector<uint8_t>;  // [batch]; what is inactive is neither read nor written

  Convolutions() = default;
  Convolutions(const Convolutions&) = delete;
  Convolutions& operator=(const Convolutions&) = delete;
  virtual ~Convolutions() = default;

  // weights: [out, in, kh, kw] of each source. dweights: [out, in, kh, kw], begun with zero; null where not wanted.
  virtual void prepare(const S* const (&weights)[2], S* const (&dweights)[2]) = 0;
  // Takes in a source; mask, [batch, in, H, W] or null, is multiplied in.
  virtual void read(int source, const Active& active, const ImageOf& image_of, const S* mask) = 0;
  virtual void outputs(const Active& active, const Consume& consume) = 0;

  // z's gradient [batch, out, H, W] is put here, rows not interleaved; beside the images it is zero already.
  virtual const Packing& gradient_packing() const = 0;
  virtual S* gradient() const = 0;
  // From what was read and the gradient.
  virtual void add_weight_gradients(const Active& active) = 0;
  virtual void input_gradients(const Active& active, const InputGradientTarget<S> (&targets)[2]) = 0;
  // Once, after the last step.
  virtual void finish_weight_gradients() = 0;
};

// Puts rows [block.m0, block.m1) of z into the pixels of a block; see InputGradientTarget. From a row of z to the next
// pixel of the image lie `step` pixels, its first is (row, column).
template <class S>
void put_rows(const Block& block, const S* z, int64_t pitch, const ConvolutionShape& conv, int64_t row, int64_t column,
              const InputGradientTarget<S>& target) {
  for (int64_t i = block.m0; i < block.m1; ++i) {
    for (int64_t r = block.row0; r < block.row1; ++r) {
      const int64_t p = (row + (r - block.row0) * conv.stride[0]) * conv.in[1] + column;
      const Pixels<S> first = target.dx.image(block.b).at(i, p), to = {first.data, conv.stride[1] * first.stride};
      const S* mask = target.mask ? target.mask + (block.b * conv.in_channels + i) * conv.in_pixels() + p : nullptr;
      const S* from = z + (i - block.m0) * pitch + (r - block.row0) * block.columns();
      if (!target.accumulate) {
        copy_pixels({from}, block.columns(), to);
      } else if (!mask) {
        add_pixels({from}, block.columns(), to);
      } else {
        for (int64_t c = 0; c < block.columns(); ++c) to.data[c * to.stride] += mask[c * conv.stride[1]] * from[c];
      }
    }
  }
}

}  // namespace fusecell::cpu
