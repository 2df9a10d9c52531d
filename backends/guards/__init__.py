"""Guards: wrappers that keep a backend's port (backends/wrapper.py) and protect the store, or the caller, from the other.

One module each, with the options it is configured by below a target (`targets.X.retry`, `targets.X.breaker`, …).
backends/guards/stack.py puts them around a backend in the right order; worker/bootstrap.py calls that and nothing else here.
"""
