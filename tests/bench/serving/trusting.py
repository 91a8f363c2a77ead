"""`python -m tests.bench.serving.trusting serve`: authsvc, trusting the certificate of the benchmark's WeChat.

It has no setting for that; its roots are those of certifi.
"""

from __future__ import annotations

import os
from typing import Final

import certifi

from authsvc.__main__ import main

CHAIN: Final = "BENCH_WECHAT_CHAIN"
"""The environment's name for the file."""


def trust_wechat() -> None:
    certifi.where = lambda: os.environ[CHAIN]


if __name__ == "__main__":
    trust_wechat()
    main()
