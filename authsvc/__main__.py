"""The `authsvc` command."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from authsvc.cli.command import command
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("authsvc"):
            raise
        sys.exit(f"the authsvc command needs the server extra ({error.name} is missing): pip install 'authsvc[server]'")
    try:
        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
