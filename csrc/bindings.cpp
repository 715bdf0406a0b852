// vaefast._C: what Python sees of the native core. The only file that includes pybind11.
//
// A kernel takes plain tuples: an operand is (pointer, dtype, div, mod, row_stride, col_stride,
// divisor), a result (pointer, dtype), a stream (pointer, per_sample, offset), a shape
// (rows, cols, segments); None stands for what is absent. The last argument says where the call
// runs: a number of threads, or on a GPU (device, stream, workspace, its bytes, ...).
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "core/buffers.h"
#include "core/capability.h"
#include "core/dispatch.h"
#include "core/dlpack.h"
#include "cuda/kernels.h"
#include "vaefast_build_info.h"

namespace py = pybind11;

namespace {

using vaefast::EstimatedKlArgs;
using vaefast::LogRatioArgs;
using vaefast::MixtureArgs;
using vaefast::MmdArgs;
using vaefast::NllArgs;
using vaefast::NoiseArgs;
using vaefast::Output;
using vaefast::SampleKlArgs;
using vaefast::ScaleArgs;
using vaefast::Shape;
using vaefast::Stream;
using vaefast::View;

template <class T>
T at(const py::tuple& tuple, size_t index) {
  return py::cast<T>(tuple[index]);
}

void* pointer(const py::tuple& tuple) {
  return reinterpret_cast<void*>(static_cast<uintptr_t>(at<uint64_t>(tuple, 0)));
}

View view(const py::object& object) {
  View v;
  if (object.is_none()) return v;
  const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
  v.data = pointer(t);
  v.dtype = static_cast<vaefast::DType>(at<int>(t, 1));
  v.div = at<int64_t>(t, 2);
  v.mod = at<int64_t>(t, 3);
  v.row_stride = at<int64_t>(t, 4);
  v.col_stride = at<int64_t>(t, 5);
  v.divisor = at<double>(t, 6);
  return v;
}

Output output(const py::object& object) {
  Output o;
  if (object.is_none()) return o;
  const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
  o.data = pointer(t);
  o.dtype = static_cast<vaefast::DType>(at<int>(t, 1));
  return o;
}

Stream stream(const py::object& object) {
  Stream s;
  if (object.is_none()) return s;
  const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
  s.state = static_cast<const int64_t*>(pointer(t));
  s.per_sample = at<bool>(t, 1);
  s.offset = at<int64_t>(t, 2);
  return s;
}

Shape shape(const py::tuple& t) {
  return {at<int64_t>(t, 0), at<int64_t>(t, 1), at<int64_t>(t, 2)};
}

// A team of threads costs some 5 us: below this many elements each, fewer are faster.
int useful_threads(int64_t elements, int threads) {
  constexpr int64_t kElementsPerThread = 16384;
  const int64_t useful = elements / kElementsPerThread;
  return useful < 1 ? 1 : useful < threads ? static_cast<int>(useful) : threads;
}

template <class Args>
void set_threads(Args& args, int threads, int64_t copies = 1) {
  args.threads = useful_threads(args.shape.rows * args.shape.cols * copies, threads);
}

void set_threads(vaefast::RowNllArgs& args, int threads, int64_t) {
  args.threads = useful_threads(args.rows * args.classes * args.inner, threads);
}

void set_threads(LogRatioArgs& args, int threads, int64_t copies) {
  set_threads(args.q, threads, copies);
}

void set_threads(EstimatedKlArgs& args, int threads, int64_t copies) {
  set_threads(args.q, threads, copies);
}

// A pair costs about as much as 8 elements.
int useful_pair_threads(int64_t pairs, int64_t dims, int threads) {
  return useful_threads(8 * pairs * dims, threads);
}

void set_threads(MmdArgs& args, int threads, int64_t) {
  const int64_t points = args.x_points + args.y_points;
  args.threads = useful_pair_threads(points * points / 2, args.dims, threads);
}

void set_threads(MixtureArgs& args, int threads, int64_t) {
  args.threads = useful_pair_threads(args.points * args.components, args.dims, threads);
}

// From 4 MiB on a result is written past the caches: csrc/cpu/stream.h has the figures.
bool streams(int64_t bytes) { return bytes >= int64_t{1} << 22; }

void set_stream(Output& out, int64_t elements) {
  const int64_t width = out.dtype == vaefast::DType::kF64   ? 8
                        : out.dtype == vaefast::DType::kF32 ? 4
                                                            : 2;
  out.stream = out && streams(elements * width);
}

template <class Args>
struct Kernel {
  void (*on_cpu)(const Args&);
  void (*on_gpu)(const Args&, const vaefast::cuda::Place&);
};

#if defined(VAEFAST_CUDA)
#define VAEFAST_KERNEL(name) {vaefast::cpu::name, vaefast::cuda::name}
#else
#define VAEFAST_KERNEL(name) {vaefast::cpu::name, nullptr}
#endif

template <class Args>
void run(const Kernel<Args>& kernel, Args& args, const py::object& where, int64_t copies = 1) {
  if (PyLong_Check(where.ptr())) {
    set_threads(args, py::cast<int>(where), copies);
    py::gil_scoped_release release;
    kernel.on_cpu(args);
    return;
  }
  if (kernel.on_gpu == nullptr) throw std::runtime_error("vaefast._C was built without CUDA");
  const py::tuple t = py::reinterpret_borrow<py::tuple>(where);
  const vaefast::cuda::Place place{
      at<int>(t, 0), reinterpret_cast<void*>(static_cast<uintptr_t>(at<uint64_t>(t, 1))),
      reinterpret_cast<void*>(static_cast<uintptr_t>(at<uint64_t>(t, 2))), at<int64_t>(t, 3)};
  py::gil_scoped_release release;
  kernel.on_gpu(args, place);
}

// operands: mu, scale, prior_mu, prior_scale, mask, weight, noise.
// settings: param, min_std, clamp (0 none, 1 hard, 2 soft), low, high, samples, temperature,
// reduce, factor, wide.
SampleKlArgs sample_kl_args(const py::tuple& grid, const py::tuple& operands,
                            const py::object& state, const py::tuple& settings) {
  SampleKlArgs a;
  a.shape = shape(grid);
  View* const views[] = {&a.mu,   &a.scale,  &a.prior_mu, &a.prior_scale,
                         &a.mask, &a.weight, &a.noise};
  for (size_t i = 0; i < 7; ++i) *views[i] = view(operands[i]);
  a.stream = stream(state);
  a.param = static_cast<vaefast::Param>(at<int>(settings, 0));
  a.min_std = at<double>(settings, 1);
  a.clamp = static_cast<vaefast::Clamp>(at<int>(settings, 2));
  a.low = at<double>(settings, 3);
  a.high = at<double>(settings, 4);
  a.samples = at<int64_t>(settings, 5);
  a.temperature = at<double>(settings, 6);
  a.reduce = static_cast<vaefast::Reduce>(at<int>(settings, 7));
  a.factor = at<double>(settings, 8);
  a.wide = at<bool>(settings, 9);
  return a;
}

void sample_kl(const py::tuple& grid, const py::tuple& operands, const py::object& state,
               const py::tuple& settings, const py::object& z, uint64_t kl, uint64_t kept,
               const py::object& where) {
  SampleKlArgs a = sample_kl_args(grid, operands, state, settings);
  a.kept = reinterpret_cast<void*>(static_cast<uintptr_t>(kept));
  a.z = output(z);
  a.kl = reinterpret_cast<void*>(static_cast<uintptr_t>(kl));
  const int64_t elements = a.shape.rows * a.shape.cols;
  set_stream(a.z, elements * (a.samples > 1 ? a.samples : 1));
  a.stream_kept = streams(elements * (a.wide ? 8 : 4));
  run<SampleKlArgs>(VAEFAST_KERNEL(sample_kl), a, where, a.samples > 1 ? a.samples : 1);
}

// A third number makes it sums over what the parameter broadcasts to.
void prior_output(const py::object& value, Output& grad, double*& sums, int64_t& size) {
  if (value.is_none()) return;
  const auto given = py::reinterpret_borrow<py::tuple>(value);
  if (given.size() == 2) {
    grad = output(given);
    return;
  }
  sums = reinterpret_cast<double*>(static_cast<uintptr_t>(at<uint64_t>(given, 0)));
  size = at<int64_t>(given, 2);
}

void sample_kl_backward(const py::tuple& grid, const py::tuple& operands, const py::object& state,
                        const py::tuple& settings, const py::object& grad_z,
                        const py::object& grad_kl, uint64_t kept, const py::tuple& grads,
                        const py::object& where) {
  SampleKlArgs a = sample_kl_args(grid, operands, state, settings);
  a.kept = reinterpret_cast<void*>(static_cast<uintptr_t>(kept));
  a.grad_z = view(grad_z);
  a.grad_kl = view(grad_kl);
  a.grad_mu = output(grads[0]);
  a.grad_scale = output(grads[1]);
  prior_output(grads[2], a.grad_prior_mu, a.sum_prior_mu, a.prior_mu_size);
  prior_output(grads[3], a.grad_prior_scale, a.sum_prior_scale, a.prior_scale_size);
  const int64_t elements = a.shape.rows * a.shape.cols;
  for (Output* grad : {&a.grad_mu, &a.grad_scale, &a.grad_prior_mu, &a.grad_prior_scale})
    set_stream(*grad, elements);
  // What was just read lies in the cache.
  if (a.grad_scale.data == a.kept) a.grad_scale.stream = false;
  run<SampleKlArgs>(VAEFAST_KERNEL(sample_kl_backward), a, where, a.samples > 1 ? a.samples : 1);
}

// kl: [samples, posteriors].
void estimated_kl(const py::tuple& grid, const py::tuple& operands, const py::object& state,
                  const py::tuple& settings, const py::object& z, uint64_t kl,
                  const py::object& where) {
  EstimatedKlArgs a;
  a.q = sample_kl_args(grid, operands, state, settings);
  a.q.z = output(z);
  a.q.kl = reinterpret_cast<void*>(static_cast<uintptr_t>(kl));
  set_stream(a.q.z, a.q.shape.rows * a.q.shape.cols * a.q.samples);
  run<EstimatedKlArgs>(VAEFAST_KERNEL(estimated_kl), a, where, a.q.samples);
}

void estimated_kl_backward(const py::tuple& grid, const py::tuple& operands,
                           const py::object& state, const py::tuple& settings, bool stop_posterior,
                           const py::object& grad_z, const py::object& grad_kl,
                           const py::tuple& grads, const py::object& where) {
  EstimatedKlArgs a;
  a.q = sample_kl_args(grid, operands, state, settings);
  a.stop_posterior = stop_posterior;
  a.q.grad_z = view(grad_z);
  a.q.grad_kl = view(grad_kl);
  a.q.grad_mu = output(grads[0]);
  a.q.grad_scale = output(grads[1]);
  a.q.grad_prior_mu = output(grads[2]);
  a.q.grad_prior_scale = output(grads[3]);
  run<EstimatedKlArgs>(VAEFAST_KERNEL(estimated_kl_backward), a, where, a.q.samples);
}

// The operands' noise is None; settings as for sample_kl.
LogRatioArgs log_ratio_args(const py::tuple& grid, const py::tuple& operands, const py::object& z,
                            const py::tuple& settings, bool prior) {
  LogRatioArgs a;
  a.q = sample_kl_args(grid, operands, py::none(), settings);
  a.prior = prior;
  a.z = view(z);
  return a;
}

void log_ratio(const py::tuple& grid, const py::tuple& operands, const py::object& z,
               const py::tuple& settings, bool prior, uint64_t value, const py::object& where) {
  LogRatioArgs a = log_ratio_args(grid, operands, z, settings, prior);
  a.value = reinterpret_cast<void*>(static_cast<uintptr_t>(value));
  run<LogRatioArgs>(VAEFAST_KERNEL(log_ratio), a, where, a.q.samples);
}

void log_ratio_backward(const py::tuple& grid, const py::tuple& operands, const py::object& z,
                        const py::tuple& settings, bool prior, const py::object& upstream,
                        const py::tuple& grads, const py::object& where) {
  LogRatioArgs a = log_ratio_args(grid, operands, z, settings, prior);
  a.upstream = view(upstream);
  a.grad_z = output(grads[0]);
  a.q.grad_mu = output(grads[1]);
  a.q.grad_scale = output(grads[2]);
  a.q.grad_prior_mu = output(grads[3]);
  a.q.grad_prior_scale = output(grads[4]);
  run<LogRatioArgs>(VAEFAST_KERNEL(log_ratio_backward), a, where, a.q.samples);
}

// settings: form, numbers, scalar, target_rows, reduce, factor, grad_factor, wide.
void nll(const py::tuple& grid, const py::tuple& params, const py::object& target,
         const py::object& mask, const py::object& weight, const py::object& state,
         const py::tuple& settings, uint64_t loss, const py::tuple& grads, const py::object& where,
         uint64_t row_starts, uint64_t columns) {
  NllArgs a;
  a.shape = shape(grid);
  if (params.size() > vaefast::kMaxParams) throw py::value_error("too many parameters");
  for (size_t j = 0; j < params.size(); ++j) {
    a.params[j] = view(params[j]);
    a.grads[j] = output(grads[j]);
  }
  a.target = view(target);
  a.mask = view(mask);
  a.weight = view(weight);
  a.row_starts = reinterpret_cast<const int64_t*>(static_cast<uintptr_t>(row_starts));
  a.columns = reinterpret_cast<const int64_t*>(static_cast<uintptr_t>(columns));
  a.stream = stream(state);
  a.form = at<int>(settings, 0);
  const py::tuple numbers = py::reinterpret_borrow<py::tuple>(settings[1]);
  if (numbers.size() > sizeof a.numbers / sizeof a.numbers[0])
    throw py::value_error("too many numbers");
  for (size_t i = 0; i < numbers.size(); ++i) a.numbers[i] = at<double>(numbers, i);
  a.scalar = at<int>(settings, 2);
  a.target_rows = at<int64_t>(settings, 3);
  a.reduce = static_cast<vaefast::Reduce>(at<int>(settings, 4));
  a.factor = at<double>(settings, 5);
  a.grad_factor = at<double>(settings, 6);
  a.wide = at<bool>(settings, 7);
  a.loss = reinterpret_cast<void*>(static_cast<uintptr_t>(loss));
  for (Output& grad : a.grads) set_stream(grad, a.shape.rows * a.shape.cols);
  run<NllArgs>(VAEFAST_KERNEL(nll), a, where);
}

void noise(const py::tuple& grid, const py::object& state, bool normal, uint32_t purpose,
           const py::object& out, const py::object& where) {
  NoiseArgs a;
  a.shape = shape(grid);
  a.stream = stream(state);
  a.normal = normal;
  a.purpose = purpose;
  a.out = output(out);
  set_stream(a.out, a.shape.rows * a.shape.cols);
  run<NoiseArgs>(VAEFAST_KERNEL(noise), a, where);
}

void scale(const py::tuple& grid, const py::object& grad, const py::object& upstream, double factor,
           const py::object& where) {
  ScaleArgs a;
  a.shape = shape(grid);
  a.grad = output(grad);
  a.upstream = view(upstream);
  a.factor = factor;
  run<ScaleArgs>(VAEFAST_KERNEL(scale), a, where);
}

template <class T = void>
T* address(const py::tuple& tuple, size_t index) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(at<uint64_t>(tuple, index)));
}

