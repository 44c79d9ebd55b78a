/* Fixed-point arithmetic as TensorFlow Lite's reference kernels round (gemmlowp). */
#ifndef EW_MATH_H
#define EW_MATH_H
#include <stdint.h>

/* The high half of 2*a*b, rounded half away from zero; the one overflow saturates. */
static inline int32_t ew_doubling_high(int32_t a, int32_t b) {
  if (a == INT32_MIN && b == INT32_MIN) {
    return INT32_MAX;
  }
  const int64_t product = (int64_t)a * b;
  const int64_t nudge = product >= 0 ? ((int64_t)1 << 30) : 1 - ((int64_t)1 << 30);
  return (int32_t)((product + nudge) / ((int64_t)1 << 31));
}

/* x / 2^exponent, rounded half away from zero; exponent in 0..31. */
static inline int32_t ew_rounding_shift(int32_t x, int exponent) {
  const int32_t mask = (int32_t)(((int64_t)1 << exponent) - 1);
  const int32_t remainder = x & mask;
  const int32_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
  return (x >> exponent) + (remainder > threshold ? 1 : 0);
}

/* x * multiplier / 2^31 * 2^shift. */
static inline int32_t ew_rescale(int32_t x, int32_t multiplier, int shift) {
  const int left = shift > 0 ? shift : 0;
  const int right = shift > 0 ? 0 : -shift;
  const int32_t scaled = (int32_t)((uint32_t)x << left);
  return ew_rounding_shift(ew_doubling_high(scaled, multiplier), right);
}

/* A sum that wraps, as every machine computes it. */
static inline int32_t ew_plus(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }

static inline int8_t ew_clamp(int32_t x, int32_t low, int32_t high) {
  return (int8_t)(x < low ? low : (x > high ? high : x));
}
#endif
