// Memory for large results, kept for the next one of its size when it is given back.
//
// The system zeroes every page of fresh memory: for a 50 MB gradient that takes as long as half
// of the kernel that writes it, and malloc returns blocks of that size at once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vaefast {

// At least `bytes`, on a page's boundary (from 4 MiB on a huge page's), or null where there is no
// memory.
void* take_buffer(size_t bytes);
void give_buffer_back(void* data);

// How much may lie idle; what is over it is freed. At first VAEFAST_BUFFER_CACHE, in MiB, or 256.
size_t buffer_limit();
void set_buffer_limit(size_t bytes);

struct BufferBytes {
  size_t live, idle;
};
BufferBytes buffer_bytes();

}  // namespace vaefast
