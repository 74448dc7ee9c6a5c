"""What one process has in hand: the claims it works on, how much room is left, and who has had enough of it."""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from remails.store.ids import DeliveryId, MessageId, OrganizationId
from remails.store.queue import But, Claim, Closed

_GREED = 4  # times what is left


class OnRoom(Protocol):
    """Told that there is room."""

    def __call__(self, *, noted: bool) -> None:
        """For all, or only for what was noted."""


class Room:
    """Claims in hand, at most about `most` of them.

    What any one may have follows from what is left for the others (the rule of shared memory in switches: dynamic thresholds), so
    that whoever comes later always finds some room: one claim takes at most half of it, and an organization that has four times
    as much in hand as is left gets no more. Of what it sends to one domain no second `batch` is claimed before it is known where
    that goes: then the bounds of the destination hold.

    Args:
        on_room: is told when there is room again for what was left out, or only for what was noted of it.
    """

    def __init__(self, most: int, batch: int, on_room: OnRoom) -> None:
        self._most, self.batch, self.on_room = most, min(batch, max(1, most // 10)), on_room
        self._claims: dict[DeliveryId, Claim] = {}
        self._of_organization: Counter[OrganizationId] = Counter()
        self._unplaced: dict[DeliveryId, Closed] = {}
        self._of_route: Counter[Closed] = Counter()
        self._left_out: set[OrganizationId | Closed] = set()

    @property
    def free(self) -> int:
        """How many more may be claimed; never negative."""
        return max(0, self._most - len(self._claims))

    @property
    def next(self) -> int:
        """How many to claim now."""
        return min(self.batch, (self.free + 1) // 2)

    @property
    def held(self) -> list[tuple[DeliveryId, int]]:
        """The claims with their epochs."""
        return [(claim.id, claim.claim_epoch) for claim in self._claims.values()]

    @property
    def in_hand(self) -> set[MessageId]:
        """The messages claimed for all of their recipients."""
        claims = self._claims.values()
        recipients = Counter(claim.message_id for claim in claims)
        return {claim.message_id for claim in claims if recipients[claim.message_id] >= (claim.recipients or 0)}

    def take(self, claims: Iterable[Claim]) -> None:
        """Have these in hand."""
        for claim in claims:
            if earlier := self._claims.get(claim.id):  # its lease ran out while we worked on it
                self.drop([earlier])
            self._claims[claim.id] = claim
            self._of_organization[claim.organization_id] += 1
            route = Closed(claim.source, claim.domain, claim.organization_id)
            self._unplaced[claim.id] = route
            self._of_route[route] += 1

    def placed(self, claims: Iterable[Claim]) -> None:
        """It is known where these go."""
        for claim in claims:
            if route := self._unplaced.pop(claim.id, None):
                self._of_route[route] -= 1
                self._tell(route, self._of_route[route] >= self.batch)
                if not self._of_route[route]:
                    del self._of_route[route]

    def drop(self, claims: Iterable[Claim]) -> None:
        """They are done with, or given back."""
        for claim in claims:
            if self._claims.get(claim.id) is claim:
                self.placed([claim])
                del self._claims[claim.id]
                organization_id = claim.organization_id
                self._of_organization[organization_id] -= 1
                self._tell(organization_id, self._of_organization[organization_id] > _GREED * self.free)
                if not self._of_organization[organization_id]:
                    del self._of_organization[organization_id]

    def but(self, closed: But) -> But:
        """What is not to be claimed now, besides what is `closed` for want of room where it goes."""
        most = _GREED * self.free
        organizations = [one for one, held in self._of_organization.items() if held > most]
        routes = [route for route, held in self._of_route.items() if held >= self.batch]
        self._left_out.update(organizations, routes)
        return But([*closed.closed, *routes], [*closed.organizations, *organizations])

    def _tell(self, one: OrganizationId | Closed, is_full: bool) -> None:
        if not is_full and one in self._left_out:
            self._left_out.discard(one)
            self.on_room(noted=False)
