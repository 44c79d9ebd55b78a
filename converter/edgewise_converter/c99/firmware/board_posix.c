/* A process as a board: the line is standard input and output. */
#include "board.h"
#include <stdio.h>

void board_start(void) {}

int board_get(void) {
  const int byte = getchar();
  return byte == EOF ? -1 : byte;
}

void board_put(uint8_t byte) { putchar(byte); }

void board_flush(void) { fflush(stdout); }

uint32_t board_stack_bytes(void) { return 0; }

uint32_t board_stack_peak(void) { return 0; }
