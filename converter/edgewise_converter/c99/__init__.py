"""Int8 TFLite models as C99 for microcontrollers: generated, built, and run in an emulator."""
