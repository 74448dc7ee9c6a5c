"""All routes with the rule each states: `python tests/api/routes.py --write` after a look at the difference."""

import sys
from pathlib import Path

import flask

from remails.api import auth
from remails.api.app import create_app
from remails.bus.client import Publisher
from remails.config import Database as DatabaseSettings
from remails.config import Mail, Settings
from remails.db import Database
from remails.vault import Pepper, Vault, new_encryption_key, new_secret

REVIEWED = Path(__file__).with_name("routes.txt")


def routes(app: flask.Flask) -> list[str]:
    """One line for each route: methods, path, rule."""
    lines = []
    for rule in app.url_map.iter_rules():
        stated = auth.rule_of(app.view_functions[rule.endpoint])
        methods = ",".join(sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}))
        lines.append(f"{methods:6} {rule.rule}  --  {stated.text if stated else 'NO RULE'}")
    return sorted(lines, key=lambda line: line[7:])


def _app() -> flask.Flask:
    """An application that is never asked anything."""
    settings = Settings(host="none", mail=Mail(hostname="relay.example"), database=DatabaseSettings(dsn=""))
    vault, pepper = Vault(new_encryption_key("none")), Pepper(new_secret(40))
    return create_app(settings, Database(settings.database, None, "none"), Publisher(settings.bus, ""), vault, pepper)


if __name__ == "__main__":
    text = "\n".join(routes(_app())) + "\n"
    if "--write" in sys.argv:
        REVIEWED.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
