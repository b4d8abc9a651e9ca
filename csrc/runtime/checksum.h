// A checksum at the speed of memory: against accidents, not against people.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace edgec {

// 64 bits of `bytes`: eight lanes, each folding 16 bytes at a time by a 64 x 64 bit product, as wyhash does.
uint64_t checksum(std::span<const std::byte> bytes);

// The checksum of each piece of `piece` bytes (the last may be shorter), shared among the threads.
std::vector<uint64_t> checksums(std::span<const std::byte> bytes, size_t piece, int threads);

}  // namespace edgec