// sizes: points, components, dims; inputs: z, mu, logvar, log_weights;
// weighing: log_weight, first, own, stratum; saved: joint, marginals. Addresses, 0 for none.
MixtureArgs mixture_args(const py::tuple& sizes, const py::tuple& inputs, const py::tuple& weighing,
                         const py::tuple& saved, bool wide) {
  MixtureArgs a;
  a.points = at<int64_t>(sizes, 0);
  a.components = at<int64_t>(sizes, 1);
  a.dims = at<int64_t>(sizes, 2);
  a.z = address(inputs, 0);
  a.mu = address(inputs, 1);
  a.logvar = address(inputs, 2);
  a.log_weights = address(inputs, 3);
  a.log_weight = at<double>(weighing, 0);
  a.first = at<int64_t>(weighing, 1);
  a.own = at<double>(weighing, 2);
  a.stratum = at<double>(weighing, 3);
  a.joint = address<double>(saved, 0);
  a.marginals = address(saved, 1);
  a.wide = wide;
  return a;
}

MixtureArgs mixture_forward_args(const py::tuple& sizes, const py::tuple& inputs,
                                 const py::tuple& weighing, const py::tuple& saved, uint64_t values,
                                 bool wide) {
  MixtureArgs a = mixture_args(sizes, inputs, weighing, saved, wide);
  a.values = reinterpret_cast<void*>(static_cast<uintptr_t>(values));
  return a;
}

