"""Deleting what may have very much mail: that goes first, a piece at a time."""

from remails.api.state import state
from remails.store import messages
from remails.store.ids import OrganizationId, ProjectId

_PIECE = 500


def remove_mail(organization_id: OrganizationId, project_id: ProjectId | None = None) -> None:
    """Delete the mail of an organization, or of one of its projects; before it is deleted itself.

    In one transaction with it, there could be too much for one statement; and whoever stores mail of it, or records results, waits
    for that transaction, together with all the others whose mail is in the same batch.
    """
    while state().db.run(messages.remove_some, organization_id, _PIECE, project_id=project_id) == _PIECE:
        pass
