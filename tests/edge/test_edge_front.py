"""Clients before a real edge: who they are to those behind it, what they see of a host that dies or is drained, and of none."""

import contextlib
import http.client
import json
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from api.caller import basic
from edge.proxy import CONNECTIONS, EDGE, HOSTS, PER_CLIENT, Answer, Edge, Front, Ports, module
from inbound.running import Certificate, make_certificate
from installation import eventually
from playbooks.play import Ansible, program
from scraping import scrape_url

pytestmark = pytest.mark.needs("haproxy")

MESSAGE = b"From: a@acme.example\r\n\r\nhi\r\n.\r\n"


@pytest.fixture(autouse=True)
def mended(front: Front) -> Iterator[None]:
    """Each test leaves it whole."""
    yield
    front.whole()


def answers(front: Front, count: int) -> list[int]:
    """The statuses of so many requests."""
    return [front.ask("GET", "/api/config").status for _ in range(count)]


# Who the client is


def test_inbound_hears_who_the_client_is(front: Front) -> None:
    """PROXY version 2, on the port that begins with TLS too."""
    for smtps in (False, True):
        with front.smtp("127.0.0.77", smtps=smtps) as client:
            client.log_in(front.tenant).envelope("a@acme.example")
            client.send(MESSAGE)
            assert client.reply().startswith("250 2.6.0 ")
    with front.db.transaction() as conn:
        raw = [bytes(row[0]) for row in conn.execute("SELECT raw FROM message_bodies").fetchall()]
    assert len(raw) == 2
    assert all(b"[127.0.0.77]" in text.partition(b"\r\n\r\n")[0] for text in raw)


def test_the_api_hears_who_the_client_is_whatever_it_says(front: Front) -> None:
    """Somebody who guesses at keys is banned, and nobody else, though each guess names another client."""
    codes = []
    for number in range(11):
        lie = f"192.0.2.{number}"
        headers = basic(lie, "guess") | {"X-Forwarded-For": lie, "Forwarded": f"for={lie}", "X-Real-IP": lie}
        codes.append(front.ask("GET", "/api/organizations", headers=headers, source="127.0.0.66").status)
        if codes[-1] == 429:
            break
    eventually(
        lambda: front.ask("GET", "/api/organizations", headers=basic("x", "y"), source="127.0.0.66").status,
        lambda status: status == 429,
    )
    assert set(codes) <= {401, 429}
    assert front.ask("GET", "/api/organizations", headers=basic("x", "z"), source="127.0.0.67").status == 401


def test_who_is_no_edge_speaks_for_nobody(front: Front) -> None:
    """Somebody who got past the firewall: to the API a header of theirs means nothing."""
    ip = HOSTS["app1"]
    for number in range(12):
        headers = basic(f"192.0.2.{number}", "guess") | {"X-Forwarded-For": "127.0.0.55"}
        request = "GET /api/organizations HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection((ip, front.edge.ports.api), 10, ("127.0.0.56", 0)) as direct:
            direct.sendall(f"{request}{lines}\r\n".encode())
            status = int(direct.makefile("rb").readline().split()[1])
    assert status == 429
    assert front.ask("GET", "/api/organizations", headers=basic("x", "z"), source="127.0.0.55").status == 401


# HTTP


def test_http_leads_to_https(front: Front) -> None:
    answer = front.ask("GET", "/login?next=/x", plain=True)
    assert (answer.status, answer.headers["Location"]) == (308, f"https://{EDGE}:{front.edge.ports.http}/login?next=/x")
    assert "Strict-Transport-Security" not in answer.headers  # RFC 6797 §7.2


def test_the_proof_for_an_authority_is_asked_for_without_tls(front: Front) -> None:
    """RFC 8555 §8.3; that there is none of this name, the API says itself."""
    answer = front.ask("GET", "/.well-known/acme-challenge/x", plain=True)
    assert answer.status == 404
    assert answer.headers["X-App-Version"]


@pytest.mark.parametrize("path", ["/api/config", "/login", "/internal/certificates", "/api/nothing"])
def test_every_answer_has_each_header_of_security_once(front: Front, path: str) -> None:
    answer = front.ask("GET", path)
    for name, value in (("Strict-Transport-Security", "max-age=31536000"), ("X-Content-Type-Options", "nosniff")):
        assert answer.headers.get_all(name) == [value]
    if answer.headers["X-App-Version"]:
        assert len(answer.headers.get_all("Content-Security-Policy") or ()) == 1


