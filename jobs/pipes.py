"""Standard output whose reader may go away: `targetsmith stats OUT | head`. What is printed behind that is dropped, and the
command ends with its own exit code, without a word. One that prints without end stops instead (jobs/app.py).
"""

from __future__ import annotations

import io
import os
import sys

from schemas.errors import OutputError


class _GoesOn(io.FileIO):
    """A file of which a broken pipe makes the null device."""

    def write(self, data, /) -> int | None:
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return memoryview(data).nbytes
        except OSError as error:
            raise OutputError(
                f"standard output: cannot be written ({error.strerror}); make room or print to another place, and run again"
            ) from error


def outlive_the_reader() -> None:
    """From here on a closed pipe is no error of standard output. It is below rich and click, which would end the process."""
    old = sys.stdout
    if not isinstance(old, io.TextIOWrapper):
        return  # a notebook's, or a test's
    old.flush()
    raw = _GoesOn(old.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=old.encoding, errors=old.errors, line_buffering=old.line_buffering
    )
