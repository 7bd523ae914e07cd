#include "cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"

namespace fusecell::cpu {
namespace {

constexpr int kMostThreads = 1024;

// Microseconds of CPU time per period that the process's control group may use: "max 100000" or "200000 100000" in one
// file (version 2), or two files (version 1). 0: no limit found.
double cgroup_cores() {
  std::string quota = "max";
  double period = 0;
  if (std::ifstream unified("/sys/fs/cgroup/cpu.max"); unified >> quota >> period) {
  } else {
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  }
  const double microseconds = std::strtod(quota.c_str(), nullptr);  // 0 for "max", -1 for no limit
  return microseconds > 0 && period > 0 ? microseconds / period : 0;
}

int cores_of_process() {
  cpu_set_t set;
  const int by_affinity = sched_getaffinity(0, sizeof set, &set) == 0
                              ? CPU_COUNT(&set)
                              : static_cast<int>(std::thread::hardware_concurrency());
  const int cores = std::clamp(by_affinity, 1, kMostThreads);
  const double quota = cgroup_cores();
  return quota > 0 ? std::clamp(static_cast<int>(std::lround(quota)), 1, cores) : cores;
}

const int default_threads = cores_of_process();
std::atomic<int> requested_threads{0};  // 0: the default
std::atomic<int64_t> parallel_regions{0}, most_workers{0};

// A helper that has worked, or was woken, looks out for the next region for about this many pauses (22 microseconds on
// an EPYC 9005) before it goes to sleep: the regions of one training step follow each other faster than a sleeper
// wakes.
constexpr int kSpins = 1000;

// While a region is at work its threads look out so long (a millisecond) for each other, and for the next region: the
// chunks of one are not of one length, and to wake a thread of a virtual machine's idle core can take longer than the
// next region (measured: a backward pass on two threads then takes as long as on one).
constexpr int kSpinsAtWork = 50 * kSpins;

// Nanoseconds of one core's work from which a region is shared with helpers that are awake, and from which it wakes
// sleepers. When every region woke them, steps of 80 to 170 microseconds took 1.4 to 1.5 times as long with 2 threads.
constexpr int64_t kWorthSharing = 4'000, kWorthWaking = 80'000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

// Chunks that a worker has first claim to: a piece of all of them, the same piece in every region of as many chunks, so
// that what it wrote is found again in its core's own caches (measured: where cores share no cache, two threads took as
// long as one). Each in a cache line of its own.
struct alignas(64) Piece {
  std::atomic<int64_t> next;
  int64_t end;
};

struct Job {
  ChunkFunction function;
  void* context;
  int workers;                  // threads that may take part, the caller, worker 0, included
  std::vector<Piece> pieces;    // of each worker
  std::atomic<int> running{0};  // helpers inside; written under the pool's mutex
  std::atomic<int64_t> took_part{0};

  Job(int64_t chunks, int workers_, ChunkFunction function_, void* context_)
      : function(function_), context(context_), workers(workers_), pieces(static_cast<size_t>(workers_)) {
    for (int64_t i = 0; i < workers; ++i) {
      pieces[static_cast<size_t>(i)].next.store(i * chunks / workers, std::memory_order_relaxed);
      pieces[static_cast<size_t>(i)].end = (i + 1) * chunks / workers;
    }
  }

  // The worker's own piece, then what is left of the others'.
  void work(int worker) {
    bool any = false;
    for (int i = 0; i < workers; ++i) {
      Piece& piece = pieces[static_cast<size_t>((worker + i) % workers)];
      for (int64_t chunk; (chunk = piece.next.fetch_add(1, std::memory_order_relaxed)) < piece.end; any = true) {
        function(context, chunk, worker);
      }
    }
    if (any) took_part.fetch_add(1, std::memory_order_relaxed);
  }

