"""When this process loaded Millpond: what was edited since may be old where it is loaded."""

import time

BEGAN_NS = time.time_ns()
