#include "emulation/block.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>
#include <numeric>
#include <type_traits>

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
  bulk.clear();
  products.clear();
  committed_products = 0;
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
    if (!current_thread->bulk.empty()) fail("a thread ended with a bulk copy under way");
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

void Block::fail_between(const Meeting& meeting, const Site& site) {
  if (site.line == 0) fail(std::string(site.name) + " while others wait for " + meeting.site.name);
  fail("__syncthreads at line " + std::to_string(site.line) + " while others wait at line " +
       std::to_string(meeting.site.line));
}

void Block::diverged() {
  const auto missing = [](const Meeting& meeting) {
    return std::string(meeting.site.name) + " not reached by " + std::to_string(meeting.members - meeting.arrived) +
           " of " + std::to_string(meeting.members) + " threads";
  };
  if (barrier_.arrived > 0) return note(missing(barrier_));
  for (size_t w = 0; w < warps_.size(); ++w) {
    const Meeting& meeting = warps_[w].meeting;
    if (meeting.arrived > 0) return note(missing(meeting) + " of warp " + std::to_string(w));
  }
}

// ------------------------------------------------------------------------------------------ meeting
bool Block::arrive(Meeting& meeting, const Site& site) {
  if (meeting.arrived == 0) meeting.site = site;
  if (meeting.site.name != site.name || meeting.site.line != site.line) return false;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.generation;
    ++(statistics.*site.count);
  }
  return true;
}

// ------------------------------------------------------------------------------------------ a warp's exchanges
// They move values; they order no other memory, and ThreadSanitizer is told so.
template <class T>
const T* Block::exchange(const T& value, const Site& site) {
  static_assert(sizeof(T[kWarp]) <= sizeof(Warp::values[0]) && std::is_trivially_copyable_v<T>);
  const unsigned number = current_thread->number, first = number / kWarp * kWarp, lane = number % kWarp;
  if (threads_ - first < kWarp) {
    fail(std::string(site.name) + " in a warp of " + std::to_string(threads_ - first) + " threads");
  }
  const Unseen unseen;
  Warp& warp = warps_[number / kWarp];
  std::byte* values = warp.values[warp.meeting.generation % 2];
  std::memcpy(values + lane * sizeof(T), &value, sizeof(T));
  meet(warp.meeting, site);
  return reinterpret_cast<const T*>(values);
}

void Block::shuffle(const void* value, void* result, size_t bytes, int lane_mask) {
  if (lane_mask < 0 || lane_mask >= static_cast<int>(kWarp)) {
    fail("shuffle_xor with lane mask " + std::to_string(lane_mask));
  }
  std::array<std::byte, 8> own = {};
  std::memcpy(own.data(), value, bytes);
  const auto* of_lane = exchange(own, {"shuffle_xor", &Statistics::shuffles});
  const Unseen unseen;
  std::memcpy(result, &of_lane[current_thread->number % kWarp ^ static_cast<unsigned>(lane_mask)], bytes);
}

// Lanes 8 m to 8 m + 7 give the rows of matrix m. Lane t gets the t % 4th word of row t / 4; transposed, of elements of
// 16 bits, rows 2 (t % 4) and the next of column t / 4.
void Block::load_matrices(const void* row, bool transposed, uint32_t (&part)[4]) {
  if (!aligned(row)) fail("load_matrices: the address is not aligned to 16 bytes");
  if (!inside_shared(row, 16)) fail("load_matrices: the 16 bytes to be read are not in a shared array");
  std::array<uint16_t, 8> own;
  std::memcpy(own.data(), row, sizeof own);
  const auto* row_of_lane = exchange(own, {"load_matrices", &Statistics::matrix_loads});
  const Unseen unseen;
  const unsigned lane = current_thread->number % kWarp, across = lane / 4, along = 2 * (lane % 4);
  for (unsigned m = 0; m < 4; ++m) {
    const auto* rows = row_of_lane + 8 * m;
    const auto low = transposed ? rows[along][across] : rows[across][along];
    const auto high = transposed ? rows[along + 1][across] : rows[across][along + 1];
    part[m] = low | uint32_t{high} << 16;
  }
}

