"""An interpreter of PTX: runs what nvcc emitted, without a GPU.

``parser`` reads a module, ``program`` runs one launch of a kernel on a ``machine``, and the
instructions are in ``integer``, ``floating``, ``transfer`` and ``warp``. Every thread of the grid
is a lane of numpy arrays, and all lanes that stand at the same instruction run it together. What an
instruction does not know, it refuses when the kernel is loaded: nothing is skipped.

Source: NVIDIA, Parallel Thread Execution ISA, version 9.0.
"""

from ptx.machine import Fault, GlobalMemory
from ptx.parser import Kernel, Unsupported, parse
from ptx.program import Launch, launch

__all__ = ["Fault", "GlobalMemory", "Kernel", "Launch", "Unsupported", "launch", "parse"]
