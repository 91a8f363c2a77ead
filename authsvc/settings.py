"""The environment, read once, checked whole, frozen. Every problem is named at once, and no value of a secret ever."""

from __future__ import annotations

import difflib
import importlib.util
import io
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from authsvc.encoding import NotCanonical, parse_json_object
from authsvc.errors import SettingsError
from authsvc.http.limits import LoginLimit, login_limit
from authsvc.keyparts import MIN_PASSPHRASE_CHARS
from authsvc.keyset import TOKEN_TTL_LIMIT_S
from authsvc.spans import wanted
from authsvc.store import store_address
from authsvc.wechat import App

PREFIX: Final = "AUTHSVC_"

SANDBOX_APPID: Final = "wxsandbox00000000"
SANDBOX_SECRET: Final = "not-a-secret"  # noqa: S105 - opens nothing but the simulator on loopback
SANDBOX_FOLDER: Final = Path(".sandbox")

DEFAULT_ALG: Final = "ES256"

_DEFAULT_STORE: Final = "sqlite:///authsvc.db"
_SANDBOX_STORE: Final = f"sqlite:///{SANDBOX_FOLDER}/authsvc.db"

_DEFAULT_WECHAT_URL: Final = "https://api.weixin.qq.com"
# WeChat's disaster-recovery host for the same API, so a natural fallback for its own host and for no other.
_DEFAULT_FALLBACK_URL: Final = "https://api2.weixin.qq.com"

