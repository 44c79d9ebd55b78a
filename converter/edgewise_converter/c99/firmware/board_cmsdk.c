/* Boards with the UART of Arm's Cortex-M System Design Kit: the MPS2 and MPS3 families. */
#include "board.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define UART_DATA REGISTER(BOARD_UART)
#define UART_STATE REGISTER(BOARD_UART + 4u)
#define UART_CONTROL REGISTER(BOARD_UART + 8u)
#define UART_INTERRUPT REGISTER(BOARD_UART + 12u)
#define UART_DIVIDER REGISTER(BOARD_UART + 16u)
#define NVIC_ENABLE(irq) REGISTER(0xE000E100u + 4u * ((irq) / 32u))
#define NVIC_UNPEND(irq) REGISTER(0xE000E280u + 4u * ((irq) / 32u))
enum { TRANSMIT_FULL = 1, RECEIVE_FULL = 2, TRANSMIT = 1, RECEIVE = 2, RECEIVE_INTERRUPT = 8, RECEIVED = 2 };

extern uint32_t stack_bottom, stack_top;

void board_start(void) {
  UART_DIVIDER = BOARD_CLOCK / BOARD_BAUD;
  UART_CONTROL = TRANSMIT | RECEIVE | RECEIVE_INTERRUPT;
  NVIC_ENABLE(BOARD_UART_IRQ) = 1u << (BOARD_UART_IRQ % 32u);
}

int board_get(void) {
  /* Interrupts are masked: one that is pending ends the wait, and no handler runs. */
  while ((UART_STATE & RECEIVE_FULL) == 0) {
    __asm volatile("wfi" ::: "memory");
    UART_INTERRUPT = RECEIVED;
    NVIC_UNPEND(BOARD_UART_IRQ) = 1u << (BOARD_UART_IRQ % 32u);
  }
  const int byte = (int)(UART_DATA & 0xFFu);
  UART_INTERRUPT = RECEIVED;
  NVIC_UNPEND(BOARD_UART_IRQ) = 1u << (BOARD_UART_IRQ % 32u);
  return byte;
}

void board_put(uint8_t byte) {
  while (UART_STATE & TRANSMIT_FULL) {
  }
  UART_DATA = byte;
}

void board_flush(void) {}

uint32_t board_stack_bytes(void) { return (uint32_t)((uint8_t *)&stack_top - (uint8_t *)&stack_bottom); }

uint32_t board_stack_peak(void) {
  const uint32_t *word = &stack_bottom;
  while (word < &stack_top && *word == BOARD_PAINT) {
    ++word;
  }
  return (uint32_t)((uint8_t *)&stack_top - (uint8_t *)word);
}