// grads: of z, mu, logvar and log_weights.
MixtureArgs mixture_backward_args(const py::tuple& sizes, const py::tuple& inputs,
                                  const py::tuple& weighing, const py::tuple& saved,
                                  uint64_t upstream, const py::tuple& grads, bool wide) {
  MixtureArgs a = mixture_args(sizes, inputs, weighing, saved, wide);
  a.upstream = reinterpret_cast<const void*>(static_cast<uintptr_t>(upstream));
  a.grad_z = address(grads, 0);
  a.grad_mu = address(grads, 1);
  a.grad_logvar = address(grads, 2);
  a.grad_log_weights = address(grads, 3);
  return a;
}

constexpr Kernel<MixtureArgs> kMixture = VAEFAST_KERNEL(mixture_log_prob);
constexpr Kernel<MixtureArgs> kMixtureBackward = VAEFAST_KERNEL(mixture_log_prob_backward);
constexpr Kernel<MixtureArgs> kTcTerms = VAEFAST_KERNEL(tc_terms);
constexpr Kernel<MixtureArgs> kTcTermsBackward = VAEFAST_KERNEL(tc_terms_backward);

template <const Kernel<MixtureArgs>& kernel>
void mixture_forward(const py::tuple& sizes, const py::tuple& inputs, const py::tuple& weighing,
                     const py::tuple& saved, uint64_t values, bool wide, const py::object& where) {
  MixtureArgs a = mixture_forward_args(sizes, inputs, weighing, saved, values, wide);
  run<MixtureArgs>(kernel, a, where);
}