_APPID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_SECRET: Final = re.compile(r"[!-~]{1,256}")
_MAX_SECRETS: Final = 2
_HOST_NAME: Final = re.compile(r"[0-9a-z]([0-9a-z.-]*[0-9a-z])?")
# As browsers write it (RFC 6454, 6.2): in lower case, an IPv6 address in brackets, without the usual port.
_ORIGIN: Final = re.compile(r"https?://([0-9a-z.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
_SERVICE_TOKEN: Final = re.compile(r"[!-+\--~]{20,256}")  # visible, without a comma

Flag = Annotated[bool, Field(strict=False)]
Seconds = Annotated[int, Field(ge=1)]


class Environment(BaseModel):
    """The variables, without their prefix: type, default, limits. What concerns two of them is checked below."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    APPID: str | None = None
    SECRET: str | None = Field(default=None, repr=False)
    SECRET_FILE: Path | None = None
    APPS: str | None = Field(default=None, repr=False)
    APPS_FILE: Path | None = None
    SANDBOX: Flag = False

    WECHAT_URL: str | None = None
    WECHAT_FALLBACK_URL: str | None = None
    WECHAT_TIMEOUT: Annotated[int, Field(ge=1, le=60)] = 5

    ISSUER: str | None = None
    AUDIENCE: Annotated[str, Field(min_length=1, max_length=256)] = "api"
    ALG: Literal["ES256", "EdDSA", "RS256"] = DEFAULT_ALG
    TYP: Literal["at+jwt", "JWT"] = "at+jwt"
    TOKEN_TTL: Annotated[int, Field(ge=1, le=TOKEN_TTL_LIMIT_S)] = 7_200
    CLAIM_UNIONID: Flag = False

    KEYS: Path | None = None
    KEYS_PASSPHRASE: str | None = Field(default=None, repr=False)
    KEYS_GROUP_READ: Flag = False
    ROTATE_EVERY: Annotated[int, Field(ge=0)] = 2_592_000

    STORE: str | None = Field(default=None, repr=False)
    STORE_OPENID: Literal["clear", "hash"] = "clear"
    SESSION_KEY_TTL: Annotated[int, Field(ge=60, le=2_592_000)] = 259_200
    DECRYPT_WINDOW: Annotated[int, Field(ge=1, le=86_400)] = 600

    HOST: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    PORT: Annotated[int, Field(ge=1, le=65_535)] = 3_000
    WORKERS: Annotated[int, Field(ge=1, le=256)] | None = None
    THREADS: Annotated[int, Field(ge=2, le=1_024)] = 64
    WECHAT_IN_FLIGHT: Annotated[int, Field(ge=1)] | None = None

    LOGIN_RATE: str = "300/minute"
    LIMITS_URL: str = Field(default="memory://", repr=False)
    TRUSTED_PROXIES: Annotated[int, Field(ge=0, le=16)] = 0
    HOSTS: str = ""
    CORS_ORIGINS: str = ""
    ACCESS_LOG: Literal["all", "login", "none"] = "login"
    FAST_LANE: Flag = True
    OPS_TOKEN: str | None = Field(default=None, repr=False)
    SERVICE_TOKENS: str | None = Field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of `authsvc config`: what is in force, and where it came from. Secrets are masked."""

    name: str
    shown: str
    origin: str  # "environment", ".env", "default"


@dataclass(frozen=True, slots=True)
class KeySettings:
    """The key folder, and what is done to it."""

    path: Path
    group_read: bool
    passphrase: str | None = field(repr=False)
    # The algorithm of keys that are to be made, if somebody named one: an operator's shell that lacks the service's
    # environment must not change it.
    alg: str | None
    rotate_every_s: int  # 0: by hand
    sandbox: bool


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """What a command needs that an operator gives: the key folder, the side store, and who is in it."""

    keys: KeySettings
    store_url: str = field(repr=False)  # may hold a password
    store_openid: Literal["clear", "hash"]
    appids: tuple[str, ...]  # as far as the operator's shell knows them


@dataclass(frozen=True, slots=True)
class Settings:
    """What the service is built from."""

    apps: Mapping[str, App]
    sandbox: bool
    wechat_url: str
    wechat_fallback_url: str | None
    wechat_timeout_s: int
    issuer: str
    audience: str
    typ: str
    token_ttl_s: int
    with_unionid: bool
    keys: KeySettings
    store_url: str = field(repr=False)  # may hold a password
    store_openid: Literal["clear", "hash"]
    session_key_ttl_s: int
    host: str
    port: int
    workers: int
    threads: int
    wechat_in_flight: int
    decrypt_window_s: int
    service_tokens: tuple[str, ...] = field(repr=False)
    ops_token: str | None = field(repr=False)
    login_limit: LoginLimit | None
    limits_url: str = field(repr=False)  # may hold a password
    trusted_proxies: int
    hosts: tuple[str, ...]
    cors_origins: tuple[str, ...]
    access_log: Literal["all", "login", "none"]
    fast_lane: bool
    spans: bool  # wanted, by OpenTelemetry's own variables
    warnings: tuple[str, ...]  # allowed, and to be said loudly
    table: tuple[Setting, ...] = field(repr=False)


def load_settings(environ: Mapping[str, str], *, dotenv: Path | None, cores: int, or_sandbox: bool = False) -> Settings:
    """Read the variables of `environ` and, for what is not in it, of the file `dotenv` if that exists.

    `or_sandbox`: without any app configured, behave as with AUTHSVC_SANDBOX=1.
    Raises: SettingsError with every problem.
    """
    return _Loader(environ, dotenv, cores=cores, or_sandbox=or_sandbox).settings()


def load_operator_settings(
    environ: Mapping[str, str], *, dotenv: Path | None, or_sandbox: bool = False
) -> OperatorSettings:
    """What a command on keys or store needs; it works without any app configured. `or_sandbox`: see `load_settings`.

    Raises: SettingsError if one of the variables that it is made of says nothing usable.
    """
    return _Loader(environ, dotenv, cores=1, or_sandbox=or_sandbox).operator_settings()


_SECRETS: Final = ("SECRET", "APPS", "KEYS_PASSPHRASE", "LIMITS_URL", "OPS_TOKEN", "SERVICE_TOKENS")
_NOT_WITH_SANDBOX: Final = (
    *("APPID", "SECRET", "SECRET_FILE", "APPS", "APPS_FILE"),
    *("KEYS", "STORE", "WECHAT_URL", "WECHAT_FALLBACK_URL"),
)
_OF_OPERATORS: Final = (
    *("KEYS", "KEYS_GROUP_READ", "KEYS_PASSPHRASE", "ALG", "ROTATE_EVERY", "SANDBOX"),
    *("STORE", "STORE_OPENID"),
)
_ASCII_ONLY: Final = ("ISSUER", "AUDIENCE", "WECHAT_URL", "WECHAT_FALLBACK_URL")
# What Kubernetes puts into every pod for a Service that is called "authsvc".
_KUBERNETES_LINK: Final = re.compile(r"SERVICE_(HOST|PORT.*)|PORT_[0-9]+_(TCP|UDP).*")


# Of the extra; the API alone comes with other libraries too.
_OTEL: Final = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


class _Loader:
    """Collects problems instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str], dotenv: Path | None, *, cores: int, or_sandbox: bool) -> None:
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._cores = cores
        self._origins: dict[str, str] = {}
        given = self._given(environ, dotenv)
        if or_sandbox and not given.keys() & {"APPID", "APPS", "APPS_FILE"}:
            given.setdefault("SANDBOX", "1")
        self._given_names = frozenset(given)
        self._environ = environ
        self._env = self._environment(given)

    def settings(self) -> Settings:
        env = self._env
        apps = self._apps()
        wechat_url = self._wechat_url("WECHAT_URL", env.WECHAT_URL) or _DEFAULT_WECHAT_URL
        fallback_url = self._wechat_url("WECHAT_FALLBACK_URL", env.WECHAT_FALLBACK_URL)
        if fallback_url is None and wechat_url == _DEFAULT_WECHAT_URL:
            fallback_url = _DEFAULT_FALLBACK_URL
        issuer = self._issuer()
        store_url = self._store_url()
        in_flight = env.WECHAT_IN_FLIGHT or min(48, env.THREADS * 3 // 4)
        if in_flight >= env.THREADS:
            self._problem("WECHAT_IN_FLIGHT", f"has to be below THREADS ({env.THREADS}), or hung logins stop the rest")
        keys = self._keys()
        service_tokens = self._service_tokens()
        ops_token = self._ops_token()
        limited = self._login_limit(workers=env.WORKERS or self._cores)
        hosts = self._hosts()
        cors_origins = self._cors_origins()
        spans = self._spans()
        if self._problems:
            # With the warnings: a mistyped name is often why something is missing.
            raise SettingsError(self._problems, warnings=self._warnings)
        settings = Settings(
            apps=apps,
            sandbox=env.SANDBOX,
            wechat_url=wechat_url,
            wechat_fallback_url=fallback_url,
            wechat_timeout_s=env.WECHAT_TIMEOUT,
            issuer=issuer,
            audience=env.AUDIENCE,
            typ=env.TYP,
            token_ttl_s=env.TOKEN_TTL,
            with_unionid=env.CLAIM_UNIONID,
            keys=keys,
            store_url=store_url,
            store_openid=env.STORE_OPENID,
            session_key_ttl_s=env.SESSION_KEY_TTL,
            host=env.HOST,
            port=env.PORT,
            workers=env.WORKERS or self._cores,
            threads=env.THREADS,
            wechat_in_flight=in_flight,
            decrypt_window_s=env.DECRYPT_WINDOW,
            service_tokens=service_tokens,
            ops_token=ops_token,
            login_limit=limited,
            limits_url=env.LIMITS_URL,
            trusted_proxies=env.TRUSTED_PROXIES,
            hosts=hosts,
            cors_origins=cors_origins,
            access_log=env.ACCESS_LOG,
            fast_lane=env.FAST_LANE,
            spans=spans,
            warnings=tuple(self._warnings),
            table=(),
        )
        return replace(settings, table=self._table(settings))

    def operator_settings(self) -> OperatorSettings:
        keys, store_url, apps = self._keys(), self._store_url(), self._apps()
        appids = tuple(apps) or ((self._env.APPID,) if self._env.APPID else ())
        mine = tuple(f"{PREFIX}{name} " for name in _OF_OPERATORS)
        problems = [problem for problem in self._problems if problem.startswith(mine)]
        if problems:
            raise SettingsError(problems)
        return OperatorSettings(keys, store_url, self._env.STORE_OPENID, appids)

    def _keys(self) -> KeySettings:
        env = self._env
        if env.KEYS_PASSPHRASE is not None and len(env.KEYS_PASSPHRASE) < MIN_PASSPHRASE_CHARS:
            self._problem("KEYS_PASSPHRASE", f"is shorter than {MIN_PASSPHRASE_CHARS} characters")
        return KeySettings(
            path=env.KEYS or (SANDBOX_FOLDER / "keys" if env.SANDBOX else Path("keys")),
            group_read=env.KEYS_GROUP_READ,
            passphrase=env.KEYS_PASSPHRASE,
            alg=env.ALG if "ALG" in self._given_names else None,
            rotate_every_s=env.ROTATE_EVERY,
            sandbox=env.SANDBOX,
        )

    # ---- the variables, one by one ----

    def _given(self, environ: Mapping[str, str], dotenv: Path | None) -> dict[str, str]:
        """Name without prefix → value. An empty value is an unset one, as compose files write it."""
        given: dict[str, str] = {}
        for origin, values in ((".env", self._dotenv(dotenv)), ("environment", environ)):
            for name, value in values.items():
                if name.startswith(PREFIX) and value:
                    given[name.removeprefix(PREFIX)] = value
                    self._origins[name.removeprefix(PREFIX)] = origin
        for name, value in sorted(given.items()):
            # A byte that is no UTF-8 arrives as a lone surrogate, which no token and no URL can hold.
            if not value.replace("\n", "").isprintable() or (name in _ASCII_ONLY and not value.isascii()):
                self._problem(name, "has characters in it that do not belong there")
                del given[name]
        for name in sorted(given.keys() - Environment.model_fields.keys()):
            del given[name]
            if not _KUBERNETES_LINK.fullmatch(name):
                similar = difflib.get_close_matches(name, Environment.model_fields, n=1)
                hint = f"; did you mean {PREFIX}{similar[0]}?" if similar else ""
                self._warnings.append(f"{PREFIX}{name} is no setting of authsvc{hint}")
        return given

    def _dotenv(self, path: Path | None) -> dict[str, str | None]:
        if path is None or not path.exists():
            return {}
        try:
            text = path.read_text("utf-8")
        except (OSError, ValueError):
            self._problems.append(f"{path} cannot be read")
            return {}
        # The library passes over what it cannot parse, and says so to nobody who is sure to look.
        lines = [binding.original.line for binding in parse_stream(io.StringIO(text)) if binding.error]
        self._problems += [f"{path} line {line} is not NAME=value" for line in lines]
        # No interpolation: a secret may hold a "$".
        return dict(dotenv_values(stream=io.StringIO(text), interpolate=False)) if not lines else {}

    def _environment(self, given: dict[str, str]) -> Environment:
        try:
            return Environment(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            bad = set()
            for found in error.errors(include_input=False, include_url=False, include_context=False):
                name = str(found["loc"][0])
                bad.add(name)
                if name == "PORT" and given[name].startswith("tcp://"):
                    why = (
                        "Kubernetes put this in for a Service called authsvc; set enableServiceLinks: false in the pod"
                    )
                else:
                    why = found["msg"]
                self._problem(name, why)
            # The rest is checked as well, so that everything is named at once.
            return Environment(**{k: v for k, v in given.items() if k not in bad})  # type: ignore[arg-type]

    # ---- what concerns several variables ----

    def _apps(self) -> dict[str, App]:
        env = self._env
        if env.SANDBOX:
            for name in sorted(self._given_names & set(_NOT_WITH_SANDBOX)):
                self._problem(
                    name,
                    "cannot be set together with SANDBOX: the sandbox has its own, so that nothing real is at stake",
                )
            return {SANDBOX_APPID: App(SANDBOX_APPID, (SANDBOX_SECRET,))}
        sources = [name for name in ("APPID", "APPS", "APPS_FILE") if name in self._given_names]
        if len(sources) != 1:
            wanted = "set APPID and SECRET (one app), or APPS (several), or SANDBOX=1 to try it without WeChat"
            self._problems.append(f"{wanted}; {'none is set' if not sources else ' and '.join(sources) + ' are set'}")
            return {}
        if sources == ["APPID"]:
            secret = self._secret()
            if not _APPID.fullmatch(env.APPID or ""):
                self._problem("APPID", "is not 1 to 64 characters of 0-9, A-Z, a-z, _ and -")
            return {env.APPID: App(env.APPID, (secret,))} if env.APPID and secret else {}
        for name in sorted({"SECRET", "SECRET_FILE"} & self._given_names):
            self._problem(name, f"goes with APPID; {sources[0]} has the secrets in it")
        text = env.APPS if sources == ["APPS"] else self._file("APPS_FILE", env.APPS_FILE)
        return self._parse_apps(sources[0], text) if text else {}

    def _secret(self) -> str | None:
        env = self._env
        given = {"SECRET", "SECRET_FILE"} & self._given_names
        if len(given) != 1:
            self._problem("SECRET", "or SECRET_FILE has to be set" + (", and not both" if given else ""))
            return None
        secret = env.SECRET or self._file("SECRET_FILE", env.SECRET_FILE)
        if secret and not _SECRET.fullmatch(secret):
            self._problem(given.pop(), "is no app secret: it has white space or other odd characters in it")
        return secret

    def _parse_apps(self, name: str, text: str) -> dict[str, App]:
        try:
            found = parse_json_object(text.encode("utf-8"))
        except (NotCanonical, UnicodeEncodeError):
            self._problem(name, 'is not JSON like {"appid": "secret", "other": ["secret", "next secret"]}')
            return {}
        apps = {}
        for appid, value in found.items():
            secrets = tuple(value) if isinstance(value, list) else (value,)
            good = all(isinstance(secret, str) and _SECRET.fullmatch(secret) for secret in secrets)
            if not _APPID.fullmatch(appid) or not good or not 1 <= len(secrets) <= _MAX_SECRETS:
                self._problem(name, "each appid has one secret, or a list of two while one is being reset")
                break
            apps[appid] = App(appid, secrets)
        if not found:
            self._problem(name, "has no app in it")
        return apps

    def _file(self, name: str, path: Path | None) -> str | None:
        try:
            text = path.read_text("utf-8").strip() if path else ""
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            # Not the path: who mixes up SECRET and SECRET_FILE has put the secret there.
            self._problem(name, f"names a file that cannot be read: {why}")
            return None
        if not text:
            self._problem(name, "names a file that is empty")
        return text or None

    def _issuer(self) -> str:
        env = self._env
        if env.ISSUER is None:
            if not env.SANDBOX:
                self._problem("ISSUER", "is required: the https address of this service, as its users see it")
            return f"http://127.0.0.1:{env.PORT}"
        host = self._url_host("ISSUER", env.ISSUER)
        if host is None:
            return env.ISSUER
        if env.ISSUER.endswith("/"):
            self._problem("ISSUER", "must not end in a slash: verifiers compare it letter by letter")
        on_loopback = _is_loopback(host)
        if env.SANDBOX and not on_loopback:
            self._problem("ISSUER", "must be on loopback with the sandbox: its tokens must not look like real ones")
        elif not env.SANDBOX and (on_loopback or env.ISSUER.startswith("http:")):
            self._warnings.append(
                f"{PREFIX}ISSUER is {env.ISSUER}: plain http or loopback is for trying things out, not for production"
            )
        return env.ISSUER

    def _wechat_url(self, name: str, url: str | None) -> str | None:
        host = self._url_host(name, url) if url else None
        if url is None or host is None:
            return None
        if url.startswith("http:") and not _is_loopback(host):
            self._problem(name, "is plain http to another host: the app secret would travel in clear")
        elif _is_loopback(host):
            self._warnings.append(
                f"{PREFIX}{name} is {url}: whoever answers there says who logs in; that is for trying things out"
            )
        return url.rstrip("/")

    def _url_host(self, name: str, url: str) -> str | None:
        try:
            parts = urlsplit(url)
            host, _port = parts.hostname, parts.port
        except ValueError:
            host = None
        if (
            host is None
            or parts.scheme not in ("http", "https")
            or parts.query
            or parts.fragment
            or "@" in parts.netloc
        ):
            self._problem(name, "is not a plain http or https URL")
            return None
        return host

    def _store_url(self) -> str:
        url = self._env.STORE or (_SANDBOX_STORE if self._env.SANDBOX else _DEFAULT_STORE)
        try:
            store_address(url)
        except SettingsError as error:
            self._problems += error.problems
        return url

    def _hosts(self) -> tuple[str, ...]:
        hosts = tuple(text.strip() for text in self._env.HOSTS.split(",") if text.strip())
        if not all(map(_HOST_NAME.fullmatch, hosts)):
            self._problem("HOSTS", "is a list of names like auth.example.org with commas between, in lower case")
        return hosts

    def _cors_origins(self) -> tuple[str, ...]:
        origins = tuple(text.strip() for text in self._env.CORS_ORIGINS.split(",") if text.strip())
        if not all(map(_ORIGIN.fullmatch, origins)):
            self._problem("CORS_ORIGINS", "is a list like https://www.example.com with commas between, without a path")
        return origins

    def _spans(self) -> bool:
        are_wanted, problem = wanted(self._environ)
        if problem is not None:
            self._warnings.append(problem)
        if are_wanted and any(map(_is_missing, _OTEL)):
            self._warnings.append(
                "OpenTelemetry's variables ask for spans, and there are none, for the extra is missing: "
                "pip install 'authsvc[server,otel]'"
            )
            return False
        return are_wanted

    def _ops_token(self) -> str | None:
        token = self._env.OPS_TOKEN
        if token is not None and not _SERVICE_TOKEN.fullmatch(token):
            self._problem("OPS_TOKEN", "is 20 to 256 visible characters without a comma")
        return token

    def _login_limit(self, *, workers: int) -> LoginLimit | None:
        try:
            return login_limit(self._env.LOGIN_RATE, self._env.LIMITS_URL, workers=workers)
        except SettingsError as error:
            self._problems += error.problems
        return None

    def _service_tokens(self) -> tuple[str, ...]:
        tokens = tuple(text.strip() for text in (self._env.SERVICE_TOKENS or "").split(",") if text.strip())
        if not all(map(_SERVICE_TOKEN.fullmatch, tokens)):
            self._problem("SERVICE_TOKENS", "is a list of tokens of 20 to 256 visible characters with commas between")
        return tokens

    def _problem(self, name: str, why: str) -> None:
        self._problems.append(f"{PREFIX}{name} {why}")

    # ---- for `authsvc config` ----

    def _table(self, settings: Settings) -> tuple[Setting, ...]:
        in_force = {
            "APPS": ", ".join(map(_shown_app, settings.apps.values())) if self._env.APPID is None else None,
            # Where the sandbox listens is known once it does.
            "WECHAT_URL": "the sandbox" if settings.sandbox else settings.wechat_url,
            "WECHAT_FALLBACK_URL": None if settings.sandbox else settings.wechat_fallback_url,
            "ALG": settings.keys.alg or f"that of the keys there are, {self._env.ALG} for the first",
            "ISSUER": settings.issuer,
            "KEYS": settings.keys.path.absolute(),
            "STORE": store_address(settings.store_url).shown,
            "WORKERS": settings.workers,
            "WECHAT_IN_FLIGHT": settings.wechat_in_flight,
        }
        rows = []
        for name in Environment.model_fields:
            value = in_force.get(name, getattr(self._env, name))
            secret = name in _SECRETS and name not in in_force and name in self._given_names
            shown = "" if value is None else "(set, not shown)" if secret and value else str(value)
            origin = self._origins.get(name, "default")
            rows.append(Setting(PREFIX + name, shown, origin))
        return tuple(rows)


def _shown_app(app: App) -> str:
    # Who writes {"secret": "appid"} has put the secret where the appid belongs.
    appid = app.appid if app.appid.startswith("wx") else "(an appid that does not start with wx, not shown)"
    return f"{appid} with {len(app.secrets)} secret{'s' if len(app.secrets) > 1 else ''}"


def _is_missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:  # of a package that it is in
        return True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
