// Kernels that move elements of any dtype, by their size. Dims come from the arguments' shapes.
#include <algorithm>
#include <array>
#include <cstring>

#include "runtime/dispatch.h"
#include "runtime/kernel_registry.h"

namespace edgec {
namespace {

void copy(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &y = c.tensor(1);
  c.require(x.dtype == y.dtype, "x and y have different dtypes");
  c.require(x.nbytes() == y.nbytes(), "x and y have different sizes");
  if (x.data == y.data) return;
  c.pool->parallel_for(static_cast<int64_t>(x.nbytes()), kGrainBytes, [&](int64_t begin, int64_t end, int) {
    std::memcpy(y.as<char>() + begin, x.as<const char>() + begin, static_cast<size_t>(end - begin));
  });
}

void fill_int(const KernelCall& c) {
  const Tensor& y = c.tensor(0);
  c.require(y.dtype == DType::kI64, "y is not i64");
  std::fill_n(y.as<int64_t>(), y.size(), c.integer(1));
}

// How a contiguous y reads x: strides of x in elements, one for each dim of y.
struct Walk {
  int rank = 0;
  std::array<int64_t, kMaxRank> dims{}, strides{};

  void push(int64_t dim, int64_t stride) {
    if (dim == 1) return;
    if (rank > 0 && strides[static_cast<size_t>(rank - 1)] == stride * dim) {
      dims[static_cast<size_t>(rank - 1)] *= dim;
      strides[static_cast<size_t>(rank - 1)] = stride;
      return;
    }
    dims[static_cast<size_t>(rank)] = dim;
    strides[static_cast<size_t>(rank++)] = stride;
  }

  // Where row `row` of the first `outer` dims begins in x.
  int64_t offset(int64_t row, int outer) const {
    int64_t at = 0;
    for (int i = outer - 1; i >= 0; --i) {
      const auto d = static_cast<size_t>(i);
      at += row % dims[d] * strides[d];
      row /= dims[d];
    }
    return at;
  }
};

// Both axes of a transposition in tiles, so that each cache line is used whole on either side.
template <class T>
void copy_tile(const T* x, int64_t x_row, int64_t x_column, T* y, int64_t y_row, int64_t rows, int64_t columns) {
  constexpr int64_t kTile = 16;
  for (int64_t c0 = 0; c0 < columns; c0 += kTile) {
    const int64_t c1 = std::min(columns, c0 + kTile);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = c0; c < c1; ++c) y[r * y_row + c] = x[r * x_row + c * x_column];
  }
}

template <class T>
void strided_copy(ThreadPool& pool, const Walk& walk, const T* x, T* y) {
  constexpr int64_t kTile = 16;
  if (walk.rank == 0) {
    *y = *x;
    return;
  }
  const auto last = static_cast<size_t>(walk.rank - 1);
  const int64_t columns = walk.dims[last], stride = walk.strides[last];
  int64_t rows = 1;
  for (size_t i = 0; i < last; ++i) rows *= walk.dims[i];
  const int64_t grain_rows = std::max<int64_t>(1, kGrainElements / columns);
  // The dim just before the last one that x has contiguous: then both are walked in tiles.
  if (walk.rank >= 2 && stride != 1 && stride != 0 && walk.strides[last - 1] == 1) {
    const int64_t height = walk.dims[last - 1], tiles = (height + kTile - 1) / kTile, outer = rows / height;
    pool.parallel_for(outer * tiles, std::max<int64_t>(1, grain_rows / kTile), [&](int64_t begin, int64_t end, int) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / tiles, r0 = unit % tiles * kTile;
        copy_tile(x + walk.offset(row, walk.rank - 2) + r0, 1, stride, y + (row * height + r0) * columns, columns,
                  std::min(kTile, height - r0), columns);
      }
    });
    return;
  }
  const auto copy_row = [&](const T* from, T* to, int64_t n) {
    if (stride == 1) {
      std::memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
    } else if (stride == 0) {
      std::fill_n(to, n, *from);
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
    }
  };
  if (rows == 1) {
    pool.parallel_for(columns, kGrainElements,
                      [&](int64_t begin, int64_t end, int) { copy_row(x + begin * stride, y + begin, end - begin); });
    return;
  }
  pool.parallel_for(rows, grain_rows, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      copy_row(x + walk.offset(row, walk.rank - 1), y + row * columns, columns);
  });
}

void run_walk(const KernelCall& c, const Walk& walk, const Tensor& x, int64_t start, const Tensor& y) {
  c.require(x.dtype == y.dtype, "x and y have different dtypes");
  if (y.size() == 0) return;
  by_size(x.item_size(), [&](auto t) {
    using T = decltype(t);
    strided_copy(*c.pool, walk, x.as<const T>() + start, y.as<T>());
  });
}