template <const Kernel<MixtureArgs>& kernel>
void mixture_backward(const py::tuple& sizes, const py::tuple& inputs, const py::tuple& weighing,
                      const py::tuple& saved, uint64_t upstream, const py::tuple& grads, bool wide,
                      const py::object& where) {
  MixtureArgs a = mixture_backward_args(sizes, inputs, weighing, saved, upstream, grads, wide);
  run<MixtureArgs>(kernel, a, where);
}

// sizes: x's points, y's points, dims; inputs: x, y; factors: xx, yy, xy, constant;
// results: value, grad_x, grad_y. Addresses, 0 for none.
MmdArgs mmd_args(const py::tuple& sizes, const py::tuple& inputs, bool rbf, const py::tuple& scales,
                 const py::tuple& factors, const py::tuple& results, bool wide) {
  MmdArgs a;
  a.x_points = at<int64_t>(sizes, 0);
  a.y_points = at<int64_t>(sizes, 1);
  a.dims = at<int64_t>(sizes, 2);
  a.x = address(inputs, 0);
  a.y = address(inputs, 1);
  a.rbf = rbf;
  if (scales.size() > vaefast::kMaxScales) throw py::value_error("too many scales");
  a.scales = static_cast<int>(scales.size());
  for (size_t i = 0; i < scales.size(); ++i) a.scale[i] = at<double>(scales, i);
  a.factor_xx = at<double>(factors, 0);
  a.factor_yy = at<double>(factors, 1);
  a.factor_xy = at<double>(factors, 2);
  a.constant = at<double>(factors, 3);
  a.value = address(results, 0);
  a.grad_x = address(results, 1);
  a.grad_y = address(results, 2);
  a.wide = wide;
  return a;
}

