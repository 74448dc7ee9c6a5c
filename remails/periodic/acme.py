"""The dialogue with a certificate authority by ACME (RFC 8555), as seen by whoever wants a certificate.

    account (made once, key kept) -> order -> for each name a challenge, met by a `Solver` -> key and request -> chain

The protocol is done by certbot's library `acme`; its exceptions and those of HTTP become `Failure` here. Everything is
synchronous and takes up to minutes: it belongs into a thread.
"""

import contextlib
import email.utils
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, cast

import requests
from acme import challenges, client, crypto_util, errors, messages
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC

import remails
from remails import certificate
from remails.certificate import Certificate, PrivateKey
from remails.config import Certificates as Settings
from remails.errors import ConfigError, Unavailable
from remails.logs import Log
from remails.store.certificates import Account

log = Log("remails.periodic")

_NONCES = 5  # how often a request is made again because the server did not know our nonce any more
_TIMEOUT = 30  # seconds for one request


class Failure(Exception):
    """No certificate, and why; `patience` is how long the server wants us to wait, if it says so."""

    def __init__(self, reason: str, patience: timedelta | None = None) -> None:
        super().__init__(" ".join(reason.split())[:500])
        self.patience = patience


class AccountGone(Failure):
    """The server does not know our account; the next attempt makes another one."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What shows the server that `domain` is ours: `text` under `token` by HTTP, or as TXT record in the DNS."""

    domain: str
    token: str
    text: str


class Solver(Protocol):
    """Meets challenges of one kind."""

    kind: str
    """`http-01` or `dns-01`."""

    def present(self, proofs: Sequence[Proof]) -> None:
        """Let the server see them; returns once it can. Raises Failure or Unavailable."""
        ...

    def withdraw(self, proofs: Sequence[Proof]) -> None:
        """They have been seen, or nobody looks any more. Raises Failure or Unavailable."""
        ...


class Authority:
    """A certificate authority and our account there.

    Args:
        account: None where there is none yet; after `register` it stands in `account`.
    """

    def __init__(self, settings: Settings, account: Account | None) -> None:
        self._settings = settings
        self.account = account
        key = (
            serialization.load_der_private_key(account.key, None)
            if account
            else ec.generate_private_key(ec.SECP256R1())
        )
        self._key = cast(ec.EllipticCurvePrivateKey, key)
        self._net = _Network(JWKEC(key=self._key), settings.ca_file)
        if account:
            self._net.account = messages.RegistrationResource(uri=account.url, body=messages.Registration())
        self._client: client.ClientV2 | None = None

    @property
    def _acme(self) -> client.ClientV2:
        if self._client is None:
            self._client = client.ClientV2(
                client.ClientV2.get_directory(self._settings.directory, self._net), self._net
            )
        return self._client

    def register(self, external_account_key: str | None) -> Account:
        """Make an account, agreeing to the authority's terms. Raises Failure."""
        with self._failures():
            binding = None
            if external_account_key:
                binding = messages.ExternalAccountBinding.from_data(
                    account_public_key=JWKEC(key=self._key.public_key()),
                    kid=self._settings.external_account,
                    hmac_key=external_account_key,
                    directory=self._acme.directory,
                )
            asked = messages.NewRegistration.from_data(
                email=self._settings.contact or None, terms_of_service_agreed=True, external_account_binding=binding
            )
            made = self._acme.new_account(asked)
            der = self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            self.account = Account(made.uri, der)
            return self.account

    def issue(self, names: Sequence[str], solver: Solver) -> Certificate:
        """A certificate for the names, with a key of its own. Raises Failure."""
        key = new_key(self._settings.key_type)
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        deadline = datetime.now() + timedelta(seconds=self._settings.timeout)  # noqa: DTZ005  # the library compares it so
        with self._failures():
            order = self._acme.new_order(crypto_util.make_csr(key_pem, list(names)))
            with self._presented(order, solver):
                done = self._acme.poll_and_finalize(order, deadline)
            try:
                made = certificate.read(key_pem + done.fullchain_pem.encode("ascii"))
            except ConfigError as error:
                raise Failure(f"what the authority gave us is of no use: {error}") from None
        if reason := certificate.trouble(made, names):
            raise Failure(f"what the authority gave us is of no use: {reason}")
        return made

    def revoke(self, chain_pem: str, reason: int = 1) -> None:
        """Have the first certificate of a chain revoked; 1 means that somebody else has its key (RFC 5280 §5.3.1). Raises Failure."""
        own, *_ = certificate.chain_of(chain_pem)
        with self._failures(), contextlib.suppress(errors.ConflictError):
            self._acme.revoke(own, reason)

    @contextlib.contextmanager
    def _presented(self, order: messages.OrderResource, solver: Solver) -> Iterator[None]:
        """While it lasts, what the order asks for can be seen."""
        asked = [one for one in order.authorizations if one.body.status != messages.STATUS_VALID]
        bodies = [_challenge(one.body, solver.kind) for one in asked]
        proofs = [
            Proof(one.body.identifier.value, _token(body.chall), self._text(body.chall))
            for one, body in zip(asked, bodies, strict=True)
        ]
        try:
            solver.present(proofs)
            for body in bodies:
                self._acme.answer_challenge(body, body.response(self._net.key))
            yield
        finally:
            try:
                solver.withdraw(proofs)
            except (Failure, Unavailable) as error:
                log.warning("proof for the authority could not be taken back", reason=error)

    def _text(self, challenge: challenges.KeyAuthorizationChallenge) -> str:
        """RFC 8555 §8.3 and §8.4."""
        text: str = challenge.validation(self._net.key)
        return text

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """What goes wrong inside, as Failure."""
        try:
            yield
        except messages.Error as error:
            if error.code == "accountDoesNotExist":
                raise AccountGone(_words(error)) from error
            limited = error.code == "rateLimited"
            patience = self._net.patience or (timedelta(hours=1) if limited else None)
            raise Failure(_words(error), patience) from error
        except errors.ValidationError as error:
            raise Failure(_why_invalid(error)) from error
        except errors.IssuanceError as error:
            raise Failure(_words(error.error)) from error
        except errors.TimeoutError as error:
            raise Failure(f"nothing was issued within {self._settings.timeout:.0f} s") from error
        except (errors.Error, JoseError) as error:
            raise Failure(f"the authority's answer is not understood: {error!s}", self._net.patience) from error
        except requests.exceptions.SSLError as error:
            raise Failure(f"the authority's own certificate is not accepted: {_cause(error)}") from error
        except requests.RequestException as error:
            raise Failure(f"the authority cannot be reached: {_cause(error)}") from error


