#pragma once
// Images and weights as the correlation reads them (kernels.h): zero-padded planes split by the stride, tables of
// offsets, and weights in panels.

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/size.h"
#include "cpu/thread_pool.h"
#include "cpu/work.h"
#include "problem/convolution.h"
#include "problem/frames.h"

namespace fusecell::cpu {

// Zeros behind each plane: a tile's last vector may reach over the end, by less than its lanes, of which there are 16
// at most.
constexpr int64_t kPlaneSlack = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Rows (or columns) of the padded input are split by the stride into residues, so that neighbouring outputs read
// neighbouring inputs. Along one axis, tap k of output o reads residue (k * dilation) % stride at o + (k * dilation) /
// stride.
inline int64_t tap_residue(const ConvolutionShape& conv, int axis, int64_t k) {
  return k * conv.dilation[axis] % conv.stride[axis];
}
inline int64_t tap_shift(const ConvolutionShape& conv, int axis, int64_t k) {
  return k * conv.dilation[axis] / conv.stride[axis];
}
inline int64_t largest_shift(const ConvolutionShape& conv, int axis) {
  return tap_shift(conv, axis, conv.kernel[axis] - 1);
}
// In units of the stride, the extent of the padded input that holds any of the input.
inline int64_t strided_extent(const ConvolutionShape& conv, int axis) {
  return (conv.pad_low[axis] + conv.in[axis] - 1) / conv.stride[axis] + 1;
}

inline std::vector<int64_t> sorted_set(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}
// The residues that some tap reads, at most one per tap however large the stride.
inline std::vector<int64_t> residues_of_taps(const ConvolutionShape& conv, int axis) {
  std::vector<int64_t> residues;
  for (int64_t k = 0; k < conv.kernel[axis]; ++k) residues.push_back(tap_residue(conv, axis, k));
  return sorted_set(residues);
}
// The residues that some input pixel has.
inline std::vector<int64_t> residues_of_input(const ConvolutionShape& conv, int axis) {
  std::vector<int64_t> residues;
  for (int64_t i = 0; i < std::min(conv.in[axis], conv.stride[axis]); ++i) {
    residues.push_back((conv.pad_low[axis] + i) % conv.stride[axis]);
  }
  return sorted_set(residues);
}

// ------------------------------------------------------------------------------------------------------- packed images
struct Packing {
  int64_t channels, extent[2], stride[2], pad_low[2];
  std::vector<int64_t> residues[2];
  int64_t rows, pitch;  // of the plane of one residue of the rows and one of the columns