void mmd(const py::tuple& sizes, const py::tuple& inputs, bool rbf, const py::tuple& scales,
         const py::tuple& factors, const py::tuple& results, bool wide, const py::object& where) {
  MmdArgs a = mmd_args(sizes, inputs, rbf, scales, factors, results, wide);
  run<MmdArgs>(VAEFAST_KERNEL(mmd), a, where);
}

// geometry: rows, classes, inner, segments, row_stride, class_stride, target_rows.
// target: pointer, dtype, row_starts, columns (0: not sparse), stored values. over: mask, weight
// (0: absent). settings: form, numbers, reduce, factor, grad_factor, wide.
vaefast::RowNllArgs row_nll_args(const py::tuple& geometry, const py::tuple& params,
                                 const py::tuple& target, const py::tuple& over,
                                 const py::tuple& settings, uint64_t loss, const py::object& grad) {
  vaefast::RowNllArgs a;
  a.rows = at<int64_t>(geometry, 0);
  a.classes = at<int64_t>(geometry, 1);
  a.inner = at<int64_t>(geometry, 2);
  a.segments = at<int64_t>(geometry, 3);
  a.row_stride = at<int64_t>(geometry, 4);
  a.class_stride = at<int64_t>(geometry, 5);
  a.target_rows = at<int64_t>(geometry, 6);
  a.params = pointer(params);
  a.dtype = static_cast<vaefast::DType>(at<int>(params, 1));
  a.target = pointer(target);
  a.target_dtype = static_cast<vaefast::DType>(at<int>(target, 1));
  a.row_starts = reinterpret_cast<const int64_t*>(static_cast<uintptr_t>(at<uint64_t>(target, 2)));
  a.columns = reinterpret_cast<const int64_t*>(static_cast<uintptr_t>(at<uint64_t>(target, 3)));
  a.stored = at<int64_t>(target, 4);
  a.mask = reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(at<uint64_t>(over, 0)));
  a.weight = reinterpret_cast<const void*>(static_cast<uintptr_t>(at<uint64_t>(over, 1)));
  a.form = static_cast<vaefast::RowForm>(at<int>(settings, 0));
  const py::tuple numbers = py::reinterpret_borrow<py::tuple>(settings[1]);
  if (numbers.size() > sizeof a.numbers / sizeof a.numbers[0])
    throw py::value_error("too many numbers");
  for (size_t i = 0; i < numbers.size(); ++i) a.numbers[i] = at<double>(numbers, i);
  a.reduce = static_cast<vaefast::Reduce>(at<int>(settings, 2));
  a.factor = at<double>(settings, 3);
  a.grad_factor = at<double>(settings, 4);
  a.wide = at<bool>(settings, 5);
  a.loss = reinterpret_cast<void*>(static_cast<uintptr_t>(loss));
  a.grad = output(grad);
  if (a.grad.data != a.params) set_stream(a.grad, a.rows * a.classes * a.inner);
  return a;
}

