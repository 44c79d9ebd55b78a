"""Where models come from: a training run, a torch program, a finished file. One reader a file, opened by `opening`."""
