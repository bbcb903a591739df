"""Fetching files over HTTP(S) and from Google Drive: going on where it broke off, and never gluing two files together.

What is fetched grows under a name that ends in `.part`, with a note of the address and of the version of the file
(`.part.json`) beside it. A later call asks the server for the rest of that very version (`Range` with `If-Range`); if
there is another one now, or if the server cannot tell, everything is fetched anew.
"""

import errno
import json
import os
import re
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from misc.files.checksum import Digest
from misc.files.disk import readable_size, room_for
from misc.files.jsonfile import read_dict

Report = Callable[[int, int | None], None]
"""Is told how many bytes are there, and how many the whole file has; None where the server does not tell."""

GDOWN = "gdown>=6.3"
"""The package that fetches from Google Drive, which is needed for nothing else."""
DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
CHUNK = 1 << 18
ATTEMPTS = 3
"""Attempts in a row in which nothing new comes."""
PAUSE = 2.0
"""Seconds between two attempts."""
REASONS = {
    HTTPStatus.UNAUTHORIZED: "the server asks for a login",
    HTTPStatus.FORBIDDEN: "the server refuses it, as for a file that is not public or is over its quota",
    HTTPStatus.NOT_FOUND: "the file is not there any more",
    HTTPStatus.GONE: "the file is not there any more",
    HTTPStatus.TOO_MANY_REQUESTS: "it was asked for too often, try again later",
    HTTPStatus.SERVICE_UNAVAILABLE: "the server is overloaded, try again later",
}
WEB_PAGE = "a web page came instead of the file, as for a file that is not public, is over its quota or is gone"


class NotFetched(Exception):
    """A file could not be fetched, or is another than was expected; the message is the reason, without a full stop."""


class _BrokenOff(Exception):
    """The connection ended before the file did."""


class _OtherVersion(Exception):
    """What is there is the beginning of another version of the file."""