std::array<int64_t, kMaxRank> row_strides(std::span<const int64_t> dims) {
  std::array<int64_t, kMaxRank> strides{};
  int64_t n = 1;
  for (size_t i = dims.size(); i-- > 0;) {
    strides[i] = n;
    n *= dims[i];
  }
  return strides;
}

void transpose(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &y = c.tensor(1);
  c.require(x.rank() == y.rank() && c.args.size() == 2 + x.dims.size(), "perm does not fit the rank");
  const auto strides = row_strides(x.dims);
  Walk walk;
  uint32_t seen = 0;
  for (size_t i = 0; i < y.dims.size(); ++i) {
    const int64_t p = c.integer(2 + i);
    c.require(p >= 0 && p < x.rank() && (seen >> p & 1) == 0, "perm is no permutation");
    seen |= 1U << p;
    c.require(y.dims[i] == x.dims[static_cast<size_t>(p)], "y's shape is not x's permuted");
    walk.push(y.dims[i], strides[static_cast<size_t>(p)]);
  }
  run_walk(c, walk, x, 0, y);
}

void expand(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &y = c.tensor(1);
  c.require(x.rank() <= y.rank(), "y has fewer dims than x");
  const auto strides = row_strides(x.dims);
  const size_t lead = y.dims.size() - x.dims.size();
  Walk walk;
  for (size_t i = 0; i < y.dims.size(); ++i) {
    const int64_t dim = i < lead ? 1 : x.dims[i - lead];
    c.require(dim == 1 || dim == y.dims[i], "x does not broadcast to y");
    walk.push(y.dims[i], dim == 1 ? 0 : strides[i - lead]);
  }
  run_walk(c, walk, x, 0, y);
}

constexpr int64_t kMaxStep = int64_t{1} << 47;  // more than any dim

// starts of all axes, then steps
void slice(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &y = c.tensor(1);
  const size_t rank = x.dims.size();
  c.require(y.dims.size() == rank && c.args.size() == 2 + 2 * rank, "starts and steps do not fit the rank");
  if (y.size() == 0) return;
  const auto strides = row_strides(x.dims);
  Walk walk;
  int64_t start = 0;
  for (size_t i = 0; i < rank; ++i) {
    const int64_t first = c.integer(2 + i), step = c.integer(2 + rank + i), dim = x.dims[i];
    const int64_t room = step > 0 ? dim - 1 - first : first;
    c.require(first >= 0 && first < dim && step > -kMaxStep && step < kMaxStep && step != 0 &&
                  y.dims[i] - 1 <= room / std::abs(step),
              "it reaches outside of x");
    start += first * strides[i];
    walk.push(y.dims[i], step * strides[i]);
  }
  run_walk(c, walk, x, start, y);
}

void concat(const KernelCall& c) {
  const size_t n = c.args.size() - 2;
  const Tensor& y = c.tensor(n);
  const size_t axis = axis_of(c, n + 1, y);
  const int64_t outer = product(y.dims, 0, axis);
  const int64_t inner = product(y.dims, axis + 1, y.dims.size()) * static_cast<int64_t>(y.item_size());
  const int64_t y_row = y.dims[axis] * inner;
  int64_t at = 0, total = 0;
  for (size_t i = 0; i < n; ++i) {
    const Tensor& x = c.tensor(i);
    c.require(x.dtype == y.dtype && x.rank() == y.rank(), "its operands differ in dtype or rank");
    for (size_t d = 0; d < y.dims.size(); ++d)
      c.require(d == axis || x.dims[d] == y.dims[d], "its operands' shapes differ");
    total += x.dims[axis];
  }
  c.require(total == y.dims[axis], "its operands do not add up to y");
  for (size_t i = 0; i < n; ++i) {
    const Tensor& x = c.tensor(i);
    const int64_t row = x.dims[axis] * inner;
    const char* from = x.as<const char>();
    char* to = y.as<char>() + at;
    at += row;
    if (row == 0) continue;
    if (outer == 1) {
      c.pool->parallel_for(row, kGrainBytes, [&](int64_t begin, int64_t end, int) {
        std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
      });
      continue;
    }
    c.pool->parallel_for(outer, std::max<int64_t>(1, kGrainBytes / row), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) std::memcpy(to + r * y_row, from + r * row, static_cast<size_t>(row));
    });
  }
}

// Where index i of an axis that is padded by `before` comes from; -1: from outside.
int64_t pad_source(int64_t i, int64_t before, int64_t size, std::string_view mode) {
  int64_t at = i - before;
  if (at >= 0 && at < size) return at;
  if (mode == "constant") return -1;
  if (mode == "edge" || size == 1) return at < 0 ? 0 : size - 1;
  const int64_t period = mode == "wrap" ? size : 2 * (size - 1);
  at = (at % period + period) % period;
  return at < size ? at : period - at;
}

