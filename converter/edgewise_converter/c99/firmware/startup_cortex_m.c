/* From reset to main: the stack painted, memory as C wants it, floating point and vectors switched on. */
#include "board.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

extern uint32_t stack_bottom, stack_top, data_load, data_start, data_end, bss_start, bss_end;
extern int main(void);
void reset(void);
void halt(void);

/* Stops where a debugger sees it; a watchdog, if the board has one, begins anew. */
void halt(void) {
  for (;;) {
    __asm volatile("wfi");
  }
}

__attribute__((noreturn, used)) static void begin(void) {
  for (uint32_t *from = &data_load, *to = &data_start; to < &data_end;) {
    *to++ = *from++;
  }
  for (uint32_t *to = &bss_start; to < &bss_end;) {
    *to++ = 0;
  }
  main();
  halt();
  for (;;) {
  }
}

/* Uses no stack itself, so that all of it can be painted. */
__attribute__((naked, noreturn)) void reset(void) {
  __asm volatile(
      "cpsid i\n"
      "ldr r0, =stack_top\n"
      "mov sp, r0\n"
#if __ARM_ARCH >= 8
      "ldr r1, =stack_bottom\n"
      "msr msplim, r1\n"
#endif
      "ldr r1, =0xE000ED88\n"
      "ldr r2, [r1]\n"
      "orr r2, r2, #0x00F00000\n"
      "str r2, [r1]\n"
      "dsb\n"
      "isb\n"
      "ldr r1, =stack_bottom\n"
      "ldr r2, =" TEXT(BOARD_PAINT) "\n"
      "1: str r2, [r1], #4\n"
      "cmp r1, r0\n"
      "bne 1b\n"
      "b begin\n"
      ".ltorg\n");
}

struct vectors {
  void *stack;
  void (*handlers[15])(void);
};

/* Resets start here; all faults halt. */
__attribute__((section(".vectors"), used)) const struct vectors vectors = {
    &stack_top, {reset, halt, halt, halt, halt, halt, halt, 0, 0, 0, halt, halt, 0, halt, halt},
};
