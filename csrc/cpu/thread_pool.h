#pragma once
// A small pool of std::threads. The caller works too; any number of callers may be inside at once; a forked child
// starts a pool of its own. Work is cut into chunks by the caller, never by the number of threads, so that results do
// not depend on it.

#include <cstdint>

namespace fusecell::cpu {

void set_num_threads(int64_t n);  // throws Error unless 1 <= n <= 1024
int num_threads();
int default_num_threads();  // the cores this process may use: its affinity and its control group's quota

struct PoolStatistics {
  int64_t parallel_regions;  // regions handed to the pool
  int64_t most_workers;      // the most threads that took a chunk in one region
};
PoolStatistics pool_statistics();
void reset_pool_statistics();

using ChunkFunction = void (*)(void* context, int64_t chunk, int worker) noexcept;
void run_chunks(int64_t chunks, int workers, ChunkFunction function, void* context);

// f(chunk, worker) for every chunk; worker < workers names a scratch slot that no other running chunk has.
template <class F>
void parallel_for(int64_t chunks, int workers, F&& f) {
  run_chunks(
      chunks, workers,
      [](void* context, int64_t chunk, int worker) noexcept { (*static_cast<F*>(context))(chunk, worker); }, &f);
}

}  // namespace fusecell::cpu
