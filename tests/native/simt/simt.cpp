// SPDX-License-Identifier: Apache-2.0
// The scheduler.  This file is never built with ThreadSanitizer's instrumentation: its own memory
// is shared by all fibers on purpose.
#include "simt.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

simt::Index threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim, gridDim;

namespace simt {
namespace {

constexpr std::size_t kStackBytes = 128 * 1024;
#if defined(SIMT_TSAN)
constexpr bool kFreshStacks = true;  // the next block's use of a stack is no race with this one's
#else
constexpr bool kFreshStacks = false;
#endif

enum class State { kReady, kAtBlockBarrier, kInWarp, kFinished };

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* sanitizer = nullptr;   // ThreadSanitizer's fiber
  State state = State::kReady;
  Site site{"", 0};
  const char* what = "";
  int block_round = 0, warp_round = 0;
  std::vector<Copy> copies;
  std::size_t copies_taken = 0;
};

struct Warp {
  int arrived = 0;
  alignas(16) unsigned char slots[2][kWarp][kSlot];  // two rounds: a fast lane may be one ahead
  char barrier[2];                                   // addresses for ThreadSanitizer
};

Machine the_machine;
Counts the_counts;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
int live = 0;               // threads of the block
int at_barrier = 0;
int finished = 0;
char barrier[2];            // addresses for ThreadSanitizer
char launch_end;
unsigned char* shared = nullptr;
std::size_t shared_size = 0;
Fiber* running = nullptr;
ucontext_t scheduler;
#if defined(SIMT_TSAN)
void* scheduler_sanitizer = nullptr;
#endif
const std::function<void()>* kernel = nullptr;

int index_of(const Fiber* fiber) { return static_cast<int>(fiber - fibers.data()); }

void released([[maybe_unused]] void* address) {
#if defined(SIMT_TSAN)
  __tsan_release(address);
#endif
}

void acquired([[maybe_unused]] void* address) {
#if defined(SIMT_TSAN)
  __tsan_acquire(address);
#endif
}

#if defined(__SANITIZE_ADDRESS__)
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_bytes = 0;
#endif

void to_scheduler() {
  Fiber& me = *running;
#if defined(SIMT_TSAN)
  __tsan_switch_to_fiber(scheduler_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(me.state == State::kFinished ? nullptr : &me.fake_stack,
                                 scheduler_stack, scheduler_stack_bytes);
#endif
  swapcontext(&me.context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  (*kernel)();
  released(&launch_end);
  running->state = State::kFinished;
  running->site = {"", 0};
  if (running->copies_taken != running->copies.size()) {
    fail("a thread ended with copies under way");
  }
  ++finished;
  to_scheduler();
}

void resume(Fiber& fiber) {
  running = &fiber;
  threadIdx.x = static_cast<unsigned>(index_of(&fiber));
#if defined(SIMT_TSAN)
  __tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, kStackBytes);
#endif
  swapcontext(&scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
  running = nullptr;
}

unsigned char* new_stacks(std::size_t bytes) {
  void* stacks = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) fail("no memory for the stacks of a block");
  return static_cast<unsigned char*>(stacks);
}

void start(Fiber& fiber, void* stack) {
  fiber.stack = stack;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
#if defined(SIMT_TSAN)
  fiber.sanitizer = __tsan_create_fiber(0);
#endif
  fiber.state = State::kReady;
  fiber.block_round = fiber.warp_round = 0;
  fiber.copies.clear();
  fiber.copies_taken = 0;
}

[[noreturn]] void deadlock() {
  std::fprintf(stderr, "simt: deadlock: %d of %d threads ended;", finished, live);
  const Site* last = nullptr;
  for (int t = 0; t < live; ++t) {  // one line a place, not a thread
    const Fiber& fiber = fibers[static_cast<std::size_t>(t)];
    if (fiber.state == State::kFinished) continue;
    if (last != nullptr && last->line == fiber.site.line) continue;
    std::fprintf(stderr, " thread %d waits in %s at %s:%d;", t, fiber.what, fiber.site.file,
                 fiber.site.line);
    last = &fiber.site;
  }
  std::fprintf(stderr, "\n");
  std::_Exit(3);
}

void run_block(std::mt19937_64& random) {
  at_barrier = finished = 0;
  std::vector<int> ready;
  while (finished < live) {
    ready.clear();
    const std::uint64_t held_back = the_machine.order == Order::kRandom ? random() : 0;
    for (int pass = 0; pass < 2 && ready.empty(); ++pass) {
      for (int t = 0; t < live; ++t) {
        if (fibers[static_cast<std::size_t>(t)].state != State::kReady) continue;
        const bool wait = pass == 0 && (held_back >> (t / kWarp) & 1) != 0;  // whole warps
        if (!wait) ready.push_back(t);
      }
    }
    if (ready.empty()) deadlock();
    const std::size_t n = ready.size();
    for (std::size_t i = 0; i < n; ++i) {
      std::size_t pick = i;
      if (the_machine.order == Order::kReverse) pick = n - 1 - i;
      if (the_machine.order == Order::kRandom) {
        std::swap(ready[i], ready[i + random() % (n - i)]);
      }
      resume(fibers[static_cast<std::size_t>(ready[pick])]);
    }
  }
}

Warp& my_warp() { return warps[static_cast<std::size_t>(index_of(running) / kWarp)]; }

// Waits until all 32 lanes are in the same instruction.
void meet_warp(const char* what, Site site) {
  Warp& warp = my_warp();
  const int first = index_of(running) / kWarp * kWarp;
  running->site = site;
  running->what = what;
  for (int t = first; t < first + kWarp; ++t) {
    const Fiber& other = fibers[static_cast<std::size_t>(t)];
    if (other.state == State::kFinished) fail("a lane left before a warp-wide instruction", site);
    if (other.state == State::kInWarp &&
        (other.site.line != site.line || std::strcmp(other.what, what) != 0)) {
      fail("the lanes of a warp are in different warp-wide instructions", site);
    }
  }
  ++running->warp_round;
  if (++warp.arrived < kWarp) {
    running->state = State::kInWarp;
    to_scheduler();
    return;
  }
  warp.arrived = 0;
  for (int t = first; t < first + kWarp; ++t) {
    fibers[static_cast<std::size_t>(t)].state = State::kReady;
  }
}

}  // namespace

Machine& machine() { return the_machine; }
const Counts& counts() { return the_counts; }
void count_copy() { ++the_counts.async_copies; }
void count_matrix_load(bool bank_conflict) {
  ++the_counts.matrix_loads;
  the_counts.bank_conflicts += bank_conflict;
}
void count_multiply_add() { ++the_counts.multiply_adds; }
unsigned char* shared_memory() { return shared; }
std::size_t shared_bytes() { return shared_size; }

void fail(const char* what, Site site) {
  std::fprintf(stderr, "simt: %s", what);
  if (running != nullptr) std::fprintf(stderr, ", thread %d", index_of(running));
  if (site.line != 0) std::fprintf(stderr, ", %s:%d", site.file, site.line);
  std::fprintf(stderr, "\n");
  std::_Exit(3);
}

void launch(unsigned blocks, unsigned threads, std::size_t shared_bytes,
            const std::function<void()>& body) {
  if (threads == 0 || threads % kWarp != 0) fail("a block here is made of whole warps");
  std::mt19937_64 random(the_machine.seed);
  if (fibers.size() < threads) fibers.resize(threads);
  warps.resize(threads / kWarp);
  for (Warp& warp : warps) warp.arrived = 0;
  live = static_cast<int>(threads);
  kernel = &body;
  blockDim.x = threads;
  gridDim.x = blocks;
  the_counts.threads_per_block = live;
  the_counts.shared_bytes = static_cast<std::int64_t>(shared_bytes);
#if defined(SIMT_TSAN)
  scheduler_sanitizer = __tsan_get_current_fiber();
#endif
  std::vector<unsigned char*> used, stacks;
  for (unsigned block = 0; block < blocks; ++block) {
    // 0xff everywhere: a NaN in every type.
    shared_size = shared_bytes;
    shared = static_cast<unsigned char*>(std::malloc(shared_bytes));
    for (std::size_t i = 0; i < shared_bytes; ++i) shared[i] = 0xff;
    if (block == 0 || kFreshStacks) stacks.push_back(new_stacks(threads * kStackBytes));
    for (unsigned t = 0; t < threads; ++t) start(fibers[t], stacks.back() + t * kStackBytes);
    blockIdx.x = block;
    run_block(random);
#if defined(SIMT_TSAN)
    for (unsigned t = 0; t < threads; ++t) __tsan_destroy_fiber(fibers[t].sanitizer);
#endif
    used.push_back(shared);
    shared = nullptr;
    ++the_counts.blocks;
  }
  acquired(&launch_end);  // not earlier: nothing orders two blocks of a launch
  for (unsigned char* memory : used) std::free(memory);
  for (unsigned char* region : stacks) munmap(region, threads * kStackBytes);
}

void wait_for_block(Site site) {
  released(&barrier[running->block_round & 1]);
  running->site = site;
  running->what = "a block barrier";
  if (finished > 0) fail("a thread left before a block barrier", site);
  for (int t = 0; t < live; ++t) {
    const Fiber& other = fibers[static_cast<std::size_t>(t)];
    if (other.state == State::kAtBlockBarrier && other.site.line != site.line) {
      fail("the threads of a block wait at different barriers", site);
    }
  }
  if (++at_barrier < live) {
    running->state = State::kAtBlockBarrier;
    to_scheduler();
  } else {
    at_barrier = 0;
    ++the_counts.barriers;
    for (int t = 0; t < live; ++t) fibers[static_cast<std::size_t>(t)].state = State::kReady;
  }
  acquired(&barrier[running->block_round & 1]);
  ++running->block_round;  // two addresses: a fast thread may be one barrier ahead
}

void wait_for_warp(Site site) {
  Warp& warp = my_warp();
  const int round = running->warp_round & 1;
  released(&warp.barrier[round]);
  meet_warp("a warp barrier", site);
  acquired(&warp.barrier[round]);
}

const unsigned char* exchange(const char* what, const void* mine, std::size_t bytes, Site site) {
  Warp& warp = my_warp();
  const int round = running->warp_round & 1;
  unsigned char* slot = warp.slots[round][index_of(running) % kWarp];
  for (std::size_t i = 0; i < bytes; ++i) slot[i] = static_cast<const unsigned char*>(mine)[i];
  meet_warp(what, site);
  return &warp.slots[round][0][0];
}

void remember_copy(const Copy& copy) { running->copies.push_back(copy); }

bool take_copy(Copy& copy) {
  if (running->copies_taken == running->copies.size()) {
    running->copies.clear();
    running->copies_taken = 0;
    return false;
  }
  copy = running->copies[running->copies_taken++];
  return true;
}

}  // namespace simt
