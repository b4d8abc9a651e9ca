// The runtime's Python side: Artifact (members as memoryviews), Session, call_builtin.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "runtime/artifact.h"
#include "runtime/checksum.h"
#include "runtime/cpu.h"
#include "runtime/error.h"
#include "runtime/executor.h"

namespace py = pybind11;
using edgec::Code;
using edgec::DType;
using edgec::Error;

namespace {

// numpy's view of each dtype; bf16 has none without ml_dtypes and travels as u16.
py::dtype numpy_dtype(DType dtype) {
  static constexpr const char* kNames[edgec::kDTypeCount] = {"?",  "i1", "u1", "i2", "u2", "i4", "u4",
                                                             "i8", "u8", "f2", "u2", "f4", "f8", "u1"};
  if (dtype == DType::kBF16) {
    const py::object modules = py::module_::import("sys").attr("modules");
    if (modules.contains("ml_dtypes")) return py::dtype::from_args(modules["ml_dtypes"].attr("bfloat16"));
  }
  return py::dtype(kNames[static_cast<int>(dtype)]);
}

bool dtype_fits(const py::dtype& have, DType want) {
  static constexpr char kKinds[edgec::kDTypeCount + 1] = "biuiuiuiufuffu";
  const char kind = have.kind(), order = have.byteorder();
  if (order != '=' && order != '|' && order != (std::endian::native == std::endian::little ? '<' : '>')) return false;
  if (static_cast<size_t>(have.itemsize()) != edgec::size_of(want)) return false;
  if (want == DType::kBF16) return kind == 'u' || kind == 'V' || kind == 'f';
  return kind == kKinds[static_cast<int>(want)];
}

std::span<const std::byte> bytes_of(const py::buffer_info& info) {
  return {static_cast<const std::byte*>(info.ptr), static_cast<size_t>(info.size * info.itemsize)};
}

struct View {
  explicit View(const py::buffer& buffer) : info(buffer.request()) {}
  py::buffer_info info;
  std::span<const std::byte> bytes() const { return bytes_of(info); }
};

// A piece of memory that a Python object keeps: what a bare memoryview would not.
struct Member {
  std::span<const std::byte> bytes;
  py::object owner;
};

py::dict views(const py::object& artifact, const std::map<std::string, edgec::Artifact::Member>& members) {
  py::dict out;
  for (const auto& [name, member] : members)
    out[py::str(name)] = py::memoryview(py::cast(Member{member.bytes, artifact}));
  return out;
}

struct Check {
  Check(const py::buffer& data, size_t piece, int threads)
      : view(data),
        sums(view.bytes(), piece ? piece : throw py::value_error("a piece must not be empty"),
             threads > 0 ? threads : edgec::default_threads()) {}
  View view;
  edgec::Checksums sums;
};

class Session {
 public:
  Session(const py::buffer& plan, const std::optional<py::buffer>& code, const std::optional<py::buffer>& weights,
          int threads)
      : plan_(plan) {
    if (code) code_.emplace(*code);
    if (weights) weights_.emplace(*weights);
    const auto bytes = [](const std::optional<View>& view) {
      return view ? view->bytes() : std::span<const std::byte>();
    };
    const py::gil_scoped_release release;
    executor_ = std::make_unique<edgec::Executor>(plan_.bytes(), bytes(code_), bytes(weights_), threads);
  }

  void start() {
    for (const edgec::Port& port : plan().inputs) input_names_.append(py::str(port.name));
    for (const edgec::Port& port : plan().outputs) {
      output_names_.append(py::str(port.name));
      output_dtypes_.push_back(numpy_dtype(value_of(port).dtype));
    }
  }

  const edgec::Plan& plan() const { return executor_->plan(); }
  const edgec::ValueDef& value_of(const edgec::Port& port) const {
    return plan().values[static_cast<size_t>(port.value)];
  }
  int threads() const { return executor_->threads(); }

  py::list ports(const std::vector<edgec::Port>& ports) const {
    py::list out;
    for (const edgec::Port& port : ports) {
      const edgec::ValueDef& v = value_of(port);
      py::list shape;
      for (const int32_t dim : v.dims) {
        const std::vector<int64_t>& words = plan().exprs[static_cast<size_t>(dim)];
        if (words.size() == 2 && words[0] == 0)
          shape.append(words[1]);
        else
          shape.append(plan().text(dim));
      }
      out.append(py::make_tuple(port.name, edgec::name_of(v.dtype), py::tuple(shape)));
    }
    return out;
  }

