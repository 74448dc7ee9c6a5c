"""What a request needs of its application: settings, database, bus, keys.

`create_app` puts one `State` into the application's extensions; `state()` finds it again through Flask's current
application, so nothing here is global.
"""

from dataclasses import dataclass, field

import flask

from remails.bus.client import Publisher
from remails.config import Settings
from remails.db import Database
from remails.guard import Guard
from remails.throttle import Throttle
from remails.vault import Pepper, Vault


@dataclass(frozen=True, slots=True)
class State:
    """What one application works with."""

    settings: Settings
    db: Database
    publisher: Publisher
    vault: Vault = field(repr=False)
    pepper: Pepper = field(repr=False)
    guard: Guard = field(repr=False)
    throttle: Throttle = field(default_factory=Throttle, repr=False)


def state() -> State:
    """The state of the application that is serving this request."""
    found: State = flask.current_app.extensions["remails"]
    return found
