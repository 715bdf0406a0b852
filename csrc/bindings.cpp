// vaefast._C: what Python sees of the native core. The only source that includes pybind11; the
// headers under python/ are its parts, which vaefast_python.h lists as CMake finds them.
#include <pybind11/pybind11.h>

#include <string>

#include "core/capability.h"
#include "vaefast_build_info.h"
#include "vaefast_python.h"

namespace {

namespace py = pybind11;
using namespace vaefast::python;

py::dict build_info() {
  py::dict info;
  info["version"] = VAEFAST_BUILD_VERSION;
  info["build_type"] = VAEFAST_BUILD_TYPE;
  info["compiler"] = VAEFAST_BUILD_COMPILER;
  info["flags"] = VAEFAST_BUILD_FLAGS;
  info["isas"] = py::str(VAEFAST_BUILD_ISAS).attr("split")();
  info["openmp"] = VAEFAST_BUILD_OPENMP != 0;
  info["cuda"] = sizeof VAEFAST_BUILD_CUDA_VERSION > 1;
  info["cuda_version"] = VAEFAST_BUILD_CUDA_VERSION;
  info["cuda_archs"] = py::str(VAEFAST_BUILD_CUDA_ARCHS).attr("split")();
  return info;
}

py::tuple kernels() {
  py::list names;
#define VAEFAST_NAME(name, Args) names.append(#name);
  VAEFAST_GPU_KERNELS(VAEFAST_NAME)
#undef VAEFAST_NAME
  return py::tuple(names);
}

py::dict forms() {
  py::dict found;
  for (int i = 0; vaefast::kForms[i] != nullptr; ++i) found[vaefast::kForms[i]] = i;
  return found;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("build_info", &build_info, "What this build is made of, as a dict.");
  module.def("kernels", &kernels, "The kernels that a GPU has, by name.");
  module.def("forms", &forms, "The likelihood forms that `nll` knows and their numbers.");
  module.def(
      "cpu_capability", [] { return vaefast::capability_name(vaefast::cpu_capability()); },
      "The instruction set that the kernels run with: default, avx2 or avx512.");
  module.def("set_cpu_capability", &vaefast::set_cpu_capability, py::arg("name"),
             "Overrides the instruction set for the whole process; for tests.");
  module.def(
      "available_capabilities",
      [] {
        py::list names;
        for (vaefast::Capability c : vaefast::available_capabilities())
          names.append(vaefast::capability_name(c));
        return names;
      },
      "The instruction sets that this build holds and this CPU has.");
  module.def(
      "advise_huge_pages",
      [](uint64_t data, int64_t bytes) { vaefast::advise_huge_pages(memory(data), bytes); },
      "Asks for huge pages under a large fresh result, before it is written.");
#if defined(VAEFAST_CUDA)
  module.def(
      "workspace",
      [](const py::tuple& grid, int reduce, bool scalar_grad, int64_t target_rows) {
        return vaefast::cuda::workspace(shape(grid), static_cast<vaefast::Reduce>(reduce),
                                        scalar_grad, target_rows);
      },
      "Bytes that a call on a GPU takes for its partial sums.");
#endif
  for (const Bind bind : bindings()) bind(module);
}