  // Outputs in the plan's order. `timings`: null, or a list that gets the nanoseconds of each step (-1: not run).
  py::list run(const py::dict& feeds, const std::optional<std::vector<int64_t>>& slots,
               const std::optional<py::dict>& parameters, py::list* timings) {
    const size_t n_inputs = plan().inputs.size(), n_outputs = plan().outputs.size();
    std::vector<py::array> arrays;
    std::vector<std::span<const int64_t>> shapes;
    std::vector<void*> inputs, outputs;
    arrays.reserve(n_inputs);
    for (size_t i = 0; i < n_inputs; ++i) {
      PyObject* fed =
          PyDict_GetItemWithError(feeds.ptr(), PyList_GET_ITEM(input_names_.ptr(), static_cast<Py_ssize_t>(i)));
      if (fed == nullptr) {
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
        throw Error(Code::kInputName, "input '" + plan().inputs[i].name + "'", "it is missing", "Needed: " + names());
      }
      arrays.push_back(check_input(plan().inputs[i], py::reinterpret_borrow<py::object>(fed)));
      static_assert(sizeof(py::ssize_t) == sizeof(int64_t));
      shapes.emplace_back(reinterpret_cast<const int64_t*>(arrays.back().shape()),
                          static_cast<size_t>(arrays.back().ndim()));
      inputs.push_back(const_cast<void*>(arrays.back().data()));
    }
    if (feeds.size() != n_inputs) {
      for (const auto& item : feeds)
        if (!input_names_.contains(item.first))
          throw Error(Code::kInputName, "input '" + std::string(py::str(item.first)) + "'",
                      "the artifact has none of that name", "Needed: " + names());
    }
    edgec::Executor::Request request;
    if (slots) request.slots = &*slots;
    if (parameters)
      for (const auto& [name, value] : *parameters)
        request.parameters.emplace_back(name.cast<std::string>(), value.cast<int64_t>());
    const auto held = lock();
    edgec::Binding& binding = executor_->bind(shapes, request);
    py::list results(n_outputs);
    for (size_t i = 0; i < n_outputs; ++i) {
      const auto shape = binding.shape(plan().outputs[i].value);
      try {
        py::array array(output_dtypes_[i], std::vector<py::ssize_t>(shape.begin(), shape.end()));
        outputs.push_back(array.mutable_data());
        results[i] = std::move(array);
      } catch (const py::error_already_set& e) {
        if (!e.matches(PyExc_MemoryError) && !e.matches(PyExc_ValueError)) throw;
        throw Error(Code::kMemory, "output '" + plan().outputs[i].name + "'",
                    "an array of shape " + edgec::shape_text(shape) + " cannot be had", "Use smaller inputs");
      }
    }
    std::vector<int64_t> step_ns(timings != nullptr ? plan().steps.size() : 0);
    {
      const py::gil_scoped_release release;
      executor_->run(binding, inputs, outputs, timings != nullptr ? step_ns.data() : nullptr);
    }
    for (const int64_t ns : step_ns) timings->append(ns);
    return results;
  }

  py::dict call(const py::dict& feeds, const std::optional<std::vector<int64_t>>& slots,
                const std::optional<py::dict>& parameters) {
    const py::list results = run(feeds, slots, parameters, nullptr);
    py::dict out;
    for (size_t i = 0; i < results.size(); ++i) out[output_names_[i]] = results[i];
    return out;
  }

  py::tuple profile(const py::dict& feeds, const std::optional<std::vector<int64_t>>& slots,
                    const std::optional<py::dict>& parameters) {
    py::list timings;
    py::list results = run(feeds, slots, parameters, &timings);
    return py::make_tuple(results, timings);
  }

  py::list steps() const {
    static constexpr const char* kKinds[] = {"call", "kernel", "jump", "jump_if_false"};
    py::list out;
    for (const edgec::Step& step : plan().steps) out.append(py::make_tuple(step.origin, kKinds[step.kind], step.name));
    return out;
  }

