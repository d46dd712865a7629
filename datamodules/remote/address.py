"""Addresses of data sets and of the files in them."""

import re
from dataclasses import dataclass, field
from pathlib import PosixPath
from urllib.parse import SplitResult, quote, urlsplit

from ldis_lightning.errors import UserError

PROTOCOLS = ("http", "https", "s3", "gs", "gcs")
"""All that is opened. Everything else that fsspec knows would run commands, read local files or log in somewhere."""


def is_address(text: str) -> bool:
    """Whether a text is meant as an address rather than as a folder."""
    return "://" in text


@dataclass(frozen=True)
class Address:
    """The address of a data set's folder or of a file in it. Printed without its credentials.

    Attributes:
        url: the address itself, with credentials and query if it has any.
        shown: what may be printed.
    """

    url: str = field(repr=False)
    shown: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """The address of a folder.

        Raises:
            UserError: it is none of an allowed protocol, or malformed.
        """
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
        if scheme is None or scheme[1].lower() not in PROTOCOLS or "::" in text:
            raise UserError(
                f"{_hidden(text)} is not an address that data are read from: give a folder, or an address that begins "
                f"with {', '.join(f'{protocol}://' for protocol in PROTOCOLS)}."
            )
        try:
            parts = urlsplit(text)
            valid = bool(parts.hostname) and parts.port != 0  # reading the port checks it
        except ValueError:
            raise UserError(f"{_hidden(text)} is no valid address.") from None
        web = parts.scheme in ("http", "https")
        strange = re.search(r"[\s\\]", text) or not text.isprintable() or {".", ".."} & {*parts.path.split("/")}
        if not valid or strange or parts.fragment:
            raise UserError(f"{_hidden(text)} is no valid address of a folder (spaces, `..` or `#` in it?).")
        if not web and (parts.query or "@" in parts.netloc):
            raise UserError(
                f"{_hidden(text)}: give bucket and folder only, as {parts.scheme}://BUCKET/FOLDER. Credentials belong "
                "in the environment or in the provider's configuration files."
            )
        return cls._of(parts._replace(path=parts.path.rstrip("/")))

    @property
    def protocol(self) -> str:
        """Protocol, in small letters."""
        return urlsplit(self.url).scheme

    def file(self, *names: str) -> "Address":
        """The address of a file in this folder; a query, such as a token, is kept."""
        parts = urlsplit(self.url)
        web = parts.scheme in ("http", "https")
        return self._of(parts._replace(path="/".join([parts.path, *(quote(name) if web else name for name in names)])))

    @classmethod
    def _of(cls, parts: SplitResult) -> "Address":
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="...").geturl()
        return cls(parts.geturl(), shown if parts.query else shown.removesuffix("?..."))

    def __str__(self) -> str:
        """What may be printed."""
        return self.shown


class AddressPath(PosixPath):
    """A file of a remote data set where a message needs a path: it is shown as its address, and nothing lies there."""

    def __str__(self) -> str:
        """The address: paths know of one slash only."""
        return super().__str__().replace(":/", "://", 1)


def _hidden(text: str) -> str:
    """A refused text without what may be credentials or tokens, on one line and not too long."""
    cleaned = re.sub(r"//[^/\s]*@", "//", text)
    cleaned = re.sub(r"\?.*", "?...", cleaned, flags=re.DOTALL)
    shown = "".join(character if character.isprintable() else "?" for character in cleaned)
    return f"`{shown[:200]}`"
