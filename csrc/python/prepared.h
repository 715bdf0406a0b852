// Calls made ready but for their tensors and where they run, as functions of Python's. What such a
// function takes are tensors themselves, None for an absent one: that is fewer bytecodes, of which
// a small call is half made, than to ask each for its address first.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

#include "python/bind.h"

namespace vaefast {
namespace python {

// An absent tensor's and an empty one's is null. That of one with elements can be too: a storage
// may have been resized to nothing.
inline void* data_of(PyObject* tensor) {
  static PyObject* const name = PyUnicode_InternFromString("data_ptr");
  if (tensor == Py_None) return nullptr;
  PyObject* const found = PyObject_CallMethodNoArgs(tensor, name);
  if (found == nullptr) throw py::error_already_set();
  void* const data = PyLong_AsVoidPtr(found);
  Py_DECREF(found);
  if (data == nullptr) {
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    const py::handle given(tensor);
    if (given.attr("numel")().cast<int64_t>() > 0)
      throw std::runtime_error("a tensor of shape " +
                               py::str(given.attr("shape")).cast<std::string>() +
                               " has no memory: its storage was resized to nothing");
  }
  return data;
}

// The items of a tuple or list.
inline PyObject* const* items_of(PyObject* sequence) { return PySequence_Fast_ITEMS(sequence); }

inline int64_t number(PyObject* value) {
  const int64_t found = PyLong_AsLongLong(value);
  if (found == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return found;
}

// One of Call's member functions with `count` arguments, without pybind11's way of taking them
// apart.
template <class Call, void (Call::*run)(PyObject* const*) const, int count>
PyObject* call_prepared(PyObject* self, PyObject* const* args, Py_ssize_t given) {
  if (given != count) {
    PyErr_Format(PyExc_TypeError, "a prepared call takes %d arguments, got %zd", count, given);
    return nullptr;
  }
  try {
    (static_cast<const Call*>(PyCapsule_GetPointer(self, nullptr))->*run)(args);
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

template <class Call, void (Call::*run)(PyObject* const*) const, int count>
py::object prepared(const py::capsule& owner) {
  static PyMethodDef definition = {
      "prepared",
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_prepared<Call, run, count>)),
      METH_FASTCALL, nullptr};
  return py::reinterpret_steal<py::object>(PyCFunction_NewEx(&definition, owner.ptr(), nullptr));
}

template <class Call>
py::capsule owned(const Call& call) {
  return py::capsule(new Call(call), [](void* made) { delete static_cast<Call*>(made); });
}

// Where a prepared call runs is its first argument.
template <class Args>
void run_prepared(const Kernel<Args>& kernel, Args& args, PyObject* where, int64_t copies = 1) {
  run<Args>(kernel, args, py::reinterpret_borrow<py::object>(where), copies);
}

}  // namespace python
}  // namespace vaefast