  py::dict memory(const std::vector<int64_t>& symbols) {
    const py::list named = this->symbols();
    if (symbols.size() != named.size())
      throw Error(Code::kInputShape, "",
                  std::to_string(symbols.size()) + " symbols, not " + std::to_string(named.size()));
    std::vector<int64_t> all;
    size_t at = 0;
    for (const edgec::Symbol& s : plan().symbols)
      all.push_back(s.input >= 0                           ? symbols[at++]
                    : s.input == edgec::Symbol::kParameter ? edgec::Plan::fallback(s, all)
                                                           : s.lo);
    const auto held = lock();
    const edgec::Binding& b = executor_->bind_symbols(all);
    py::dict out;
    out["arena_bytes"] = b.arena_bytes;
    out["temp_bytes"] = b.temp_bytes;
    out["scratch_bytes"] = b.scratch_bytes;
    return out;
  }

  py::list symbols() const {
    py::list out;
    for (const edgec::Symbol& s : plan().symbols)
      if (s.input >= 0) out.append(py::make_tuple(s.name, s.lo, s.hi));
    return out;
  }

  py::list parameters() const {
    py::list out;
    for (const edgec::Symbol& s : plan().symbols)
      if (s.input == edgec::Symbol::kParameter) out.append(s.name);
    return out;
  }

  py::list states() const {
    py::list out;
    for (const edgec::State& s : plan().states)
      out.append(py::make_tuple(s.past, s.present, edgec::name_of(s.dtype), s.heads, s.dim));
    return out;
  }

  template <class F>
  auto with_states(F&& f) {
    const auto held = lock();
    return f(executor_->states());
  }

  // A copy of what a slot holds of one state: [heads, length, dim] f32.
  py::array state(const std::string& name, int64_t slot) {
    const auto held = lock();
    for (size_t i = 0; i < plan().states.size(); ++i) {
      if (plan().states[i].past != name) continue;
      const int64_t length = executor_->states().length(slot);
      const edgec::State& s = plan().states[i];
      py::array_t<float> out({s.heads, length, s.dim});
      executor_->states().read(slot, i, out.mutable_data());
      return out;
    }
    throw Error(Code::kCall, "state '" + name + "'", "the artifact has none of that name");
  }

 private:
  // Whoever runs holds the lock while it waits for the GIL, so nobody may wait for the lock with the GIL held.
  std::unique_lock<std::mutex> lock() {
    std::unique_lock held(executor_->mutex(), std::try_to_lock);
    if (!held.owns_lock()) {
      const py::gil_scoped_release release;
      held.lock();
    }
    return held;
  }

  std::string names() const {
    std::string out;
    for (const edgec::Port& port : plan().inputs) {
      const edgec::ValueDef& v = value_of(port);
      out += (out.empty() ? "" : ", ") + port.name + " " + edgec::name_of(v.dtype) + plan().shape_text(v);
    }
    return out;
  }

  py::array check_input(const edgec::Port& port, const py::object& fed) const {
    const edgec::ValueDef& v = value_of(port);
    py::array array = py::isinstance<py::array>(fed) ? py::reinterpret_borrow<py::array>(fed) : py::array::ensure(fed);
    if (!array) {
      PyErr_Clear();
      throw Error(Code::kInputDtype, "input '" + port.name + "'", "it is no array");
    }
    if (!dtype_fits(array.dtype(), v.dtype))
      throw Error(Code::kInputDtype, "input '" + port.name + "'",
                  "dtype " + std::string(py::str(array.dtype())) + ", expected " + edgec::name_of(v.dtype),
                  "Convert it with .astype()");
    constexpr int kWanted = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
    if ((array.flags() & kWanted) != kWanted)
      array = py::reinterpret_steal<py::array>(
          py::module_::import("numpy").attr("array")(array, py::arg("order") = "C").release());
    return array;
  }

