"""The inference engines that converted models are judged on: one a file, opened by `opening`."""