@pytest.mark.parametrize("path", ["/internal/certificates", "/%69nternal/certificates", "/internal%2Fcertificates"])
def test_what_is_between_our_hosts_is_not_shown(front: Front, path: str) -> None:
    answer = front.ask("GET", path)
    assert answer.status == 404
    assert answer.headers["X-App-Version"] is None


@pytest.mark.needs("curl")
def test_http_2(front: Front) -> None:
    url = f"https://{EDGE}:{front.edge.ports.https}/api/config"
    command = ["curl", "--silent", "--insecure", "--http2", "--output", "/dev/null", "--write-out", "%{http_version}"]
    assert subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout == "2"


def test_one_connection_of_http_2_has_few_requests_at_a_time(front: Front) -> None:
    """RFC 9113 §6.5.2: the server's first word, SETTINGS_MAX_CONCURRENT_STREAMS (3) among it."""
    context = ssl._create_unverified_context()  # a certificate of its own making
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((EDGE, front.edge.ports.https), 10) as plain,
        context.wrap_socket(plain) as connection,
        connection.makefile("rb") as heard,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        frame = heard.read(9)
        said = heard.read(int.from_bytes(frame[:3], "big"))
    assert frame[3] == 4
    assert dict(struct.iter_unpack(">HI", said))[3] == 20


def test_a_body_that_the_api_would_never_take_ends_at_the_edge(front: Front) -> None:
    connection = front.https()
    connection.putrequest("POST", "/api/organizations")
    connection.putheader("Content-Length", "8000001")
    connection.endheaders()
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read())
    connection.close()
    assert answer.status == 413
    assert problem(answer)["detail"] == "The body is larger than 8,000,000 bytes."


def problem(answer: Answer) -> dict[str, object]:
    """A problem that the edge tells of in the API's words."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    found: dict[str, object] = answer.json
    assert set(found) == {"type", "title", "status", "detail", "instance", "description", "reference"}
    assert found["instance"] == f"urn:uuid:{found['reference']}"
    return found


def test_nobody_is_there(front: Front) -> None:
    """A program gets a problem and a time to come again, a browser a page, and the reference is in the log."""
    for name, service in front.services.items():
        if "api" in name:
            service.kill()
    front.edge.wait_for("rest", app1="DOWN", app2="DOWN")
    answer = front.ask("GET", "/api/config")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    reference = problem(answer)["reference"]
    eventually(front.edge.said, lambda log: f"reference={reference}" in log)
    assert re.search(rf"request client=127.0.0.1 method=GET status=503 .*reference={reference}", front.edge.said())
    page = front.ask("GET", "/login")
    assert (page.status, page.headers["Retry-After"], page.headers["Content-Type"]) == (503, "5", "text/html")
    assert page.headers["Strict-Transport-Security"]


# Health


def test_health_checks_leave_no_trace(front: Front) -> None:
    """Neither in inbound's log, nor among its clients; nor is an edge ever banned."""
    ip = HOSTS["app1"]
    url = f"http://{ip}:{front.edge.ports.metrics + 2}/metrics"
    before = scrape_url(url)
    eventually(
        lambda: scrape_url(url),
        lambda now: (
            now["remails_smtp_connections_total outcome=check"]
            > before["remails_smtp_connections_total outcome=check"] + 2
        ),
    )
    assert scrape_url(url).get("remails_smtp_connections_total outcome=failed", 0) == 0
    said = front.services["app1 inbound"].said()
    assert not re.search(r"connection not opened|connection lost|refused|Traceback", said)


def test_an_edge_is_ready_while_it_reaches_anybody(front: Front) -> None:
    assert ready(front) == 200
    for service in front.services.values():
        service.kill()
    eventually(lambda: ready(front), lambda status: status == 503)
    front.services["app2 inbound"].start()
    eventually(lambda: ready(front), lambda status: status == 200)


def ready(front: Front) -> int:
    """What keepalived's script is told."""
    with socket.create_connection(("127.0.0.1", front.edge.ports.ready), 5) as asking:
        asking.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
        return int(asking.makefile("rb").readline().split()[1])


def test_prometheus_is_told(front: Front) -> None:
    found = scrape_url(f"http://{EDGE}:{front.edge.ports.metrics}/metrics")
    # Whatever stands here with none is an alert.
    active = {name: value for name, value in found.items() if name.startswith("haproxy_backend_active_servers ")}
    assert active == {f"haproxy_backend_active_servers proxy={word}": 2 for word in ("inbound", "pages", "rest")}


# A host dies


