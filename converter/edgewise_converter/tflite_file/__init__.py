"""TFLite files as data: verified, read, changed and written without any engine."""
