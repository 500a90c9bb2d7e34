"""Processes that work for another one, and end with it."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Lets a worker end when its parent is killed, which cannot tell it any more. Called in the worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
