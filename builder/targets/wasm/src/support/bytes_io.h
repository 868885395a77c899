// Streams over bytes in memory. Written for llm-build from the use that TVM's runtime makes of them.
#pragma once

#include <tvm/ffi/string.h>
#include <tvm/support/io.h>
#include <tvm/support/serializer.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace tvm {
namespace support {

// Reads bytes that outlive it.
class BytesInStream : public Stream {
 public:
  explicit BytesInStream(const ffi::Bytes& bytes) : data_(bytes.data()), size_(bytes.size()) {}
  explicit BytesInStream(const std::string& bytes) : data_(bytes.data()), size_(bytes.size()) {}

  using Stream::Read;
  using Stream::Write;

  size_t Read(void* data, size_t size) final {
    size = std::min(size, size_ - position_);
    if (size != 0) std::memcpy(data, data_ + position_, size);
    position_ += size;
    return size;
  }

  size_t Write(const void*, size_t) final { TVM_FFI_THROW(InternalError) << "a stream for reading"; }

 private:
  const char* data_;
  size_t size_;
  size_t position_ = 0;
};

// Appends to a string that outlives it.
class BytesOutStream : public Stream {
 public:
  explicit BytesOutStream(std::string* bytes) : bytes_(bytes) {}

  using Stream::Read;
  using Stream::Write;

  size_t Read(void*, size_t) final { TVM_FFI_THROW(InternalError) << "a stream for writing"; }

  size_t Write(const void* data, size_t size) final {
    bytes_->append(static_cast<const char*>(data), size);
    return size;
  }

 private:
  std::string* bytes_;
};

}  // namespace support
}  // namespace tvm
