"""The stack on which a thread's signals are handled."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_C = ctypes.CDLL(None)
_DISABLED = 2
"""`SS_DISABLE`."""


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Gives this thread back the alternate signal stack that it had before.

    OpenVINO's CPU plugin gives the thread one of its own, and unmaps it when the last model that it has compiled is
    gone (`SigAltStackSetup`, its pull request 11894). It puts back what was there before only where its own is still
    the thread's: not where two are freed in the order in which they were made, or one by another thread. Python handles
    signals on that stack: on an unmapped one the next Ctrl-C is a segmentation fault without a word.
    """
    before = _Stack()
    _sigaltstack(None, before)
    try:
        yield
    finally:
        # One too small for AMX's tiles is refused once these are in use; without one, handlers have the usual stack.
        if _sigaltstack(before, None):
            _sigaltstack(_Stack(flags=_DISABLED), None)


def _sigaltstack(new: _Stack | None, old: _Stack | None) -> int:
    """Returns what the system call does: 0, or -1."""
    return int(_C.sigaltstack(*(None if stack is None else ctypes.byref(stack) for stack in (new, old))))
