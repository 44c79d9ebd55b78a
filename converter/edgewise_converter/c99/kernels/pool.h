/* AVERAGE_POOL_2D, MAX_POOL_2D, MEAN. */
#ifndef EW_POOL_H
#define EW_POOL_H
#include "math.h"

struct ew_pool {
  int32_t batches, in_h, in_w, channels, out_h, out_w, filter_h, filter_w, stride_h, stride_w, pad_h, pad_w, low, high;
};

/* The mean over `reduced` positions: the input is outer x reduced x inner. */
struct ew_mean {
  int32_t outer, reduced, inner, in_zero, out_zero, multiplier, shift;
};

struct ew_window {
  int32_t top, bottom, left, right;
};

static inline struct ew_window ew_window_of(const struct ew_pool *p, int32_t i, int32_t j) {
  struct ew_window v = {i * p->stride_h - p->pad_h, 0, j * p->stride_w - p->pad_w, 0};
  v.bottom = v.top + p->filter_h < p->in_h ? v.top + p->filter_h : p->in_h;
  v.right = v.left + p->filter_w < p->in_w ? v.left + p->filter_w : p->in_w;
  v.top = v.top > 0 ? v.top : 0;
  v.left = v.left > 0 ? v.left : 0;
  return v;
}

static inline void ew_average_pool_2d(const struct ew_pool *p, const int8_t *x, int8_t *y) {
  for (int32_t b = 0; b < p->batches; ++b, x += p->in_h * p->in_w * p->channels) {
    for (int32_t i = 0; i < p->out_h; ++i) {
      for (int32_t j = 0; j < p->out_w; ++j) {
        const struct ew_window v = ew_window_of(p, i, j);
        const int32_t count = (v.bottom - v.top) * (v.right - v.left);
        for (int32_t c = 0; c < p->channels; ++c) {
          int32_t sum = 0;
          for (int32_t a = v.top; a < v.bottom; ++a) {
            for (int32_t e = v.left; e < v.right; ++e) {
              sum += x[(a * p->in_w + e) * p->channels + c];
            }
          }
          sum = sum > 0 ? (sum + count / 2) / count : (sum - count / 2) / count;
          *y++ = ew_clamp(sum, p->low, p->high);
        }
      }
    }
  }
}

static inline void ew_max_pool_2d(const struct ew_pool *p, const int8_t *x, int8_t *y) {
  for (int32_t b = 0; b < p->batches; ++b, x += p->in_h * p->in_w * p->channels) {
    for (int32_t i = 0; i < p->out_h; ++i) {
      for (int32_t j = 0; j < p->out_w; ++j) {
        const struct ew_window v = ew_window_of(p, i, j);
        for (int32_t c = 0; c < p->channels; ++c) {
          int32_t largest = INT8_MIN;
          for (int32_t a = v.top; a < v.bottom; ++a) {
            for (int32_t e = v.left; e < v.right; ++e) {
              const int32_t value = x[(a * p->in_w + e) * p->channels + c];
              largest = value > largest ? value : largest;
            }
          }
          *y++ = ew_clamp(largest, p->low, p->high);
        }
      }
    }
  }
}

static inline void ew_mean_axis(const struct ew_mean *p, const int8_t *x, int8_t *y) {
  for (int32_t n = 0; n < p->outer; ++n, x += p->reduced * p->inner) {
    for (int32_t c = 0; c < p->inner; ++c) {
      int32_t sum = 0;
      for (int32_t r = 0; r < p->reduced; ++r) {
        sum += x[r * p->inner + c];
      }
      sum -= p->reduced * p->in_zero;
      *y++ = ew_clamp(ew_rescale(sum, p->multiplier, p->shift) + p->out_zero, INT8_MIN, INT8_MAX);
    }
  }
}
#endif