  bool open(int worker) const {
    if (worker >= workers) return false;
    for (const Piece& piece : pieces) {
      if (piece.next.load(std::memory_order_relaxed) < piece.end) return true;
    }
    return false;
  }
};

class Pool {
 public:
  // Whether it was done: not without helpers that are awake, if none may be woken.
  bool run(Job& job, bool may_wake) {
    bool wake;
    {
      const std::lock_guard lock(mutex_);
      if (!may_wake && looking_out_ == 0) return false;
      if (may_wake) start_helpers(job.workers - 1);
      jobs_.push_back(&job);
      at_work_.fetch_add(1, std::memory_order_relaxed);
      posted_.fetch_add(1, std::memory_order_release);
      wake = may_wake && sleeping_ > 0;
    }
    if (wake) wake_.notify_all();  // not each of them has a piece of every job
    job.work(0);
    {
      const std::lock_guard lock(mutex_);
      jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));  // nobody joins from here on
    }
    const int patience = may_spin() ? kSpinsAtWork : 0;
    for (int i = 0; i < patience && job.running.load(std::memory_order_acquire) > 0; ++i) pause();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&job] { return job.running.load(std::memory_order_acquire) == 0; });
    at_work_.fetch_sub(1, std::memory_order_relaxed);
    return true;
  }

 private:
  // With more threads than cores, whoever spins keeps somebody else from working.
  static bool may_spin() { return num_threads() <= default_threads; }

  // For the next region; the time in which none is at work counts in full.
  void look_out(uint64_t seen) const {
    const auto posted = [this] { return posted_.load(std::memory_order_acquire); };
    for (int i = 0, idle = 0; i < kSpinsAtWork && idle < kSpins && posted() == seen; ++i) {
      if (at_work_.load(std::memory_order_relaxed) == 0) ++idle;
      pause();
    }
  }

  void start_helpers(int wanted) {
    try {
      for (; threads_ < wanted; ++threads_) std::thread([this, worker = threads_ + 1] { help(worker); }).detach();
    } catch (const std::system_error&) {  // no more threads to be had: those that run, if only the caller, do it all
    }
  }

  Job* open_job(int worker) {
    for (Job* job : jobs_) {
      if (job->open(worker)) return job;
    }
    return nullptr;
  }

  // The next job with work to do; returns with the lock held.
  Job* wait_for_job(std::unique_lock<std::mutex>& lock, int worker) {
    for (;;) {
      const uint64_t seen = posted_.load(std::memory_order_relaxed);
      if (Job* job = open_job(worker)) return job;
      if (may_spin() && worker < num_threads()) {
        ++looking_out_;
        lock.unlock();
        look_out(seen);
        lock.lock();
        --looking_out_;
      }
      if (posted_.load(std::memory_order_relaxed) != seen) continue;
      ++sleeping_;
      wake_.wait(lock, [&] { return posted_.load(std::memory_order_relaxed) != seen; });
      --sleeping_;
    }
  }

  [[noreturn]] void help(int worker) {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = wait_for_job(lock, worker);
      job->running.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      job->work(worker);
      lock.lock();
      if (job->running.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Job*> jobs_;
  std::atomic<uint64_t> posted_{0};  // jobs so far; written under the mutex
  std::atomic<int> at_work_{0};      // jobs that are not done
  int sleeping_ = 0, looking_out_ = 0, threads_ = 0;
};

// Never destroyed: its threads wait in it until the process ends. After a fork the child has none of the threads, and
// the mutex may be held by one that is gone, so the child gets a new pool and forgets the old one. Made when the
// library is loaded, so that no fork can fall into the making; threads start with the first work.
std::atomic<Pool*> pool_of_process{new Pool};
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { pool_of_process.store(new Pool, std::memory_order_relaxed); });

// Whether it was done.
bool share_chunks(int64_t chunks, int workers, bool may_wake, ChunkFunction function, void* context) {
  Job job(chunks, workers, function, context);
  if (!pool_of_process.load(std::memory_order_relaxed)->run(job, may_wake)) return false;
  int64_t seen = most_workers;
  while (seen < job.took_part && !most_workers.compare_exchange_weak(seen, job.took_part)) {
  }
  return true;
}

}  // namespace

int default_num_threads() { return default_threads; }

void set_num_threads(int64_t n) {
  if (n < 1 || n > kMostThreads) value_error("n", "a number of threads from 1 to 1024", std::to_string(n));
  requested_threads = static_cast<int>(n);
}

int num_threads() {
  const int requested = requested_threads;
  return requested > 0 ? requested : default_threads;
}

PoolStatistics pool_statistics() { return {parallel_regions, most_workers}; }

void reset_pool_statistics() {
  parallel_regions = 0;
  most_workers = 0;
}

void run_chunks(int64_t chunks, int workers, int64_t nanoseconds, ChunkFunction function, void* context) {
  workers = static_cast<int>(std::min<int64_t>(workers, chunks));
  if (workers > 1) {
    parallel_regions.fetch_add(1, std::memory_order_relaxed);
    if (nanoseconds >= kWorthSharing && share_chunks(chunks, workers, nanoseconds >= kWorthWaking, function, context)) {
      return;
    }
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk) function(context, chunk, 0);
}

}  // namespace fusecell::cpu
