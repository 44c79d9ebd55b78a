"""What peers make of the same float file and calibration data; each script runs in an environment of its own."""
