"""A Kubernetes Secret as a pod has it mounted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class SecretMount:
    """A folder that is filled as the kubelet fills the volume of a Secret."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0
        path.mkdir(mode=0o750)

    def fill(self, origin: Path) -> None:
        """The kubelet's order: a new folder, one rename, links for names that are new, then the old folder goes."""
        self._count += 1
        data = self.path / "..data"
        old = data.resolve() if data.is_symlink() else None
        folder = self.path / f"..2026_{self._count}"
        folder.mkdir(mode=0o750)
        names = [path.name for path in origin.iterdir() if not path.name.startswith(".")]
        for name in names:
            shutil.copyfile(origin / name, folder / name)
            (folder / name).chmod(0o640)
        (self.path / "..data_tmp").symlink_to(folder.name)
        os.replace(self.path / "..data_tmp", data)
        for link in set(self.path.iterdir()):
            if not link.name.startswith("..") and link.name not in names:
                link.unlink()
        for name in names:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        if old is not None:
            shutil.rmtree(old)
