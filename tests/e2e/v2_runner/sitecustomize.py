"""On PYTHONPATH, and with TRITON_INTERPRET=1: vLLM finds a Triton with a CPU, so its V2 model runner works on one.

PyPI's Triton has no backend for a CPU, but its interpreter runs kernels as NumPy. vLLM asks for a backend named `cpu`
whose driver is active, in the engine's processes and its workers too; nothing of it is ever called.
"""

import os
from dataclasses import dataclass

if os.environ.get("TRITON_INTERPRET") == "1":
    try:
        from triton.backends import backends
    except ImportError:
        pass
    else:

        class _Driver:
            @staticmethod
            def is_active() -> bool:
                return True

        @dataclass(frozen=True)
        class _Backend:
            driver: type[_Driver] = _Driver

        backends.clear()
        backends["cpu"] = _Backend()
