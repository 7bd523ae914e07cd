#include "emulation/engine.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "emulation/block.h"
#include "emulation/language/cuda_runtime.h"

constinit thread_local uint3 threadIdx{}, blockIdx{};
constinit thread_local dim3 blockDim{}, gridDim{};

namespace fusecell::emulation {

// ------------------------------------------------------------------------------------------ the running thread
constinit thread_local Block* current_block = nullptr;
constinit thread_local Thread* current_thread = nullptr;

void enter(Block& block, Thread& thread, const Extent& block_index) {
  current_block = &block;
  current_thread = &thread;
  threadIdx = {thread.index.x, thread.index.y, thread.index.z};
  blockIdx = {block_index.x, block_index.y, block_index.z};
}

void enter_launch(const Kernel& kernel) {
  blockDim = {kernel.block.x, kernel.block.y, kernel.block.z};
  gridDim = {kernel.grid.x, kernel.grid.y, kernel.grid.z};
}

void leave() {
  current_block = nullptr;
  current_thread = nullptr;
}

bool inside_kernel() { return current_block != nullptr; }

namespace {
Block& block() {
  if (!current_block) throw std::logic_error("a function of kernels was called outside of one");
  return *current_block;
}
}  // namespace

void barrier(int line) { block().barrier(line); }
void shuffle(const void* value, void* result, size_t bytes, int lane_mask) {
  block().shuffle(value, result, bytes, lane_mask);
}
void load_matrices(const void* row, bool transposed, uint32_t (&part)[4]) {
  block().load_matrices(row, transposed, part);
}
void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4], float (*widen)(uint16_t)) {
  block().multiply_add(a, b, sum, widen);
}
void multiply_add_tf32(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4]) {
  block().multiply_add_tf32(a, b, sum);
}
void warpgroup_multiply_add(const Rows& a, const Rows& b, float* sum, int columns_over_8, float (*widen)(uint16_t)) {
  block().warpgroup_multiply_add({a, b, sum, columns_over_8, widen, 0});
}
void commit_products() {
  block();
  ++current_thread->committed_products;
}
void wait_for_products(int newest) { block().wait_for_products(newest); }
// To nearest, ties away from zero; what is infinite or NaN stays.
uint32_t round_to_tf32(uint32_t word) {
  return (word & 0x7F800000u) == 0x7F800000u ? word : (word + 0x1000u) & ~0x1FFFu;
}
bool has_tensor_cores() { return block().has_tensor_cores(); }
void* shared_array(const void* site, size_t bytes) { return block().shared_array(site, bytes); }
void* dynamic_shared() { return block().dynamic_shared(); }
void copy_async(void* shared, const void* global) { block().copy_async(shared, global); }
void store_global(void* to, const void* from, size_t bytes) { block().store_global(to, from, bytes); }
void copy_commit() {
  block();
  ++current_thread->committed;
}
void copy_wait(int newest) { block().copy_wait(newest); }
void copy_bulk(void* shared, const void* global, size_t bytes, uint64_t* begun) {
  block().copy_bulk(shared, global, bytes, begun);
}
void wait_for_bulk(const uint64_t* begun, bool odd) { block().wait_for_bulk(begun, odd); }

