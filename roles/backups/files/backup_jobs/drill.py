"""The proof that both backups can be restored."""

import time
from typing import Any

from .copies import fetch
from .look import ROOM, clean, newest_restored, sound
from .programs import Failed
from .repository import DAY, verify
from .server import Server, initialize, load
from .settings import Settings
from .state import state


def drill(settings: Settings) -> dict[str, Any]:
    """Both ways back, gone to their end."""
    began = time.time()
    verify()
    with newest_restored(settings, ROOM) as (server, at):
        took = time.time() - began
        late = began - at
        # A relay at work commits every few seconds: leases, heartbeats.
        if late > 2 * settings.rpo + 60:
            raise Failed(f"the newest that can be restored is {late:.0f} s old; {settings.rpo} s are promised")
        found = sound(server)
    # Before the first copy there is none to restore; if that is late, an alert of its own says so.
    if settings.place and state(settings, "independent").get("first"):
        found["copy"] = drill_copy(settings)
    return found | {"late": round(max(late, 0)), "restored_in": round(took)}


def drill_copy(settings: Settings) -> dict[str, Any]:
    """The newest copy of the independent place, as one would have it back where nothing of ours is left."""
    clean(settings)
    try:
        about = fetch(settings, settings.path("copy"), "latest")
        if (age := time.time() - about["made"]) > 2 * DAY:
            raise Failed(f"the newest independent copy is {age / 3600:.0f} hours old")
        initialize(settings, settings.scratch)
        with Server(settings, settings.scratch) as server:
            load(server, settings.path("copy", "dump"))
            found = sound(server)
        for name in ("messages", "bodies", "waiting"):
            if found[name] != about[name]:
                raise Failed(f"the independent copy should have {about[name]} {name}, and has {found[name]}")
        return found | {"made": about["made"]}
    finally:
        clean(settings)
