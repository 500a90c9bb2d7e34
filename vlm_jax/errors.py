"""Errors that a user caused and can mend, and the exit codes of the entry points."""

DONE = 0
FAULT = 1
"""An exception in the code: a bug, please report it."""
BAD_INPUT = 2
"""Bad input or configuration; nothing was trained, the message says what to change."""
PREEMPTED = 3
"""Stopped from outside after saving; start the same command again to go on."""
INFRASTRUCTURE = 4
"""A machine, disk or network failed; the same command may succeed elsewhere."""


class InputError(ValueError):
    """Bad input or configuration. The message names the value, the field and the fix; entry points exit with 2."""