  int64_t planes() const { return static_cast<int64_t>(residues[0].size() * residues[1].size()); }
  int64_t plane() const { return checked_product("scratch", {rows, pitch}) + kPlaneSlack; }
  int64_t image() const { return checked_product("scratch", {channels, planes(), plane()}); }
  int64_t plane_of(int64_t row_residue, int64_t column_residue) const {
    const auto index = [](const std::vector<int64_t>& set, int64_t residue) {
      return std::lower_bound(set.begin(), set.end(), residue) - set.begin();
    };
    return index(residues[0], row_residue) * static_cast<int64_t>(residues[1].size()) +
           index(residues[1], column_residue);
  }
};

// The first v >= low with v % stride == residue.
inline int64_t first_of_residue(int64_t low, int64_t stride, int64_t residue) {
  return low + ((residue - low) % stride + stride) % stride;
}

// A row of one residue of the columns: every step_v-th pixel.
template <class S>
void pack_row(const Pixels<const S>& from, const S* mask, int64_t step_v, int64_t count, S* line) {
  const int64_t step = step_v * from.stride;
  if (mask) {
    for (int64_t i = 0; i < count; ++i) line[i] = from.data[i * step] * mask[i * step_v];
  } else if (step == 1) {
    std::copy_n(from.data, count, line);
  } else {
    for (int64_t i = 0; i < count; ++i) line[i] = from.data[i * step];
  }
}

// Channels first to last - 1 of one image; mask, if there is one, is multiplied in.
template <class S>
void pack_channels(const Packing& packing, int64_t first, int64_t last, const Image<const S>& image, const S* mask,
                   S* to) {
  const int64_t plane = packing.plane(), packed = packing.planes() * plane;
  const int64_t pixels = packing.extent[0] * packing.extent[1];
  std::memset(to + first * packed, 0, static_cast<size_t>((last - first) * packed) * sizeof(S));
  const int64_t low_u = packing.pad_low[0], end_u = low_u + packing.extent[0], step_u = packing.stride[0];
  const int64_t low_v = packing.pad_low[1], end_v = low_v + packing.extent[1], step_v = packing.stride[1];
  for (int64_t row_residue : packing.residues[0]) {
    for (int64_t column_residue : packing.residues[1]) {
      const int64_t origin = packing.plane_of(row_residue, column_residue) * plane;
      const int64_t first_v = first_of_residue(low_v, step_v, column_residue);
      const int64_t count = ceil_div(end_v - first_v, step_v);
      for (int64_t u = first_of_residue(low_u, step_u, row_residue); u < end_u; u += step_u) {
        const int64_t p = (u - low_u) * packing.extent[1] + first_v - low_v;
        S* line = to + origin + u / step_u * packing.pitch + first_v / step_v;
        for (int64_t channel = first; channel < last; ++channel) {
          pack_row(image.at(channel, p), mask ? mask + channel * pixels + p : nullptr, step_v, count,
                   line + channel * packed);
        }
      }
    }
  }
}

// Pixels p to p + n of one channel into its plane, of an image that is not split by a stride.
template <class S>
void put_pixels(const Packing& packing, const S* from, int64_t p, int64_t n, S* plane) {
  const int64_t columns = packing.extent[1];
  S* origin = plane + packing.pad_low[0] * packing.pitch + packing.pad_low[1];
  for (int64_t done = 0; done < n;) {
    const int64_t row = (p + done) / columns, column = (p + done) % columns, run = std::min(columns - column, n - done);
    std::copy_n(from + done, run, origin + row * packing.pitch + column);
    done += run;
  }
}

// Packs image b from `image_of(b)` for every active b; `mask` covers the whole batch. Where pixels are not neighbours,
// the channels of a cache line are packed together.
template <class S, class ImageOf>
void pack(const Packing& packing, const std::vector<uint8_t>& active, ImageOf&& image_of, const S* mask, int workers,
          S* to) {
  constexpr int64_t kOfCacheLine = 64 / static_cast<int64_t>(sizeof(S));
  const int64_t C = packing.channels, mask_image = C * packing.extent[0] * packing.extent[1];
  const auto images = static_cast<int64_t>(active.size());
  parallel_for(images * C, workers, work::copies(images * packing.image()), [&](int64_t task, int) {
    const int64_t b = task / C;
    if (!active[static_cast<size_t>(b)]) return;
    const Image<const S> image = image_of(b);
    const int64_t together = image.pixel == 1 ? 1 : kOfCacheLine, first = task % C * together;
    if (first >= C) return;
    pack_channels(packing, first, std::min(first + together, C), image, mask ? mask + b * mask_image : nullptr,
                  to + b * packing.image());
  });
}

// The plane must hold what outputs read and all of the input, whose gradient walks it, too.
inline int64_t input_extent(const ConvolutionShape& conv, int axis) {
  return std::max(conv.out[axis] + largest_shift(conv, axis), strided_extent(conv, axis));
}

inline Packing input_packing(const ConvolutionShape& conv, int64_t pitch) {
  return {conv.in_channels,
          {conv.in[0], conv.in[1]},
          {conv.stride[0], conv.stride[1]},
          {conv.pad_low[0], conv.pad_low[1]},
          {residues_of_taps(conv, 0), residues_of_taps(conv, 1)},
          input_extent(conv, 0),
          pitch};
}

// The output's gradient, packed so that every convolution of `convs` can walk it backwards.
inline Packing gradient_packing(const std::vector<ConvolutionShape>& convs, int64_t pitch) {
  const ConvolutionShape& first = convs.front();
  Packing packing{first.out_channels, {first.out[0], first.out[1]}, {1, 1}, {0, 0}, {{0}, {0}}, 0, pitch};
  int64_t rows = first.out[0];
  for (const ConvolutionShape& conv : convs) {
    for (int axis = 0; axis < 2; ++axis) {
      packing.pad_low[axis] = std::max(packing.pad_low[axis], largest_shift(conv, axis));
    }
    rows = std::max(rows, strided_extent(conv, 0));
  }
  packing.rows = packing.pad_low[0] + rows;
  return packing;
}

// One pitch for everything that is read at the same q.
inline int64_t common_pitch(const std::vector<ConvolutionShape>& convs) {
  int64_t pitch = 0, left = 0, columns = 0;
  for (const ConvolutionShape& conv : convs) {
    pitch = std::max(pitch, input_extent(conv, 1));
    left = std::max(left, largest_shift(conv, 1));
    columns = std::max({columns, conv.out[1], strided_extent(conv, 1)});
  }
  return std::max(pitch, left + columns);
}

// ------------------------------------------------------------------------------------------- offsets and weights
inline void fill_input_offsets(const ConvolutionShape& conv, const Packing& packing, int64_t* offset) {
  const int64_t plane = packing.plane();
  for (int64_t i = 0; i < conv.in_channels; ++i) {
    for (int64_t kh = 0; kh < conv.kernel[0]; ++kh) {
      for (int64_t kw = 0; kw < conv.kernel[1]; ++kw) {
        const int64_t in_channel = packing.plane_of(tap_residue(conv, 0, kh), tap_residue(conv, 1, kw));
        *offset++ = (i * packing.planes() + in_channel) * plane + tap_shift(conv, 0, kh) * packing.pitch +
                    tap_shift(conv, 1, kw);
      }
    }
  }
}

// Weights in the order in which the register tile reads them: [panel of mr rows][k][row]; rows past the end are zero.
// Row m begins at `row_of(m)`, its k-th weight lies `at_k(k)` behind. Of the panel's k_total weights these start at
// k_first.
template <class S, class RowOf, class AtK>
void pack_weights(int64_t rows, int64_t count, int64_t mr, int64_t k_first, int64_t k_total, int workers,
                  RowOf&& row_of, AtK&& at_k, S* to) {
  parallel_for(ceil_div(rows, mr), workers, work::gathers(rows * count), [&](int64_t panel, int) {
    for (int64_t m = 0; m < mr; ++m) {
      S* line = to + (panel * k_total + k_first) * mr + m;
      const bool inside = panel * mr + m < rows;
      const S* row = inside ? row_of(panel * mr + m) : nullptr;
      for (int64_t k = 0; k < count; ++k) line[k * mr] = inside ? row[at_k(k)] : S(0);
    }
  });
}

}  // namespace fusecell::cpu
