// The software model of AMX for its tests, in builds that have it.
#if defined(EDGEC_AMX_MODEL)
#include "emulate/amx_model.h"

#include <pybind11/pybind11.h>

#include <memory>
#include <string>

namespace py = pybind11;

void bind_amx_model(py::module_& m) {
  using edgec::amx::Model;
  py::register_exception<edgec::amx::Fault>(m, "AmxFault");
  const auto bytes = [](const void* data, size_t size) { return py::bytes(static_cast<const char*>(data), size); };
  py::class_<Model>(m, "AmxModel")
      .def(py::init([](int generation) {
             auto model = std::make_unique<Model>();
             model->generation = generation;
             return model;
           }),
           py::arg("generation") = 2)
      .def("execute", &Model::execute, py::arg("op"), py::arg("value"))
      .def_property_readonly("x", [bytes](const Model& model) { return bytes(model.x, sizeof(model.x)); })
      .def_property_readonly("y", [bytes](const Model& model) { return bytes(model.y, sizeof(model.y)); })
      .def_property_readonly("z", [bytes](const Model& model) { return bytes(model.z, sizeof(model.z)); });
}
#endif
