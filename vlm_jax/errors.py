"""How a run can end: errors that a user can mend, those of a machine, and the exit codes of the entry points."""

import errno

DONE = 0
FAULT = 1
"""An exception in the code: a bug, please report it."""
BAD_INPUT = 2
"""Bad input or configuration; the message says what to change. The same command would end the same way."""
PREEMPTED = 3
"""Stopped from outside after saving; start the same command again to go on."""
INFRASTRUCTURE = 4
"""A machine, disk or network failed, or nothing moved for too long; the same command may succeed elsewhere, and goes on."""

_DISKS = {
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EFBIG EIO EROFS ESTALE ENODEV ENOTCONN ETIMEDOUT ECONNRESET ECONNREFUSED EHOSTUNREACH".split()
    if hasattr(errno, name)
}
_STATES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "DATA_LOSS", "CANCELLED")
"""With which a runtime error of JAX begins that another machine may not have."""
_SILENT = "DEADLINE_EXCEEDED", "CoordinationServiceError"
"""What one holds somewhere when another process did not answer."""
_FULL = "No space left on device", "Disk quota exceeded", "File too large", "Input/output error", "Stale file handle"
"""What libraries that lose the number of an OSError still say."""


class InputError(ValueError):
    """Bad input or configuration. The message names the value, the field and the fix; entry points exit with 2."""


class InfrastructureError(RuntimeError):
    """A disk, network or machine failed. The message says what is lost, and what is not; entry points exit with 4."""


class Preempted(Exception):
    """The run was asked to stop and has saved. Entry points exit with 3."""


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends a run with. What a library wraps is found by its cause, or by its words."""
    known = {InputError: BAD_INPUT, Preempted: PREEMPTED, InfrastructureError: INFRASTRUCTURE}
    cause: BaseException | None = error
    while cause is not None:
        for kind, code in known.items():
            if isinstance(cause, kind):
                return code
        if isinstance(cause, OSError) and cause.errno in _DISKS:
            return INFRASTRUCTURE
        words = str(cause)
        if type(cause).__name__ == "JaxRuntimeError" and (words.startswith(_STATES) or any(part in words for part in _SILENT)):
            return INFRASTRUCTURE
        if not isinstance(cause, OSError) and any(part in words for part in _FULL):
            return INFRASTRUCTURE
        cause = cause.__cause__ or cause.__context__
    return FAULT
