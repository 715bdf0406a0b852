// From Python's plain tuples to the core's arguments, and where a call runs.
//
// An operand is (pointer, dtype, div, mod, row_stride, col_stride, divisor), a result (pointer,
// dtype), a noise state (pointer, per_sample, offset), a shape (rows, cols, segments); None stands
// for what is absent. A kernel's last argument says where it runs: a number of threads, or on a GPU
// (device, stream, workspace, its bytes, ...).
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>

#include "core/dispatch.h"
#include "cuda/kernels.h"

namespace vaefast {
namespace python {

namespace py = pybind11;

template <class T>
T at(const py::tuple& tuple, size_t index) {
  return py::cast<T>(tuple[index]);
}

inline void* memory(uint64_t address) {
  return reinterpret_cast<void*>(static_cast<uintptr_t>(address));
}

inline void* pointer(const py::tuple& tuple) { return memory(at<uint64_t>(tuple, 0)); }

inline View view(const py::object& object) {
  View v;
  if (object.is_none()) return v;
  const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
  v.data = pointer(t);
  v.dtype = static_cast<DType>(at<int>(t, 1));
  v.div = at<int64_t>(t, 2);
  v.mod = at<int64_t>(t, 3);
  v.row_stride = at<int64_t>(t, 4);
  v.col_stride = at<int64_t>(t, 5);
  v.divisor = at<double>(t, 6);
  return v;
}

inline Output output(const py::object& object) {
  Output o;
  if (object.is_none()) return o;
  const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
  o.data = pointer(t);
  o.dtype = static_cast<DType>(at<int>(t, 1));
  return o;
}

inline NoiseState noise_state(const py::object& object) {
  NoiseState s;
  if (object.is_none()) return s;
  const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
  s.words = static_cast<const int64_t*>(pointer(t));
  s.per_sample = at<bool>(t, 1);
  s.offset = at<int64_t>(t, 2);
  return s;
}

inline Shape shape(const py::tuple& t) {
  return {at<int64_t>(t, 0), at<int64_t>(t, 1), at<int64_t>(t, 2)};
}

// A team of threads costs some 5 us: below this many elements each, fewer are faster.
inline int useful_threads(int64_t elements, int threads) {
  constexpr int64_t kElementsPerThread = 16384;
  const int64_t useful = elements / kElementsPerThread;
  return useful < 1 ? 1 : useful < threads ? static_cast<int>(useful) : threads;
}

// Of how many elements a call is; an operator that counts otherwise has its own beside its struct's
// name, in the namespace vaefast.
template <class Args>
void set_threads(Args& args, int threads, int64_t copies = 1) {
  args.threads = useful_threads(args.shape.rows * args.shape.cols * copies, threads);
}

// A pair costs about as much as 8 elements.
inline int useful_pair_threads(int64_t pairs, int64_t dims, int threads) {
  return useful_threads(8 * pairs * dims, threads);
}

// From 4 MiB on a result is written past the caches: csrc/cpu/nontemporal.h has the figures.
inline bool past_caches(int64_t bytes) { return bytes >= int64_t{1} << 22; }

inline int64_t width(DType dtype) {
  return dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : 2;
}

inline void set_nontemporal(Output& out, int64_t elements) {
  out.nontemporal = out && past_caches(elements * width(out.dtype));
}

template <class T = void>
T* address(const py::tuple& tuple, size_t index) {
  return static_cast<T*>(memory(at<uint64_t>(tuple, index)));
}

template <class Args>
struct Kernel {
  void (*on_cpu)(const Args&);
  void (*on_gpu)(const Args&, const cuda::Place&);
};

#if defined(VAEFAST_CUDA)
#define VAEFAST_KERNEL(name) {cpu::name, cuda::name}
#else
#define VAEFAST_KERNEL(name) {cpu::name, nullptr}
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
  const cuda::Place place{at<int>(t, 0), memory(at<uint64_t>(t, 1)), memory(at<uint64_t>(t, 2)),
                          at<int64_t>(t, 3)};
  py::gil_scoped_release release;
  kernel.on_gpu(args, place);
}

}  // namespace python
}  // namespace vaefast
