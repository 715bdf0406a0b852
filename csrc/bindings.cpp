// vaefast._C: what Python sees of the native core. The only source that includes pybind11; the
// headers under python/ are its parts.
#include <pybind11/pybind11.h>

#include <string>

#include "core/capability.h"
#include "python/grid_ops.h"
#include "python/pairs.h"
#include "python/prepared.h"
#include "python/rows.h"
#include "vaefast_build_info.h"

namespace {

namespace py = pybind11;
using namespace vaefast::python;

#if defined(VAEFAST_CUDA)
// Bytes that a call on a GPU takes for its partial sums, from the call's arguments but the last.
template <auto size, class Args, class... Given>
void def_workspace(py::module_& module, const char* name, Args (*read)(Given...)) {
  module.def(name, [read](Given... given) { return size(read(given...)); });
}
#endif

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

py::dict forms() {
  py::dict found;
  for (int i = 0; vaefast::kForms[i] != nullptr; ++i) found[vaefast::kForms[i]] = i;
  return found;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("build_info", &build_info, "What this build is made of, as a dict.");
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
  def_workspace<&vaefast::cuda::row_workspace>(module, "row_workspace", &row_nll_args);
  def_workspace<&vaefast::cuda::mmd_workspace>(module, "mmd_workspace", &mmd_args);
  def_workspace<&vaefast::cuda::mixture_log_prob_workspace>(module, "mixture_log_prob_workspace",
                                                            &gaussian_mixture_forward_args);
  def_workspace<&vaefast::cuda::mixture_log_prob_backward_workspace>(
      module, "mixture_log_prob_backward_workspace", &gaussian_mixture_backward_args);
  def_workspace<&vaefast::cuda::tc_terms_workspace>(module, "tc_terms_workspace",
                                                    &gaussian_mixture_forward_args);
  def_workspace<&vaefast::cuda::tc_terms_backward_workspace>(module, "tc_terms_backward_workspace",
                                                             &gaussian_mixture_backward_args);
#endif
  module.def("prepare_sample_kl", &prepare_sample_kl);
  module.def("sample_monte_carlo_kl", &sample_monte_carlo_kl);
  module.def("sample_monte_carlo_kl_backward", &sample_monte_carlo_kl_backward);
  module.def("monte_carlo_kl", &monte_carlo_kl);
  module.def("monte_carlo_kl_backward", &monte_carlo_kl_backward);
  module.def("prepare_nll", &prepare_nll);
  module.def("noise", &noise);
  module.def("scale", &scale);
  module.def("mixture_log_prob", &gaussian_mixture_forward<kMixtureLogProb>);
  module.def("mixture_log_prob_backward", &gaussian_mixture_backward<kMixtureLogProbBackward>);
  module.def("tc_terms", &gaussian_mixture_forward<kTcTerms>);
  module.def("tc_terms_backward", &gaussian_mixture_backward<kTcTermsBackward>);
  module.def("mmd", &mmd);
  module.def("row_nll", &row_nll);
}
