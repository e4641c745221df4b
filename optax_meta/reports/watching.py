"""The page of a run that goes on, served to this machine alone.

Needs the extra `report`.
"""

import hashlib
import os
import re
import threading
import time
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from optax_meta import writers
from optax_meta.recording import Row
from optax_meta.reports import page
from optax_meta.reports.folder import page_of

LOOPBACK = "127.0.0.1"
_NAMES = (LOOPBACK, "localhost", "[::1]")
# Of one core, what making the page may take from the run that it shows.
_LARGEST_SHARE = 0.1


class Watched:
    """The page of a folder, made again where its files have changed.

    Args:
        folder: as for `rebuild_report`; may be empty, or not there yet.

    Example:
        >>> watched = optax_meta.reports.watching.Watched("/proc/nowhere")
        >>> b"Waiting: nowhere" in watched.latest()[0]
        True
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._followers: dict[Path, writers.Follower] = {}
        self._lock = threading.Lock()
        self._seen: object = None
        self._rested = 0.0
        self._latest = b"", ""

    def latest(self) -> tuple[bytes, str]:
        """Return the page, UTF-8, and what tells it from another; made again if files changed.

        After a page was made it rests for ten times as long as that took.
        """
        with self._lock:
            start, seen = time.monotonic(), _stamps(self.folder)
            if seen == self._seen or start < self._rested:
                return self._latest
            body = self._make().encode()
            self._latest = body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            self._seen, now = seen, time.monotonic()
            self._rested = now + (now - start) / _LARGEST_SHARE
            return self._latest

    def _make(self) -> str:
        try:
            return page_of(self.folder, read=self._read, is_live=True)
        except (ValueError, OSError) as error:
            return page.waiting_page(self.folder.absolute().name, str(error))

    def _read(self, path: Path) -> list[Row]:
        follower = self._followers.setdefault(path, writers.Follower(path))
        if rows := follower.read():
            return rows
        raise ValueError(f"`{path}` holds no complete row yet: start the run")


def server(folder: str | os.PathLike[str], port: int) -> ThreadingHTTPServer:
    """Return a server of a folder's page, which this machine alone can reach.

    Args:
        folder: as for `Watched`.
        port: to listen at, in [0, 65535]; 0 for any that is free.

    Returns:
        One that listens already; `serve_forever` answers, `server_close` ends it.

    Raises:
        ValueError: `folder` is a file, or the port is taken.

    Example:
        >>> with optax_meta.reports.watching.server("my-run", 0) as found:
        ...     found.server_address[0]
        '127.0.0.1'
    """
    if Path(folder).is_file():
        raise ValueError(f"`{folder}` must be a folder: pass `{Path(folder).parent}`")
    try:
        return _Server((LOOPBACK, port), partial(_Handler, Watched(folder)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"cannot listen at port {port}: {reason}; pass another one as `--port`, 0 for any that "
            "is free"
        ) from error


class _Server(ThreadingHTTPServer):
    """Answers with one page; whoever goes away in between is no error."""

    daemon_threads = True  # an open connection must not keep the program after Ctrl-C

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        return


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, watched: Watched, *args: Any) -> None:
        self.watched = watched
        super().__init__(*args)  # which answers

    def do_GET(self) -> None:
        # A page of another site may have its name lead here, and must not read what is trained.
        if re.sub(r":\d+$", "", self.headers.get("Host", LOOPBACK)) not in _NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, "Ask by the name 127.0.0.1 or localhost")
        elif self.path.partition("?")[0] != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._answer()

    def _answer(self) -> None:
        body, tag = self.watched.latest()
        is_known = self.headers.get("If-None-Match") == tag
        self.send_response(HTTPStatus.NOT_MODIFIED if is_known else HTTPStatus.OK)
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-cache")
        if not is_known:
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not is_known:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep silent: the terminal may be that of the run."""


def _stamps(folder: Path) -> object:
    """Return what changes when the files of a folder do."""
    found = [folder / "results.json", *folder.glob("*.jsonl")]
    there = [(path, path.stat()) for path in sorted(found) if path.is_file()]
    return [(path.name, stat.st_size, stat.st_mtime_ns) for path, stat in there]
