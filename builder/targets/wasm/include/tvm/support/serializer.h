// How values lie on a stream: numbers as their little-endian bytes; text and lists as a uint64 count and what they hold;
// maps as a uint64 count, then key and value in turn. The compiler in the wheel writes this format.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/endian.h>
#include <tvm/ffi/string.h>
#include <tvm/support/io.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tvm {
namespace support {

static_assert(TVM_FFI_IO_NO_ENDIAN_SWAP, "numbers are written as they lie in memory");

// Types without padding, the same on 32-bit and 64-bit machines.
template <typename T>
inline constexpr bool is_plain = std::is_arithmetic_v<T> || std::is_enum_v<T> || std::is_same_v<T, DLDataType> ||
                                 std::is_same_v<T, DLDevice>;

template <typename T>
struct Serializer<T, std::enable_if_t<is_plain<T>>> {
  static void Write(Stream* stream, const T& value) { stream->Write(static_cast<const void*>(&value), sizeof(T)); }
  static bool Read(Stream* stream, T* value) {
    return stream->Read(static_cast<void*>(value), sizeof(T)) == sizeof(T);
  }
};

inline void WriteCount(Stream* stream, size_t count) { stream->Write(static_cast<uint64_t>(count)); }

inline bool ReadCount(Stream* stream, size_t* count) {
  uint64_t wide;
  if (!stream->Read(&wide)) return false;
  *count = static_cast<size_t>(wide);
  return *count == wide;
}

template <>
struct Serializer<std::string> {
  static void Write(Stream* stream, const std::string& text) {
    WriteCount(stream, text.size());
    stream->Write(static_cast<const void*>(text.data()), text.size());
  }
  static bool Read(Stream* stream, std::string* text) {
    size_t size;
    if (!ReadCount(stream, &size)) return false;
    text->resize(size);
    return stream->Read(static_cast<void*>(&(*text)[0]), size) == size;
  }
};

template <>
struct Serializer<ffi::String> {
  static void Write(Stream* stream, const ffi::String& text) { stream->Write(std::string(text.data(), text.size())); }
  static bool Read(Stream* stream, ffi::String* text) {
    std::string read;
    if (!stream->Read(&read)) return false;
    *text = ffi::String(std::move(read));
    return true;
  }
};

// Lists, of std or of the FFI: both count with size() and grow with push_back().
template <typename List, typename Item>
struct ListSerializer {
  static void Write(Stream* stream, const List& list) {
    WriteCount(stream, list.size());
    for (const Item& item : list) stream->Write(item);
  }
  static bool Read(Stream* stream, List* list) {
    size_t count;
    if (!ReadCount(stream, &count)) return false;
    *list = List();
    for (size_t i = 0; i < count; ++i) {
      Item item;
      if (!stream->Read(&item)) return false;
      list->push_back(std::move(item));
    }
    return true;
  }
};

template <typename T>
struct Serializer<std::vector<T>> : ListSerializer<std::vector<T>, T> {};

template <typename T>
struct Serializer<ffi::Array<T>> : ListSerializer<ffi::Array<T>, T> {};

template <typename K, typename V>
struct Serializer<std::unordered_map<K, V>> {
  static bool Read(Stream* stream, std::unordered_map<K, V>* map) {
    size_t count;
    if (!ReadCount(stream, &count)) return false;
    map->clear();
    for (size_t i = 0; i < count; ++i) {
      std::pair<K, V> entry;
      if (!stream->Read(&entry.first) || !stream->Read(&entry.second)) return false;
      map->insert(std::move(entry));
    }
    return true;
  }
};

template <typename K, typename V>
struct Serializer<ffi::Map<K, V>> {
  static bool Read(Stream* stream, ffi::Map<K, V>* map) {
    size_t count;
    if (!ReadCount(stream, &count)) return false;
    *map = ffi::Map<K, V>();
    for (size_t i = 0; i < count; ++i) {
      K key;
      V value;
      if (!stream->Read(&key) || !stream->Read(&value)) return false;
      map->Set(key, value);
    }
    return true;
  }
};

}  // namespace support
}  // namespace tvm
