// What the headers in builder/targets/wasm promise. Prints half-precision conversions for the caller to compare.
#include <tvm/support/cuda/nvtx.h>
#include <tvm/support/serializer.h>

#include <cstdio>
#include <cstdlib>

#include "3rdparty/compiler-rt/builtin_fp16.h"
#include "src/support/arena.h"
#include "src/support/base64.h"
#include "src/support/bytes_io.h"
#include "src/support/ring_buffer.h"
#include "src/support/utils.h"

using namespace tvm::support;

static void expect(bool is, int line) {
  if (is) return;
  std::printf("line %d does not hold\n", line);
  std::exit(1);
}

#define EXPECT(condition) expect(condition, __LINE__)

static void values_come_back() {
  std::string bytes;
  BytesOutStream out(&bytes);
  out.Write(std::vector<std::string>{"one", "", "three"});
  out.Write(DLDataType{kDLFloat, 16, 4});
  out.Write(int64_t(-5));
  std::string expected("\3\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0one\0\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0three\2\x10\4\0", 44);
  EXPECT(bytes.substr(0, 44) == expected);
  BytesInStream in(bytes);
  std::vector<std::string> words;
  DLDataType type;
  int64_t number;
  EXPECT(in.Read(&words) && in.Read(&type) && in.Read(&number));
  EXPECT(words.size() == 3 && words[2] == "three" && type.lanes == 4 && number == -5);
  EXPECT(!in.Read(&number));
}

static void truncated_text_is_refused() {
  std::string bytes("\5\0\0\0\0\0\0\0ab", 10), text;
  BytesInStream in(bytes);
  EXPECT(!in.Read(&text));
}

static void base64_of_any_length() {
  for (size_t length = 0; length < 9000; length += 4099) {
    std::string text, bytes(length, '\xe1'), back(length, ' ');
    BytesOutStream sink(&text);
    Base64OutStream out(&sink);
    out.Write(bytes.data(), length);
    out.Finish();
    BytesInStream source(text);
    Base64InStream in(&source);
    in.InitPosition();
    EXPECT(in.Read(&back[0], length) == length && back == bytes);
  }
}

static void a_queue_keeps_order() {
  RingBuffer queue;
  unsigned char next_in = 0, next_out = 0, got;
  for (int round = 0; round < 100; ++round) {
    for (int i = 0; i < 7; ++i, ++next_in) queue.Write(&next_in, 1);
    if (round % 10 == 0) queue.Reserve(1000);
    for (int i = 0; i < 5; ++i) {
      queue.Read(&got, 1);
      EXPECT(got == next_out++);
    }
  }
  EXPECT(queue.bytes_available() == 200);
  size_t sent = queue.ReadWithCallback([&](const void* data, size_t size) {
    EXPECT(size == 200 && *static_cast<const unsigned char*>(data) == next_out);
    return size_t(150);
  }, 200);
  EXPECT(sent == 150 && queue.bytes_available() == 50);
  queue.WriteWithCallback([](void*, size_t) { return size_t(3); }, 10);
  EXPECT(queue.bytes_available() == 53);
}

int main() {
  values_come_back();
  truncated_text_is_refused();
  base64_of_any_length();
  a_queue_keeps_order();
  Arena arena;
  EXPECT(reinterpret_cast<uintptr_t>(arena.allocate_<double>(3)) % alignof(double) == 0);
  EXPECT(StartsWith("abc", "ab") && !StartsWith("a", "ab"));
  for (uint32_t half = 0; half < 65536; ++half) {
    float value = __extendXfYf2__<uint16_t, uint16_t, 10, float, uint32_t, 23>(half);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    std::printf("%08x\n", bits);
  }
}
