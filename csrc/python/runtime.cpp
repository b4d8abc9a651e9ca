#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "runtime/cpu.h"
#include "runtime/error.h"

namespace py = pybind11;

void bind_runtime(py::module_& m) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const edgec::Error& e) {
      const py::object type = py::module_::import("edgec.errors").attr("EdgecError");
      const auto text = [](const std::string& s) -> py::object { return s.empty() ? py::object(py::none()) : py::str(s); };
      const py::object error =
          type("EC" + std::to_string(static_cast<int>(e.code)), std::string(e.what()), text(e.where), text(e.hint));
      PyErr_SetObject(type.ptr(), error.ptr());
    }
  });
  m.def("cpu_features", [] { return edgec::cpu_features(); }, "This CPU's features, by LLVM's names, sorted.");
  m.def("default_threads", &edgec::default_threads, "Threads that affinity, cgroup quota and big cores allow.");
}
