// Small calls on the CPU, made ready once: all but their addresses, 0 for what is absent. Every
// operand is dense but for its row stride, and is of one type, as are the results.
#pragma once

#include "python/grid_ops.h"

namespace vaefast {
namespace python {

class SmallSampleKl {
 public:
  SmallSampleKl(const py::tuple& grid, const py::tuple& operands, int64_t offset,
                const py::tuple& settings)
      : args_(sample_kl_args(grid, operands, py::none(), settings)) {
    args_.stream.offset = offset;
    args_.z.dtype = args_.grad_mu.dtype = args_.grad_scale.dtype = args_.mu.dtype;
    const Shape& shape = args_.shape;
    each_ = args_.grad_z = {nullptr, args_.mu.dtype, 1, shape.rows, shape.cols, 1, 1.0};
    args_.grad_kl = {nullptr, args_.mu.dtype, shape.segments, shape.rows / shape.segments, 0, 0,
                     1.0};
  }

  // Of a state that is `drawn` the second number is still to become 0.
  void forward(uint64_t mu, uint64_t scale, uint64_t state, bool drawn, uint64_t z, uint64_t kl,
               uint64_t kept, int threads) const {
    SampleKlArgs a = args_;
    if (drawn) static_cast<int64_t*>(memory(state))[1] = 0;
    a.mu.data = memory(mu);
    a.scale.data = memory(scale);
    a.stream.state = static_cast<const int64_t*>(memory(state));
    a.z.data = memory(z);
    a.kl = memory(kl);
    a.kept = memory(kept);
    set_threads(a, threads);
    const py::gil_scoped_release release;
    cpu::sample_kl(a);
  }

  // z_step: from one element of grad_z to the next, 1 or 0. kl_step: from one sample's upstream
  // gradient of the KL to the next one's, unless `kl_each` element has its own, densely.
  void backward(uint64_t mu, uint64_t scale, uint64_t grad_z, int64_t z_step, uint64_t grad_kl,
                int64_t kl_step, bool kl_each, uint64_t kept, uint64_t grad_mu, uint64_t grad_scale,
                int threads) const {
    SampleKlArgs a = args_;
    a.mu.data = memory(mu);
    a.scale.data = memory(scale);
    a.grad_z.data = memory(grad_z);
    a.grad_z.row_stride *= z_step;
    a.grad_z.col_stride = z_step;
    if (kl_each)
      a.grad_kl = each_;
    else
      a.grad_kl.row_stride = kl_step;
    a.grad_kl.data = memory(grad_kl);
    a.kept = memory(kept);
    a.grad_mu.data = memory(grad_mu);
    a.grad_scale.data = memory(grad_scale);
    set_threads(a, threads);
    const py::gil_scoped_release release;
    cpu::sample_kl_backward(a);
  }

 private:
  SampleKlArgs args_;
  View each_;
};

class SmallNll {
 public:
  SmallNll(const py::tuple& grid, const py::tuple& params, const py::object& target,
           const py::tuple& settings)
      : args_(nll_args(grid, params, target, settings)) {
    for (int j = 0; j < kMaxParams; ++j) args_.grads[j].dtype = args_.params[j].dtype;
  }

  void run(int threads, uint64_t loss, uint64_t target, uint64_t param0, uint64_t grad0,
           uint64_t param1, uint64_t grad1, uint64_t param2, uint64_t grad2) const {
    NllArgs a = args_;
    a.loss = memory(loss);
    a.target.data = memory(target);
    const uint64_t params[] = {param0, param1, param2}, grads[] = {grad0, grad1, grad2};
    for (int j = 0; j < kMaxParams; ++j) {
      a.params[j].data = memory(params[j]);
      a.grads[j].data = memory(grads[j]);
    }
    set_threads(a, threads);
    const py::gil_scoped_release release;
    cpu::nll(a);
  }

 private:
  NllArgs args_;
};

}  // namespace python
}  // namespace vaefast
