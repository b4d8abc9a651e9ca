// What the C interface needs of manifest.json: the target's triple and the CPU features that it requires.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace edgec {

struct TargetNeeds {
  std::string triple;
  std::vector<std::string> features;
};

// Throws Error(kManifest) where the text is no JSON object with a target. `where` names the file.
TargetNeeds read_target(std::string_view json, const std::string& where);

}  // namespace edgec
