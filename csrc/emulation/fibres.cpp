// One OS thread runs a block's threads in turn, each on a stack of its own, from one meeting to the next.

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <utility>

#include "emulation/block.h"
#include "emulation/stack_switch.h"

namespace fusecell::emulation {
namespace {

// Mapped once, with a page below that nobody may touch; kept for the OS thread's next launches.
class Stack {
 public:
  Stack() : guard_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    void* base = mmap(nullptr, guard_ + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<std::byte*>(base);
    mprotect(base_, guard_, PROT_NONE);
  }
  ~Stack() {
    unpoison(bottom(), kStackBytes);  // the next mapping here may be anybody's
    munmap(base_, guard_ + kStackBytes);
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  std::byte* bottom() const { return base_ + guard_; }

 private:
  size_t guard_;
  std::byte* base_;
};

enum class State { ready, waiting, finished };

struct Fibre {
  Stack stack;
  Context context;
  void* fake_stack = nullptr;  // AddressSanitizer's; kept from block to block: making one costs 15 us
  State state = State::finished;
  const Meeting* meeting = nullptr;
  uint64_t generation = 0;  // the meeting's, when this one came to it
  Thread thread = {};

  bool can_run() const {
    return state == State::ready || (state == State::waiting && meeting->generation != generation);
  }
};

class FibreBlock final : public Block {
 public:
  void run(const Kernel& kernel, const Controls& controls) {
    begin_launch(kernel, controls);
    enter_launch(kernel);
    while (fibres_.size() < threads_) fibres_.push_back(std::make_unique<Fibre>());
    Walk blocks(controls.order, kernel.grid.count(), controls.seed);
    for (uint64_t i = 0; i < blocks.count && fault.empty(); ++i, blocks.advance()) run_block(blocks.position);
    leave();
    for (const auto& fibre : fibres_) {
      statistics.async_copies += std::exchange(fibre->thread.async_copies, 0);
      statistics.bulk_copies += std::exchange(fibre->thread.bulk_copies, 0);
      statistics.warpgroup_products += std::exchange(fibre->thread.warpgroup_products, 0);
    }
    end_launch();
  }

 private:
  void run_block(uint64_t number) {
    begin_block(number);
    for (unsigned t = 0; t < threads_; ++t) begin_fibre(*fibres_[t], t);
    unsigned left = threads_;
    for (uint64_t pass = 0; left > 0; ++pass) {
      Walk order(controls_.order, threads_, mix(mix(controls_.seed, number), pass));
      bool any = false;
      for (unsigned i = 0; i < threads_; ++i, order.advance()) {
        Fibre& fibre = *fibres_[order.position];
        if (!fibre.can_run()) continue;
        any = true;
        resume(fibre);
        left -= fibre.state == State::finished;
        if (!fault.empty()) return;
      }
      if (!any) return diverged();
    }
  }

  void begin_fibre(Fibre& fibre, unsigned number) {
    if (fibre.state != State::finished) unpoison(fibre.stack.bottom(), kStackBytes);  // it was left in mid-air
    fibre.thread.begin(number, kernel_->block);
    fibre.state = State::ready;
    prepare(fibre.context, fibre.stack.bottom(), kStackBytes, &FibreBlock::entry);
  }

  void resume(Fibre& fibre) {
    running_ = &fibre;
    fibre.state = State::ready;
    enter(*this, fibre.thread, index_);
    void* fake_stack = nullptr;
    leave_for({fibre.stack.bottom(), kStackBytes}, &fake_stack);
    switch_stack(scheduler_, fibre.context);
    arrive_from(nullptr, fake_stack);
  }

  // Back to the scheduler; returns when it resumes the fibre, if ever.
  void yield(State state) {
    Fibre& fibre = *running_;
    fibre.state = state;
    leave_for(scheduler_stack_, &fibre.fake_stack);
    switch_stack(fibre.context, scheduler_);
    arrive_from(&scheduler_stack_, fibre.fake_stack);
  }

  static void entry() {
    auto& block = static_cast<FibreBlock&>(*current_block);
    arrive_from(&block.scheduler_stack_, block.running_->fake_stack);
    block.call_kernel();
    block.yield(State::finished);
    __builtin_trap();  // nobody resumes a finished fibre
  }

  void meet(Meeting& meeting, const Site& site) override {
    running_->meeting = &meeting;
    running_->generation = meeting.generation;
    if (!arrive(meeting, site)) fail_between(meeting, site);
    yield(State::waiting);  // the last to come, too: it has a place in the order of those who go on
  }

  std::unique_lock<std::mutex> lock() override { return {}; }
  void give_up() override { throw Abandoned{}; }

  std::vector<std::unique_ptr<Fibre>> fibres_;
  Fibre* running_ = nullptr;
  Context scheduler_;
  StackBounds scheduler_stack_;
};

}  // namespace

std::string run_fibres(const Kernel& kernel, const Controls& controls, Statistics& statistics) {
  thread_local FibreBlock block;
  block.run(kernel, controls);
  statistics = block.statistics;
  return block.fault;
}

}  // namespace fusecell::emulation
