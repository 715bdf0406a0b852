// Fibers for a block's threads, and what orders them.
#if defined(_FORTIFY_SOURCE)
// It takes a jump to another stack for an error.
#undef _FORTIFY_SOURCE
#endif
#include "cuda/emulated.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/emulated_accesses.h"

namespace vaefast {
namespace emulated {

thread_local Index thread_index, block_index, grid_dim;

namespace {

constexpr int kWarp = 32, kMostThreads = 1024;
constexpr size_t kStack = size_t{1} << 18;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber {
  jmp_buf at;
  ucontext_t start;
  bool begun = false;
  State state = State::kDone;
};

struct Order {
  bool none = false, reversed = false, shuffled = false, interleaved = false;
  std::optional<std::mt19937> random;

  Order() {
    const char* const asked = std::getenv("VAEFAST_EMULATED_ORDER");
    if (asked == nullptr || *asked == '\0') return;
    const char* const colon = std::strchr(asked, ':');
    const std::string name = colon == nullptr ? asked : std::string(asked, colon);
    none = name == "none";
    reversed = name == "reversed";
    interleaved = name == "interleaved";
    shuffled = name == "shuffled" || interleaved;
    if (!none && !reversed && !shuffled && name != "forward")
      throw std::runtime_error(
          "VAEFAST_EMULATED_ORDER must be forward, reversed, shuffled:SEED, interleaved:SEED or "
          "none, got " +
          std::string(asked));
    if (shuffled)
      random.emplace(
          colon == nullptr ? 0u : static_cast<unsigned>(std::strtoul(colon + 1, nullptr, 10)));
  }