void row_nll_on_cpu(const vaefast::RowNllArgs& a) {
  if (a.form == vaefast::RowForm::kLogisticMixture) {
    vaefast::cpu::mixture_nll(a);
  } else {
    vaefast::cpu::softmax_nll(a);
  }
}

void row_nll(const py::tuple& geometry, const py::tuple& params, const py::tuple& target,
             const py::tuple& over, const py::tuple& settings, uint64_t loss,
             const py::object& grad, const py::object& where) {
  vaefast::RowNllArgs a = row_nll_args(geometry, params, target, over, settings, loss, grad);
  Kernel<vaefast::RowNllArgs> kernel = {row_nll_on_cpu, nullptr};
#if defined(VAEFAST_CUDA)
  kernel.on_gpu = vaefast::cuda::row_nll;
#endif
  run<vaefast::RowNllArgs>(kernel, a, where);
}

#if defined(VAEFAST_CUDA)
// Bytes that a call on a GPU takes for its partial sums, from the call's arguments but the last.
template <auto size, class Args, class... Given>
void def_workspace(py::module_& module, const char* name, Args (*read)(Given...)) {
  module.def(name, [read](Given... given) { return size(read(given...)); });
}
#endif

// A DLPack capsule over memory that returns to the core's cache with the last tensor on it; None
// where there is no memory.
py::object buffer(const py::tuple& shape, int dtype) {
  std::vector<int64_t> sizes;
  for (const py::handle size : shape) sizes.push_back(py::cast<int64_t>(size));
  void* const tensor = vaefast::new_dlpack(sizes, static_cast<vaefast::DType>(dtype));
  if (tensor == nullptr) return py::none();
  // Whoever takes the tensor over renames the capsule.
  PyObject* const capsule = PyCapsule_New(tensor, "dltensor", [](PyObject* self) {
    if (PyCapsule_IsValid(self, "dltensor"))
      vaefast::delete_dlpack(PyCapsule_GetPointer(self, "dltensor"));
  });
  if (capsule != nullptr) return py::reinterpret_steal<py::object>(capsule);
  vaefast::delete_dlpack(tensor);
  throw py::error_already_set();
}

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
      [](uint64_t data, int64_t bytes) {
        vaefast::advise_huge_pages(reinterpret_cast<void*>(static_cast<uintptr_t>(data)), bytes);
      },
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
                                                            &mixture_forward_args);
  def_workspace<&vaefast::cuda::mixture_log_prob_backward_workspace>(
      module, "mixture_log_prob_backward_workspace", &mixture_backward_args);
  def_workspace<&vaefast::cuda::tc_terms_workspace>(module, "tc_terms_workspace",
                                                    &mixture_forward_args);
  def_workspace<&vaefast::cuda::tc_terms_backward_workspace>(module, "tc_terms_backward_workspace",
                                                             &mixture_backward_args);
