"""The environment, checked whole, with every problem named and no secret shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from authsvc.errors import SettingsError
from authsvc.settings import Environment, Settings, load_operator_settings, load_settings

REAL = {"AUTHSVC_APPID": "wx1234567890abcdef", "AUTHSVC_SECRET": "SECRETMARKER", "AUTHSVC_ISSUER": "https://a.example"}
SANDBOX = {"AUTHSVC_SANDBOX": "1"}


def _load(environ: dict[str, str], *, dotenv: Path | None = None, or_sandbox: bool = False) -> Settings:
    return load_settings(environ, dotenv=dotenv, cores=2, or_sandbox=or_sandbox)


def _problems(environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as refused:
        _load(environ)
    assert "SECRETMARKER" not in str(refused.value) + repr(refused.value)
    return "\n".join(refused.value.problems)


def test_the_defaults_are_those_of_the_readme() -> None:
    settings = _load(REAL)
    assert (settings.host, settings.port, settings.workers, settings.threads) == ("127.0.0.1", 3000, 2, 64)
    assert (settings.wechat_url, settings.wechat_fallback_url) == (
        "https://api.weixin.qq.com",
        "https://api2.weixin.qq.com",
    )
    assert (settings.wechat_timeout_s, settings.wechat_in_flight) == (5, 48)
    assert (settings.keys.alg, settings.typ, settings.audience, settings.token_ttl_s) == (None, "at+jwt", "api", 7200)
    assert (settings.keys.path, settings.store_url) == (Path("keys"), "sqlite:///authsvc.db")
    assert settings.session_key_ttl_s == 259_200
    assert settings.with_unionid is False
    assert settings.warnings == ()


def test_the_sandbox_has_its_own_folder_and_issuer() -> None:
    settings = _load(SANDBOX | {"AUTHSVC_PORT": "3100"})
    assert settings.issuer == "http://127.0.0.1:3100"
    assert settings.keys.path == Path(".sandbox/keys")
    assert settings.store_url == "sqlite:///.sandbox/authsvc.db"
    assert settings.sandbox


@pytest.mark.parametrize(
    "name",
    ["APPID", "SECRET", "SECRET_FILE", "APPS", "APPS_FILE", "KEYS", "STORE", "WECHAT_URL", "WECHAT_FALLBACK_URL"],
)
def test_the_sandbox_is_refused_together_with_anything_real(name: str) -> None:
    assert f"AUTHSVC_{name} cannot be set together with SANDBOX" in _problems(SANDBOX | {f"AUTHSVC_{name}": "x"})


def test_the_sandbox_does_not_sign_for_a_real_issuer() -> None:
    assert "AUTHSVC_ISSUER" in _problems(SANDBOX | {"AUTHSVC_ISSUER": "https://auth.example.com"})


def test_or_sandbox_counts_only_where_no_app_is_configured() -> None:
    assert _load({}, or_sandbox=True).sandbox
    assert not _load(REAL, or_sandbox=True).sandbox


def test_without_any_app_the_way_out_is_named() -> None:
    assert "SANDBOX=1" in _problems({})


def test_every_problem_is_named_at_once() -> None:
    found = _problems(
        {
            "AUTHSVC_APPID": "wx/1",
            "AUTHSVC_SECRET": "SECRET MARKER",
            "AUTHSVC_PORT": "x",
            "AUTHSVC_TOKEN_TTL": "86401",
            "AUTHSVC_ALG": "HS256",
            "AUTHSVC_WECHAT_URL": "http://api.example.com",
            "AUTHSVC_KEYS_PASSPHRASE": "MARKER",
            "AUTHSVC_STORE": "oracle://user:SECRETMARKER@db/authsvc",
        }
    )
    for name in ("APPID", "SECRET", "PORT", "TOKEN_TTL", "ALG", "WECHAT_URL", "KEYS_PASSPHRASE", "ISSUER", "STORE"):
        assert f"AUTHSVC_{name} " in found


def _said(environ: dict[str, str]) -> str:
    try:
        return str(_load(environ).warnings)
    except SettingsError as error:
        return str(error.problems)


@pytest.mark.parametrize("name", sorted(Environment.model_fields))
def test_nothing_that_is_said_of_a_setting_shows_its_value(name: str) -> None:
    base = {n: v for n, v in REAL.items() if n != "AUTHSVC_SECRET" or name != "SECRET_FILE"}
    assert "SECRETMARKER" not in _said(base | {f"AUTHSVC_{name}": "SECRETMARKER\x01"})


@pytest.mark.parametrize("value", ["https://a\udcff.example", "https://é.example", "https://a.example\x1b"])
def test_an_issuer_that_no_token_could_carry_is_refused(value: str) -> None:
    assert "AUTHSVC_ISSUER" in _problems(REAL | {"AUTHSVC_ISSUER": value})


def test_a_path_may_be_in_any_language() -> None:
    assert _load(REAL | {"AUTHSVC_KEYS": "/home/小明/keys"}).keys.path == Path("/home/小明/keys")


def test_who_mixes_up_appid_and_secret_does_not_see_the_secret_in_the_table() -> None:
    settings = _load({"AUTHSVC_ISSUER": "https://a.example", "AUTHSVC_APPS": '{"SECRETMARKER": "wx1234567890abcdef"}'})
    assert "SECRETMARKER" not in str(settings.table)


def test_two_ways_to_name_the_apps_are_one_too_many() -> None:
    assert "APPID and APPS are set" in _problems(REAL | {"AUTHSVC_APPS": '{"wx2": "s"}'})


def test_several_apps_come_as_json_with_one_or_two_secrets() -> None:
    base = {"AUTHSVC_ISSUER": "https://a.example", "AUTHSVC_APPS": '{"wx1": "s1", "wx2": ["s2", "s3"]}'}
    assert {appid: app.secrets for appid, app in _load(base).apps.items()} == {"wx1": ("s1",), "wx2": ("s2", "s3")}


@pytest.mark.parametrize(
    "apps",
    [
        "{}",
        "[]",
        "SECRETMARKER",
        '{"wx1": "SECRETMARKER"',
        '{"wx1": ""}',
        '{"wx1": []}',
        '{"wx1": 1}',
        '{"wx1": ["SECRETMARKER", 2]}',
        '{"wx1": ["SECRETMARKER", "b", "c"]}',
        '{"wx/1": "SECRETMARKER"}',
        '{"wx1": "SECRETMARKER", "wx1": "b"}',
        '{"wx1": "SECRET MARKER"}',
    ],
)
def test_apps_that_are_not_of_that_form_are_refused(apps: str) -> None:
    assert "AUTHSVC_APPS" in _problems({"AUTHSVC_ISSUER": "https://a.example", "AUTHSVC_APPS": apps})


def test_secrets_may_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("SECRETMARKER\n")
    (tmp_path / "apps").write_text('{"wx1": "SECRETMARKER"}\n')
    base = {"AUTHSVC_ISSUER": "https://a.example"}
    one = _load(base | {"AUTHSVC_APPID": "wx1", "AUTHSVC_SECRET_FILE": str(tmp_path / "secret")})
    several = _load(base | {"AUTHSVC_APPS_FILE": str(tmp_path / "apps")})
    assert one.apps == several.apps
    assert one.apps["wx1"].secrets == ("SECRETMARKER",)


def test_a_secret_file_that_is_missing_empty_or_doubled_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    without = {name: value for name, value in REAL.items() if name != "AUTHSVC_SECRET"}
    assert "that cannot be read" in _problems(without | {"AUTHSVC_SECRET_FILE": str(tmp_path / "none")})
    assert "that is empty" in _problems(without | {"AUTHSVC_SECRET_FILE": str(tmp_path / "empty")})
    assert "and not both" in _problems(REAL | {"AUTHSVC_SECRET_FILE": str(tmp_path / "empty")})
    assert "AUTHSVC_SECRET" in _problems(without)


@pytest.mark.parametrize(
    "issuer",
    [
        "https://auth.example.com/",
        "auth.example.com",
        "ftp://auth.example.com",
        "https://",
        "https://a.example?x=1",
        "https://a.example#x",
        "https://user:SECRETMARKER@a.example",
        "https://a.example:port",
    ],
)
def test_an_issuer_is_an_https_url_without_anything_behind_it(issuer: str) -> None:
    assert "AUTHSVC_ISSUER" in _problems(REAL | {"AUTHSVC_ISSUER": issuer})


@pytest.mark.parametrize("issuer", ["http://auth.example.com", "http://127.0.0.1:3000", "https://localhost"])
def test_a_plain_or_local_issuer_is_allowed_and_said_loudly(issuer: str) -> None:
    assert any("ISSUER" in warning for warning in _load(REAL | {"AUTHSVC_ISSUER": issuer}).warnings)


@pytest.mark.parametrize("url", ["http://127.0.0.1:3001", "http://[::1]:3001", "http://localhost:3001", "https://gw"])
def test_wechat_may_be_asked_in_clear_on_loopback_alone(url: str) -> None:
    settings = _load(REAL | {"AUTHSVC_WECHAT_URL": url})
    assert settings.wechat_url == url
    assert settings.wechat_fallback_url is None
    assert "in clear" in _problems(REAL | {"AUTHSVC_WECHAT_URL": "http://10.0.0.1"})
    assert "in clear" in _problems(REAL | {"AUTHSVC_WECHAT_FALLBACK_URL": "http://127.0.0.1.evil.example"})


def test_hung_logins_can_never_take_every_thread() -> None:
    assert _load(REAL | {"AUTHSVC_THREADS": "8"}).wechat_in_flight == 6
    assert _load(REAL | {"AUTHSVC_THREADS": "2"}).wechat_in_flight == 1
    assert "AUTHSVC_WECHAT_IN_FLIGHT" in _problems(REAL | {"AUTHSVC_THREADS": "8", "AUTHSVC_WECHAT_IN_FLIGHT": "8"})


def test_an_empty_value_is_an_unset_one() -> None:
    assert _load(REAL | {"AUTHSVC_APPS": "", "AUTHSVC_PORT": ""}).port == 3000


def test_dotenv_fills_in_what_the_environment_leaves_open(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("AUTHSVC_PORT=3100\nAUTHSVC_AUDIENCE='shop $HOME'\nOTHER=1\n# AUTHSVC_ALG=EdDSA\n")
    settings = _load(REAL | {"AUTHSVC_PORT": "3200"}, dotenv=dotenv)
    assert (settings.port, settings.audience, settings.keys.alg) == (3200, "shop $HOME", None)
    origins = {setting.name: setting.origin for setting in settings.table}
    assert origins["AUTHSVC_PORT"] == "environment"
    assert origins["AUTHSVC_AUDIENCE"] == ".env"
    assert origins["AUTHSVC_ALG"] == "default"


def test_a_line_of_dotenv_that_is_no_setting_is_a_problem_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AUTHSVC_PORT=3100\nAUTHSVC_TOKEN_TTL 900 SECRETMARKER\n")
    with pytest.raises(SettingsError) as refused:
        _load(REAL, dotenv=tmp_path / ".env")
    assert "line 2" in str(refused.value)
    assert "SECRETMARKER" not in str(refused.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        _load(REAL, dotenv=tmp_path / "folder")


def test_a_mistyped_name_is_said_beside_what_is_missing_for_it() -> None:
    assert "did you mean AUTHSVC_APPID?" in _problems({"AUTHSVC_APPPID": "wx1", "AUTHSVC_ISSUER": "https://a.example"})


def test_a_mistyped_name_is_said_with_the_one_that_was_meant() -> None:
    assert any(
        "AUTHSVC_AUDIENC " in w and "AUTHSVC_AUDIENCE?" in w for w in _load(REAL | {"AUTHSVC_AUDIENC": "x"}).warnings
    )


def test_what_kubernetes_puts_into_a_pod_is_told_from_a_setting() -> None:
    links = {
        "AUTHSVC_SERVICE_HOST": "10.0.0.1",
        "AUTHSVC_SERVICE_PORT": "80",
        "AUTHSVC_PORT_80_TCP": "tcp://10.0.0.1:80",
    }
    assert _load(REAL | links).warnings == ()
    assert "enableServiceLinks" in _problems(REAL | links | {"AUTHSVC_PORT": "tcp://10.0.0.1:80"})


def test_origins_are_as_browsers_write_them() -> None:
    origins = "https://www.example.com, http://localhost:5173,https://[2001:db8::1]:8443"
    assert _load(REAL | {"AUTHSVC_CORS_ORIGINS": origins}).cors_origins == (
        "https://www.example.com",
        "http://localhost:5173",
        "https://[2001:db8::1]:8443",
    )
    assert _load(REAL).cors_origins == ()


@pytest.mark.parametrize(
    "origins", ["*", "https://*.example.com", "www.example.com", "https://a.example/", "https://A.example", "null", "1"]
)
def test_an_origin_that_no_browser_sends_is_refused(origins: str) -> None:
    assert "AUTHSVC_CORS_ORIGINS" in _problems(REAL | {"AUTHSVC_CORS_ORIGINS": f"https://good.example,{origins}"})


def test_a_wechat_on_this_machine_is_said_loudly() -> None:
    assert any(
        "WECHAT_URL" in warning for warning in _load(REAL | {"AUTHSVC_WECHAT_URL": "http://127.0.0.1:1"}).warnings
    )
    assert not any("WECHAT_URL" in warning for warning in _load(REAL).warnings)


def test_a_window_of_more_than_a_day_is_refused() -> None:
    assert "DECRYPT_WINDOW" in _problems(REAL | {"AUTHSVC_DECRYPT_WINDOW": "86401"})
    assert _load(REAL | {"AUTHSVC_DECRYPT_WINDOW": "86400"}).decrypt_window_s == 86_400


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ("a" * 20, ("a" * 20,)),
        (f"{'a' * 256}, {'b' * 20},", ("a" * 256, "b" * 20)),
        (" , ", ()),
    ],
)
def test_service_tokens_are_a_list_with_commas(given: str, tokens: tuple[str, ...]) -> None:
    assert _load(REAL | {"AUTHSVC_SERVICE_TOKENS": given}).service_tokens == tokens


@pytest.mark.parametrize("given", ["a" * 19, "a" * 257, f"{'a' * 20},short", "a" * 10 + " " + "a" * 10, "ä" * 20])
def test_a_service_token_that_can_be_guessed_or_not_be_sent_is_refused_and_not_shown(given: str) -> None:
    problems = _problems(REAL | {"AUTHSVC_SERVICE_TOKENS": given})
    assert "SERVICE_TOKENS" in problems
    assert given not in problems


def test_the_table_has_every_setting_and_no_secret() -> None:
    names = ("SECRET", "KEYS_PASSPHRASE", "OPS_TOKEN", "SERVICE_TOKENS")
    secrets = {f"AUTHSVC_{name}": "SECRETMARKER-SECRETMARKER" for name in names}
    settings = _load(REAL | secrets)
    shown = {setting.name: setting.shown for setting in settings.table}
    assert shown.keys() == {f"AUTHSVC_{name}" for name in Environment.model_fields}
    assert "SECRETMARKER" not in str(shown)
    assert shown["AUTHSVC_SECRET"] == "(set, not shown)"
    assert "SECRETMARKER" not in repr(settings)


def _shown(environ: dict[str, str]) -> dict[str, str]:
    return {setting.name.removeprefix("AUTHSVC_"): setting.shown for setting in _load(environ).table}


def test_the_table_shows_what_is_in_force_where_nobody_set_it() -> None:
    sandbox, real = _shown(SANDBOX), _shown(REAL)
    assert (sandbox["WECHAT_URL"], sandbox["WECHAT_FALLBACK_URL"]) == ("the sandbox", "")
    assert real["WECHAT_URL"] == "https://api.weixin.qq.com"
    assert real["ALG"] == "that of the keys there are, ES256 for the first"
    assert _shown(REAL | {"AUTHSVC_ALG": "EdDSA"})["ALG"] == "EdDSA"
    assert real["LIMITS_URL"] == "memory://"
    assert _shown(REAL | {"AUTHSVC_LIMITS_URL": "redis://:SECRETMARKER@localhost"})["LIMITS_URL"] == "(set, not shown)"


def test_what_is_a_warning_alone_is_told_from_the_problems_beside_it() -> None:
    with pytest.raises(SettingsError) as refused:
        _load(REAL | {"AUTHSVC_PORT": "x", "AUTHSVC_AUDIENC": "x"})
    (warning,) = refused.value.warnings
    assert "AUTHSVC_AUDIENC " in warning
    assert refused.value.problems[-1] == warning
    assert str(refused.value).endswith(f"; warning: {warning}")
    assert len(refused.value.problems) == 2


def test_an_operators_commands_can_use_the_sandbox_where_no_app_is_configured() -> None:
    assert load_operator_settings({}, dotenv=None, or_sandbox=True).keys.sandbox
    assert not load_operator_settings(REAL, dotenv=None, or_sandbox=True).keys.sandbox
    assert not load_operator_settings({}, dotenv=None).keys.sandbox


def test_where_the_limits_are_counted_is_known_and_not_shown() -> None:
    assert _load(REAL).limits_url == "memory://"
    settings = _load(REAL | {"AUTHSVC_LIMITS_URL": "redis://:SECRETMARKER@localhost"})
    assert settings.limits_url == "redis://:SECRETMARKER@localhost"
    assert "SECRETMARKER" not in repr(settings)


def test_an_operators_commands_need_no_app(tmp_path: Path) -> None:
    environ = {"AUTHSVC_KEYS": str(tmp_path), "AUTHSVC_ALG": "EdDSA", "AUTHSVC_PORT": "x"}
    found = load_operator_settings(environ, dotenv=None)
    assert (found.keys.path, found.keys.alg, found.keys.sandbox) == (tmp_path, "EdDSA", False)
    assert (found.keys.rotate_every_s, found.store_url) == (2_592_000, "sqlite:///authsvc.db")
    for name, bad in (("ALG", "none"), ("ROTATE_EVERY", "-1"), ("STORE", "x://y"), ("KEYS_PASSPHRASE", "short")):
        with pytest.raises(SettingsError, match=f"AUTHSVC_{name}"):
            load_operator_settings({f"AUTHSVC_{name}": bad}, dotenv=None)


def test_an_algorithm_that_nobody_named_is_left_to_the_keys_there_are() -> None:
    assert _load(REAL).keys.alg is None
    assert _load(REAL | {"AUTHSVC_ALG": "ES256"}).keys.alg == "ES256"


def test_the_token_of_operators_is_long_and_not_shown() -> None:
    settings = _load(REAL | {"AUTHSVC_OPS_TOKEN": "OPSTOKENMARKER-0123456789"})
    assert settings.ops_token == "OPSTOKENMARKER-0123456789"
    assert "OPSTOKENMARKER" not in repr(settings)
    assert _load(REAL).ops_token is None


@pytest.mark.parametrize("token", ["short", "with space 0123456789", "x" * 257, "a,comma-0123456789-0123"])
def test_a_token_of_operators_that_is_none_is_refused_without_being_repeated(token: str) -> None:
    problems = _problems(REAL | {"AUTHSVC_OPS_TOKEN": token})
    assert "AUTHSVC_OPS_TOKEN is 20 to 256 visible characters" in problems
    assert token not in problems


def test_more_names_of_the_service_are_names_and_nothing_else() -> None:
    assert _load(REAL | {"AUTHSVC_HOSTS": "a.example.org, b"}).hosts == ("a.example.org", "b")
    for bad in ("https://a.example", "A.example", "a.example:443", "*", ".example"):
        assert "AUTHSVC_HOSTS" in _problems(REAL | {"AUTHSVC_HOSTS": bad})