// D = A B + C of 16 x kDepth, kDepth x 8 and 16 x 8: a lane has D's and C's (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1),
// with g = lane / 4 and t = lane % 4. The hardware adds in an order of its own; here it is k's.
template <unsigned kDepth, class Left, class Right>
void Block::add_products(float (&sum)[4], unsigned lane, const Left& left, const Right& right) {
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    for (unsigned k = 0; k < kDepth; ++k) sum[i] += left(row, k) * right(column, k);
  }
}

// Of a word the low half first, a lane has A: (g, 2t) (g, 2t+1), (g+8, the same), (g, 2t+8) (g, 2t+9), (g+8, the same);
// B: (2t, g) (2t+1, g), (2t+8, g) (2t+9, g).
void Block::multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4], float (*widen)(uint16_t)) {
  std::array<float, 12> own;  // A's 8 elements, B's 4
  for (unsigned i = 0; i < own.size(); ++i) {
    const uint32_t word = i < 8 ? a[i / 2] : b[i / 2 - 4];
    own[i] = widen(static_cast<uint16_t>(word >> (16 * (i % 2))));
  }
  const auto* of_lane = exchange(own, {"multiply_add", &Statistics::matrix_products});
  const Unseen unseen;
  add_products<16>(
      sum, current_thread->number % kWarp,
      [&](unsigned row, unsigned k) { return of_lane[4 * (row % 8) + k % 8 / 2][2 * (row / 8) + 4 * (k / 8) + k % 2]; },
      [&](unsigned column, unsigned k) { return of_lane[4 * column + k % 8 / 2][8 + 2 * (k / 8) + k % 2]; });
}

// A lane has A: (g, t), (g+8, t), (g, t+4), (g+8, t+4); B: (t, g), (t+4, g). Bits that TF32 has not are cut off.
void Block::multiply_add_tf32(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4]) {
  std::array<float, 6> own;
  for (unsigned i = 0; i < own.size(); ++i) own[i] = std::bit_cast<float>((i < 4 ? a[i] : b[i - 4]) & ~0x1FFFu);
  const auto* of_lane = exchange(own, {"multiply_add", &Statistics::matrix_products});
  const Unseen unseen;
  add_products<8>(
      sum, current_thread->number % kWarp,
      [&](unsigned row, unsigned k) { return of_lane[4 * (row % 8) + k % 4][row / 8 + 2 * (k / 4)]; },
      [&](unsigned column, unsigned k) { return of_lane[4 * column + k % 4][4 + k / 4]; });
}

// Each thread computes its own sums out of shared memory: lanes exchange nothing.
void Block::warpgroup_multiply_add(WarpgroupProduct product) {
  const unsigned first = current_thread->number / 128 * 128;
  if (threads_ - first < 128)
    fail("warpgroup_multiply_add in a warpgroup of " + std::to_string(threads_ - first) + " threads");
  check_rows(product.a, 64);
  check_rows(product.b, 8 * product.n);
  ++current_thread->warpgroup_products;
  if (controls_.copies == Copies::eager) return carry_out(product);
  product.group = current_thread->committed_products;
  current_thread->products.push_back(product);
}

void Block::check_rows(const Rows& rows, int count) {
  const bool columns = rows.panel_bytes > 0;
  const auto* begin = static_cast<const std::byte*>(rows.first) + (columns ? rows.from * 128 : 0);
  const int bytes = columns ? (count - 1) / 64 * rows.panel_bytes + 16 * 128 : count * 128;
  if (columns && rows.from % 8 != 0) fail("warpgroup_multiply_add: columns from a row on that is no multiple of 8");
  if (!columns && (rows.from < 0 || rows.from > 6)) fail("warpgroup_multiply_add: pieces beyond the end of a row");
  if (!inside_shared(begin, size_t(bytes))) fail("warpgroup_multiply_add: rows that are not in a shared array");
}

