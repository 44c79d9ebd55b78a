"""`edgewise-agent doctor`: what is wrong with this device, and what to do about it, in plain words.

Each module gathers facts of one subject and judges them by a pure function.
"""
