// Compiled once per instruction set (CMakeLists.txt), each time with another FUSECELL_ISA. It uses nothing of the
// standard library: a template of it, compiled here with wide instructions, could be the copy that the linker keeps for
// all.

#include "cpu/kernels.h"

#include "cpu/bfloat16_kernels.h"
#include "cpu/cell_run.h"
#include "cpu/direct_kernels.h"
#include "cpu/elementwise.h"
#include "cpu/matrix_product.h"
#include "cpu/winograd_kernels.h"

#define FUSECELL_JOIN_(a, b) a##b
#define FUSECELL_JOIN(a, b) FUSECELL_JOIN_(a, b)
#define FUSECELL_TEXT_(a) #a
#define FUSECELL_TEXT(a) FUSECELL_TEXT_(a)

namespace fusecell::cpu {
namespace {

template <class S>
constexpr Kernels<S> make_kernels() {
  return {.lanes = kLanes<S>,
          .mr = Tile<S>::kRows,
          .dm = Tile<S>::kGradientRows,
          .dk = Tile<S>::kGradientTaps,
          .correlate = correlate<S>,
          .weight_gradient = weight_gradient<S>,
          .winograd = {winograd_kernels<S, 4>(), winograd_kernels<S, 2>()},
          .winograd_product = winograd_product<S>,
          .winograd_gradient = winograd_gradient<S>,
          .matrix_product = matrix_product<S>,
          .cell_forward = cell_forward<S>,
          .cell_backward = cell_backward<S>,
          .activation_forward = activation_forward<S>,
          .activation_backward = activation_backward<S>,
          .softmax_forward = softmax_forward<S>,
          .softmax_backward = softmax_backward<S>,
          .sum = sum_plain<S>,
          .sum_abs = sum_abs<S>,
          .sum_squares = sum_squares<S>,
          .max_abs = max_abs<S>,
          .largest_number = largest_number<S>,
          .scale = scale<S>,
          .clamp = clamp_all<S>,
          .update = update<S>};
}

}  // namespace

extern const KernelTable FUSECELL_JOIN(kernels_, FUSECELL_ISA);
constinit const KernelTable FUSECELL_JOIN(kernels_, FUSECELL_ISA) = {FUSECELL_TEXT(FUSECELL_ISA), make_kernels<float>(),
                                                                     make_kernels<double>(), kernels_on<PlainTiles>(),
#if defined(__x86_64__)
                                                                     kernels_on<AmxTiles>()
#else
    {}
#endif
};

}  // namespace fusecell::cpu
