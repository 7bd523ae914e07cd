#pragma once
// What both engines share: one block at work, its shared arrays, the places where its threads meet, their copies.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulation/controls.h"
#include "emulation/engine.h"
#include "emulation/sanitizers.h"

namespace fusecell::emulation {

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;

// An order of 0..count-1 that needs no list: steps of a fixed stride, modulo count. A grid has up to 2^31 blocks.
struct Walk {
  uint64_t count, position, stride;

  Walk(Order order, uint64_t count, uint64_t seed);
  void advance() {
    position += stride;
    if (position >= count) position -= count;
  }
};
uint64_t mix(uint64_t a, uint64_t b);  // a random-looking number for each pair

Extent place(uint64_t number, const Extent& extent);  // x runs fastest

struct Copy {
  void* shared;
  const void* global;  // null: zeros
  uint64_t group;
};

struct BulkCopy {
  void* shared;
  const void* global;
  size_t bytes;
  const uint64_t* place;  // whose copies they are
  bool odd;               // the second, fourth and so on of that place
};

// 64 x 8 n, with 16 elements of 16 bits of each row, or column, of both.
struct WarpgroupProduct {
  Rows a, b;
  float* sum;  // [n][4] of this thread
  int n;
  float (*widen)(uint16_t);
  uint64_t group;
};

struct Thread {
  Extent index;
  unsigned number;
  std::vector<Copy> copies = {};                // late ones that no wait has covered
  uint64_t committed = 0;                       // groups
  std::vector<BulkCopy> bulk = {};              // that nobody has waited for
  int64_t async_copies = 0;                     // of the launch
  int64_t bulk_copies = 0;                      // the same
  int64_t warpgroup_products = 0;               // the same
  std::vector<WarpgroupProduct> products = {};  // as copies
  uint64_t committed_products = 0;

  void begin(unsigned number_in_block, const Extent& block);
};

// What threads come together for.
struct Site {
  const char* name;
  int64_t Statistics::* count;
  int line = 0;  // of a barrier, which no other can stand for
};

// Where `members` threads wait for each other, again and again.
struct Meeting {
  unsigned members = 0;
  bool orders_memory = true;
  unsigned arrived = 0;
  Site site = {};  // of the first to arrive
  uint64_t generation = 0;
  // A generation's late leavers must not be ordered after the next one's early comers: one edge for odd, one for even.
  std::array<char, 2> edges = {};
};

struct Warp {
  Meeting meeting;
  // Two sets: a fast lane deposits for the next exchange while a slow one still reads from this.
  alignas(8) std::byte values[2][kWarp * 48];
};

// Thrown through the kernel by the thread that failed and, with threads, by those that waited; fibres that waited are
// never resumed. So a kernel may neither be noexcept nor own memory.
struct Abandoned {};

class Block {
 public:
  virtual ~Block() = default;

  void barrier(int line) { meet(barrier_, {"__syncthreads", &Statistics::barriers, line}); }
  void shuffle(const void* value, void* result, size_t bytes, int lane_mask);
  void load_matrices(const void* row, bool transposed, uint32_t (&part)[4]);
  void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4], float (*widen)(uint16_t));
  void multiply_add_tf32(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&sum)[4]);
  void warpgroup_multiply_add(WarpgroupProduct product);
  void wait_for_products(int newest);
  bool has_tensor_cores() const { return controls_.tensor_cores; }
  void* shared_array(const void* site, size_t bytes);
  void* dynamic_shared() { return shared_array(nullptr, kernel_->shared_bytes); }
  void copy_async(void* shared, const void* global);
  void store_global(void* to, const void* from, size_t bytes);
  void copy_wait(int newest);
  void copy_bulk(void* shared, const void* global, size_t bytes, uint64_t* begun);
  void wait_for_bulk(const uint64_t* begun, bool odd);

  Statistics statistics = {};
  std::string fault;  // of this launch; "" while all is well

 protected:
  // Returns when all members have arrived. Open and diverged below are for it.
  virtual void meet(Meeting& meeting, const Site& site) = 0;
  virtual std::unique_lock<std::mutex> lock() = 0;
  virtual void give_up() = 0;  // leaves the kernel: does not return

  void begin_launch(const Kernel& kernel, const Controls& controls);
  void begin_block(uint64_t number);
  void end_launch() { arrays_.clear(); }
  bool arrive(Meeting& meeting, const Site& site);  // opens it if this is the last; false: others wait for another
  void diverged();                                  // those who wait would wait for ever: say for what. Holds lock()
  [[noreturn]] void fail(const std::string& what);
  [[noreturn]] void fail_between(const Meeting& meeting, const Site& site);
  void call_kernel();  // in the calling thread; nothing gets out but what is noted

  const Kernel* kernel_ = nullptr;
  Controls controls_;
  unsigned threads_ = 0;
  Extent index_ = {};

 private:
  struct Array {
    const void* site;
    size_t bytes;
    std::unique_ptr<std::byte[]> memory;
  };
  template <unsigned kDepth, class Left, class Right>
  static void add_products(float (&sum)[4], unsigned lane, const Left& left, const Right& right);
  bool inside_shared(const void* begin, size_t bytes);
  void check_rows(const Rows& rows, int count);
  static void carry_out(const WarpgroupProduct& product);
  static void arrive_copy(void* shared, const void* global);
  // Deposits a lane's value and returns, when all have come, those of the warp: whole warps only. They stay until the
  // lane's next exchange.
  template <class T>
  const T* exchange(const T& value, const Site& site);
  void note(const std::string& what);  // holds lock()

  Meeting barrier_;
  std::vector<Warp> warps_;
  std::vector<Array> arrays_;
};

// The kernel's thread that this OS thread runs now, if any.
extern thread_local Block* current_block;
extern thread_local Thread* current_thread;
void enter(Block& block, Thread& thread, const Extent& block_index);  // threadIdx and blockIdx, too
void enter_launch(const Kernel& kernel);                              // blockDim and gridDim
void leave();

// One engine each. They run the kernel, add to the statistics, and return what went wrong, or "".
std::string run_fibres(const Kernel& kernel, const Controls& controls, Statistics& statistics);
std::string run_threads(const Kernel& kernel, const Controls& controls, Statistics& statistics);

}  // namespace fusecell::emulation
