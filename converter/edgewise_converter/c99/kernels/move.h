/* PAD, TRANSPOSE, CONCATENATION: bytes change their place, not their value. */
#ifndef EW_MOVE_H
#define EW_MOVE_H
#include <stdint.h>
#include <string.h>

/* `before` and `size` are of the input; `out` is the output's size. */
struct ew_pad {
  int32_t size[4], before[4], out[4];
  int32_t value;
};

/* The output's size, and the step in the input along each of its dimensions. */
struct ew_transpose {
  int32_t size[4], step[4];
};

static inline void ew_pad_all(const struct ew_pad *p, const int8_t *x, int8_t *y) {
  memset(y, p->value, (size_t)(p->out[0] * p->out[1] * p->out[2] * p->out[3]));
  for (int32_t i = 0; i < p->size[0]; ++i) {
    for (int32_t j = 0; j < p->size[1]; ++j) {
      for (int32_t k = 0; k < p->size[2]; ++k, x += p->size[3]) {
        const int32_t row = ((i + p->before[0]) * p->out[1] + j + p->before[1]) * p->out[2] + k + p->before[2];
        memcpy(y + row * p->out[3] + p->before[3], x, (size_t)p->size[3]);
      }
    }
  }
}

static inline void ew_transpose_all(const struct ew_transpose *p, const int8_t *x, int8_t *y) {
  for (int32_t i = 0; i < p->size[0]; ++i) {
    for (int32_t j = 0; j < p->size[1]; ++j) {
      for (int32_t k = 0; k < p->size[2]; ++k) {
        for (int32_t l = 0; l < p->size[3]; ++l) {
          *y++ = x[i * p->step[0] + j * p->step[1] + k * p->step[2] + l * p->step[3]];
        }
      }
    }
  }
}

/* One input of a concatenation: `outer` runs of `run` bytes, each to the start of a run of `stride` bytes. */
static inline void ew_place(const int8_t *x, int32_t outer, int32_t run, int32_t stride, int8_t *y) {
  for (int32_t i = 0; i < outer; ++i, x += run, y += stride) {
    memcpy(y, x, (size_t)run);
  }
}
#endif
