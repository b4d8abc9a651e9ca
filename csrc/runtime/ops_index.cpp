// Gathers and scatters. Indices are data: each is checked before it is used.
#include <algorithm>
#include <array>
#include <cstring>

#include "runtime/dispatch.h"
#include "runtime/kernel_registry.h"

namespace edgec {
namespace {

// Rows of `bytes` bytes; the sizes of single elements are worth their own loop.
inline void copy_row(char* to, const char* from, int64_t bytes) {
  switch (bytes) {
    case 1:
      *to = *from;
      return;
    case 4:
      std::memcpy(to, from, 4);
      return;
    case 8:
      std::memcpy(to, from, 8);
      return;
    default:
      std::memcpy(to, from, static_cast<size_t>(bytes));
  }
}

void gather(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &index = c.tensor(1), &y = c.tensor(2);
  const size_t axis = axis_of(c, 3, x);
  const int64_t outer = product(x.dims, 0, axis), size = x.dims[axis], count = index.size();
  const int64_t bytes = product(x.dims, axis + 1, x.dims.size()) * static_cast<int64_t>(x.item_size());
  c.require(x.dtype == y.dtype && y.size() * static_cast<int64_t>(y.item_size()) == outer * count * bytes,
            "y's shape does not fit");
  if (count == 0) return;
  Indices indices(c, index);
  c.pool->parallel_for(outer * count, std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(8, bytes)),
                       [&](int64_t begin, int64_t end, int) {
                         for (int64_t i = begin; i < end; ++i) {
                           const int64_t at = indices.at(i % count, size);
                           if (at < 0) continue;
                           copy_row(y.as<char>() + i * bytes, x.as<const char>() + (i / count * size + at) * bytes,
                                    bytes);
                         }
                       });
  indices.check();
}

// The flat index of `position` of `shape`, its coordinates along `axis` replaced by `at`, in a tensor of `dims`.
struct Along {
  Along(std::span<const int64_t> shape, std::span<const int64_t> dims, size_t axis) : shape(shape), axis(axis) {
    int64_t n = 1;
    for (size_t i = dims.size(); i-- > 0;) {
      strides[i] = n;
      n *= dims[i];
    }
  }
  // The base of the row along the last axis that begins at flat position `row` * shape.back().
  int64_t base(int64_t row) const {
    int64_t at = 0;
    for (size_t i = shape.size() - 1; i-- > 0;) {
      if (i != axis) at += row % shape[i] * strides[i];
      row /= shape[i];
    }
    return at;
  }
  std::span<const int64_t> shape;
  size_t axis;
  std::array<int64_t, kMaxRank> strides{};
};

void check_along(const KernelCall& c, const Tensor& x, const Tensor& index, size_t axis) {
  c.require(index.rank() == x.rank(), "x and its indices have different ranks");
  for (size_t i = 0; i < x.dims.size(); ++i)
    c.require(i == axis || index.dims[i] <= x.dims[i], "its indices are larger than x");
}

void gather_elements(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &index = c.tensor(1), &y = c.tensor(2);
  const size_t axis = axis_of(c, 3, x);
  check_along(c, x, index, axis);
  c.require(x.dtype == y.dtype && std::ranges::equal(y.dims, index.dims), "y's shape is not the indices'");
  if (y.size() == 0) return;
  Indices indices(c, index);
  const Along along(index.dims, x.dims, axis);
  const int64_t columns = index.dims.back(), size = x.dims[axis], stride = along.strides[axis];
  const int64_t step = axis + 1 == x.dims.size() ? 0 : 1;
  by_size(x.item_size(), [&](auto t) {
    using T = decltype(t);
    c.pool->parallel_for(y.size() / columns, std::max<int64_t>(1, kGrainElements / columns),
                         [&](int64_t begin, int64_t end, int) {
                           for (int64_t row = begin; row < end; ++row) {
                             const T* from = x.as<const T>() + along.base(row);
                             for (int64_t j = 0; j < columns; ++j) {
                               const int64_t at = indices.at(row * columns + j, size);
                               if (at >= 0) y.as<T>()[row * columns + j] = from[at * stride + j * step];
                             }
                           }
                         });
  });
  indices.check();
}

void gather_nd(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &index = c.tensor(1), &y = c.tensor(2);
  const int64_t batch_dims = c.integer(3);
  c.require(index.rank() >= 1, "its indices are a scalar");
  const int64_t depth = index.dims.back();
  c.require(batch_dims >= 0 && batch_dims < index.rank() && batch_dims + depth <= x.rank(), "its dims do not fit");
  const auto lead = static_cast<size_t>(batch_dims);
  for (size_t i = 0; i < lead; ++i) c.require(x.dims[i] == index.dims[i], "the batch dims differ");
  const size_t inner = lead + static_cast<size_t>(depth);
  const int64_t tuples = product(index.dims, 0, index.dims.size() - 1);
  const int64_t batch_size = product(index.dims, lead, index.dims.size() - 1),
                volume = product(x.dims, lead, x.dims.size());
  const int64_t items = product(x.dims, inner, x.dims.size()), bytes = items * static_cast<int64_t>(x.item_size());
  c.require(x.dtype == y.dtype && y.size() == tuples * items, "y's shape does not fit");
  if (y.size() == 0) return;
  Indices indices(c, index);
  c.pool->parallel_for(
      tuples, std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(16, bytes)), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          int64_t at = 0;
          bool inside = true;
          for (int64_t d = 0; d < depth; ++d) {
            const int64_t dim = x.dims[lead + static_cast<size_t>(d)];
            const int64_t v = indices.at(i * depth + d, dim);
            inside &= v >= 0;
            at = at * dim + v;
          }
          if (!inside) continue;
          const int64_t from = (i / batch_size * volume + at * items) * static_cast<int64_t>(x.item_size());
          copy_row(y.as<char>() + i * bytes, x.as<const char>() + from, bytes);
        }
      });
  indices.check();
}

