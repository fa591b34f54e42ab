"""What happens when the command's output cannot be written."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a full or broken disk behind stdout says."""


@contextmanager
def guarded_output() -> Iterator[None]:
    """Writes out what is buffered at the end. A reader who has left ends the command quietly, a full disk
    with one line; both with exit status 1."""
    try:
        try:
            yield
        finally:
            # Unlike sys.stdout.flush(), this also works where the command was started without a stdout.
            print(end="", flush=True)
    except BrokenPipeError:
        _discard_the_rest()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        _discard_the_rest()
        print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
        sys.exit(1)


def _discard_the_rest() -> None:
    # The interpreter's own flush at exit must not fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
