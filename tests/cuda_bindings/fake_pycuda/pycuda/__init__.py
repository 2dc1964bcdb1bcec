"""A stand-in for pycuda where it does not compile; see driver.py."""
