"""Where messages come from: the port in `base`, one adapter a file, the names in `registry`."""
