// The CPU kernels, by the instruction set that runs.
#pragma once

#include "core/kernels.h"

namespace vaefast {
namespace cpu {

// Each throws std::bad_alloc where scratch memory is not to be had; the results are then not set.
#define VAEFAST_DECLARE(name, Args) void name(const Args& args);
VAEFAST_CPU_KERNELS(VAEFAST_DECLARE)
#undef VAEFAST_DECLARE

}  // namespace cpu

// The forms that `nll` knows, in the order of their numbers; ends with nullptr.
extern const char* const kForms[];

// Asks for huge pages where a large fresh result begins: most of the time of a large operator is
// page faults (a 50 MB product: 13.1 ms into fresh memory, 3.0 ms with huge pages).
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace vaefast
