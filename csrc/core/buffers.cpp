#include "core/buffers.h"

#if defined(_WIN32)
#include <malloc.h>
#else
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "core/dispatch.h"

namespace vaefast {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;
// Blocks from kHuge on are cut and aligned for huge pages, smaller ones to a multiple of kStep.
constexpr size_t kHuge = size_t{1} << 22, kStep = size_t{1} << 16;
// Blocks that as many takes passed over are freed: the program does something else by now.
constexpr uint64_t kPatience = 64;

#if defined(_WIN32)
void* allocate(size_t size) { return _aligned_malloc(size, kHugePage); }
void release(void* data, size_t) { _aligned_free(data); }
#else
void* map(size_t size) {
  void* const all = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return all == MAP_FAILED ? nullptr : all;
}

void* allocate(size_t size) {
  if (size < kHuge) return map(size);
  // A huge page more, to cut an aligned piece out.
  void* const all = map(size + kHugePage);
  if (all == nullptr) return nullptr;
  char* const begin = static_cast<char*>(all);
  const size_t ahead = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (ahead > 0) munmap(begin, ahead);
  munmap(begin + ahead + size, kHugePage - ahead);
  return begin + ahead;
}
void release(void* data, size_t size) { munmap(data, size); }
#endif

struct Idle {
  void* data;
  size_t size;
  uint64_t since;
};

class Buffers {
 public:
  void* take(size_t bytes) {
    const size_t step = bytes < kHuge ? kStep : kHugePage;
    const size_t size = (bytes + step - 1) / step * step;
    const std::lock_guard<std::mutex> lock(mutex_);
    ++takes_;
    drop([this](const Idle& block) { return takes_ - block.since > kPatience; });
    // The one given back last: it is the likeliest to be in a cache.
    for (size_t i = idle_.size(); i-- > 0;) {
      if (idle_[i].size != size) continue;
      void* data = idle_[i].data;
      idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(i));
      idle_bytes_ -= size;
      live_[data] = size;
      live_bytes_ += size;
      return data;
    }
    void* data = allocate(size);
    if (data == nullptr) {
      drop([](const Idle&) { return true; });
      data = allocate(size);
    }
    if (data == nullptr) return nullptr;
    if (size >= kHuge) advise_huge_pages(data, static_cast<int64_t>(size));
    live_[data] = size;
    live_bytes_ += size;
    return data;
  }

  void give_back(void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = live_.find(data);
    if (found == live_.end()) return;
    const size_t size = found->second;
    live_.erase(found);
    live_bytes_ -= size;
    idle_.push_back({data, size, takes_});
    idle_bytes_ += size;
    shrink();
  }

  size_t limit() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return limit_;
  }

  void set_limit(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    shrink();
  }

  BufferBytes bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {live_bytes_, idle_bytes_};
  }

 private:
  template <class Unwanted>
  void drop(Unwanted unwanted) {
    size_t kept = 0;
    for (const Idle& block : idle_) {
      if (unwanted(block)) {
        idle_bytes_ -= block.size;
        release(block.data, block.size);
      } else {
        idle_[kept++] = block;
      }
    }
    idle_.resize(kept);
  }

  // The oldest go first.
  void shrink() {
    drop([this](const Idle&) { return idle_bytes_ > limit_; });
  }

  static size_t first_limit() {
    const char* given = std::getenv("VAEFAST_BUFFER_CACHE");
    const long long mebibytes = given != nullptr ? std::atoll(given) : 256;
    return mebibytes > 0 ? static_cast<size_t>(mebibytes) << 20 : 0;
  }

  std::mutex mutex_;
  std::map<void*, size_t> live_;
  std::vector<Idle> idle_;
  size_t live_bytes_ = 0, idle_bytes_ = 0, limit_ = first_limit();
  uint64_t takes_ = 0;
};

// Never destroyed: a tensor may outlive every static object.
Buffers& buffers() {
  static Buffers* const all = new Buffers;
  return *all;
}

}  // namespace

void* take_buffer(size_t bytes) { return buffers().take(bytes); }
void give_buffer_back(void* data) { buffers().give_back(data); }
size_t buffer_limit() { return buffers().limit(); }
void set_buffer_limit(size_t bytes) { buffers().set_limit(bytes); }
BufferBytes buffer_bytes() { return buffers().bytes(); }

}  // namespace vaefast