  View plan_;
  std::optional<View> code_, weights_;
  std::unique_ptr<edgec::Executor> executor_;
  py::list input_names_, output_names_;
  std::vector<py::dtype> output_dtypes_;
};

DType dtype_of(const py::array& array) {
  for (int i = 0; i < edgec::kDTypeCount; ++i)
    if (dtype_fits(array.dtype(), static_cast<DType>(i)) &&
        (i != static_cast<int>(DType::kBF16) || array.dtype().kind() == 'V'))
      return static_cast<DType>(i);
  throw Error(Code::kInputDtype, "", "dtype " + std::string(py::str(array.dtype())) + " is none of edgec's");
}

// Runs one kernel on arrays (None: absent), ints, floats and strings, in its signature's order; outputs are written in
// place.
void call_builtin(const std::string& name, const py::args& py_args, int threads) {
  const edgec::Kernel* kernel = edgec::find_kernel(name);
  if (kernel == nullptr) throw Error(Code::kPlan, name, "there is no such kernel");
  std::vector<edgec::ArgRef> refs;
  std::vector<edgec::Arg> kinds;
  std::vector<std::string> strings;
  strings.reserve(py_args.size());
  for (const py::handle item : py_args) {
    edgec::ArgRef ref;
    if (item.is_none()) {
      ref.kind = edgec::Arg::kAbsent;
    } else if (py::isinstance<py::array>(item)) {
      const auto array = py::reinterpret_borrow<py::array>(item);
      if ((array.flags() & py::array::c_style) == 0)
        throw Error(Code::kInputShape, name, "its arrays must be C-contiguous");
      ref.kind = edgec::Arg::kValue;
      ref.tensor = {const_cast<void*>(array.data()),
                    dtype_of(array),
                    {reinterpret_cast<const int64_t*>(array.shape()), static_cast<size_t>(array.ndim())}};
    } else if (py::isinstance<py::float_>(item)) {
      const double value = item.cast<double>();
      ref.kind = edgec::Arg::kDouble;
      std::memcpy(&ref.i, &value, 8);
    } else if (py::isinstance<py::str>(item)) {
      ref.kind = edgec::Arg::kString;
      strings.push_back(item.cast<std::string>());
      ref.string = strings.back();
    } else {
      ref.kind = edgec::Arg::kInt;
      ref.i = item.cast<int64_t>();
    }
    refs.push_back(ref);
    kinds.push_back({ref.kind, ref.i});
  }
  if (const std::string why = edgec::match_signature(kernel->signature, kinds); !why.empty())
    throw Error(Code::kPlan, name, why);
  const auto pool = edgec::ThreadPool::get(threads);
  edgec::KernelCall call;
  call.args = refs;
  call.pool = pool.get();
  call.name = name;
  edgec::Block scratch;
  if (kernel->scratch != nullptr) {
    const edgec::ScratchSize size = kernel->scratch(call);
    call.scratch_shared = (size.shared + 63) / 64 * 64;
    call.scratch_stride = (size.per_worker + 63) / 64 * 64;
    scratch.reserve(call.scratch_shared + call.scratch_stride * static_cast<size_t>(threads));
    call.scratch_base = scratch.data();
  }
  const py::gil_scoped_release release;
  kernel->run(call);
}

}  // namespace

