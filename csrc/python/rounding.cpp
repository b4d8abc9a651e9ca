// What calibration does to integers, for Python; see kernels.cpp.
#include "python/arrays.h"

namespace {

ek::RoundGrid grid_of(int bits, bool table, bool zero) {
  require(bits == 4 || bits == 6 || bits == 8, "bits must be 4, 6 or 8");
  require(!(table && zero) && (!table || bits == 4) && (!zero || bits == 4), "no grid has these bits");
  return {bits, table, zero};
}

using Rows = py::array_t<float, py::array::c_style>;
void require_shape(const py::array& array, std::initializer_list<int64_t> shape, const char* name) {
  bool same = array.ndim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) {
    same = array.shape(static_cast<py::ssize_t>(i)) == shape.begin()[i];
  }
  require(same, std::string(name) + " has another shape");
}

// (q, errors) of `rows` columns of a weight, see GptqArgs.
py::tuple gptq(const Floats& rest, const Floats& upper, const py::array_t<int64_t, py::array::c_style>& groups,
               const Rows& scale, const py::object& zero, int bits, bool table, int threads,
               const std::string& kernel) {
  require(rest.ndim() == 2 && scale.ndim() == 2, "rest and scale must have two axes");
  ek::GptqArgs args{grid_of(bits, table, !zero.is_none()),
                    rest.shape(0),
                    rest.shape(1),
                    rest.data(),
                    0,
                    upper.data(),
                    0,
                    groups.data(),
                    scale.data(),
                    nullptr,
                    nullptr,
                    nullptr};
  args.ld = row_stride(rest, args.n, "rest"), args.upper_ld = row_stride(upper, args.rows, "upper");
  require_shape(upper, {args.rows, args.rows}, "upper");
  require_shape(groups, {args.rows}, "groups");
  require_shape(scale, {scale.shape(0), args.n}, "scale");
  for (int64_t i = 0; i < args.rows; ++i) {
    require(args.groups[i] >= 0 && args.groups[i] < scale.shape(0), "a group is out of range");
  }
  Rows zeros;
  if (!zero.is_none()) {
    zeros = py::cast<Rows>(zero);
    require_shape(zeros, {scale.shape(0), args.n}, "zero");
    args.zero = zeros.data();
  }
  Rows q({args.rows, args.n}), errors({args.rows, args.n});
  args.q = q.mutable_data(), args.errors = errors.mutable_data();
  const ek::IsaOps* ops = ops_of(kernel);
  const Lent pool(threads);
  {
    py::gil_scoped_release release;
    ek::gptq_rows(args, pool.lend, ops);
  }
  return py::make_tuple(q, errors);
}

// One group of a weight, see SweepArgs; q, scale and gain are changed in place.
Rows sweep(const Floats& h, const Floats& slope, Rows& q, Rows& scale, const py::object& zero, const py::object& unit,
           py::array_t<double, py::array::c_style>& gain, bool refit, int bits, bool table, int threads,
           const std::string& kernel) {
  require(q.ndim() == 2, "q must have two axes");
  ek::SweepArgs args{};
  args.grid = grid_of(bits, table, !zero.is_none()), args.refit = refit;
  args.rows = q.shape(0), args.n = q.shape(1);
  require_shape(h, {args.rows, args.rows}, "h");
  require_shape(slope, {args.rows, args.n}, "slope");
  require_shape(scale, {args.n}, "scale");
  require_shape(gain, {args.n}, "gain");
  Rows vectors[2];
  const float** to[2] = {&args.zero, &args.unit};
  const py::object* given[2] = {&zero, &unit};
  for (int i = 0; i < 2; ++i) {
    if (given[i]->is_none()) continue;
    vectors[i] = py::cast<Rows>(*given[i]);
    require_shape(vectors[i], {args.n}, i ? "unit" : "zero");
    *to[i] = vectors[i].data();
  }
  Rows change({args.rows, args.n});
  args.h = h.data(), args.h_ld = row_stride(h, args.rows, "h");
  args.slope = slope.data(), args.slope_ld = row_stride(slope, args.n, "slope");
  args.q = q.mutable_data(), args.scale = scale.mutable_data();
  args.change = change.mutable_data(), args.gain = gain.mutable_data();
  const ek::IsaOps* ops = ops_of(kernel);
  const Lent pool(threads);
  {
    py::gil_scoped_release release;
    ek::sweep_rows(args, pool.lend, ops);
  }
  return change;
}

}  // namespace

void bind_rounding(py::module_& m) {
  m.def("gptq", &gptq, py::arg("rest").noconvert(), py::arg("upper").noconvert(), py::arg("groups").noconvert(),
        py::arg("scale").noconvert(), py::arg("zero"), py::arg("bits"), py::arg("table"), py::arg("threads"),
        py::arg("kernel"));
  m.def("sweep", &sweep, py::arg("h").noconvert(), py::arg("slope").noconvert(), py::arg("q").noconvert(),
        py::arg("scale").noconvert(), py::arg("zero"), py::arg("unit"), py::arg("gain").noconvert(), py::arg("refit"),
        py::arg("bits"), py::arg("table"), py::arg("threads"), py::arg("kernel"));
}