#endif
  module.def("buffer", &buffer);
  module.def("buffer_limit", &vaefast::buffer_limit);
  module.def("set_buffer_limit", &vaefast::set_buffer_limit);
  module.def("buffer_bytes", [] {
    const vaefast::BufferBytes bytes = vaefast::buffer_bytes();
    return py::make_tuple(bytes.live, bytes.idle);
  });
  module.def("sample_kl", &sample_kl);
  module.def("sample_kl_backward", &sample_kl_backward);
  module.def("estimated_kl", &estimated_kl);
  module.def("estimated_kl_backward", &estimated_kl_backward);
  module.def("log_ratio", &log_ratio);
  module.def("log_ratio_backward", &log_ratio_backward);
  module.def("nll", &nll, py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
             py::arg(), py::arg(), py::arg(), py::arg(), py::arg("row_starts") = 0,
             py::arg("columns") = 0);
  module.def("noise", &noise);
  module.def("scale", &scale);
  module.def("mixture_log_prob", &mixture_forward<kMixture>);
  module.def("mixture_log_prob_backward", &mixture_backward<kMixtureBackward>);
  module.def("tc_terms", &mixture_forward<kTcTerms>);
  module.def("tc_terms_backward", &mixture_backward<kTcTermsBackward>);
  module.def("mmd", &mmd);
  module.def("row_nll", &row_nll);
}
