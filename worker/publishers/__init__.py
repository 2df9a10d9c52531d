"""Where completion notifications go: the port in `base`, one adapter a file, the names in `registry`."""
