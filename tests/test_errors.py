"""Exit codes: who must act after a run has ended."""

import errno

import jax
import pytest

from vlm_jax import errors
from vlm_jax.training import loop


def _caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("steps 0"), errors.BAD_INPUT),
        (loop.NotFinite("3 steps"), errors.BAD_INPUT),
        (errors.Preempted("SIGTERM"), errors.PREEMPTED),
        (errors.InfrastructureError("disk"), errors.INFRASTRUCTURE),
        (OSError(errno.ENOSPC, "No space left on device"), errors.INFRASTRUCTURE),
        (_caused(ValueError("save failed"), OSError(errno.EDQUOT, "quota")), errors.INFRASTRUCTURE),
        (ValueError("RESOURCE_EXHAUSTED: writing: No space left on device [...]"), errors.INFRASTRUCTURE),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: the coordination service"), errors.INFRASTRUCTURE),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo context: DEADLINE_EXCEEDED: GetKeyValue() timed out"), errors.INFRASTRUCTURE),
        (jax.errors.JaxRuntimeError("INTERNAL: a fault"), errors.FAULT),
        (FileNotFoundError(errno.ENOENT, "gone"), errors.FAULT),
        (KeyError("image"), errors.FAULT),
    ],
    ids=str,
)
def test_an_error_ends_a_run_with_the_code_of_who_must_act(error, code):
    assert errors.exit_code(error) == code