  void apply(std::vector<int>& numbers) {
    if (reversed) std::reverse(numbers.begin(), numbers.end());
    if (shuffled) std::shuffle(numbers.begin(), numbers.end(), *random);
  }
};

double tf32_of(uint32_t bits) {
  bits &= 0xffffe000u;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

double power_of_two(uint64_t exponent) {
  const uint64_t bits = exponent << 52;
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// sum and four products, each cut at 24 bits of the largest of the five, and the result at its own.
float cut_sum(float sum, const double* products) {
  double largest = std::fabs(sum);
  for (int i = 0; i < 4; ++i) largest = std::fmax(largest, std::fabs(products[i]));
  if (!(largest > 0 && std::isfinite(largest))) {
    for (int i = 0; i < 4; ++i) sum += static_cast<float>(products[i]);
    return sum;
  }
  // By its exponent: what is cut is that of a number of 24 bits.
  uint64_t bits;
  std::memcpy(&bits, &largest, sizeof bits);
  const uint64_t exponent = bits >> 52;
  const double step = power_of_two(exponent - 23), inverse = power_of_two(2069 - exponent);
  int64_t cut = static_cast<int64_t>(sum * inverse);
  for (int i = 0; i < 4; ++i) cut += static_cast<int64_t>(products[i] * inverse);
  const double total = static_cast<double>(cut) * step;
  const float nearest = static_cast<float>(total);
  return std::fabs(nearest) > std::fabs(total) ? std::nextafter(nearest, 0.0f) : nearest;
}

// The fibers of one thread of the CPU, which live as long as it does.
class Block {
 public:
  ~Block() {
    if (stacks_ != nullptr) munmap(stacks_, kStack * kMostThreads);
  }

  void run(int threads, Order& order, void (*kernel)(const void*), const void* op) {
    allocate();
    threads_ = threads;
    kernel_ = kernel;
    op_ = op;
    order_ = &order;
    asked_ = false;
    std::vector<int> numbers(static_cast<size_t>(threads));
    for (int i = 0; i < threads; ++i) {
      numbers[static_cast<size_t>(i)] = i;
      fibers_[i].state = State::kReady;
      phases_[i] = {};
    }
    int left = threads;
    order.apply(numbers);
    while (left > 0) {
      bool moved = false;
      for (const int i : numbers) {
        if (fibers_[i].state != State::kReady) continue;
        moved = true;
        resume(i);
        left -= fibers_[i].state == State::kDone;
      }
      if (moved) continue;
      for (int i = 0; i < threads; ++i)
        if (fibers_[i].state == State::kAtWarp) {
          // Where they stopped nobody goes on from.
          for (int j = 0; j < kMostThreads; ++j) fibers_[j].begun = false;
          throw std::runtime_error("vaefast: a thread of the emulated GPU waits for its warp");
        }
      for (int i = 0; i < threads; ++i) {
        if (fibers_[i].state != State::kAtBlock) continue;
        fibers_[i].state = State::kReady;
        ++phases_[i].block;
      }
      answer_ = asked_;
      asked_ = false;
      if (order.shuffled) order.apply(numbers);
    }
    current_ = -1;
  }

  void wait_for_block() { leave(State::kAtBlock); }

  bool wait_for_block_or(bool asked) {
    asked_ = asked_ || asked;
    leave(State::kAtBlock);
    return answer_;
  }

  void wait_for_warp(bool orders_memory) {
    const int first = current_ / kWarp * kWarp, end = std::min(first + kWarp, threads_);
    fibers_[current_].state = State::kAtWarp;
    bool all = true;
    for (int i = first; i < end; ++i) all = all && fibers_[i].state == State::kAtWarp;
    if (!all) return leave(State::kAtWarp);
    for (int i = first; i < end; ++i) {
      fibers_[i].state = State::kReady;
      if (orders_memory) ++phases_[i].warp;
    }
  }

  void exchange(void* value, int other, size_t bytes) {
    const int mine = current_;
    std::memcpy(&given_[mine], value, bytes);
    wait_for_warp(false);
    const uint64_t taken = given_[mine ^ other];
    // Nobody gives the next before all have taken this.
    wait_for_warp(false);
    std::memcpy(value, &taken, bytes);
  }

  void multiply_add(const uint32_t* a, const uint32_t* b, float* sums) {
    const int mine = current_, lane = mine % kWarp, first = mine - lane;
    for (int i = 0; i < 4; ++i) left_[mine][i] = tf32_of(a[i]);
    for (int i = 0; i < 2; ++i) right_[mine][i] = tf32_of(b[i]);
    wait_for_warp(false);
    for (int i = 0; i < 4; ++i) {
      const int row = first + lane / 4 * 4, column = first + 4 * (2 * (lane % 4) + i % 2);
      for (int half = 0; half < 2; ++half) {
        double products[4];
        for (int k = 0; k < 4; ++k)
          products[k] = left_[row + k][i / 2 + 2 * half] * right_[column + k][half];
        sums[i] = cut_sum(sums[i], products);
      }
    }
    // Nobody gives the next before all have taken this.
    wait_for_warp(false);
  }

  // Of an access to memory: the thread may stop here.
  void access(const void* at, size_t bytes, bool writes) {
    if (current_ < 0) return;
    const char* const stacks = static_cast<const char*>(stacks_);
    const char* const address = static_cast<const char*>(at);
    if (address >= stacks && address < stacks + kStack * kMostThreads) return;
    accesses_.add(at, bytes, writes, current_, phases_[current_]);
    if (order_->interleaved && (*order_->random)() % 8 == 0) leave(State::kReady);
  }

  Accesses& accesses() { return accesses_; }

 private:
  void allocate() {
    if (stacks_ != nullptr) return;
    // Pages that no fiber touches take no memory.
    stacks_ = mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks_ == MAP_FAILED) {
      stacks_ = nullptr;
      throw std::runtime_error("vaefast: no memory for the emulated GPU's threads");
    }
    fibers_ = std::make_unique<Fiber[]>(kMostThreads);
  }

  void resume(int i) {
    current_ = i;
    thread_index.x = static_cast<unsigned>(i);
    if (_setjmp(scheduler_) != 0) {
      current_ = -1;
      return;
    }
    Fiber& fiber = fibers_[i];
    // Without the system calls of swapcontext.
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = static_cast<char*>(stacks_) + kStack * static_cast<size_t>(i);
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, reinterpret_cast<void (*)()>(&Block::live), 0);
    setcontext(&fiber.start);
  }

  void leave(State state) {
    Fiber& fiber = fibers_[current_];
    fiber.state = state;
    if (_setjmp(fiber.at) == 0) _longjmp(scheduler_, 1);
  }

  // One kernel after another; a fiber never ends.
  static void live();

  void* stacks_ = nullptr;
  std::unique_ptr<Fiber[]> fibers_;
  jmp_buf scheduler_;
  int threads_ = 0, current_ = -1;
  void (*kernel_)(const void*) = nullptr;
  const void* op_ = nullptr;
  Order* order_ = nullptr;
  uint64_t given_[kMostThreads] = {};
  double left_[kMostThreads][4] = {}, right_[kMostThreads][2] = {};
  // What sync_block_or is asked, and what the last barrier found.
  bool asked_ = false, answer_ = false;
  Phase phases_[kMostThreads];
  Accesses accesses_;
};

thread_local Block block;
thread_local std::vector<uint64_t> dynamic;

void Block::live() {
  for (;;) {
    block.kernel_(block.op_);
    block.leave(State::kDone);
  }
}

}  // namespace

void sync_block() { block.wait_for_block(); }
int sync_block_or(int asked) { return block.wait_for_block_or(asked != 0); }
void sync_warp() { block.wait_for_warp(true); }
void exchange(void* value, int other, size_t bytes) { block.exchange(value, other, bytes); }
void multiply_add(const uint32_t* a, const uint32_t* b, float* sums) {
  block.multiply_add(a, b, sums);
}
void* dynamic_shared() { return dynamic.data(); }
void access(const void* at, size_t bytes, bool writes) { block.access(at, bytes, writes); }

int64_t most_dynamic_shared() {
  const char* const asked = std::getenv("VAEFAST_EMULATED_SHARED");
  // That of an H100.
  return asked == nullptr ? 227 << 10 : std::strtoll(asked, nullptr, 10);
}

void run(int64_t blocks, int threads, int64_t dynamic_shared, void (*kernel)(const void*),
         const void* op) {
  Order order;
  if (order.none) return;
  // What lies behind it must stay as it is.
  constexpr uint64_t kGuard = 0x7ff8dead7ff8dead;
  dynamic.assign(static_cast<size_t>((dynamic_shared + 7) / 8 + 8), kGuard);
  const auto guard = dynamic.end() - 8;
  std::vector<int> numbers(static_cast<size_t>(blocks));
  for (int64_t i = 0; i < blocks; ++i) numbers[static_cast<size_t>(i)] = static_cast<int>(i);
  order.apply(numbers);
  grid_dim.x = static_cast<unsigned>(blocks);
  for (const int i : numbers) {
    block_index.x = static_cast<unsigned>(i);
    block.accesses().begin();
    block.run(threads, order, kernel, op);
    block.accesses().check(i);
  }
  if (!std::all_of(guard, dynamic.end(), [](uint64_t word) { return word == kGuard; }))
    throw std::runtime_error("vaefast: written past a block's shared memory");
}

}  // namespace emulated
}  // namespace vaefast
