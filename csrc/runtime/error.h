// The runtime's one exception; the binding turns it into edgec.EdgecError.
#pragma once

#include <stdexcept>
#include <string>

namespace edgec {

enum class Code : int {
  kCall = 1001,
  kOpen = 1501,
  kArchive = 1502,
  kManifest = 1503,
  kDamaged = 1504,
  kTarget = 1506,
  kPlan = 1507,
  kCodeLoad = 1508,
  kInputName = 1601,
  kInputDtype = 1602,
  kInputShape = 1603,
  kCheck = 1604,
  kValue = 1605,
  kMemory = 1606,
  kOutputName = 1607,
  kContext = 1608,
  kInternal = 1901,
};

class Error : public std::runtime_error {
 public:
  Error(Code code, std::string where, const std::string& reason, std::string hint = "")
      : std::runtime_error(reason), code(code), where(std::move(where)), hint(std::move(hint)) {}
  Code code;
  std::string where, hint;
};

}  // namespace edgec
