"""WeChat for the benchmark: `python -m tests.bench.serving.upstream PORT CERTIFICATE KEY`, the sandbox behind TLS, as
WeChat is, and with a cheaper way to codes.

For each number that comes on stdin, so many fresh codes go out in one line. Asked for over HTTP one by one, they would
take longer than the logins that they are for.
"""

from __future__ import annotations

import secrets
import ssl
import sys
from itertools import count
from typing import Final

from authsvc.clock import SystemClock
from authsvc.sandbox.server import SandboxServer
from authsvc.sandbox.wechat import SandboxWeChat
from tests.support.service import APPID, SECRET

_USERS: Final = 10_000  # many come back, and none reaches the 100 logins a minute that WeChat allows


def main() -> None:
    model = SandboxWeChat({APPID: SECRET}, clock=SystemClock(), random_bytes=secrets.token_bytes)
    numbers = count()
    port, certificate, key = sys.argv[1:]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with SandboxServer(model, port=int(port), tls=tls):
        for line in sys.stdin:
            codes = [model.mint_code(APPID, f"user-{next(numbers) % _USERS}") for _ in range(int(line))]
            print(*codes, flush=True)


if __name__ == "__main__":
    main()
