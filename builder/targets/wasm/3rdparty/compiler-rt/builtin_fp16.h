// A small IEEE 754 number as a wider one, bit by bit. The name and the parameters are those that TVM's sort calls: each
// format by its bits, an unsigned integer of its width, and its number of stored mantissa bits.
#pragma once

#include <climits>
#include <cstdint>
#include <cstring>

template <typename From, typename FromBits, int FromMantissa, typename To, typename ToBits, int ToMantissa>
inline To __extendXfYf2__(From value) {
  constexpr int kFromExponent = int(sizeof(FromBits)) * CHAR_BIT - FromMantissa - 1;
  constexpr int kToExponent = int(sizeof(ToBits)) * CHAR_BIT - ToMantissa - 1;
  constexpr int kShift = ToMantissa - FromMantissa;
  constexpr ToBits kFromLargest = (ToBits(1) << kFromExponent) - 1;
  constexpr ToBits kToLargest = (ToBits(1) << kToExponent) - 1;
  constexpr ToBits kBias = (kToLargest >> 1) - (kFromLargest >> 1);

  FromBits bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const ToBits sign = ToBits(bits >> (kFromExponent + FromMantissa)) << (kToExponent + ToMantissa);
  ToBits exponent = (ToBits(bits) >> FromMantissa) & kFromLargest;
  ToBits mantissa = ToBits(bits) & ((ToBits(1) << FromMantissa) - 1);
  if (exponent == kFromLargest) {  // infinity, or not a number
    exponent = kToLargest;
  } else if (exponent != 0) {
    exponent += kBias;
  } else if (mantissa != 0) {  // subnormal: the wider format has room for its leading one
    exponent = kBias + 1;
    while ((mantissa >> FromMantissa) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    mantissa &= (ToBits(1) << FromMantissa) - 1;
  }
  const ToBits whole = sign | (exponent << ToMantissa) | (mantissa << kShift);
  To result;
  std::memcpy(&result, &whole, sizeof(result));
  return result;
}
