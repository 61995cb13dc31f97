"""Where a database in memory is: a directory that goes with the store, or with the process that made it."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Final

from orchestrator_state.errors import ConfigurationError


class TemporaryDirectory:
    """Not the one of `tempfile`, which a forked child that ends removes under its parent."""

    def __init__(self) -> None:
        try:
            self.path: Final = Path(tempfile.mkdtemp(prefix="orchestrator-state-"))
            self.path.chmod(0o700)  # whatever the process's umask
        except OSError as error:
            raise ConfigurationError(
                f"there is no place for a database in memory ({type(error).__name__}); set TMPDIR to a directory "
                "that can be written to"
            ) from None
        self.cleanup: Final = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, made_by: int) -> None:
    if made_by == os.getpid():
        shutil.rmtree(path, ignore_errors=True)
