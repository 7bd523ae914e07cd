#pragma once
// A small pool of std::threads. The caller works too; any number of callers may be inside at once; a forked child
// starts a pool of its own. Work is cut into chunks by the caller, so that results do not depend on the number of
// threads: no sum crosses chunks whose cut does.

#include <cstdint>
#include <utility>

namespace fusecell::cpu {

void set_num_threads(int64_t n);  // throws Error unless 1 <= n <= 1024
int num_threads();
int default_num_threads();  // the cores this process may use: its affinity and its control group's quota

struct PoolStatistics {
  int64_t parallel_regions;  // regions that several workers might share, whether or not they were worth it
  int64_t most_workers;      // the most threads that took a chunk in one region
};
PoolStatistics pool_statistics();
void reset_pool_statistics();

// nanoseconds: about what one core needs for all the chunks (cpu/work.h). What is little is shared only with helpers
// that are awake, and what is less than it costs to tell them with nobody.
using ChunkFunction = void (*)(void* context, int64_t chunk, int worker) noexcept;
void run_chunks(int64_t chunks, int workers, int64_t nanoseconds, ChunkFunction function, void* context);

// f(chunk, worker) for every chunk; worker < workers names a scratch slot that no other running chunk has.
template <class F>
void parallel_for(int64_t chunks, int workers, int64_t nanoseconds, F&& f) {
  run_chunks(
      chunks, workers, nanoseconds,
      [](void* context, int64_t chunk, int worker) noexcept { (*static_cast<F*>(context))(chunk, worker); }, &f);
}

// The same for work that is worth waking helpers, or whose amount is not known.
template <class F>
void parallel_for(int64_t chunks, int workers, F&& f) {
  parallel_for(chunks, workers, INT64_MAX, std::forward<F>(f));
}

}  // namespace fusecell::cpu
