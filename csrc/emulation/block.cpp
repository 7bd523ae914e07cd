#include "emulation/block.h"

#include <cstring>
#include <exception>
#include <numeric>

namespace fusecell::emulation {
namespace {

std::string text(const Extent& index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

bool aligned(const void* address, size_t bytes = 16) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

}  // namespace

// Two rounds of splitmix64's finaliser (Steele, Lea and Flood 2014).
uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t z = a;
  for (const uint64_t more : {b, uint64_t{0}}) {
    z += more + 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    z ^= z >> 31;
  }
  return z;
}

Walk::Walk(Order order, uint64_t n, uint64_t seed) : count(n), position(0), stride(1) {
  if (order == Order::reversed) {
    position = stride = n - 1;
  } else if (order == Order::random) {
    position = mix(seed, 1) % n;
    stride = mix(seed, 2) % n + 1;
    while (std::gcd(stride, n) != 1) stride = stride % n + 1;
  }
}

Extent place(uint64_t number, const Extent& extent) {
  const uint64_t row = number / extent.x;
  return {static_cast<unsigned>(number % extent.x), static_cast<unsigned>(row % extent.y),
          static_cast<unsigned>(row / extent.y)};
}

void Thread::begin(unsigned number_in_block, const Extent& block) {
  number = number_in_block;
  index = place(number, block);
  copies.clear();
  committed = 0;
}

// ------------------------------------------------------------------------------------------ a launch, a block
void Block::begin_launch(const Kernel& kernel, const Controls& controls) {
  kernel_ = &kernel;
  controls_ = controls;
  threads_ = static_cast<unsigned>(kernel.block.count());
  statistics = {};
  statistics.most_threads = threads_;
  fault.clear();
  warps_.resize((threads_ + kWarp - 1) / kWarp);
}

void Block::begin_block(uint64_t number) {
  index_ = place(number, kernel_->grid);
  ++statistics.blocks;
  barrier_ = {.members = threads_};
  for (Warp& warp : warps_) warp.meeting = {.members = kWarp, .orders_memory = false};
  for (Array& array : arrays_) std::memset(array.memory.get(), 0xff, array.bytes);
}

void Block::call_kernel() {
  try {
    kernel_->call(kernel_->arguments);
  } catch (const Abandoned&) {  // noted already
  } catch (const std::exception& error) {
    const Unseen unseen;
    const auto held = lock();
    note("thread " + text(current_thread->index) + ": an exception: " + error.what());
  } catch (...) {
    const Unseen unseen;
    const auto held = lock();
    note("thread " + text(current_thread->index) + ": an exception");
  }
}

// ------------------------------------------------------------------------------------------ faults
void Block::note(const std::string& what) {
  if (fault.empty()) fault = "kernel " + std::string(kernel_->name) + ", block " + text(index_) + ": " + what;
}

void Block::fail(const std::string& what) {
  {
    const Unseen unseen;
    const auto held = lock();
    note("thread " + text(current_thread->index) + ": " + what);
  }
  give_up();
  __builtin_trap();
}

void Block::fail_between(const Meeting& meeting, int line) {
  fail("__syncthreads at line " + std::to_string(line) + " while others wait at line " + std::to_string(meeting.line));
}

void Block::diverged() {
  const auto missing = [](const Meeting& meeting) {
    return " not reached by " + std::to_string(meeting.members - meeting.arrived) + " of " +
           std::to_string(meeting.members) + " threads";
  };
  if (barrier_.arrived > 0) return note("__syncthreads" + missing(barrier_));
  for (size_t w = 0; w < warps_.size(); ++w) {
    const Meeting& meeting = warps_[w].meeting;
    if (meeting.arrived > 0) return note("shuffle_xor" + missing(meeting) + " of warp " + std::to_string(w));
  }
}

// ------------------------------------------------------------------------------------------ meeting
bool Block::arrive(Meeting& meeting, int line) {
  if (meeting.arrived == 0) meeting.line = line;
  if (meeting.line != line) return false;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.generation;
    ++(meeting.orders_memory ? statistics.barriers : statistics.shuffles);
  }
  return true;
}

void Block::shuffle(const void* value, void* result, size_t bytes, int lane_mask) {
  const unsigned number = current_thread->number, first = number / kWarp * kWarp, lane = number % kWarp;
  if (threads_ - first < kWarp) {
    fail("shuffle_xor in a warp of " + std::to_string(threads_ - first) + " threads");
  }
  if (lane_mask < 0 || lane_mask >= static_cast<int>(kWarp)) {
    fail("shuffle_xor with lane mask " + std::to_string(lane_mask));
  }
  const Unseen unseen;  // a shuffle moves a value; it orders no other memory
  Warp& warp = warps_[number / kWarp];
  auto& values = warp.values[warp.meeting.generation % 2];
  std::memcpy(values[lane], value, bytes);
  meet(warp.meeting, 0);
  std::memcpy(result, values[lane ^ static_cast<unsigned>(lane_mask)], bytes);
}

// ------------------------------------------------------------------------------------------ memory
void* Block::shared_array(const void* site, size_t bytes) {
  const Unseen unseen;  // whoever comes first makes it, which must not order what the threads do with it
  const auto held = lock();
  for (const Array& array : arrays_) {
    if (array.site == site) return array.memory.get();
  }
  arrays_.push_back({site, bytes, std::make_unique_for_overwrite<std::byte[]>(bytes)});
  return std::memset(arrays_.back().memory.get(), 0xff, bytes);
}

bool Block::inside_shared(const void* begin, size_t bytes) {
  const Unseen unseen;
  const auto held = lock();
  const auto address = reinterpret_cast<uintptr_t>(begin);
  for (const Array& array : arrays_) {
    const auto start = reinterpret_cast<uintptr_t>(array.memory.get());
    if (address >= start && address + bytes <= start + array.bytes) return true;
  }
  return false;
}

void Block::copy_async(void* shared, const void* global) {
  if (!aligned(shared)) fail("copy_async_16: the shared address is not aligned to 16 bytes");
  if (!aligned(global)) fail("copy_async_16: the global address is not aligned to 16 bytes");
  if (!inside_shared(shared, 16)) fail("copy_async_16: the 16 bytes to be written are not in a shared array");
  Thread& thread = *current_thread;
  ++thread.async_copies;
  if (controls_.copies == Copies::eager) {
    std::memcpy(shared, global, 16);
  } else {
    thread.copies.push_back({shared, global, thread.committed});
  }
}

void Block::store_global(void* to, const void* from, size_t bytes) {
  if (!aligned(to, bytes)) fail("store_global: the address is not aligned to the bytes that are stored");
  std::memcpy(to, from, bytes);
}

void Block::copy_wait(int newest) {
  Thread& thread = *current_thread;
  auto copy = thread.copies.begin();
  for (; copy != thread.copies.end() && copy->group + static_cast<uint64_t>(newest) < thread.committed; ++copy) {
    std::memcpy(copy->shared, copy->global, 16);
  }
  thread.copies.erase(thread.copies.begin(), copy);
}

}  // namespace fusecell::emulation
