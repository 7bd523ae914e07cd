// Norms, clipping and optimisers over lists of arrays. Nothing here waits: what a norm decides is decided on the GPU.

#include "cuda/tensor_list.cuh"

#include <vector>

#include "base/arena.h"
#include "cuda/launch.h"
#include "problem/backend.h"

namespace fusecell::backend {
namespace {

int64_t blocks_of(const Tensor& tensor) { return cuda::ceil_div(tensor.size(), cuda::kListChunk); }

int64_t blocks_of(const std::vector<Tensor>& tensors) {
  int64_t blocks = 0;
  for (const Tensor& tensor : tensors) blocks += blocks_of(tensor);
  return blocks;
}

cuda::ListEntry<1> entry_of(const Tensor& tensor) {
  return {.data = {tensor.data},
          .size = tensor.size(),
          .first_block = 0,
          .stored = cuda::stored_as(tensor.dtype),
          .aligned = cuda::all_aligned(0, tensor.data)};
}

void* slot_at(const std::vector<Tensor>& slots, size_t i) { return slots.empty() ? nullptr : slots[i].data; }

cuda::ListEntry<4> entry_of(const Update& update, size_t i) {
  const Tensor& value = update.values[i];
  void *const gradient = update.gradients[i].data, *const first = slot_at(update.first, i),
              *const second = slot_at(update.second, i);
  return {.data = {value.data, gradient, first, second},
          .size = value.size(),
          .first_block = 0,
          .stored = cuda::stored_as(value.dtype),
          .aligned = cuda::all_aligned(0, value.data, gradient, first, second)};
}

// Fills args.list with entry_of(0), entry_of(1), ... of `tensors` and calls launch(grid) whenever it is full.
template <class Args, class EntryOf, class LaunchList>
void for_lists(Args& args, const std::vector<Tensor>& tensors, EntryOf&& entry_at, LaunchList&& launch_list) {
  auto& list = args.list;
  int64_t blocks = 0;
  const auto flush = [&] {
    if (list.count > 0) launch_list(cuda::grid_for(blocks * cuda::kThreads));
    list.count = 0;
    blocks = 0;
  };
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].size() == 0) continue;
    list.entry[list.count] = entry_at(i);
    list.entry[list.count].first_block = static_cast<uint32_t>(blocks);
    blocks += blocks_of(tensors[i]);
    if (++list.count == list.kCapacity) flush();
  }
  flush();
}

void rescale(const cuda::Context& context, const std::vector<Tensor>& tensors, cuda::RescaleArgs args) {
  for_lists(
      args, tensors, [&](size_t i) { return entry_of(tensors[i]); },
      [&](dim3 grid) { context.run("rescale", cuda::rescale, grid, args); });
}

}  // namespace

static_assert(static_cast<int>(Norm::one) == static_cast<int>(cuda::NormKind::one) &&
              static_cast<int>(Norm::two) == static_cast<int>(cuda::NormKind::two) &&
              static_cast<int>(Norm::infinity) == static_cast<int>(cuda::NormKind::infinity) &&
              static_cast<int>(Norm::largest_number) == static_cast<int>(cuda::NormKind::largest_number));

int64_t norm_scratch(const std::vector<Tensor>& tensors) {
  Arena arena;
  arena.take<cuda::NormPart>(blocks_of(tensors));
  return arena.bytes();
}

void norm(const std::vector<Tensor>& tensors, Norm kind, const Tensor& out, const Launch& launch) {
  const cuda::Context context("norm", launch);
  Arena arena(launch.scratch);
  const int64_t blocks = blocks_of(tensors);
  cuda::NormPart* const parts = arena.take<cuda::NormPart>(blocks);
  cuda::NormPartialsArgs args = {.list = {}, .parts = parts, .kind = static_cast<cuda::NormKind>(kind)};
  for_lists(
      args, tensors, [&](size_t i) { return entry_of(tensors[i]); },
      [&](dim3 grid) {
        context.run("norm_partials", cuda::norm_partials, grid, args);
        args.parts += grid.x;
      });
  const cuda::NormFinishArgs finish = {.parts = parts, .count = blocks, .out = out.as<double>(), .kind = args.kind};
  context.run("norm_finish", cuda::norm_finish, dim3(1), finish);
}

void clip_to_norm(const std::vector<Tensor>& tensors, const Tensor& norm, double max_norm, const Launch& launch) {
  const cuda::Context context("clip_to_norm", launch);
  rescale(context, tensors,
          {.list = {},
           .norm = norm.as<const double>(),
           .largest = nullptr,
           .limit = max_norm,
           .op = cuda::Rescale::clip_to_norm});
}

void clamp(const std::vector<Tensor>& tensors, double limit, const Launch& launch) {
  const cuda::Context context("clamp", launch);
  rescale(context, tensors,
          {.list = {}, .norm = nullptr, .largest = nullptr, .limit = limit, .op = cuda::Rescale::clamp});
}

void divide_if_above(const std::vector<Tensor>& tensors, const Tensor& norm, const Tensor& largest, double threshold,
                     const Launch& launch) {
  const cuda::Context context("divide_if_above", launch);
  rescale(context, tensors,
          {.list = {},
           .norm = norm.as<const double>(),
           .largest = largest.as<const double>(),
           .limit = threshold,
           .op = cuda::Rescale::divide_if_above});
}

void update(const Update& args, const Launch& launch) {
  const cuda::Context context("update", launch);
  cuda::UpdateArgs list = {.list = {},
                           .parameters = args.parameters,
                           .norm = args.norm.present ? args.norm.as<const double>() : nullptr,
                           .step = args.step.present ? args.step.as<const int64_t>() : nullptr,
                           .rule = args.rule};
  for_lists(
      list, args.values, [&](size_t i) { return entry_of(args, i); },
      [&](dim3 grid) { context.run("update", cuda::update, grid, list); });
}

}  // namespace fusecell::backend
