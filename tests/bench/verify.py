"""What a verification costs, beside its peers, in one run: `make bench`.

Every round asks every contender in turn, so that all meet the same weather; the ratios are of the same round, and the
median of the rounds is shown. Absolute figures move by a third from hour to hour: believe the ratios.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import ECKey
from rich.console import Console
from rich.table import Table

from authsvc import JwkSet, Policy, Verifier
from authsvc.encoding import base64url_decode
from authsvc.testing import AUDIENCE, ISSUER, FakeIssuer

TOKENS: Final = 2_000
SEEN_TIMES: Final = 20  # so often a seen token is shown in a round: one pass is over before the clock can tell
ROUNDS: Final = 7
NODE: Final = Path(__file__).parents[1] / "integration" / "node"

LIMIT: Final = "bare cryptography verify (the limit)"
OURS: Final = "authsvc, never seen"
OURS_SEEN: Final = "authsvc, seen"
FAST_JWT_SEEN: Final = "fast-jwt, seen"

Contender = Callable[[], float]
"""Runs once. Returns microseconds for each token."""


def main() -> None:
    issuer = FakeIssuer()
    tokens = [issuer.token(f"oUser{number:06d}") for number in range(TOKENS)]
    with _node(issuer, tokens) as node:
        contenders = _contenders(issuer, tokens) | node
        rounds = [{name: run() for name, run in contenders.items()} for _ in range(ROUNDS)]
    console = Console()
    console.print(_table(rounds))
    for line in _aims(rounds, has_node=bool(node)):
        console.print(line, highlight=False)
    console.print(f"A remembered token takes {_bytes_for_each(issuer)} bytes, its text among them.", highlight=False)


def _contenders(issuer: FakeIssuer, tokens: list[str]) -> dict[str, Contender]:
    jwks = issuer.jwks()
    key = JwkSet(jwks).find(jwks["keys"][0]["kid"], now=0)
    assert key is not None
    public: Any = key.key
    assert isinstance(public, EllipticCurvePublicKey)
    policy = Policy(ISSUER, AUDIENCE)
    never, seen = Verifier(jwks, policy, remember=0), Verifier(jwks, policy)
    for token in tokens:
        seen.verify(token)
    prepared = [_prepared(token) for token in tokens]
    algorithm, joserfc_key = ECDSA(SHA256()), ECKey.import_key(jwks["keys"][0])
    registry = joserfc_jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": ISSUER}, aud={"essential": True, "value": AUDIENCE}, exp={"essential": True}
    )

    def bare(share: slice) -> None:
        for data, signature in prepared[share]:
            public.verify(signature, data, algorithm)

    def ours(share: slice) -> None:
        for token in tokens[share]:
            never.verify(token)

    def pyjwt(share: slice) -> None:
        for token in tokens[share]:
            jwt.decode(token, public, algorithms=["ES256"], issuer=ISSUER, audience=AUDIENCE)

    def joserfc(share: slice) -> None:
        for token in tokens[share]:
            registry.validate(joserfc_jwt.decode(token, joserfc_key, algorithms=["ES256"]).claims)

    def ours_seen(share: slice) -> None:
        for _ in range(SEEN_TIMES):
            for token in tokens[share]:
                seen.verify(token)

    found: dict[str, Contender] = {}
    for threads in (1, 2, 4):
        suffix = "" if threads == 1 else f" · {threads} threads"
        for name, run, times in (
            (LIMIT, bare, 1),
            (OURS, ours, 1),
            ("PyJWT decode", pyjwt, 1),
            ("joserfc", joserfc, 1),
            (OURS_SEEN, ours_seen, SEEN_TIMES),
        ):
            found[name + suffix] = _timed(run, threads, TOKENS * times)
    return found


def _timed(run: Callable[[slice], None], threads: int, tokens: int) -> Contender:
    """All threads together do what one alone would do."""

    def timed() -> float:
        shares = [slice(number, None, threads) for number in range(threads)]
        if threads == 1:
            began = time.perf_counter()
            run(shares[0])
        else:
            workers = [threading.Thread(target=run, args=(share,)) for share in shares]
            began = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        return (time.perf_counter() - began) / tokens * 1e6

    return timed


def _prepared(token: str) -> tuple[bytes, bytes]:
    signing_input, _, signature_part = token.rpartition(".")
    signature = base64url_decode(signature_part)
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    return signing_input.encode("ascii"), encode_dss_signature(r, s)


@contextmanager
def _node(issuer: FakeIssuer, tokens: list[str]) -> Iterator[dict[str, Contender]]:
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules").is_dir():
        print("NODE IS MISSING: jose and fast-jwt are not measured")
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "tokens.json"
        members = {"tokens": tokens, "jwk": issuer.jwks()["keys"][0], "issuer": ISSUER, "audience": AUDIENCE}
        given.write_text(json.dumps(members))
        command = [node, str(Path(__file__).parent / "verify.mjs"), str(given), str(NODE / "package.json")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            stdin, stdout = process.stdin, process.stdout

            def ask(name: str) -> Contender:
                def run() -> float:
                    stdin.write(name + "\n")
                    stdin.flush()
                    return float(stdout.readline())

                return run

            yield {f"{name} (Node)": ask(name) for name in ("jose", "fast-jwt", FAST_JWT_SEEN)}
            stdin.close()


def _table(rounds: list[dict[str, float]]) -> Table:
    table = Table("", "µs a token", "of the limit", title=f"ES256, median of {ROUNDS} rounds")
    for name in rounds[0]:
        median = statistics.median(found[name] for found in rounds)
        table.add_row(name, f"{median:.2f}", f"{_ratio(rounds, LIMIT, name):.2f}")
    return table


def _aims(rounds: list[dict[str, float]], *, has_node: bool) -> Iterator[str]:
    never, pyjwt = (_ratio(rounds, LIMIT, name) for name in (OURS, "PyJWT decode"))
    yield f"never seen: {never:.2f} of the bare verify (aim: 0.85; PyJWT: {pyjwt:.2f})"
    gains = {name: _ratio(rounds, name, f"{name} · 2 threads") for name in (LIMIT, OURS, "PyJWT decode")}
    yield (
        f"two threads: the bare verify gains {gains[LIMIT]:.2f} ×, authsvc {gains[OURS]:.2f} ×, which is "
        f"{gains[OURS] / gains[LIMIT]:.2f} of that (aim: 0.9); PyJWT {gains['PyJWT decode']:.2f} ×"
    )
    if has_node:
        yield f"seen: {_ratio(rounds, f'{FAST_JWT_SEEN} (Node)', OURS_SEEN):.1f} × fast-jwt's cached verify (aim: 3)"


def _ratio(rounds: list[dict[str, float]], of: str, to: str) -> float:
    """How many times as fast `to` is as `of`, in the median round."""
    return statistics.median(found[of] / found[to] for found in rounds)


def _bytes_for_each(issuer: FakeIssuer) -> int:
    count = 1_000
    tokens = [issuer.token() for _ in range(count)]
    verifier = Verifier(issuer.jwks(), Policy(ISSUER, AUDIENCE))
    verifier.verify(tokens[0])
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for token in tokens:
        verifier.verify(token)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) // count + len(tokens[0])


if __name__ == "__main__":
    main()
