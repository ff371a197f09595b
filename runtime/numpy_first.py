"""numpy, imported so that its threads do not take the cores that onnxruntime loads a graph with.

The OpenBLAS inside of numpy makes a thread for each further core when it is imported, and each of them spins for
many millions of ticks before it sleeps: 20 ms of a start on a PC, more on boards whose tick is slower. An application
that multiplies matrices keeps all its threads; they only go to sleep sooner when there is nothing to do. Where the
application imported numpy before, or set the variable itself, nothing is changed.

Source: OPENBLAS_THREAD_TIMEOUT in OpenBLAS's driver/others/blas_server.c, a power of two of 4 to 30.
"""

from __future__ import annotations

import os
import sys

_VARIABLE = "OPENBLAS_THREAD_TIMEOUT"
_TICKS = "16"
"""26 microseconds at 2.5 GHz, 1.2 milliseconds by the 54 MHz counter of a Raspberry Pi 4."""

if "numpy" in sys.modules or _VARIABLE in os.environ:
    import numpy
else:
    os.environ[_VARIABLE] = _TICKS
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[_VARIABLE]  # of this import alone, not of the processes that the application starts
