"""Somebody with a browser that runs no scripts: follows links, reads pages, fills in forms."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

import flask
from flask.testing import FlaskClient
from seed import PASSWORD
from werkzeug.test import TestResponse

_VOID = {"meta", "link", "input", "img", "br", "hr", "wbr"}


@dataclass(eq=False)
class Element:
    """An element of a page; `children` are elements and text in order."""

    tag: str
    attributes: dict[str, str]
    parent: "Element | None" = None
    children: list["Element | str"] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        return self.attributes.get(name, "")

    def has(self, name: str) -> bool:
        """Whether it has the attribute, with a value or without."""
        return name in self.attributes

    def all(self, *tags: str, **attributes: str) -> list["Element"]:
        """The elements within it of these tags (any if none), with these attributes; `_` stands for `-`."""
        wanted = {name.strip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            element
            for element in self._within()
            if (not tags or element.tag in tags) and all(element[name] == value for name, value in wanted.items())
        ]

    def one(self, *tags: str, **attributes: str) -> "Element":
        """The only such element."""
        (found,) = self.all(*tags, **attributes)
        return found

    @property
    def text(self) -> str:
        """Its text with single blanks."""
        return " ".join(" ".join(self._texts()).split())

    @property
    def source(self) -> str:
        """Its text with all blanks as they are."""
        return "".join(self._texts())

    def is_within(self, tag: str) -> bool:
        """Whether an element of this tag is around it."""
        return self.parent is not None and (self.parent.tag == tag or self.parent.is_within(tag))

    def _within(self) -> Iterator["Element"]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._within()

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            else:
                yield from child._texts()


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self.at = Element("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = self._add(tag, attrs)
        if tag not in _VOID:
            self.at = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def _add(self, tag: str, attrs: list[tuple[str, str | None]]) -> Element:
        element = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        assert len(element.attributes) == len(attrs), f"<{tag}> has an attribute twice"
        self.at.children.append(element)
        return element

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def parse(html: str) -> Element:
    """A page as a tree; what is not nested properly fails."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert parser.at is parser.root, f"<{parser.at.tag}> is not closed"
    return parser.root


@dataclass
class Browser:
    """A user at a browser."""

    client: FlaskClient

    def get(self, path: str, status: int = 200, **headers: str) -> Element:
        """Look at a page."""
        response = self.client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        assert response.status_code == status, response.get_data(as_text=True)
        return parse(response.get_data(as_text=True))

    def post(self, path: str, data: dict[str, object] | None = None, *, at: str) -> TestResponse:
        """Send a form as it stands on the page `at`."""
        token = self.get(at).all("input", name="csrf_token")[0]["value"]
        return self.client.post(path, data={"csrf_token": token, **(data or {})})

    def do(self, path: str, data: dict[str, object] | None = None, *, at: str) -> Element:
        """Send a form, and look at the page it leads to."""
        response = self.post(path, data, at=at)
        assert response.status_code == 303, response.get_data(as_text=True)
        return self.get(response.location)


def stranger(app: flask.Flask) -> FlaskClient:
    """Somebody with a browser who is not logged in."""
    client = app.test_client()
    client.environ_base["HTTP_ACCEPT"] = "text/html,application/xhtml+xml,*/*;q=0.8"
    return client


def log_in(app: flask.Flask, email: str, password: str = PASSWORD) -> Browser:
    """Log in through the page."""
    client = stranger(app)
    response = client.post("/login", data={"email": email, "password": password})
    assert response.status_code == 303, response.get_data(as_text=True)
    return Browser(client)
