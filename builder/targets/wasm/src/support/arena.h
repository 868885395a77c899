// Memory for the values of one message, given back together.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace tvm {
namespace support {

class Arena {
 public:
  template <typename T>
  T* allocate_(int count) {
    blocks_.emplace_back(new std::max_align_t[(count * sizeof(T)) / sizeof(std::max_align_t) + 1]);
    return reinterpret_cast<T*>(blocks_.back().get());
  }

  void RecycleAll() { blocks_.clear(); }

 private:
  std::vector<std::unique_ptr<std::max_align_t[]>> blocks_;
};

}  // namespace support
}  // namespace tvm
