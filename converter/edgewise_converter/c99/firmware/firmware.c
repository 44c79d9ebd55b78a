/* Answers requests to the model over a line of bytes: frames as edgewise_protocol.frames describes them. */
#include "board.h"
#include "model.h"
#include "model_io.h"

enum { HELLO = 1, INVOKE = 2, STATS = 3, ANSWER = 0x80, REFUSAL = 0xFF };
enum { DAMAGED = 1, UNKNOWN = 2, WRONG_LENGTH = 3, FAILED = 4 };
enum { PROTOCOL = 1 };

static int8_t inputs[MODEL_IN_BYTES];
static int8_t outputs[MODEL_OUT_BYTES];
static uint32_t answered;
static uint32_t crc;

static void crc_add(uint8_t byte) {
  crc ^= byte;
  for (int bit = 0; bit < 8; ++bit) {
    crc = (crc >> 1) ^ ((crc & 1u) ? 0xEDB88320u : 0u);
  }
}

static void put(uint8_t byte) {
  crc_add(byte);
  board_put(byte);
}

static void put_u32(uint32_t value) {
  for (int i = 0; i < 4; ++i) {
    put((uint8_t)(value >> (8 * i)));
  }
}

static void put_bytes(const uint8_t *bytes, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    put(bytes[i]);
  }
}

static void begin(uint8_t kind, uint8_t sequence, uint32_t length) {
  board_put('E');
  board_put('W');
  crc = 0xFFFFFFFFu;
  put(kind);
  put(sequence);
  put_u32(length);
}

static void end(void) {
  const uint32_t sum = ~crc;
  for (int i = 0; i < 4; ++i) {
    board_put((uint8_t)(sum >> (8 * i)));
  }
  board_flush();
}

static void refuse(uint8_t sequence, uint8_t why) {
  begin(REFUSAL, sequence, 1);
  put(why);
  end();
}

static void greet(uint8_t sequence) {
  begin(HELLO | ANSWER, sequence, 40 + 4 * (MODEL_INPUTS + MODEL_OUTPUTS));
  put(PROTOCOL);
  put(0);
  put(MODEL_INPUTS);
  put(MODEL_OUTPUTS);
  put_u32(MODEL_ARENA_BYTES);
  put_bytes(model_identity, 32);
  for (int i = 0; i < MODEL_INPUTS + MODEL_OUTPUTS; ++i) {
    put_u32(model_sizes[i]);
  }
  end();
}

static void tell_stats(uint8_t sequence) {
  begin(STATS | ANSWER, sequence, 16);
  put_u32(board_stack_peak());
  put_u32(board_stack_bytes());
  put_u32(MODEL_ARENA_BYTES);
  put_u32(answered);
  end();
}

static void invoke(uint8_t sequence) {
  if (model_run(inputs, outputs) != 0) {
    refuse(sequence, FAILED);
    return;
  }
  ++answered;
  begin(INVOKE | ANSWER, sequence, MODEL_OUT_BYTES);
  put_bytes((const uint8_t *)outputs, MODEL_OUT_BYTES);
  end();
}

/* A byte of the frame, into its checksum; -1 at the end of the line. */
static int take(void) {
  const int byte = board_get();
  if (byte >= 0) {
    crc_add((uint8_t)byte);
  }
  return byte;
}

/* Reads one frame and answers it; 0 at the end of the line. */
static int serve(void) {
  int byte = board_get();
  while (byte >= 0) {
    if (byte == 'E') {
      byte = board_get();
      if (byte == 'W') {
        break;
      }
      continue;
    }
    byte = board_get();
  }
  crc = 0xFFFFFFFFu;
  const int kind = byte < 0 ? -1 : take();
  const int sequence = kind < 0 ? -1 : take();
  uint32_t length = 0;
  for (int i = 0; i < 4 && byte >= 0; ++i) {
    byte = take();
    length |= (uint32_t)(byte & 0xFF) << (8 * i);
  }
  if (byte < 0 || sequence < 0) {
    return 0;
  }
  if (length > MODEL_IN_BYTES) {
    /* Not believed: what follows is looked through for the next frame. */
    refuse((uint8_t)sequence, WRONG_LENGTH);
    return 1;
  }
  for (uint32_t i = 0; i < length; ++i) {
    byte = take();
    if (byte < 0) {
      return 0;
    }
    inputs[i] = (int8_t)(uint8_t)byte;
  }
  const uint32_t wanted = ~crc;
  uint32_t sum = 0;
  for (int i = 0; i < 4; ++i) {
    byte = board_get();
    if (byte < 0) {
      return 0;
    }
    sum |= (uint32_t)byte << (8 * i);
  }
  if (sum != wanted) {
    refuse((uint8_t)sequence, DAMAGED);
  } else if (kind == INVOKE) {
    if (length == MODEL_IN_BYTES) {
      invoke((uint8_t)sequence);
    } else {
      refuse((uint8_t)sequence, WRONG_LENGTH);
    }
  } else if (length != 0) {
    refuse((uint8_t)sequence, kind == HELLO || kind == STATS ? WRONG_LENGTH : UNKNOWN);
  } else if (kind == HELLO) {
    greet((uint8_t)sequence);
  } else if (kind == STATS) {
    tell_stats((uint8_t)sequence);
  } else {
    refuse((uint8_t)sequence, UNKNOWN);
  }
  return 1;
}

int main(void) {
  board_start();
  while (serve()) {
  }
  return 0;
}
