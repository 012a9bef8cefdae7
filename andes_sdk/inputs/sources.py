"""The bytes of an encoded picture, from a file, a URL or memory, within limits."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import socket
import stat
import threading
from concurrent.futures import Future
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import unquote_to_bytes, urlsplit

from attrs import field, frozen
from attrs.validators import gt

from andes_sdk.errors import InputError
from andes_sdk.files import at_home

if TYPE_CHECKING:
    from PIL import Image

    ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image
    """A path, a `file://`, `data:` or `http(s)://` URL, the bytes of a picture file, or a PIL image."""

_KINDS = "a path, a file:// or data: URL, the bytes of a picture file, or a PIL image"
_NAT64, _UNICAST, _PROTOCOLS = IPv6Network("64:ff9b::/96"), IPv6Network("2000::/3"), IPv4Network("192.0.0.0/24")
_NOT_BASE64 = "write data:image/png;base64,<base64 of the picture file>"


@frozen(kw_only=True)
class ImageLimits:
    """What a picture may cost.

    Attributes:
        max_pixels: width x height, by the header. Pillow's ceiling, 2 x `PIL.Image.MAX_IMAGE_PIXELS`, holds as well.
        max_bytes: of the encoded picture. timeout: seconds for a remote one, from its name to the last byte.
        allow_private: fetch from addresses of this machine and its networks too, which others cannot reach.
    """

    max_pixels: int = field(default=178_956_970, validator=gt(0))
    max_bytes: int = field(default=256 * 2**20, validator=gt(0))
    timeout: float = field(default=20.0, validator=gt(0))
    allow_private: bool = False


def describe(source: object) -> str:
    """A source in a few characters, for messages: long URLs are shortened, bytes are counted."""
    if isinstance(source, str | os.PathLike):
        text = os.fsdecode(source)
        return repr(text) if len(text) <= 120 else f"{text[:48]!r}… ({len(text)} characters)"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source)} bytes"
    if all(hasattr(source, fact) for fact in ("mode", "width", "height")):
        return f"PIL image ({source.mode}, {source.width}x{source.height})"  # type: ignore[attr-defined]
    return type(source).__name__


def read_source(source: object, name: str, allow_remote: bool, limits: ImageLimits) -> bytes:
    """The encoded picture, never more than `limits.max_bytes`; `name` stands for the source in messages.

    Raises:
        InputError: the source cannot be read, is empty or too large, or is remote without `allow_remote`.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        data = _read_text(os.fspath(source), name, allow_remote, limits)
    else:
        fix = f"pass {_KINDS}" + ("; for an array PIL.Image.fromarray(array)" if hasattr(source, "shape") else "")
        raise InputError("this is not a picture", who=name, fix=fix)
    if len(data) > limits.max_bytes:
        raise _too_large(name, len(data), limits)
    if not data:
        raise InputError("the picture is empty", who=name, why="0 bytes", fix="write or download it again")
    return data


def _read_text(text: str | bytes, name: str, allow_remote: bool, limits: ImageLimits) -> bytes:
    if isinstance(text, bytes):
        return _read_file(Path(os.fsdecode(text)), name, limits)
    scheme = re.match(r"(data:)|([a-z][a-z0-9+.-]*)://", text, re.IGNORECASE)
    match (scheme[1] or scheme[2]).lower() if scheme else "":
        case "":
            if not text:
                raise InputError("the path of the picture is empty", fix=f"pass {_KINDS}")
            return _read_file(Path(text) if os.path.exists(text) else at_home(Path(text)), name, limits)
        case "data:":
            return _read_data_url(text, name, limits)
        case "file":
            return _read_file(_file_url(text, name), name, limits)
        case "http" | "https":
            if not allow_remote:
                why = "remote pictures are off unless they are asked for"
                raise InputError("the picture is remote", who=name, why=why, fix="pass allow_remote=True, or a file")
            return _fetch(text, name, limits)
        case other:
            raise InputError(f"pictures cannot be read from {other}://", who=name, fix=f"pass {_KINDS}")


