/* ADD, SUB, MUL with broadcasting over four dimensions; requantization. */
#ifndef EW_ELEMENTWISE_H
#define EW_ELEMENTWISE_H
#include "math.h"

/* Steps in elements of the two inputs along each dimension; 0 where an input is repeated. */
struct ew_binary {
  int32_t size[4], step1[4], step2[4];
  int32_t offset1, offset2, out_offset, low, high;
  int32_t multiplier1, shift1, multiplier2, shift2, out_multiplier, out_shift, left_shift;
};

struct ew_requantize {
  int32_t count, in_zero, out_zero, multiplier, shift, low, high;
};

static inline int8_t ew_sum(const struct ew_binary *p, int32_t a, int32_t b, int32_t sign) {
  const int32_t first = ew_rescale((a + p->offset1) * (1 << p->left_shift), p->multiplier1, p->shift1);
  const int32_t second = ew_rescale((b + p->offset2) * (1 << p->left_shift), p->multiplier2, p->shift2);
  return ew_clamp(ew_rescale(first + sign * second, p->out_multiplier, p->out_shift) + p->out_offset, p->low, p->high);
}

static inline int8_t ew_product(const struct ew_binary *p, int32_t a, int32_t b) {
  const int32_t product = (a + p->offset1) * (b + p->offset2);
  return ew_clamp(ew_rescale(product, p->out_multiplier, p->out_shift) + p->out_offset, p->low, p->high);
}

/* Output element k depends on no input element that an output before it has overwritten, so y may be an input of
   the output's own size. */
#define EW_EACH(p, x1, x2, y, expression)                                            \
  for (int32_t i = 0; i < (p)->size[0]; ++i) {                                       \
    for (int32_t j = 0; j < (p)->size[1]; ++j) {                                     \
      for (int32_t k = 0; k < (p)->size[2]; ++k) {                                   \
        const int8_t *r1 = (x1) + i * (p)->step1[0] + j * (p)->step1[1] + k * (p)->step1[2]; \
        const int8_t *r2 = (x2) + i * (p)->step2[0] + j * (p)->step2[1] + k * (p)->step2[2]; \
        for (int32_t l = 0; l < (p)->size[3]; ++l) {                                 \
          const int32_t a = r1[l * (p)->step1[3]], b = r2[l * (p)->step2[3]];        \
          *(y)++ = (expression);                                                     \
        }                                                                            \
      }                                                                              \
    }                                                                                \
  }

static inline void ew_add(const struct ew_binary *p, const int8_t *x1, const int8_t *x2, int8_t *y) {
  EW_EACH(p, x1, x2, y, ew_sum(p, a, b, 1))
}

static inline void ew_sub(const struct ew_binary *p, const int8_t *x1, const int8_t *x2, int8_t *y) {
  EW_EACH(p, x1, x2, y, ew_sum(p, a, b, -1))
}

static inline void ew_mul(const struct ew_binary *p, const int8_t *x1, const int8_t *x2, int8_t *y) {
  EW_EACH(p, x1, x2, y, ew_product(p, a, b))
}

static inline void ew_requantize_all(const struct ew_requantize *p, const int8_t *x, int8_t *y) {
  for (int32_t i = 0; i < p->count; ++i) {
    y[i] = ew_clamp(ew_rescale((int32_t)x[i] - p->in_zero, p->multiplier, p->shift) + p->out_zero, p->low, p->high);
  }
}
#endif