def mismatch(path: Path, *, size: int | None, digest: Digest | None) -> str | None:
    """How a file differs from the one of that size and digest, as far as these are known; None if it does not."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found:,} bytes, expected {size:,}"
    return digest.mismatch(path) if digest is not None else None


def is_web_page(path: Path) -> bool:
    """Whether the file begins as HTML does."""
    with path.open("rb") as file:
        return file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


def part_of(path: Path) -> Path:
    """The name under which `path` grows."""
    return path.with_name(f"{path.name}.part")


def size_fetched(path: Path) -> int:
    """How many bytes of `path` are there, whole or in part."""
    there = _bytes_in(path)
    return _size_of(part_of(path)) if there is None else there


def discard(part: Path) -> None:
    """Remove what was fetched so far, its note, and what gdown has left beside it."""
    for path in (part, _note_of(part), *_parts_of_gdown(part)):
        path.unlink(missing_ok=True)


def finish(part: Path, path: Path) -> None:
    """Give a whole file its name."""
    os.replace(part, path)
    _note_of(part).unlink(missing_ok=True)


def require_free_space(folder: Path, n_bytes: int) -> None:
    """Raise `NotFetched` if the disk of `folder`, which need not be there yet, has less than `n_bytes` free."""
    for room in room_for([(folder, n_bytes)]):
        if not room.suffices:
            raise NotFetched(f"it needs {room}")


def is_address(text: str) -> bool:
    """Whether it is an address of HTTP or HTTPS."""
    return bool(re.match(r"https?://[^/\s]+", text))


def is_on_drive(address: str) -> bool:
    """Whether the file lies on Google Drive."""
    return re.match(r"https?://([^/?#:]+)", address)[1] in DRIVE_HOSTS


def fetch(address: str, part: Path, *, timeout: float, report: Report, size: int | None = None) -> None:
    """Fetch the file at `address` into `part`, whose folder is there; on return it is whole.

    Args:
        address: one that `is_address`; those of Google Drive are left to the package gdown.
        timeout: seconds without a byte after which the connection counts as broken off.
        size: how many bytes the file has, where that is known; another size is refused before it is fetched.

    Raises `NotFetched`; what has come so far stays in `part` for the next call.
    """
    fetch_rest = _fetch_from_drive if is_on_drive(address) else _fetch_rest
    in_vain, most = 0, _size_of(part)
    while True:
        try:
            fetch_rest(address, part, timeout=timeout, report=report, size=size)
            return
        except _OtherVersion:
            discard(part)
            in_vain += 1
            if in_vain == ATTEMPTS:
                raise NotFetched("the server can't go on where it broke off, or the file changes meanwhile") from None
        except _BrokenOff as error:
            there = _size_of(part)
            in_vain, most = (0, there) if there > most else (in_vain + 1, most)
            if in_vain == ATTEMPTS:
                kept = f" ({readable_size(there)} are kept; the same command goes on from there)" if there else ""
                raise NotFetched(f"{error}{kept}") from error
            time.sleep(PAUSE)
        except OSError as error:
            raise NotFetched(f"it can't be written to {part} ({error.strerror or error})") from error


def _fetch_rest(address: str, part: Path, *, timeout: float, report: Report, size: int | None) -> None:
    """One request for what is missing. Raises `_BrokenOff`, `_OtherVersion` and `NotFetched`."""
    note = read_dict(_note_of(part))
    version = note.get("version") if note.get("address") == address else None
    start = _size_of(part) if version else 0
    if start and start == note.get("total"):
        return
    headers = {"User-Agent": "w-ood", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    with _opened(Request(address, headers=headers), timeout) as response:
        if response.headers.get_content_type() == "text/html":
            raise NotFetched(WEB_PAGE)
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            total = _total_of_range(response, start)
            if _version_of(response) not in (None, version) or note.get("total") not in (None, total):
                raise _OtherVersion
        else:
            start, total = 0, response.length
            discard(part)
        if size is not None and total not in (None, size):
            raise NotFetched(f"the server offers {total:,} bytes, expected {size:,}")
        require_free_space(part.parent, (total or size or 0) - start)
        if not start:
            _write_note(part, address=address, version=_version_of(response), total=total)
        done = start
        report(done, total)
        with part.open("ab") as file:
            for chunk in _chunks(response, timeout):
                file.write(chunk)
                done += len(chunk)
                if size is not None and done > size:
                    raise NotFetched(f"the server sends more than the {size:,} bytes that the file has")
                report(done, total)
    if total is not None and done < total:
        raise _BrokenOff(f"the connection broke off after {readable_size(done)} of {readable_size(total)}")


def _opened(request: Request, timeout: float) -> HTTPResponse:
    """The server's answer. Raises `NotFetched` if there is none, or if it is a refusal."""
    try:
        return urlopen(request, timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _OtherVersion from error
        raise NotFetched(f"{REASONS.get(error.code, 'the server answers with an error')} ({error.code})") from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise NotFetched(f"the server does not answer within {timeout:g} s") from error
        raise NotFetched(f"the server can't be reached ({getattr(reason, 'strerror', None) or reason})") from error


def _chunks(response: HTTPResponse, timeout: float) -> Iterator[bytes]:
    """The bytes of an answer as they come. Raises `_BrokenOff`."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except TimeoutError as error:
            raise _BrokenOff(f"no byte came for {timeout:g} s") from error
        except (OSError, HTTPException) as error:
            raise _BrokenOff(f"the connection broke off ({error})") from error
        if not chunk:
            return
        yield chunk


def _version_of(response: HTTPResponse) -> str | None:
    """What names this version of the file, for `If-Range`: a strong ETag, else the time of the last change."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _total_of_range(response: HTTPResponse, start: int) -> int:
    """The size of the whole file, of which an answer gives the rest from `start` on. Raises `_OtherVersion` if not."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start or int(found[2]) + 1 != int(found[3]):
        raise _OtherVersion
    return int(found[3])


def _fetch_from_drive(address: str, part: Path, *, timeout: float, report: Report, size: int | None) -> None:
    """Let gdown fetch the file, or go on with it. Raises `_BrokenOff`, `_OtherVersion` and `NotFetched`.

    gdown goes on with any partial file of its own that it finds; whether this is of the same file tells the size alone.
    """
    try:
        import gdown
        import requests
    except ImportError as error:
        raise NotFetched(f"Google Drive needs a package more: pip install '{GDOWN}'") from error
    note = read_dict(_note_of(part))
    if note.get("address") != address or note.get("total") is None:
        discard(part)
        note = {}

    def watch(done: int, total: int | None) -> None:
        if "total" not in note:
            if size is not None and total not in (None, size):
                raise NotFetched(f"Google Drive offers {total:,} bytes, expected {size:,}")
            require_free_space(part.parent, (total or size or 0) - done)
            note.update(address=address, total=total)
            _write_note(part, **note)
        elif total != note["total"]:
            raise _OtherVersion
        report(done, total)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gdown.download(
                address, str(part), quiet=True, use_cookies=False, resume=True, timeout=timeout, progress=watch
            )
    except gdown.exceptions.FileURLRetrievalError as error:
        reason = _one_line(error.__context__ or error)  # gdown wraps Google's own sentence into others
        raise NotFetched(f"Google Drive does not hand it out: {reason}") from error
    except requests.HTTPError as error:
        code = error.response.status_code
        raise NotFetched(f"{REASONS.get(code, 'Google Drive answers with an error')} ({code})") from error
    except (gdown.exceptions.DownloadError, requests.RequestException) as error:
        if not _parts_of_gdown(part):
            raise NotFetched(f"Google Drive can't be reached ({type(error).__name__})") from error
        if "byte range" in str(error):  # Google Drive would not send the rest alone
            raise _OtherVersion from error
        raise _BrokenOff(f"Google Drive broke off ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    """An exception's message on one line, without its full stop."""
    return " ".join(str(error).split()).rstrip(".")


def _parts_of_gdown(part: Path) -> list[Path]:
    """gdown's own partial files: it puts eight random characters and `.part` behind the name."""
    name = re.compile(re.escape(part.name) + r".{8}\.part")
    return [path for path in part.parent.glob("*.part") if name.fullmatch(path.name)]


def _size_of(part: Path) -> int:
    """How many bytes of the file are there."""
    return sum(_bytes_in(path) or 0 for path in (part, *_parts_of_gdown(part)))


def _bytes_in(path: Path) -> int | None:
    """The size of a file; None where there is none, or none any more, since another run has just renamed it."""
    try:
        state = path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    return state.st_size if stat.S_ISREG(state.st_mode) else None


def _note_of(part: Path) -> Path:
    """Where the address, version and size of what is being fetched are noted."""
    return part.with_name(f"{part.name}.json")


def _write_note(part: Path, **note: str | int | None) -> None:
    """Written when nothing is there yet, so that a half-written note, which counts as none, costs nothing."""
    _note_of(part).write_text(json.dumps(note), encoding="utf-8")