def _read_file(path: Path, name: str, limits: ImageLimits) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError("this is a folder, not a picture", who=name, fix="name one file in it")
        if not stat.S_ISREG(status.st_mode):
            raise InputError("this is not a regular file", who=name, fix="copy the picture to a file first")
        if status.st_size > limits.max_bytes:
            raise _too_large(name, status.st_size, limits)
        return path.read_bytes()
    except FileNotFoundError:
        why = f"no such file, looked for from {Path.cwd()}" if not path.is_absolute() else "no such file"
        raise InputError("the picture does not exist", who=name, why=why, fix="check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        fix = f"check the path and its permissions; for base64 data {_NOT_BASE64}"
        raise InputError("the picture cannot be read", who=name, why=reason, fix=fix) from None


def _file_url(url: str, name: str) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError("this is not a URL", who=name, why=str(error), fix="write file:///path/to/picture") from None
    if parts.netloc not in ("", "localhost"):
        why = f"it names the host {parts.netloc!r}"
        raise InputError("a file:// URL must be local", who=name, why=why, fix="write file:///path (three slashes)")
    return Path(request.url2pathname(parts.path))


def _read_data_url(url: str, name: str, limits: ImageLimits) -> bytes:
    head, comma, body = url[len("data:") :].partition(",")
    if not comma:
        raise InputError("the data URL is incomplete", who=name, why="it has no comma", fix=_NOT_BASE64)
    if len(body) > 4 * limits.max_bytes:  # the worst a percent-encoded body can shrink is threefold
        raise _too_large(name, len(body), limits)
    data = unquote_to_bytes(body)
    if not head.lower().replace(" ", "").endswith(";base64"):
        return data
    data = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("the data URL is not valid base64", who=name, why=str(error), fix=_NOT_BASE64) from None


def _fetch(url: str, name: str, limits: ImageLimits) -> bytes:
    """GET with one deadline for everything and a size cap. Redirects are followed to http(s) only."""
    answer: Future[bytes] = Future()
    opened: list[HTTPConnection] = []

    def work() -> None:
        try:
            answer.set_result(_get(url, name, limits, opened))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # neither names nor headers can be read with a deadline
    try:
        return answer.result(limits.timeout)
    except HTTPError as error:
        error.close()
        why = f"the server answered {error.code} {error.reason}"
        raise InputError("the picture cannot be fetched", who=name, why=why, fix="check the URL") from None
    except (OSError, HTTPException, ValueError) as error:
        why = str(error) or type(error).__name__ if answer.done() else f"not complete after {limits.timeout} s"
        fix = "check the URL and the network, or download the picture and pass the file"
        raise InputError("the picture cannot be fetched", who=name, why=why, fix=fix) from None
    finally:
        for connection in opened:
            with contextlib.suppress(AttributeError, OSError):  # it never came to a socket, or to an end
                connection.sock.shutdown(socket.SHUT_RDWR)


def _get(url: str, name: str, limits: ImageLimits, opened: list[HTTPConnection]) -> bytes:
    opener, data = request.OpenerDirector(), bytearray()
    for handler in (
        request.ProxyHandler, request.HTTPRedirectHandler, request.HTTPErrorProcessor,
        request.HTTPDefaultErrorHandler, request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    opener.add_handler(_Public(limits.allow_private, opened))
    with opener.open(url, timeout=limits.timeout) as response:
        while chunk := response.read1(1 << 16):
            data += chunk
            if len(data) > limits.max_bytes:
                raise _too_large(name, len(data), limits)
        if response.length:
            raise ConnectionError(f"the connection ended {response.length} bytes early")
    return bytes(data)


class _Public(request.HTTPSHandler):
    """Opens connections to the address that was checked. Behind a proxy the name is checked, and its address not."""

    def __init__(self, allow_private: bool, opened: list[HTTPConnection]) -> None:
        super().__init__()
        self._private, self._opened = allow_private, opened

    def http_request(self, request: request.Request) -> request.Request:
        with contextlib.suppress(socket.gaierror):  # a proxy may know names that this machine does not
            self._checked(urlsplit(request.full_url).hostname or "", 0)
        return self.do_request_(request)

    https_request = http_request

    def https_open(self, asked: request.Request) -> HTTPResponse:
        kind = HTTPSConnection if asked.type == "https" else HTTPConnection
        proxied = asked.has_proxy() or bool(getattr(asked, "_tunnel_host", None))

        def connect(address: tuple[str, int], *args: Any) -> socket.socket:
            failure = OSError("it has no address")
            for host in [address[0]] if proxied else self._checked(*address):
                try:
                    return socket.create_connection((host, address[1]), *args)
                except OSError as error:
                    failure = error
            raise failure

        def make(host: str, **options: Any) -> HTTPConnection:
            connection = kind(host, **options)
            connection._create_connection = connect  # type: ignore[attr-defined]
            self._opened.append(connection)
            return connection

        return self.do_open(make, asked)

    http_open = https_open

    def _checked(self, host: str, port: int) -> list[str]:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if not (self._private or all(map(_public, found))):
            raise OSError(f"{host} is no public address; ImageLimits(allow_private=True) allows it")
        return found


def _public(text: str) -> bool:
    """Whether an address is one of the internet; of an IPv4 address inside (mapped, NAT64, 6to4) that one is judged."""
    one = ip_address(text.partition("%")[0])
    if isinstance(one, IPv6Address):
        inner = IPv4Address(int(one) & 0xFFFFFFFF) if one in _NAT64 else one.ipv4_mapped or one.sixtofour
        one = inner or (one if one in _UNICAST else IPv6Address("::"))
    return one.is_global and not one.is_multicast and one not in _PROTOCOLS


def _too_large(name: str, size: int, limits: ImageLimits) -> InputError:
    why = f"at least {size} bytes, the limit is {limits.max_bytes}"
    return InputError("the picture file is too large", who=name, why=why, fix="raise ImageLimits(max_bytes=…)")