def test_a_host_that_dies_is_seen_by_nobody_who_asks(front: Front) -> None:
    """Requests and connections that begin afterwards go to the other one, before any check has noticed."""
    front.services["app1 api"].kill()
    front.services["app1 inbound"].kill()
    assert answers(front, 20) == [200] * 20
    for _ in range(5):
        with front.smtp() as client:
            assert client.reply().startswith("220 ")
    front.edge.wait_for("rest", app1="DOWN")
    front.edge.wait_for("inbound", app1="DOWN")


def test_one_whose_database_is_away_still_speaks_for_itself(front: Front) -> None:
    """If all are unwell, what they say is worth more than what the edge could say."""
    for name in HOSTS:
        for backend in ("rest", "inbound"):
            module.command(front.edge.haproxy, f"disable health {backend}/{name}")
            module.command(front.edge.haproxy, f"set server {backend}/{name} health down")
    front.edge.wait_for("rest", app1="DOWN", app2="DOWN")
    try:
        answer = front.ask("GET", "/api/config")
        assert (answer.status, bool(answer.headers["X-App-Version"])) == (200, True)
        with front.smtp() as client:
            assert client.reply().startswith("220 ")
    finally:
        for name in HOSTS:
            for backend in ("rest", "inbound"):
                module.command(front.edge.haproxy, f"enable health {backend}/{name}")


# Drain


def test_a_drained_host_serves_to_the_end_and_is_sent_nobody_more(front: Front) -> None:
    haproxy = front.edge.haproxy
    with front.smtp() as client:
        client.log_in(front.tenant)
        (busy,) = (name for name, row in front.edge.rows("inbound").items() if row["scur"] == "1")
        changed, text, left = module.drain(haproxy, busy, ["inbound"], 0)
        assert (changed, text, left) == (True, f"{busy} has 1 sessions", 1)
        for _ in range(4):
            with front.smtp() as other:
                assert other.reply().startswith("220 ")
        assert front.edge.rows("inbound")[busy]["scur"] == "1"
        waiting: list[tuple[bool, str, int]] = []
        thread = threading.Thread(target=lambda: waiting.append(module.drain(haproxy, busy, ["inbound"], 30)))
        thread.start()
        client.envelope("a@acme.example")
        client.send(MESSAGE)
        assert client.reply().startswith("250 2.6.0 ")
        assert waiting == []
        client.say("QUIT")
    thread.join(30)
    assert waiting == [(False, f"{busy} has no sessions", 0)]
    assert module.ready(haproxy, busy, ["inbound"], 10) == (True, f"{busy} is well", 0)
    assert module.ready(haproxy, busy, ["inbound"], 10) == (False, f"{busy} is well", 0)
    assert front.edge.status("inbound")[busy] == "UP"


def test_a_reload_forgets_nobody_who_is_drained_or_dead(front: Front) -> None:
    """New settings come while a host is being emptied."""
    haproxy = front.edge.haproxy
    module.drain(haproxy, "app1", ["rest", "pages"], 10)
    front.services["app2 inbound"].kill()
    front.edge.wait_for("inbound", app2="DOWN")
    front.edge.reload()
    assert front.edge.status("rest") == {"app1": "DRAIN", "app2": "UP"}
    assert front.edge.status("pages")["app1"].startswith("DRAIN")
    assert front.edge.status("inbound") == {"app1": "UP", "app2": "DOWN"}
    before = front.edge.rows("rest")["app1"]["stot"]
    assert answers(front, 6) == [200] * 6
    assert front.edge.rows("rest")["app1"]["stot"] == before
    assert module.ready(haproxy, "app1", ["rest", "pages"], 30)[0]
    front.edge.reload()
    assert front.edge.status("rest") == {"app1": "UP", "app2": "UP"}


def test_a_reload_closes_no_connection_that_is_about_to_be_used(front: Front) -> None:
    """A client that keeps a connection for its next request is told in its answer when to make a new one."""
    with contextlib.closing(front.https()) as connection:
        assert _config(connection) == 200
        front.edge.reload()
        assert _config(connection) == 200


