"""`python -m dnp --page`: the live page, served by Starlette on uvicorn (the extra `[page]`).

Here is where it is served; what it answers stands in `dnp/app/page_server.py`.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import sys
import threading
import warnings
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec

from dnp.app.options import resolve
from dnp.app.settings import Once, Weights
from dnp.errors import SettingsError
from dnp.methods.chain import Chain
from dnp.methods.fields import check_value, table

BESIDE = {"page", "host", "port", "device", "allow_download", "prompt"}  # and weights and chain


def serve(typed: dict, audits: Callable | None = None) -> None:
    """Serves the page until Ctrl-C; SettingsError for what does not go with it. `audits` makes the
    desk's."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"--page needs {' and '.join(missing)}; install them with: "
            "pip install -r requirements-page.txt (or: pip install 'dnp[page]')."
        )
    allowed = BESIDE | (table(Chain, Weights).keys() - {"images"})
    for name in typed:
        if name not in allowed:
            flag = name.rstrip("_").replace("_", "-")
            raise SettingsError(f"--{flag} does not go with --page; leave one of them out.")

    import uvicorn

    from dnp.app.desk import Desk
    from dnp.app.drawing import give_captioner, opened
    from dnp.app.page_server import application

    base = {k: v for k, v in typed.items() if k not in ("page", "host", "port")}
    args = resolve({"prompt": "", **base})
    once = table(Once)
    host, port = (typed.get(name, once[name].default) for name in ("host", "port"))
    check_value(once["port"], port)
    listening = bound(host, port)
    port = listening.getsockname()[1]
    model = opened(args)
    give_captioner(model, args)
    desk = Desk(model, base, audits)
    token = None if is_local(host) else secrets.token_urlsafe(16)
    server = uvicorn.Server(uvicorn.Config(
        application(desk, port, token, lambda: server.should_exit), log_level="warning",
        access_log=False, server_header=False, timeout_graceful_shutdown=2, lifespan="off",
    ))  # fmt: skip
    link = f"http://{in_link(host)}:{port}/" + (f"?token={token}" if token else "")
    print(f"page: {link} (Ctrl-C ends it)", flush=True)
    threading.Thread(target=open_browser, args=(link,), daemon=True).start()
    warnings.showwarning = lambda *_: None  # what is noted of a draw stands on the page
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        desk.close()
    print("the page has ended.")


# ------------------------------------------------------------------------------- addresses


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; SettingsError if it cannot."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise SettingsError(
            f"--host {host} is not an address; give one of this machine, such as 127.0.0.1."
        ) from None
    listening = socket.socket(family, kind)
    if os.name == "posix":  # else it is free at once after another page has ended
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(128)
    except OSError as e:
        listening.close()
        raise SettingsError(
            f"the page cannot be served at {host}, port {port} ({e.strerror}); give another "
            "--port, or 0 for any that is free, or another --host."
        ) from None
    return listening


def in_link(host: str) -> str:
    """The address as a link has it; for "any" the one by which others reach this machine."""
    if host in ("0.0.0.0", "::", ""):
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect(("192.0.2.1", 9))  # sends nothing: it chooses the way out
            return asking.getsockname()[0]
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def open_browser(link: str) -> None:
    """Opens it where there is a screen; a browser in the terminal would take the terminal."""
    screen = {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & os.environ.keys()
    if screen or sys.platform in ("win32", "darwin"):
        with suppress(Exception):
            webbrowser.open(link)
