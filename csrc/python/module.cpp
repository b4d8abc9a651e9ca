#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_runtime(py::module_& m);
void bind_kernels(py::module_& m);

PYBIND11_MODULE(_core, m) {
  m.doc() = "edgec's C++ runtime and kernels";
  bind_runtime(m);
  bind_kernels(m);
}