void Block::carry_out(const WarpgroupProduct& product) {
  using Row = std::array<float, 16>;
  const unsigned number = current_thread->number % 128, lane = number % kWarp;
  const auto row_of = [&](const Rows& rows, unsigned row) {
    Row values;
    for (unsigned k = 0; k < values.size(); ++k) {
      const unsigned from = static_cast<unsigned>(rows.from), panel = static_cast<unsigned>(rows.panel_bytes);
      const auto* first = static_cast<const std::byte*>(rows.first) + (panel ? row / 64 * panel : 0);
      const unsigned r = panel ? from + k : row, element = panel ? row % 64 : from * 8 + k;
      uint16_t bits;
      std::memcpy(&bits, first + r * 128 + (element / 8 ^ r % 8) * 16 + element % 8 * 2, sizeof bits);
      values[k] = product.widen(bits);
    }
    return values;
  };
  const unsigned first = number / kWarp * 16 + lane / 4;
  const Row left[2] = {row_of(product.a, first), row_of(product.a, first + 8)};
  for (unsigned column = 0; column < 2 * static_cast<unsigned>(product.n); ++column) {
    const Row right = row_of(product.b, column / 2 * 8 + 2 * (lane % 4) + column % 2);
    for (unsigned half = 0; half < 2; ++half) {
      float& sum = product.sum[column / 2 * 4 + half * 2 + column % 2];
      for (unsigned k = 0; k < right.size(); ++k) sum += left[half][k] * right[k];
    }
  }
}

void Block::wait_for_products(int newest) {
  Thread& thread = *current_thread;
  auto product = thread.products.begin();
  for (; product != thread.products.end(); ++product) {
    if (product->group + static_cast<uint64_t>(newest) >= thread.committed_products) break;
    carry_out(*product);
  }
  thread.products.erase(thread.products.begin(), product);
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
  if (global && !aligned(global)) fail("copy_async_16: the global address is not aligned to 16 bytes");
  if (!inside_shared(shared, 16)) fail("copy_async_16: the 16 bytes to be written are not in a shared array");
  Thread& thread = *current_thread;
  ++thread.async_copies;
  if (controls_.copies == Copies::eager) {
    arrive_copy(shared, global);
  } else {
    thread.copies.push_back({shared, global, thread.committed});
  }
}

void Block::arrive_copy(void* shared, const void* global) {
  if (global) {
    std::memcpy(shared, global, 16);
  } else {
    std::memset(shared, 0, 16);
  }
}

void Block::copy_bulk(void* shared, const void* global, size_t bytes, uint64_t* begun) {
  if (bytes % 16 != 0) fail("copy_bulk: the bytes are no multiple of 16");
  if (!aligned(shared)) fail("copy_bulk: the shared address is not aligned to 16 bytes");
  if (!aligned(global)) fail("copy_bulk: the global address is not aligned to 16 bytes");
  if (!inside_shared(shared, bytes)) fail("copy_bulk: the bytes to be written are not in a shared array");
  if (!inside_shared(begun, sizeof *begun)) fail("copy_bulk: the arrivals are not in a shared array");
  if (*begun == ~uint64_t{0}) fail("copy_bulk: the arrivals were not begun");
  Thread& thread = *current_thread;
  for (const BulkCopy& copy : thread.bulk) {
    if (copy.place == begun) fail("copy_bulk: nobody has waited for the copy before");
  }
  ++thread.bulk_copies;
  thread.bulk.push_back({shared, global, bytes, begun, (*begun)++ % 2 == 1});
  if (controls_.copies == Copies::eager) std::memcpy(shared, global, bytes);
}

// Others than the thread that began the copy see it after the next barrier only: on a GPU they wait, too.
void Block::wait_for_bulk(const uint64_t* place, bool odd) {
  Thread& thread = *current_thread;
  if (thread.bulk_copies == 0) return;
  const auto copy =
      std::find_if(thread.bulk.begin(), thread.bulk.end(), [&](const BulkCopy& c) { return c.place == place; });
  if (copy == thread.bulk.end()) fail("wait_for_bulk: no copy is under way");
  if (copy->odd != odd) fail("wait_for_bulk: the copy under way is of another turn");
  if (controls_.copies == Copies::late) std::memcpy(copy->shared, copy->global, copy->bytes);
  thread.bulk.erase(copy);
}

void Block::store_global(void* to, const void* from, size_t bytes) {
  if (!aligned(to, bytes)) fail("store_global: the address is not aligned to the bytes that are stored");
  std::memcpy(to, from, bytes);
}

void Block::copy_wait(int newest) {
  Thread& thread = *current_thread;
  auto copy = thread.copies.begin();
  for (; copy != thread.copies.end() && copy->group + static_cast<uint64_t>(newest) < thread.committed; ++copy) {
    arrive_copy(copy->shared, copy->global);
  }
  thread.copies.erase(thread.copies.begin(), copy);
}

}  // namespace fusecell::emulation
