// A stream of bytes, and typed values on it. Written for llm-build from the use that TVM's runtime makes of it.
#pragma once

#include <cstddef>
#include <type_traits>

namespace tvm {
namespace support {

template <typename T, typename Enable = void>
struct Serializer;  // serializer.h has one per type

class Stream {
 public:
  virtual ~Stream() = default;

  // Bytes that were read: fewer than `size` only at the end.
  virtual size_t Read(void* data, size_t size) = 0;
  virtual size_t Write(const void* data, size_t size) = 0;

  template <typename T>
  void Write(const T& value) {
    Serializer<T>::Write(this, value);
  }

  template <typename T>
  bool Read(T* value) {
    return Serializer<T>::Read(this, value);
  }

  template <typename T>
  void WriteArray(const T* values, size_t count) {
    static_assert(std::is_arithmetic_v<T>, "arrays of plain numbers");
    Write(static_cast<const void*>(values), count * sizeof(T));
  }

  template <typename T>
  bool ReadArray(T* values, size_t count) {
    static_assert(std::is_arithmetic_v<T>, "arrays of plain numbers");
    return Read(static_cast<void*>(values), count * sizeof(T)) == count * sizeof(T);
  }
};

}  // namespace support
}  // namespace tvm
