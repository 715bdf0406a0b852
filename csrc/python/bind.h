// What an operator adds to vaefast._C. bindings.cpp includes every header that lies here, and each
// says what is in it by VAEFAST_BIND.
#pragma once

#include <vector>

#include "python/unpack.h"

namespace vaefast {
namespace python {

using Bind = void (*)(py::module_&);

inline std::vector<Bind>& bindings() {
  static std::vector<Bind> all;
  return all;
}

#define VAEFAST_BIND(op)                      \
  inline void bind_##op(py::module_& module); \
  inline const bool bound_##op = [] {         \
    bindings().push_back(&bind_##op);         \
    return true;                              \
  }();                                        \
  inline void bind_##op([[maybe_unused]] py::module_& module)

// Bytes that a kernel's call on a GPU takes for its partial sums, from the call's arguments but the
// last, which `read` makes of them.
#if defined(VAEFAST_CUDA)
template <auto size, class Args, class... Given>
void def_workspace(py::module_& module, const char* name, Args (*read)(Given...)) {
  module.def(name, [read](Given... given) { return size(read(given...)); });
}

#define VAEFAST_BIND_WORKSPACE(kernel, read) \
  def_workspace<&cuda::kernel##_workspace>(module, #kernel "_workspace", &read)
#else
#define VAEFAST_BIND_WORKSPACE(kernel, read) static_cast<void>(&read)
#endif

}  // namespace python
}  // namespace vaefast
