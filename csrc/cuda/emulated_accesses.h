// Accesses to memory by the threads of an emulated block, and whether two of them race.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace vaefast {
namespace emulated {

// Barriers that a thread has passed: its block's, and its warp's.
struct Phase {
  int block = 0, warp = 0;
};

// Called for each access of a build that looks at them.
void access(const void* at, size_t bytes, bool writes);

class Accesses {
 public:
  void begin() {
    cells_.clear();
    race_.clear();
  }

  void add(const void* at, size_t bytes, bool writes, int thread, Phase phase) {
    if (!race_.empty()) return;
    const uintptr_t first = reinterpret_cast<uintptr_t>(at) / kStep;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(at) + bytes - 1) / kStep;
    for (uintptr_t i = first; i <= last; ++i) {
      Cell& cell = cells_[i];
      if (cell.written.by(thread, phase)) return say(cell.written, true, writes, thread);
      if (!writes) {
        cell.read.meet(thread, phase);
        continue;
      }
      if (cell.read.by(thread, phase)) return say(cell.read, false, writes, thread);
      cell.written.set(thread, phase);
      cell.read = {};
    }
  }

  void check(int block) const {
    if (!race_.empty())
      throw std::runtime_error("vaefast: a race in block " + std::to_string(block) +
                               " of the emulated GPU: " + race_);
  }

 private:
  // No kernel has results of less than two bytes.
  static constexpr uintptr_t kStep = 2;
  static constexpr int kNobody = -1, kMany = -2, kWarp = 32;

  // Who was at an address behind the last barriers.
  struct Visitors {
    int thread = kNobody, warp = kNobody;
    Phase phase;

    void set(int who, Phase when) {
      thread = who;
      warp = who / kWarp;
      phase = when;
    }

    void meet(int who, Phase when) {
      if (thread == kNobody || when.block > phase.block) return set(who, when);
      if (who / kWarp != warp) warp = kMany;
      if (who != thread) thread = kMany;
      if (when.warp > phase.warp) phase.warp = when.warp;
    }

    // Whether somebody else was, whom no barrier parts from `who`.
    bool by(int who, Phase when) const {
      if (thread == kNobody || thread == who || when.block > phase.block) return false;
      return warp != who / kWarp || when.warp <= phase.warp;
    }
  };

  struct Cell {
    Visitors written, read;
  };

  void say(const Visitors& before, bool wrote, bool writes, int thread) {
    const std::string who =
        before.thread == kMany ? "several threads" : "thread " + std::to_string(before.thread);
    race_ = who + (wrote ? " wrote" : " read") + " what thread " + std::to_string(thread) +
            (writes ? " writes" : " reads") + ", with no barrier between";
  }

  std::unordered_map<uintptr_t, Cell> cells_;
  std::string race_;
};

}  // namespace emulated
}  // namespace vaefast
