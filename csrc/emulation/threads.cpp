// Every thread of a block is a std::thread, and two teams of them work on the grid's blocks with nothing between them,
// so that ThreadSanitizer sees a race within a block and one between two blocks.

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <thread>
#include <utility>

#include "emulation/block.h"

namespace fusecell::emulation {
namespace {

constexpr int kTeams = 2;

struct Job {
  const Kernel* kernel;
  Controls controls;
  std::atomic<bool>* failed;  // in any team; relaxed, so it orders nothing
};

class Team final : public Block {
 public:
  // For the launching thread: hire, start, finish.
  void hire(unsigned workers) {
    const std::lock_guard held(mutex_);
    for (; workers_ < workers; ++workers_) std::thread([this, number = workers_] { work(number); }).detach();
  }

  void start(const Job& job, Walk blocks, uint64_t count) {
    before(edge(begun_ + 1));
    const Unseen unseen;
    const std::lock_guard held(mutex_);
    begin_launch(*job.kernel, job.controls);
    job_ = job;
    blocks_ = blocks;
    blocks_left_ = count;
    next_block();
    posted_.notify_all();
  }

  void finish() {
    {
      const Unseen unseen;
      std::unique_lock held(mutex_);
      finished_.wait(held, [this] { return blocks_left_ == 0; });
    }
    after(launch_end_);
    const Unseen unseen;
    const std::lock_guard held(mutex_);
    end_launch();
  }

 private:
  void work(unsigned number) {
    Thread thread{};
    for (uint64_t seen = 0;;) {
      wait_for_block(number, seen);
      after(edge(seen));
      thread.begin(number, kernel_->block);
      enter_launch(*kernel_);
      enter(*this, thread, index_);
      call_kernel();
      leave();
      before(edge(seen + 1));
      before(launch_end_);
      end_of_block(thread);
    }
  }

  // `seen`: the block this worker did last; afterwards: the one it is to do.
  void wait_for_block(unsigned number, uint64_t& seen) {
    const Unseen unseen;
    std::unique_lock held(mutex_);
    posted_.wait(held, [&] { return begun_ != seen && number < threads_ && blocks_left_ > 0; });
    seen = begun_;
  }

  void end_of_block(Thread& thread) {
    const Unseen unseen;
    const std::lock_guard held(mutex_);
    statistics.async_copies += std::exchange(thread.async_copies, 0);
    statistics.bulk_copies += std::exchange(thread.bulk_copies, 0);
    statistics.warpgroup_products += std::exchange(thread.warpgroup_products, 0);
    --running_;
    if (++done_ < threads_) {
      if (running_ == 0) diverge();
      return;
    }
    if (!fault.empty()) job_.failed->store(true, std::memory_order_relaxed);
    --blocks_left_;
    if (job_.failed->load(std::memory_order_relaxed)) blocks_left_ = 0;
    if (blocks_left_ == 0) return finished_.notify_all();
    for (int i = 0; i < kTeams; ++i) blocks_.advance();
    next_block();
    posted_.notify_all();
  }

  void next_block() {
    begin_block(blocks_.position);
    running_ = threads_;
    done_ = 0;
    ++begun_;
  }

  void meet(Meeting& meeting, const Site& site) override {
    // The generation cannot change before this thread has come, and was settled before it left the last one.
    const bool orders = meeting.orders_memory;
    uint64_t generation;
    bool wrong_site;
    {
      const Unseen unseen;
      generation = meeting.generation;
    }
    if (orders) before(meeting.edges[generation % 2]);
    {
      const Unseen unseen;
      std::unique_lock held(mutex_);
      if (!fault.empty()) throw Abandoned{};
      wrong_site = !arrive(meeting, site);
      if (!wrong_site) wait(held, meeting, generation);
    }
    if (wrong_site) fail_between(meeting, site);
    if (orders) after(meeting.edges[generation % 2]);
  }

  void wait(std::unique_lock<std::mutex>& held, const Meeting& meeting, uint64_t generation) {
    if (meeting.generation != generation) {  // this was the last to come
      running_ += meeting.members - 1;
      return met_.notify_all();
    }
    if (--running_ == 0) diverge();
    met_.wait(held, [&] { return meeting.generation != generation || !fault.empty(); });
    if (meeting.generation != generation) return;
    ++running_;
    throw Abandoned{};
  }

  // With the mutex held: all who are left wait.
  void diverge() {
    diverged();
    met_.notify_all();
  }

  std::unique_lock<std::mutex> lock() override { return std::unique_lock(mutex_); }
  void give_up() override {
    met_.notify_all();
    throw Abandoned{};
  }

  // From the end of one block to the beginning of the team's next, and from the launching thread to the first.
  char& edge(uint64_t block) { return block_edges_[block % 2]; }

  std::mutex mutex_;
  std::condition_variable posted_, met_, finished_;
  unsigned workers_ = 0, running_ = 0, done_ = 0;
  uint64_t begun_ = 0, blocks_left_ = 0;
  Walk blocks_{Order::forward, 1, 0};
  Job job_ = {};
  std::array<char, 2> block_edges_ = {};
  char launch_end_ = 0;
};

// Never destroyed: its threads wait in it until the process ends. A forked child has none of them and gets new teams.
struct Teams {
  Teams* of_parent = nullptr;  // so that LeakSanitizer finds the old ones
  std::mutex launching = {};   // one launch at a time
  Team team[kTeams] = {};
};
std::atomic<Teams*> teams_of_process{new Teams};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  teams_of_process.store(new Teams{.of_parent = teams_of_process.load(std::memory_order_relaxed)},
                         std::memory_order_relaxed);
});

}  // namespace

std::string run_threads(const Kernel& kernel, const Controls& controls, Statistics& statistics) {
  Teams& teams = *teams_of_process.load(std::memory_order_relaxed);
  const std::lock_guard launching(teams.launching);
  const uint64_t blocks = kernel.grid.count();
  const int busy = blocks > 1 ? kTeams : 1;
  for (int t = 0; t < busy; ++t) teams.team[t].hire(static_cast<unsigned>(kernel.block.count()));

  std::atomic<bool> failed{false};
  Walk walk(controls.order, blocks, controls.seed);
  for (int t = 0; t < busy; ++t, walk.advance()) {
    teams.team[t].start({&kernel, controls, &failed}, walk, (blocks + kTeams - 1 - t) / kTeams);
  }
  std::string fault;
  for (int t = 0; t < busy; ++t) {
    Team& team = teams.team[t];
    team.finish();
    if (fault.empty()) fault = team.fault;
    statistics.blocks += team.statistics.blocks;
    statistics.barriers += team.statistics.barriers;
    statistics.shuffles += team.statistics.shuffles;
    statistics.matrix_loads += team.statistics.matrix_loads;
    statistics.matrix_products += team.statistics.matrix_products;
    statistics.async_copies += team.statistics.async_copies;
    statistics.bulk_copies += team.statistics.bulk_copies;
    statistics.warpgroup_products += team.statistics.warpgroup_products;
    statistics.most_threads = team.statistics.most_threads;
  }
  return fault;
}

}  // namespace fusecell::emulation
