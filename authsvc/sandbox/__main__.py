"""`python -m authsvc.sandbox`: the sandbox as a process of its own."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Final

from authsvc.clock import SystemClock
from authsvc.errors import SettingsError
from authsvc.sandbox.faults import ENDPOINTS, EVERYWHERE, FAULTS
from authsvc.sandbox.routes import ADMIN
from authsvc.sandbox.server import SandboxServer
from authsvc.sandbox.wechat import SandboxWeChat

_ENDS: Final = frozenset({signal.SIGTERM, signal.SIGINT})


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, Ctrl-C or, with --exit-with-stdin, the end of standard input. Main thread only.

    Exits 2 if the arguments describe no sandbox, 1 if the port cannot be had.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        # argparse's own message repeats them; a misspelt --app would put the secret on the screen.
        parser.error(f"{len(rest)} argument(s) not understood; see --help")
    if len({appid for appid, _ in options.app}) < len(options.app):
        parser.error("--app: the same appid twice")
    # Blocked before the first thread starts, so that no thread but sigwait() below ever meets them.
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        with _server(options, parser) as server:
            sys.stdout.write(f"WeChat sandbox listening on {server.url}\n")
            sys.stdout.flush()
            if options.exit_with_stdin:
                threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
            signal.sigwait(_ENDS)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    return 0


def _server(options: argparse.Namespace, parser: argparse.ArgumentParser) -> SandboxServer:
    try:
        model = SandboxWeChat(dict(options.app), clock=SystemClock(), random_bytes=secrets.token_bytes)
        return SandboxServer(model, options.host, options.port)
    except SettingsError as error:
        parser.error(str(error))
    except OSError as error:
        parser.exit(1, f"{parser.prog}: cannot listen on {options.host} port {options.port}: {error.strerror}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m authsvc.sandbox",
        description="WeChat's server API in miniature, as far as logins need it, for development and tests. "
        "Loopback only. Open / in a browser to see what goes on.",
        epilog=f"{_table_of_routes()}\n\n{_table_of_faults()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=3001, help="0 is a free one (3001)")
    parser.add_argument(
        "--app",
        type=_app,
        action="append",
        required=True,
        metavar="APPID:SECRET",
        help="an app that this WeChat knows; once for each",
    )
    parser.add_argument(
        "--exit-with-stdin",
        action="store_true",
        help="end when standard input does, so as not to outlive whoever started this",
    )
    return parser


def _table_of_routes() -> str:
    width = max(len(f"{route.method} {path}") for path, route in ADMIN.items())
    rows = [f"  {f'{route.method} {path}':{width}}  {route.usage}" for path, route in ADMIN.items()]
    return "\n".join(["routes of the sandbox's own, bodies in JSON:", *rows])


def _table_of_faults() -> str:
    width = max(map(len, FAULTS))
    lines = [
        "faults, for POST /sandbox/fault and, those of jscode2session, for POST /sandbox/code; those with a * ask",
        "WeChat first, so that a code is used up and a session_key reset. A fault that is planned for an endpoint",
        "where it makes no sense is refused with 400.",
    ]
    # Everywhere comes first, then by the endpoints in their own order.
    places = dict.fromkeys([EVERYWHERE, *(fault.endpoints for fault in FAULTS.values())])
    for place in places:
        names = "every endpoint" if place == EVERYWHERE else ", ".join(name for name in ENDPOINTS if name in place)
        lines += ["", f"{names}:"]
        lines += [
            f"  {'*' if fault.consumes_code else ' '} {fault.name:{width}}  {fault.line}"
            for fault in FAULTS.values()
            if fault.endpoints == place
        ]
    return "\n".join(lines)


def _app(text: str) -> tuple[str, str]:
    # ArgumentTypeError with a text of ours: any other error makes argparse repeat the value, secret and all.
    appid, colon, secret = text.partition(":")
    if not (appid and colon and secret):
        raise argparse.ArgumentTypeError("expected APPID:SECRET")
    return appid, secret


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError("expected a number from 0 to 65535")
    return int(text)


def _end_with_stdin() -> None:
    # os.read: a thread inside sys.stdin.read() holds the lock that the interpreter wants at its end.
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # no standard input is an ended one
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
