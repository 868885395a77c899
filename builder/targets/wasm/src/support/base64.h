// Streams that hold base64 (RFC 4648) on their far side; the coding itself is the FFI's.
#pragma once

#include <tvm/ffi/extra/base64.h>
#include <tvm/support/io.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace tvm {
namespace support {

// Collects bytes; Finish writes their base64.
class Base64OutStream : public Stream {
 public:
  explicit Base64OutStream(Stream* sink) : sink_(sink) {}

  using Stream::Read;
  using Stream::Write;

  size_t Read(void*, size_t) final { TVM_FFI_THROW(InternalError) << "a stream for writing"; }

  size_t Write(const void* data, size_t size) final {
    bytes_.append(static_cast<const char*>(data), size);
    return size;
  }

  void Finish() {
    ffi::String text = ffi::Base64Encode(TVMFFIByteArray{bytes_.data(), bytes_.size()});
    sink_->Write(static_cast<const void*>(text.data()), text.size());
  }

 private:
  Stream* sink_;
  std::string bytes_;
};

// InitPosition reads and decodes the whole source.
class Base64InStream : public Stream {
 public:
  explicit Base64InStream(Stream* source) : source_(source) {}

  using Stream::Read;
  using Stream::Write;

  void InitPosition() {
    std::string text;
    char piece[4096];
    while (size_t size = source_->Read(static_cast<void*>(piece), sizeof(piece))) text.append(piece, size);
    bytes_ = ffi::Base64Decode(TVMFFIByteArray{text.data(), text.size()});
  }

  size_t Read(void* data, size_t size) final {
    size = std::min(size, bytes_.size() - position_);
    if (size != 0) std::memcpy(data, bytes_.data() + position_, size);
    position_ += size;
    return size;
  }

  size_t Write(const void*, size_t) final { TVM_FFI_THROW(InternalError) << "a stream for reading"; }

 private:
  Stream* source_;
  ffi::Bytes bytes_;
  size_t position_ = 0;
};

}  // namespace support
}  // namespace tvm
