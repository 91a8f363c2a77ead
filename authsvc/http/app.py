"""The Flask app over the use-cases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flask import Flask

from authsvc.http import checklogin, health, login, operators, session, wellknown
from authsvc.http.context import install_request_log
from authsvc.http.cors import install_cors
from authsvc.http.fastlane import FastLane
from authsvc.http.headers import install_security_headers
from authsvc.http.hosts import install_host_check
from authsvc.http.limits import install_login_limit
from authsvc.http.problems import install_problems
from authsvc.http.proxies import install_proxies
from authsvc.http.reference import install_reference
from authsvc.http.services import Services, install_services


def create_app(services: Services) -> Flask:
    app = Flask("authsvc", static_folder=None)
    # Werkzeug would answer `/.well-known//jwks.json` with a redirect; nothing here redirects.
    app.url_map.merge_slashes = False
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.json.sort_keys = False  # type: ignore[attr-defined]
    install_services(app, services)
    install_request_log(app)
    install_security_headers(app)
    install_host_check(app, issuer=services.issuer, more=services.hosts)
    if services.cors_origins:
        install_cors(app, services.cors_origins)
    install_problems(app)
    for module in (login, checklogin, wellknown, health):
        app.register_blueprint(module.blueprint)
    app.register_blueprint(session.client_blueprint)
    if services.service_token_digests:
        app.register_blueprint(session.service_blueprint)
    if services.ops_token_digest is not None and services.metrics is not None:
        app.register_blueprint(operators.blueprint)
    if services.login_limit is not None:
        install_login_limit(app, services.login_limit)
    install_reference(app, issuer=services.issuer)
    _take_paths_literally(app)
    install_proxies(app, trusted=services.trusted_proxies)
    if services.fast_lane:
        app.wsgi_app = FastLane(app.wsgi_app, services)  # type: ignore[method-assign]
    return app


def _take_paths_literally(app: Flask) -> None:
    """werkzeug takes `//login` for `/login`, whatever it was told of slashes: it drops those that a path begins with.

    A proxy's rules for `/login` would not be in force for it.
    """
    inner = app.wsgi_app

    def literal(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        if not path.startswith("/") or path.startswith("//"):
            environ = environ | {"PATH_INFO": f"/%2F{path}"}  # a segment that no route has
        return inner(environ, start_response)

    app.wsgi_app = literal  # type: ignore[method-assign]