def test_a_new_certificate_is_shown_and_no_connection_ends(
    front: Front, certificate: tuple[str, str, str], tmp_path: Path
) -> None:
    """As an edge takes it up; what HAProxy does not take changes nothing."""
    loader, file = program("roles/certificates/files/load_certificates.py"), Path(certificate[2])
    new, old = make_certificate(tmp_path), Certificate(*certificate[:2])
    with contextlib.closing(front.https()) as kept:
        assert _config(kept) == 200
        before = kept.sock
        for one in (new, old):
            chain, key = (Path(path).read_text(encoding="ascii") for path in (one.certificate, one.key))
            file.write_text(f"{key}\n{chain}", encoding="ascii")
            loader.tell(front.edge.socket, [file])
            assert _shown(front) == ssl.PEM_cert_to_DER_cert(chain)
        file.write_text(chain, encoding="ascii")  # without its key
        with pytest.raises(loader.Untold, match="does not take"):
            loader.tell(front.edge.socket, [file])
        with pytest.raises(loader.Untold, match="knows no"):
            loader.tell(front.edge.socket, [tmp_path / "other.pem"])
        assert _shown(front) == ssl.PEM_cert_to_DER_cert(chain)
        file.write_text(f"{key}\n{chain}", encoding="ascii")
        assert _config(kept) == 200
        assert kept.sock is before


def _shown(front: Front) -> bytes | None:
    """The certificate that a client is shown."""
    with contextlib.closing(front.https()) as connection:
        connection.connect()
        return connection.sock.getpeercert(binary_form=True)


def _config(connection: http.client.HTTPSConnection) -> int:
    connection.request("GET", "/api/config")
    with connection.getresponse() as answer:
        answer.read()
        return answer.status


def test_a_host_restarts_without_an_error_that_a_client_sees(front: Front) -> None:
    """As a deployment does it, while requests come without a pause."""
    haproxy, codes, stop = front.edge.haproxy, [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            codes.append(front.ask("GET", "/api/healthy").status)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for name in HOSTS:
        assert module.drain(haproxy, name, ["rest", "pages"], 10)[2] == 0
        assert front.edge.status("pages")[name].startswith("DRAIN")
        service = front.services[f"{name} api"]
        service.kill()
        service.start()
        module.ready(haproxy, name, ["rest", "pages"], 30)
    stop.set()
    for asker in askers:
        asker.join(30)
    assert set(codes) == {200} and len(codes) > 20


def test_the_last_one_stays(front: Front) -> None:
    """systemd holds its sockets; an edge that sends clients nowhere would be worse."""
    front.services["app2 inbound"].kill()
    front.edge.wait_for("inbound", app2="DOWN")
    assert module.drain(front.edge.haproxy, "app1", ["inbound"], 5) == (
        False,
        "app1 stays, for no other host is well",
        0,
    )
    assert front.edge.status("inbound")["app1"] == "UP"


def test_a_host_that_does_not_get_well_is_told_of(front: Front) -> None:
    front.services["app2 inbound"].kill()
    front.edge.wait_for("inbound", app2="DOWN")
    with pytest.raises(TimeoutError, match=r"app2 is not well in the eyes of the edge: DOWN, L4CON"):
        module.ready(front.edge.haproxy, "app2", ["inbound"], 0)


# Slow clients


def test_slow_clients_take_nothing_of_the_api(front: Front) -> None:
    """More of them than the API has threads: half a head, and a whole head with half a body."""
    head = b"POST /api/organizations HTTP/1.1\r\nHost: relay.example\r\n"
    with contextlib.ExitStack() as connections:
        for number in range(40):
            connection = connections.enter_context(contextlib.closing(front.https()))
            connection.connect()
            connection.sock.sendall(head if number % 2 else head + b"Content-Length: 1000\r\n\r\n{")
        started = time.monotonic()
        assert answers(front, 5) == [200] * 5
        assert time.monotonic() - started < 10  # they may take 15 seconds for their requests
        # HAProxy counts an answered request down a moment after its client has read the answer.
        assert eventually(lambda: _at_work(front), lambda count: count == {"0"}, timeout=5) == {"0"}


@pytest.mark.parametrize(
    ("path", "length", "plain"),
    [
        ("/api/organizations", 7_000_000, False),
        ("/login", 7_000_000, False),
        ("/login", 90_000, False),
        ("/.well-known/acme-challenge/x", 7_000_000, True),
    ],
)
def test_who_fills_the_buffer_and_then_sends_slowly_takes_nothing_of_the_api(
    front: Front, path: str, length: int, plain: bool
) -> None:
    """More than it has threads, with more than the edge keeps: they have their refusal, or are given up."""
    head = f"POST {path} HTTP/1.1\r\nHost: relay.example\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    with contextlib.ExitStack() as connections:
        for _ in range(40):
            connection = http.client.HTTPConnection(EDGE, front.edge.ports.http) if plain else front.https("127.0.0.60")
            connections.enter_context(contextlib.closing(connection)).connect()
            with contextlib.suppress(OSError):  # some have had their refusal, and its end, before all was sent
                connection.sock.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + bytes(70_000))
        started = time.monotonic()
        assert answers(front, 5) == [200] * 5
        assert time.monotonic() - started < 4
        assert set(front.edge.status("rest").values()) == {"UP"}


