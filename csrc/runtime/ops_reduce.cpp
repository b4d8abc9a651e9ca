// Sorting and scanning along an axis: topk, cumsum, argmax, argmin.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "runtime/dispatch.h"
#include "runtime/kernel_registry.h"

namespace edgec {
namespace {

// The order of numpy's sort: NaN is the greatest.
template <class T>
bool less(T a, T b) {
  using W = typename Wide<T>::type;
  if constexpr (std::is_floating_point_v<W>) return W(a) < W(b) || (W(b) != W(b) && W(a) == W(a));
  return a < b;
}

template <class T>
struct Ranked {
  T value;
  int64_t index;
};

ScratchSize topk_scratch(const KernelCall& c) {
  const Tensor& x = c.tensor(0);
  const int64_t axis = c.integer(4);
  if (axis < 0 || axis >= x.rank()) return {};
  return {0, static_cast<size_t>(x.dims[static_cast<size_t>(axis)]) * 16};
}

void topk(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &values = c.tensor(1), &index = c.tensor(2);
  const size_t axis = axis_of(c, 4, x);
  const int64_t k = c.integer(3), size = x.dims[axis];
  const bool largest = c.integer(5) != 0;
  c.require(k >= 0 && k <= size, "k is larger than the axis");
  const int64_t inner = product(x.dims, axis + 1, x.dims.size()), lines = product(x.dims, 0, axis) * inner;
  c.require(values.dtype == x.dtype && values.size() == lines * k, "the values do not fit");
  c.require(index.dtype == DType::kI64 && index.size() == lines * k, "the indices do not fit");
  if (values.size() == 0) return;
  by_dtype(x.dtype, [&](auto t) {
    using T = decltype(t);
    using Item = Ranked<T>;
    static_assert(sizeof(Item) <= 16);
    c.pool->parallel_for(lines, std::max<int64_t>(1, kGrainElements / (4 * size)),
                         [&](int64_t begin, int64_t end, int worker) {
                           auto* items = reinterpret_cast<Item*>(c.scratch(worker));
                           for (int64_t line = begin; line < end; ++line) {
                             const int64_t outer = line / inner, column = line % inner;
                             const T* from = x.as<const T>() + outer * size * inner + column;
                             for (int64_t i = 0; i < size; ++i) items[i] = {from[i * inner], i};
                             const auto sort = [&](auto before) {
                               if (4 * k < size) {
                                 std::partial_sort(items, items + k, items + size, before);
                               } else {
                                 if (k < size) std::nth_element(items, items + k, items + size, before);
                                 std::sort(items, items + k, before);
                               }
                             };
                             if (largest)
                               sort([](const Item& a, const Item& b) {
                                 return less(b.value, a.value) || (!less(a.value, b.value) && a.index < b.index);
                               });
                             else
                               sort([](const Item& a, const Item& b) {
                                 return less(a.value, b.value) || (!less(b.value, a.value) && a.index < b.index);
                               });
                             const int64_t to = outer * k * inner + column;
                             for (int64_t i = 0; i < k; ++i) {
                               values.as<T>()[to + i * inner] = items[i].value;
                               index.as<int64_t>()[to + i * inner] = items[i].index;
                             }
                           }
                         });
  });
}

void cumsum(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &y = c.tensor(1);
  const size_t axis = axis_of(c, 2, x);
  const bool exclusive = c.integer(3) != 0, reverse = c.integer(4) != 0;
  c.require(x.dtype == y.dtype && std::ranges::equal(x.dims, y.dims), "y is not like x");
  if (x.size() == 0) return;
  const int64_t size = x.dims[axis], inner = product(x.dims, axis + 1, x.dims.size()), lines = x.size() / size;
  by_dtype(x.dtype, [&](auto t) {
    using T = decltype(t);
    using W = std::conditional_t<std::is_floating_point_v<typename Wide<T>::type>, double, T>;
    c.pool->parallel_for(lines, std::max<int64_t>(1, kGrainElements / size), [&](int64_t begin, int64_t end, int) {
      for (int64_t line = begin; line < end; ++line) {
        const int64_t start = line / inner * size * inner + line % inner + (reverse ? (size - 1) * inner : 0);
        const T* from = x.as<const T>() + start;
        T* to = y.as<T>() + start;
        const int64_t step = reverse ? -inner : inner;
        W total = 0;
        for (int64_t i = 0; i < size; ++i) {
          const W value = static_cast<W>(from[i * step]);
          const W sum = static_cast<W>(total + value);
          to[i * step] = T(static_cast<typename Wide<T>::type>(exclusive ? total : sum));
          total = sum;
        }
      }
    });
  });
}

// Whether b, met after a, replaces it: as numpy, a NaN wins over everything.
template <bool kMax, class T>
bool better(T b, T a, bool last) {
  using W = typename Wide<T>::type;
  const W x = W(a), y = W(b);
  if constexpr (std::is_floating_point_v<W>) {
    if (x != x) return last && y != y;
    if (y != y) return true;
  }
  return (kMax ? y > x : y < x) || (last && y == x);
}

template <bool kMax>
void arg_extreme(const KernelCall& c) {
  const Tensor &x = c.tensor(0), &y = c.tensor(1);
  const size_t axis = axis_of(c, 2, x);
  const bool last = c.integer(3) != 0;
  const int64_t size = x.dims[axis], inner = product(x.dims, axis + 1, x.dims.size());
  const int64_t lines = product(x.dims, 0, axis) * inner;
  c.require(y.dtype == DType::kI64 && y.size() == lines, "y does not fit");
  if (lines == 0) return;
  c.require(size > 0, "the axis is empty");
  by_dtype(x.dtype, [&](auto t) {
    using T = decltype(t);
    c.pool->parallel_for(lines, std::max<int64_t>(1, kGrainElements / size), [&](int64_t begin, int64_t end, int) {
      for (int64_t line = begin; line < end; ++line) {
        const T* from = x.as<const T>() + line / inner * size * inner + line % inner;
        int64_t best = 0;
        T value = from[0];
        for (int64_t i = 1; i < size; ++i) {
          const T candidate = from[i * inner];
          if (!better<kMax>(candidate, value, last)) continue;
          best = i;
          value = candidate;
        }
        y.as<int64_t>()[line] = best;
      }
    });
  });
}

constexpr Kernel kKernels[] = {
    {"topk", "x -> values, indices; k, axis, largest, sorted", topk, topk_scratch},
    {"cumsum", "x -> y; axis, exclusive, reverse", cumsum},
    {"argmax", "x -> y; axis, last", arg_extreme<true>},
    {"argmin", "x -> y; axis, last", arg_extreme<false>},
};

}  // namespace

std::span<const Kernel> reduce_kernels() { return kKernels; }

}  // namespace edgec