ScratchSize pad_scratch(const KernelCall& c) {
  size_t n = 0;
  for (const int64_t dim : c.tensor(2).dims) n += static_cast<size_t>(dim);
  return {n * sizeof(int64_t), 0};
}

// pads: before of all axes, then after; negative ones cut, and what is left is what the mode repeats
void pad(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &y = c.tensor(2);
  const Tensor* value = c.optional(1);
  const std::string_view mode = c.string(3);
  const size_t rank = x.dims.size();
  c.require(mode == "constant" || mode == "reflect" || mode == "edge" || mode == "wrap", "it has no such mode");
  c.require(y.dims.size() == rank && c.args.size() == 4 + 2 * rank, "pads do not fit the rank");
  c.require(x.dtype == y.dtype && (value == nullptr || (value->dtype == x.dtype && value->size() == 1)),
            "its dtypes differ");
  std::array<const int64_t*, kMaxRank> sources{};
  auto* table = reinterpret_cast<int64_t*>(c.shared_scratch());
  for (size_t i = 0; i < rank; ++i) {
    const int64_t before = c.integer(4 + i), after = c.integer(4 + rank + i);
    const int64_t cut = std::max<int64_t>(0, -before), kept = x.dims[i] - cut - std::max<int64_t>(0, -after);
    c.require(std::abs(before) < int64_t{1} << 40 && std::abs(after) < int64_t{1} << 40 && kept >= 0,
              "its pads are out of range");
    c.require(y.dims[i] == x.dims[i] + before + after, "y's shape is not x's padded");
    c.require(kept > 0 || y.dims[i] == 0 || mode == "constant", "there is nothing to repeat");
    sources[i] = table;
    for (int64_t j = 0; j < y.dims[i]; ++j) {
      const int64_t from = pad_source(j, std::max<int64_t>(0, before), kept, mode);
      *table++ = from < 0 ? -1 : from + cut;
    }
  }
  if (y.size() == 0) return;
  const auto strides = row_strides(x.dims);
  by_size(x.item_size(), [&](auto t) {
    using T = decltype(t);
    const T fill = value != nullptr ? *value->as<const T>() : T{0};
    if (rank == 0) {
      *y.as<T>() = *x.as<const T>();
      return;
    }
    const int64_t columns = y.dims[rank - 1], rows = y.size() / columns;
    const int64_t* last = sources[rank - 1];
    const int64_t lead = std::max<int64_t>(0, c.integer(4 + rank - 1));
    const int64_t inside = std::max<int64_t>(0, std::min(columns - lead, x.dims[rank - 1]));
    // The part that is not padding is one run, shorter than x where `after` cuts.
    int64_t middle = lead;
    while (middle < lead + inside && last[middle] >= 0 && last[middle] == last[lead] + middle - lead) ++middle;
    c.pool->parallel_for(rows, std::max<int64_t>(1, kGrainElements / columns), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        T* to = y.as<T>() + row * columns;
        int64_t at = 0, rest = row;
        bool outside = false;
        for (size_t i = rank - 1; i-- > 0;) {
          const int64_t from = sources[i][rest % y.dims[i]];
          rest /= y.dims[i];
          outside |= from < 0;
          at += from * strides[i];
        }
        if (outside) {
          std::fill_n(to, columns, fill);
          continue;
        }
        const T* from = x.as<const T>() + at;
        const auto edge = [&](int64_t j) { to[j] = last[j] < 0 ? fill : from[last[j]]; };
        for (int64_t j = 0; j < std::min(lead, columns); ++j) edge(j);
        if (middle > lead) std::memcpy(to + lead, from + last[lead], static_cast<size_t>(middle - lead) * sizeof(T));
        for (int64_t j = middle; j < columns; ++j) edge(j);
      }
    });
  });
}

// A run-time check of sizes inside of a branch; those outside are checked when dims are bound.
void check(const KernelCall& call) {
  const int64_t kind = call.integer(0), a = call.integer(1), b = call.integer(2);
  const bool holds = kind == Check::kEqual ? a == b : kind == Check::kAtLeast ? a >= b : a == b || a == 1 || b == 1;
  if (!holds) {
    call.fail(std::string(call.string(3)) + " (" + std::to_string(a) + " and " + std::to_string(b) + ")", Code::kCheck);
  }
}

constexpr Kernel kKernels[] = {
    {"copy", "x -> y", copy},
    {"check", "-> ; kind, a, b, message:s", check},
    {"fill_int", "-> y; value", fill_int},
    {"transpose", "x -> y; perm*", transpose},
    {"expand", "x -> y", expand},
    {"slice", "x -> y; starts_steps*", slice},
    {"concat", "x* -> y; axis", concat},
    {"pad", "x, value? -> y; mode:s, pads*", pad, pad_scratch},
};

}  // namespace

std::span<const Kernel> move_kernels() { return kKernels; }

}  // namespace edgec
