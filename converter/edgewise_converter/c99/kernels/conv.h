/* CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED: int8 activations and weights, int32 bias. */
#ifndef EW_CONV_H
#define EW_CONV_H
#include "math.h"

struct ew_conv {
  int32_t batches, in_h, in_w, in_c, out_h, out_w, out_c, filter_h, filter_w, filter_c;
  int32_t stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w;
  int32_t in_offset, out_offset, low, high;
};

struct ew_dense {
  int32_t rows, in_c, out_c, in_offset, out_offset, low, high;
};

/* The taps of a filter that lie within an input of `size`, when its first tap is at `origin`. */
static inline void ew_taps(int32_t origin, int32_t dilation, int32_t taps, int32_t size, int32_t *first, int32_t *end) {
  int32_t from = 0, to = taps;
  while (from < to && origin + from * dilation < 0) {
    ++from;
  }
  while (to > from && origin + (to - 1) * dilation >= size) {
    --to;
  }
  *first = from;
  *end = to;
}

static inline int32_t ew_dot(const int8_t *x, const int8_t *w, int32_t count, int32_t offset) {
  int32_t sum = 0;
  for (int32_t i = 0; i < count; ++i) {
    sum = ew_plus(sum, ((int32_t)x[i] + offset) * (int32_t)w[i]);
  }
  return sum;
}

static inline void ew_conv_2d(const struct ew_conv *p, const int8_t *x, const int8_t *w, const int32_t *bias,
                              const int32_t *multiplier, const int8_t *shift, int8_t *y) {
  const int32_t groups = p->in_c / p->filter_c, per_group = p->out_c / groups;
  for (int32_t b = 0; b < p->batches; ++b, x += p->in_h * p->in_w * p->in_c) {
    for (int32_t i = 0; i < p->out_h; ++i) {
      int32_t a0, a1;
      const int32_t top = i * p->stride_h - p->pad_h;
      ew_taps(top, p->dilation_h, p->filter_h, p->in_h, &a0, &a1);
      for (int32_t j = 0; j < p->out_w; ++j) {
        int32_t e0, e1;
        const int32_t left = j * p->stride_w - p->pad_w;
        ew_taps(left, p->dilation_w, p->filter_w, p->in_w, &e0, &e1);
        for (int32_t o = 0; o < p->out_c; ++o) {
          const int8_t *filter = w + o * p->filter_h * p->filter_w * p->filter_c;
          const int32_t channel = (o / per_group) * p->filter_c;
          int32_t sum = bias[o];
          for (int32_t a = a0; a < a1; ++a) {
            const int8_t *row = x + (top + a * p->dilation_h) * p->in_w * p->in_c + channel;
            const int8_t *taps = filter + a * p->filter_w * p->filter_c;
            if (groups == 1 && p->dilation_w == 1) {
              sum = ew_plus(sum, ew_dot(row + (left + e0) * p->in_c, taps + e0 * p->filter_c, (e1 - e0) * p->filter_c,
                                        p->in_offset));
            } else {
              for (int32_t e = e0; e < e1; ++e) {
                sum = ew_plus(sum, ew_dot(row + (left + e * p->dilation_w) * p->in_c, taps + e * p->filter_c,
                                          p->filter_c, p->in_offset));
              }
            }
          }
          *y++ = ew_clamp(ew_rescale(sum, multiplier[o], shift[o]) + p->out_offset, p->low, p->high);
        }
      }
    }
  }
}

/* `filter_c` is the depth multiplier. */
static inline void ew_depthwise_conv_2d(const struct ew_conv *p, const int8_t *x, const int8_t *w, const int32_t *bias,
                                        const int32_t *multiplier, const int8_t *shift, int8_t *y) {
  for (int32_t b = 0; b < p->batches; ++b, x += p->in_h * p->in_w * p->in_c) {
    for (int32_t i = 0; i < p->out_h; ++i) {
      int32_t a0, a1;
      const int32_t top = i * p->stride_h - p->pad_h;
      ew_taps(top, p->dilation_h, p->filter_h, p->in_h, &a0, &a1);
      for (int32_t j = 0; j < p->out_w; ++j) {
        int32_t e0, e1;
        const int32_t left = j * p->stride_w - p->pad_w;
        ew_taps(left, p->dilation_w, p->filter_w, p->in_w, &e0, &e1);
        for (int32_t o = 0; o < p->out_c; ++o) {
          const int32_t channel = o / p->filter_c;
          int32_t sum = bias[o];
          for (int32_t a = a0; a < a1; ++a) {
            const int8_t *row = x + (top + a * p->dilation_h) * p->in_w * p->in_c + channel;
            const int8_t *taps = w + a * p->filter_w * p->out_c + o;
            for (int32_t e = e0; e < e1; ++e) {
              const int32_t value = (int32_t)row[(left + e * p->dilation_w) * p->in_c] + p->in_offset;
              sum = ew_plus(sum, value * (int32_t)taps[e * p->out_c]);
            }
          }
          *y++ = ew_clamp(ew_rescale(sum, multiplier[o], shift[o]) + p->out_offset, p->low, p->high);
        }
      }
    }
  }
}

static inline void ew_fully_connected(const struct ew_dense *p, const int8_t *x, const int8_t *w, const int32_t *bias,
                                      const int32_t *multiplier, const int8_t *shift, int8_t *y) {
  for (int32_t r = 0; r < p->rows; ++r, x += p->in_c) {
    for (int32_t o = 0; o < p->out_c; ++o) {
      const int32_t sum = ew_plus(bias[o], ew_dot(x, w + o * p->in_c, p->in_c, p->in_offset));
      *y++ = ew_clamp(ew_rescale(sum, multiplier[o], shift[o]) + p->out_offset, p->low, p->high);
    }
  }
}
#endif
