// A queue of bytes between a channel and who handles its messages. Written for llm-build from the use that TVM's RPC
// makes of it.
#pragma once

#include <tvm/ffi/error.h>

#include <cstddef>
#include <cstring>
#include <vector>

namespace tvm {
namespace support {

class RingBuffer {
 public:
  size_t bytes_available() const { return bytes_.size() - begin_; }

  // Room for `size` bytes in all, so that they come in one piece.
  void Reserve(size_t size) {
    Compact();
    bytes_.reserve(size);
  }

  void Write(const void* data, size_t size) {
    const char* first = static_cast<const char*>(data);
    bytes_.insert(bytes_.end(), first, first + size);
  }

  void Read(void* data, size_t size) {
    TVM_FFI_ICHECK_LE(size, bytes_available());
    if (size != 0) std::memcpy(data, bytes_.data() + begin_, size);
    Drop(size);
  }

  // `receive(data, size)` fills up to `size` bytes; returns how many it did.
  template <typename Receive>
  size_t WriteWithCallback(Receive receive, size_t size) {
    size_t before = bytes_.size();
    bytes_.resize(before + size);
    size_t received = receive(static_cast<void*>(bytes_.data() + before), size);
    bytes_.resize(before + received);
    return received;
  }

  // `send(data, size)` takes up to `size` bytes; returns how many it did.
  template <typename Send>
  size_t ReadWithCallback(Send send, size_t size) {
    TVM_FFI_ICHECK_LE(size, bytes_available());
    size_t sent = send(static_cast<const void*>(bytes_.data() + begin_), size);
    Drop(sent);
    return sent;
  }

 private:
  void Drop(size_t size) {
    begin_ += size;
    if (2 * begin_ >= bytes_.size()) Compact();
  }

  void Compact() {
    bytes_.erase(bytes_.begin(), bytes_.begin() + begin_);
    begin_ = 0;
  }

  std::vector<char> bytes_;
  size_t begin_ = 0;
};

}  // namespace support
}  // namespace tvm
