/* SOFTMAX in fixed point, as TensorFlow Lite's reference kernel computes it (gemmlowp's exp and reciprocal). */
#ifndef EW_SOFTMAX_H
#define EW_SOFTMAX_H
#include "math.h"

struct ew_softmax {
  int32_t rows, depth, multiplier, left_shift, smallest;
};

/* x * 2^exponent, saturating; exponent may be negative. */
static inline int32_t ew_power_of_two(int32_t x, int exponent) {
  if (exponent <= 0) {
    return ew_rounding_shift(x, -exponent);
  }
  const int32_t limit = (int32_t)(((int64_t)1 << (31 - exponent)) - 1);
  if (x > limit) {
    return INT32_MAX;
  }
  return x < -limit ? INT32_MIN : (int32_t)((uint32_t)x << exponent);
}

/* exp(a) for a in [-1/4, 0), with no integer bits. */
static inline int32_t ew_exp_quarter(int32_t a) {
  const int32_t constant = 1895147668, third = 715827883;
  const int32_t x = a + ((int32_t)1 << 28);
  const int32_t x2 = ew_doubling_high(x, x);
  const int32_t x3 = ew_doubling_high(x2, x);
  const int32_t x4 = ew_doubling_high(x2, x2);
  const int32_t quarter = ew_power_of_two(x4, -2);
  const int32_t tail = ew_power_of_two(ew_doubling_high(quarter + x3, third) + x2, -1);
  return constant + ew_doubling_high(constant, x + tail);
}

/* exp(a) for a <= 0 with 5 integer bits; the result has none. */
static inline int32_t ew_exp_negative(int32_t a) {
  static const int32_t factors[7] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
  const int32_t quarter = (int32_t)1 << 24;
  const int32_t within = (a & (quarter - 1)) - quarter;
  const int32_t rest = within - a;
  int32_t result = ew_exp_quarter(ew_power_of_two(within, 5));
  for (int bit = 0; bit < 7; ++bit) {
    if (rest & ((int32_t)1 << (24 + bit))) {
      result = ew_doubling_high(result, factors[bit]);
    }
  }
  return a == 0 ? INT32_MAX : result;
}

/* 1 / (1 + a) for a in [0, 1), with no integer bits. */
static inline int32_t ew_one_over_one_plus(int32_t a) {
  const int64_t twice = (int64_t)a + INT32_MAX;
  const int32_t half = (int32_t)((twice + (twice >= 0 ? 1 : -1)) / 2);
  int32_t x = 1515870810 + ew_doubling_high(half, -1010580540);
  for (int i = 0; i < 3; ++i) {
    const int32_t error = ((int32_t)1 << 29) - ew_doubling_high(half, x);
    x = x + ew_power_of_two(ew_doubling_high(x, error), 2);
  }
  return ew_power_of_two(x, 1);
}

static inline int ew_leading_zeros(uint32_t x) {
  int count = 0;
  for (uint32_t bit = (uint32_t)1 << 31; bit != 0 && (x & bit) == 0; bit >>= 1) {
    ++count;
  }
  return count;
}

static inline int32_t ew_exp_of(const struct ew_softmax *p, int32_t difference) {
  return ew_exp_negative(ew_doubling_high((int32_t)((uint32_t)difference << p->left_shift), p->multiplier));
}

/* y may be x: a row's element is read for the last time just before it is written. */
static inline void ew_softmax_rows(const struct ew_softmax *p, const int8_t *x, int8_t *y) {
  for (int32_t r = 0; r < p->rows; ++r, x += p->depth, y += p->depth) {
    int32_t largest = INT8_MIN, sum = 0;
    for (int32_t c = 0; c < p->depth; ++c) {
      largest = x[c] > largest ? x[c] : largest;
    }
    for (int32_t c = 0; c < p->depth; ++c) {
      const int32_t difference = x[c] - largest;
      if (difference >= p->smallest) {
        sum += ew_rounding_shift(ew_exp_of(p, difference), 12);
      }
    }
    const int headroom = ew_leading_zeros((uint32_t)sum);
    const int32_t normalized = (int32_t)(((uint32_t)sum << headroom) - ((uint32_t)1 << 31));
    const int32_t scale = ew_one_over_one_plus(normalized);
    const int exponent = 12 - headroom + 31 - 8;
    for (int32_t c = 0; c < p->depth; ++c) {
      const int32_t difference = x[c] - largest;
      if (difference >= p->smallest) {
        const int32_t share = ew_doubling_high(scale, ew_exp_of(p, difference));
        /* Of more than 511 equal ones, each is less than half a step. */
        const int32_t value = exponent > 31 ? 0 : ew_rounding_shift(share, exponent);
        y[c] = ew_clamp(value - 128, INT8_MIN, INT8_MAX);
      } else {
        y[c] = INT8_MIN;
      }
    }
  }
}
#endif
