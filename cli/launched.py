"""Run a module as a program that ends with the process that started it: `python -m cli.launched MODULE ARGUMENTS`.

Launchers and their workers are started through it. Whatever happens to a parent, SIGKILL included, no process that
holds a GPU is left behind. It imports the standard library only, so that it acts before anything slow is imported.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Run the module; the workers' exit code is the launcher's."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except Exception as error:
        if "torch.distributed.elastic.multiprocessing" not in sys.modules:
            raise
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        # What torch's launcher says of its workers' end, as an exit code.
        if isinstance(error, SignalException):
            sys.exit(128 + int(error.sigval))
        if isinstance(error, ChildFailedError):
            code = int(error.get_first_failure()[1].exitcode)
            sys.exit(code if code >= 0 else 128 - code)
        raise


if __name__ == "__main__":
    main()