// ------------------------------------------------------------------------------------------ controls, statistics
namespace {

struct Record {
  std::mutex mutex;
  std::optional<Controls> controls;
  Statistics statistics = {};
  std::map<std::string, int64_t> kernels;
  std::string fault;
};

// Never destroyed: a launch may come late in the life of the process. Held over a fork, or the child might be born
// with the mutex of a thread that it does not have.
Record& record() {
  static Record& only = *[] {
    static Record* made = new Record;
    pthread_atfork([] { made->mutex.lock(); }, [] { made->mutex.unlock(); }, [] { made->mutex.unlock(); });
    return made;
  }();
  return only;
}

void set(Controls& controls, const std::string& key, const std::string& value) {
  const auto is = [&](const char* k, const char* v) { return key == k && value == v; };
  if (is("engine", "fibres")) {
    controls.engine = Engine::fibres;
  } else if (is("engine", "threads")) {
    controls.engine = Engine::threads;
  } else if (is("copies", "eager")) {
    controls.copies = Copies::eager;
  } else if (is("copies", "late")) {
    controls.copies = Copies::late;
  } else if (is("order", "forward")) {
    controls.order = Order::forward;
  } else if (is("order", "reversed")) {
    controls.order = Order::reversed;
  } else if (is("order", "random")) {
    controls.order = Order::random;
  } else if (is("tensor_cores", "on")) {
    controls.tensor_cores = true;
  } else if (is("tensor_cores", "off")) {
    controls.tensor_cores = false;
  } else if (key == "seed" && !value.empty() && value.size() < 20 &&
             value.find_first_not_of("0123456789") == std::string::npos) {
    controls.seed = std::stoull(value);
  } else {
    throw std::invalid_argument(
        "FUSECELL_EMULATION: expected engine=fibres|threads, copies=eager|late, order=forward|reversed|random, "
        "tensor_cores=on|off, seed=<number>, separated by commas, got '" +
        key + "=" + value + "'");
  }
}

}  // namespace

Controls parse_controls(const std::string& text) {
  Controls controls;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    const size_t equals = std::min(word.find('='), word.size());
    set(controls, word.substr(0, equals), word.substr(std::min(equals + 1, word.size())));
    begin = end + 1;
  }
  if (kUnderThreadSanitizer) controls.engine = Engine::threads;
  return controls;
}

void set_controls(const Controls& controls) {
  Record& all = record();
  const std::lock_guard lock(all.mutex);
  all.controls = controls;
  if (kUnderThreadSanitizer) all.controls->engine = Engine::threads;
}

Controls controls() {
  Record& all = record();
  const std::lock_guard lock(all.mutex);
  if (!all.controls) {
    const char* chosen = std::getenv("FUSECELL_EMULATION");
    all.controls = parse_controls(chosen ? chosen : "");
  }
  return *all.controls;
}

Statistics statistics() {
  Record& all = record();
  const std::lock_guard lock(all.mutex);
  return all.statistics;
}

std::map<std::string, int64_t> launched_kernels() {
  Record& all = record();
  const std::lock_guard lock(all.mutex);
  return all.kernels;
}

std::string last_fault() {
  Record& all = record();
  const std::lock_guard lock(all.mutex);
  return all.fault;
}

void reset_statistics() {
  Record& all = record();
  const std::lock_guard lock(all.mutex);
  all.statistics = {};
  all.kernels.clear();
  all.fault.clear();
}

// ------------------------------------------------------------------------------------------ launches
bool valid(const Kernel& kernel) {
  const Extent &grid = kernel.grid, &block = kernel.block;
  return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535 &&
         block.x > 0 && block.y > 0 && block.z > 0 && block.x <= kMostThreads && block.y <= kMostThreads &&
         block.z <= 64 && block.count() <= kMostThreads;
}

bool run(const Kernel& kernel) {
  const Controls chosen = controls();
  Statistics done = {};
  std::string fault;
  try {
    fault = (chosen.engine == Engine::fibres ? run_fibres : run_threads)(kernel, chosen, done);
  } catch (const std::bad_alloc&) {
    fault = "kernel " + std::string(kernel.name) + ": no memory for its threads' stacks";
  } catch (const std::system_error&) {
    fault = "kernel " + std::string(kernel.name) + ": no more threads to be had";
  }
  Record& all = record();
  const std::lock_guard lock(all.mutex);
  ++all.statistics.launches;
  ++all.kernels[kernel.name];
  all.statistics.blocks += done.blocks;
  all.statistics.barriers += done.barriers;
  all.statistics.shuffles += done.shuffles;
  all.statistics.matrix_loads += done.matrix_loads;
  all.statistics.matrix_products += done.matrix_products;
  all.statistics.async_copies += done.async_copies;
  all.statistics.bulk_copies += done.bulk_copies;
  all.statistics.warpgroup_products += done.warpgroup_products;
  all.statistics.most_threads = std::max(all.statistics.most_threads, done.most_threads);
  if (!fault.empty()) all.fault = fault;
  return fault.empty();
}

}  // namespace fusecell::emulation