class _Network(client.ClientNetwork):
    """The library's HTTP, with more patience for nonces, and an ear for Retry-After."""

    def __init__(self, key: JWK, ca_file: str) -> None:
        super().__init__(key, alg=ES256, user_agent=f"remails/{remails.__version__}", timeout=_TIMEOUT)
        if ca_file:
            self.verify_ssl = cast(bool, ca_file)  # what requests takes in its place
        self.patience: timedelta | None = None
        """What the last answer said of it."""

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        """RFC 8555 §6.5: a request with a nonce that is not known is made again."""
        for left in reversed(range(_NONCES)):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce" or not left:
                    raise
        raise AssertionError

    def _send_request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:
        response = super()._send_request(method, url, *args, **kwargs)
        self.patience = _seconds(response.headers.get("Retry-After", "")) if not response.ok else None
        return response


def new_key(kind: str) -> PrivateKey:
    """A fresh private key."""
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())


def _challenge(body: messages.Authorization, kind: str) -> messages.ChallengeBody:
    for one in body.challenges:
        if one.chall.typ == kind:
            return one
    offered = ", ".join(sorted(one.chall.typ for one in body.challenges))
    raise Failure(
        f"the authority does not offer {kind} for {body.identifier.value}, but {offered}; see certificates.challenge"
    )


def _token(challenge: challenges.KeyAuthorizationChallenge) -> str:
    return cast(str, challenge.encode("token"))


def _seconds(text: str) -> timedelta | None:
    """RFC 9110 §10.2.3: seconds, or a date."""
    if text.isascii() and text.isdigit():
        return timedelta(seconds=min(int(text), 7 * 86400))
    with contextlib.suppress(ValueError, TypeError):
        return max(email.utils.parsedate_to_datetime(text) - datetime.now(UTC), timedelta(0))
    return None


def _words(error: messages.Error) -> str:
    return f"the authority says {error.code or error.typ}: {error.detail or error.description or 'no more'}"


def _why_invalid(error: errors.ValidationError) -> str:
    said = [
        f"{one.body.identifier.value}: {challenge.error.detail or challenge.error.code}"
        for one in error.failed_authzrs
        for challenge in one.body.challenges
        if challenge.error is not None
    ]
    return f"the authority could not see that the name is ours; {'; '.join(said)}"


def _cause(error: requests.RequestException) -> str:
    """The innermost words of an error of HTTP."""
    found: BaseException = error
    while (inner := getattr(found, "reason", None) or found.__cause__ or found.__context__) and isinstance(
        inner, BaseException
    ):
        found = inner
    return str(found)
