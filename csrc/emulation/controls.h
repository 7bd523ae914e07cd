#pragma once
// What a test chooses before a launch and what it may ask afterwards. Any thread may call these.

#include <cstdint>
#include <map>
#include <string>

namespace fusecell::emulation {

// fibres: one OS thread runs a block's threads in turn; fast, and finds divergence.
// threads: each is a std::thread and two blocks run at once, for ThreadSanitizer. A build under ThreadSanitizer takes
// threads whatever is asked: it knows nothing of our fibres.
enum class Engine { fibres, threads };
// Asynchronous copies arrive at the call, or not before the wait that covers them. The hardware is free to do either.
enum class Copies { eager, late };
// Of a grid's blocks and, with fibres, of a block's threads between two barriers. random is the same for one seed.
enum class Order { forward, reversed, random };

struct Controls {
  Engine engine = Engine::fibres;
  Copies copies = Copies::eager;
  Order order = Order::forward;
  uint64_t seed = 0;
  bool tensor_cores = true;  // as from sm_80 on; without them kernels take what an older GPU takes
  bool capturing = false;    // cudaStreamIsCapturing says so, and cudaStreamSynchronize refuses
};

// As FUSECELL_EMULATION has it: "engine=threads,copies=late,order=random,seed=3", any part of it in any order.
// std::invalid_argument names a word that it does not know.
Controls parse_controls(const std::string& text);

void set_controls(const Controls& controls);
Controls controls();  // until set_controls: what FUSECELL_EMULATION says

struct Statistics {
  int64_t launches;      // that were valid, those that failed included
  int64_t blocks;        // begun
  int64_t barriers;      // a whole block's __syncthreads counts once
  int64_t shuffles;      // a whole warp's counts once, as the next two do
  int64_t matrix_loads;  // of four 8 x 8 matrices
  int64_t matrix_products;
  int64_t warpgroup_products;  // a thread's counts once
  int64_t async_copies;        // of 16 bytes each, at the call
  int64_t bulk_copies;
  int64_t most_threads;  // in a block
};
Statistics statistics();
std::map<std::string, int64_t> launched_kernels();  // launches by name
std::string last_fault();                           // what the last launch that failed died of; "" if none did
void reset_statistics();                            // forgets the fault and the names, too

}  // namespace fusecell::emulation