def _at_work(front: Front) -> set[str]:
    """How many requests each process of the API has at hand."""
    return {row["scur"] for row in (*front.edge.rows("rest").values(), *front.edge.rows("pages").values())}


def test_nobody_alone_takes_all_the_room(front: Front) -> None:
    """Connections that say nothing, at every door together; who holds less is served meanwhile."""
    ports = (front.edge.ports.http, front.edge.ports.https, *front.edge.ports.smtp)
    with contextlib.ExitStack() as held:
        for number in range(PER_CLIENT):
            held.enter_context(socket.create_connection((EDGE, ports[number % len(ports)]), 10, ("127.0.0.88", 0)))
        eventually(lambda: all_taken(front), bool)
        for port in ports:
            with (
                pytest.raises(ConnectionResetError),
                socket.create_connection((EDGE, port), 10, ("127.0.0.88", 0)) as beyond,
            ):
                beyond.recv(1)
        with front.smtp("127.0.0.89") as other:
            assert other.reply().startswith("220 ")
        assert front.ask("GET", "/api/config", source="127.0.0.89").status == 200
    eventually(lambda: all_taken(front), lambda taken: not taken)
    assert front.ask("GET", "/api/config", source="127.0.0.88").status == 200


def all_taken(front: Front) -> bool:
    """Whether a client has as many connections as it may."""
    return f"conn_cur={PER_CLIENT}\n" in front.edge.haproxy.say("show table submission")


def test_a_door_that_is_full_leaves_the_others_open(front: Front) -> None:
    """HTTP has an eighth of the connections; several clients have taken all of them, and more wait."""
    with contextlib.ExitStack() as held:
        for number in range(CONNECTIONS // 8 + 10):
            source = f"127.0.0.{90 + number % 2}"
            held.enter_context(socket.create_connection((EDGE, front.edge.ports.http), 10, (source, 0)))
        eventually(lambda: taken(front), lambda count: count == CONNECTIONS // 8)
        assert ready(front) == 200
        assert front.ask("GET", "/api/config").status == 200
        with front.smtp() as client:
            assert client.reply().startswith("220 ")


def taken(front: Front) -> int:
    """How many connections there are by HTTP."""
    found = scrape_url(f"http://{EDGE}:{front.edge.ports.metrics}/metrics")
    return int(found["haproxy_frontend_current_sessions proxy=plain"])


def test_behind_a_load_balancer_each_of_its_clients_is_counted_and_it_is_not(
    ansible: Ansible, certificate: tuple[str, str, str], tmp_path: Path
) -> None:
    said: dict[str, object] = {"edge_proxy_trusted": ["127.0.0.99/32"], "edge_connections_per_client": 20}
    edge = Edge(ansible, tmp_path, Ports.free(), certificate[2], **said)
    with contextlib.ExitStack() as held:
        held.callback(edge.stop)

        def connect(client: str) -> socket.socket:
            made = socket.create_connection((EDGE, edge.ports.http), 10, ("127.0.0.99", 0))
            made.sendall(f"PROXY TCP4 {client} {EDGE} 1024 80\r\n".encode())
            return held.enter_context(made)

        def asked(client: str) -> bytes:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError), connect(client) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
                return connection.recv(12)
            return b""

        for client in ("192.0.2.1", "192.0.2.2"):
            for _ in range(20):
                connect(client)
        eventually(lambda: edge.haproxy.say("show table submission").count("conn_cur=20\n"), lambda both: both == 2)
        assert [asked(f"192.0.2.{number}") for number in (1, 2, 3)] == [b"", b"", b"HTTP/1.1 308"]


def test_a_request_comes_whole(front: Front) -> None:
    """In pieces, and answered as if it had not been."""
    body = json.dumps({"name": "x" * 30_000}).encode()
    connection = front.https()
    connection.putrequest("POST", "/api/organizations")
    for name, value in basic("x", "y").items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(len(body)))
    connection.putheader("Content-Type", "application/json")
    connection.endheaders()
    for start in range(0, len(body), 10_000):
        connection.send(body[start : start + 10_000])
    response = connection.getresponse()
    assert response.status in (401, 429)
    connection.close()
