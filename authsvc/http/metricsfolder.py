"""Where the workers count for `/metrics`. The main process has no more to do with it than this."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from authsvc.errors import CannotCount

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def metrics_folder() -> Iterator[Path]:
    """A folder for the time that the service runs. Raises: CannotCount."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="authsvc-metrics-"))
    except OSError as error:
        raise CannotCount(
            f"the metrics need a folder for temporary files: {error.strerror}; mend: let {tempfile.gettempdir()} be "
            "written to, set TMPDIR, or unset AUTHSVC_OPS_TOKEN"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def count_in(folder: Path) -> None:
    """In a worker, before prometheus-client is imported, which goes by it for good."""
    os.environ[_VARIABLE] = str(folder)


def forget_worker(folder: Path, pid: int) -> None:
    """What was true of a worker while it lived; what it counted stays."""
    for file in folder.glob(f"gauge_live*_{pid}.db"):
        file.unlink(missing_ok=True)
