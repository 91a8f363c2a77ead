"""The Flask app over the use-cases."""

from __future__ import annotations

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from authsvc.http import checklogin, health, login, session, wellknown
from authsvc.http.context import install_request_log
from authsvc.http.problems import install_problems
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
    install_problems(app)
    for module in (login, checklogin, wellknown, health):
        app.register_blueprint(module.blueprint)
    app.register_blueprint(session.client_blueprint)
    if services.service_token_digests:
        app.register_blueprint(session.service_blueprint)
    install_reference(app, issuer=services.issuer)
    if services.trusted_proxies:
        # The client's address alone: the scheme and the host that we answer with never come from a request.
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=services.trusted_proxies, x_proto=0, x_host=0, x_port=0, x_prefix=0
        )
    return app
