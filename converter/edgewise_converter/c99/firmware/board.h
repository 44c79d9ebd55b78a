/* What the firmware asks of a board. Write these for a board of your own; the rest stays as it is. */
#ifndef BOARD_H
#define BOARD_H
#include <stdint.h>

/* What the stack is filled with at the start, to tell later how much of it was used. */
#define BOARD_PAINT 0xA5A5A5A5

void board_start(void);
/* The next byte from the line; waits for it. -1 where the line has ended for good. */
int board_get(void);
void board_put(uint8_t byte);
/* Everything that was put is on its way. */
void board_flush(void);
/* The stack's size in bytes, and how much of it was ever used; 0 where the board cannot tell. */
uint32_t board_stack_bytes(void);
uint32_t board_stack_peak(void);
#endif