void bind_runtime(py::module_& m) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& e) {
      const py::object type = py::module_::import("edgec.errors").attr("EdgecError");
      const auto text = [](const std::string& s) -> py::object {
        return s.empty() ? py::object(py::none()) : py::str(s);
      };
      const py::object error =
          type("EC" + std::to_string(static_cast<int>(e.code)), std::string(e.what()), text(e.where), text(e.hint));
      PyErr_SetObject(type.ptr(), error.ptr());
    }
  });

  m.def("cpu_features", [] { return edgec::cpu_features(); }, "This CPU's features, by LLVM's names, sorted.");
  m.def("default_threads", &edgec::default_threads, "Threads that affinity, cgroup quota and big cores allow.");
  m.def("big_cpus", &edgec::big_cpus,
        "Of these CPUs those that models run on, by a folder like /sys/devices/system/cpu.");

  m.def(
      "checksums",
      [](const py::buffer& data, size_t piece, int threads) {
        const View view(data);
        if (piece == 0) throw py::value_error("a piece must not be empty");
        const py::gil_scoped_release release;
        return edgec::Checksums(view.bytes(), piece, threads > 0 ? threads : edgec::default_threads()).wait();
      },
      "64-bit checksums of pieces of a buffer.", py::arg("data"), py::arg("piece"), py::arg("threads") = 0);

  py::class_<Check>(m, "Checksums", "The same in the background, from the construction on; wait() gives them.")
      .def(py::init<const py::buffer&, size_t, int>(), py::arg("data"), py::arg("piece"), py::arg("threads") = 0)
      .def("wait", [](Check& check) {
        const py::gil_scoped_release release;
        return check.sums.wait();
      });

  py::class_<Member>(m, "Member", py::buffer_protocol()).def_buffer([](const Member& member) {
    return py::buffer_info(const_cast<std::byte*>(member.bytes.data()), 1, "B", 1,
                           {static_cast<py::ssize_t>(member.bytes.size())}, {1}, /*readonly=*/true);
  });

  py::class_<edgec::Artifact>(m, "Artifact", "A memory-mapped artifact; its members are read-only memoryviews.")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def_property_readonly("size", &edgec::Artifact::size)
      .def("crc32", [](const edgec::Artifact& a, const std::string& name) { return a.members().at(name).crc32; })
      .def("members", [](const py::object& self) { return views(self, self.cast<const edgec::Artifact&>().members()); })
      .def("deflated",
           [](const py::object& self) { return views(self, self.cast<const edgec::Artifact&>().deflated()); });

  py::class_<Session>(m, "Session", "Runs a plan; see edgec.runtime.session.")
      .def(py::init([](const py::buffer& plan, const std::optional<py::buffer>& code,
                       const std::optional<py::buffer>& weights, int threads) {
             auto session = std::make_unique<Session>(plan, code, weights, threads);
             session->start();
             return session;
           }),
           py::arg("plan"), py::arg("code") = py::none(), py::arg("weights") = py::none(), py::arg("threads") = 0)
      .def_property_readonly("inputs", [](const Session& s) { return s.ports(s.plan().inputs); })
      .def_property_readonly("outputs", [](const Session& s) { return s.ports(s.plan().outputs); })
      .def_property_readonly("threads", &Session::threads)
      .def(
          "run",
          [](Session& s, const py::dict& feeds, const std::optional<std::vector<int64_t>>& slots,
             const std::optional<py::dict>& parameters) { return s.run(feeds, slots, parameters, nullptr); },
          py::arg("feeds"), py::arg("slots") = py::none(), py::arg("parameters") = py::none())
      .def("call", &Session::call, py::arg("feeds"), py::arg("slots") = py::none(), py::arg("parameters") = py::none())
      .def("profile", &Session::profile, py::arg("feeds"), py::arg("slots") = py::none(),
           py::arg("parameters") = py::none())
      .def("reserve",
           [](Session& s, int64_t slots, int64_t capacity) {
             s.with_states([=](edgec::States& states) { states.reserve(slots, capacity); });
           })
      .def("length",
           [](Session& s, int64_t slot) { return s.with_states([=](auto& states) { return states.length(slot); }); })
      .def("set_length", [](Session& s, int64_t slot,
                            int64_t n) { s.with_states([=](auto& states) { states.set_length(slot, n); }); })
      .def("copy_slot", [](Session& s, int64_t source, int64_t target,
                           int64_t n) { s.with_states([=](auto& states) { states.copy_slot(source, target, n); }); })
      .def("state", &Session::state)
      .def_property_readonly("slots",
                             [](Session& s) { return s.with_states([](auto& states) { return states.slots(); }); })
      .def_property_readonly("capacity",
                             [](Session& s) { return s.with_states([](auto& states) { return states.capacity(); }); })
      .def_property_readonly("states", &Session::states)
      .def_property_readonly("parameters", &Session::parameters)
      .def("steps", &Session::steps)
      .def_property_readonly("symbols", &Session::symbols)
      .def("memory", &Session::memory);

  m.def(
      "builtin_kernels",
      [] {
        py::list out;
        for (const edgec::Kernel* kernel : edgec::all_kernels())
          out.append(py::make_tuple(kernel->name, kernel->signature));
        return out;
      },
      "(name, signature) of every kernel that a plan's steps can name; csrc/runtime/kernel_registry.h explains "
      "signatures.");
  m.def(
      "call_builtin",
      [](const std::string& name, const py::args& args, const py::kwargs& options) {
        call_builtin(name, args, options.contains("threads") ? options["threads"].cast<int>() : 1);
      },
      "call_builtin(name, *args, threads=1): runs one kernel on arrays, ints, floats, strings; outputs are written in "
      "place.");
}