// Calls f(op) with T op(T old, T update).
template <class T, class F>
void by_reduction(const KernelCall& c, std::string_view reduction, F&& f) {
  using W = typename Wide<T>::type;
  if (reduction == "none") return f([](T, T b) { return b; });
  if (reduction == "add") return f([](T a, T b) { return T(static_cast<W>(W(a) + W(b))); });
  if (reduction == "mul") return f([](T a, T b) { return T(static_cast<W>(W(a) * W(b))); });
  // As numpy's: a NaN on either side stays.
  if (reduction == "min")
    return f([](T a, T b) { return W(a) != W(a) || !(W(b) >= W(a)) ? (W(a) != W(a) ? a : b) : a; });
  if (reduction == "max")
    return f([](T a, T b) { return W(a) != W(a) || !(W(b) <= W(a)) ? (W(a) != W(a) ? a : b) : a; });
  c.fail("there is no reduction '" + std::string(reduction) + "'");
}

void copy_whole(const KernelCall& c, const Tensor& x, const Tensor& y) {
  c.require(x.dtype == y.dtype && std::ranges::equal(x.dims, y.dims), "y is not like x");
  if (x.data == y.data) return;
  c.pool->parallel_for(static_cast<int64_t>(x.nbytes()), kGrainBytes, [&](int64_t begin, int64_t end, int) {
    std::memcpy(y.as<char>() + begin, x.as<const char>() + begin, static_cast<size_t>(end - begin));
  });
}

void scatter_elements(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &index = c.tensor(1), &updates = c.tensor(2), &y = c.tensor(3);
  const size_t axis = axis_of(c, 4, x);
  check_along(c, x, index, axis);
  c.require(updates.dtype == x.dtype && updates.rank() == index.rank(), "the updates do not fit");
  for (size_t i = 0; i < index.dims.size(); ++i)
    c.require(updates.dims[i] >= index.dims[i], "there are fewer updates than indices");
  copy_whole(c, x, y);
  if (index.size() == 0) return;
  Indices indices(c, index);
  const Along along(index.dims, x.dims, axis), from(index.dims, updates.dims, index.dims.size());
  const int64_t columns = index.dims.back(), size = x.dims[axis], stride = along.strides[axis];
  const bool last = axis + 1 == x.dims.size();
  // Rows that differ before the axis never meet; the others are one worker's, in order.
  const int64_t rows = index.size() / columns;
  const int64_t groups = product(index.dims, 0, axis), rows_per_group = last ? 1 : rows / groups;
  by_dtype(x.dtype, [&](auto t) {
    using T = decltype(t);
    by_reduction<T>(c, c.string(5), [&](auto op) {
      const int64_t units = last ? rows : groups;
      c.pool->parallel_for(units, std::max<int64_t>(1, kGrainElements / (rows_per_group * columns)),
                           [&](int64_t begin, int64_t end, int) {
                             for (int64_t row = begin * rows_per_group; row < end * rows_per_group; ++row) {
                               T* to = y.as<T>() + along.base(row);
                               const T* update = updates.as<const T>() + from.base(row);
                               for (int64_t j = 0; j < columns; ++j) {
                                 const int64_t at = indices.at(row * columns + j, size);
                                 if (at < 0) continue;
                                 T& place = to[at * stride + (last ? 0 : j)];
                                 place = op(place, update[j]);
                               }
                             }
                           });
    });
  });
  indices.check();
}

void scatter_nd(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &index = c.tensor(1), &updates = c.tensor(2), &y = c.tensor(3);
  c.require(index.rank() >= 1 && index.dims.back() <= x.rank(), "its indices do not fit");
  const int64_t depth = index.dims.back(), tuples = product(index.dims, 0, index.dims.size() - 1);
  const int64_t items = product(x.dims, static_cast<size_t>(depth), x.dims.size());
  c.require(updates.dtype == x.dtype && updates.size() == tuples * items, "the updates do not fit");
  copy_whole(c, x, y);
  if (updates.size() == 0) return;
  Indices indices(c, index);
  by_dtype(x.dtype, [&](auto t) {
    using T = decltype(t);
    by_reduction<T>(c, c.string(4), [&](auto op) {
      // In order, since tuples may repeat; wide rows are split instead.
      c.pool->parallel_for(items, kGrainElements, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = 0; i < tuples; ++i) {
          int64_t at = 0;
          bool inside = true;
          for (int64_t d = 0; d < depth; ++d) {
            const int64_t dim = x.dims[static_cast<size_t>(d)], v = indices.at(i * depth + d, dim);
            inside &= v >= 0;
            at = at * dim + v;
          }
          if (!inside) continue;
          T* to = y.as<T>() + at * items;
          const T* update = updates.as<const T>() + i * items;
          for (int64_t j = begin; j < end; ++j) to[j] = op(to[j], update[j]);
        }
      });
    });
  });
  indices.check();
}

constexpr Kernel kKernels[] = {
    {"gather", "x, indices -> y; axis", gather},
    {"gather_elements", "x, indices -> y; axis", gather_elements},
    {"gather_nd", "x, indices -> y; batch_dims", gather_nd},
    {"scatter_elements", "x, indices, updates -> y; axis, reduction:s", scatter_elements},
    {"scatter_nd", "x, indices, updates -> y; reduction:s", scatter_nd},
};

}  // namespace

std::span<const Kernel> index_kernels() { return kKernels; }

}  // namespace edgec
