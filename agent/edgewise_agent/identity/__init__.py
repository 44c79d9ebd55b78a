"""Who this device is: its key, its certificate, its facts."""
