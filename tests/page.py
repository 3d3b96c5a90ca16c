"""The live page on a real server in this process, and a client without a browser."""

import copy
import http.client
import json
import threading
import time
from contextlib import contextmanager

import pytest

TINY = {"prompt": "a red car", "steps": "2"}


@contextmanager
def serving(model, base=(), token=None, host="127.0.0.1", port=0):
    """(port, desk) of a page; `model` is opened already."""
    uvicorn = pytest.importorskip("uvicorn", reason="pip install -r requirements-page.txt")
    from dnp.__main__ import audits
    from dnp.app.desk import Desk
    from dnp.app.page import bound
    from dnp.app.page_server import application

    getattr(model, "captioner", None)  # once for all copies
    listening = bound(host, port)
    desk, port = Desk(copy.copy(model), dict(base), audits), listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(
        application(desk, port, token, lambda: server.should_exit), log_level="warning",
        lifespan="off", timeout_graceful_shutdown=1,
    ))  # fmt: skip
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield port, desk
    finally:
        server.should_exit = True
        thread.join(10)
        desk.close()
        listening.close()
        assert not thread.is_alive() and not desk.worker.is_alive()


class Client:
    """A visitor without a browser. `open` gets the cookie that everything else needs."""

    def __init__(self, port, path="/"):
        self.port, self.cookie = port, None
        self.opened = self.ask("GET", path)

    def ask(self, method, path, content=None, **headers):
        """(status, headers, body) of one request; a header of None is not sent."""
        wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Content-Type": "application/json", "Cookie": self.cookie} | headers
        body = content if isinstance(content, bytes | None) else json.dumps(content)
        sent = {k.replace("_", "-"): v for k, v in sent.items() if v is not None}
        wire.request(method, path, body, sent)
        answer = wire.getresponse()
        told = dict(answer.getheaders())
        self.cookie = told.get("set-cookie", self.cookie or "").split(";")[0] or None
        text = answer.read()
        wire.close()
        return answer.status, told, text

    def draw(self, kind, form):
        """(status, what the server said)."""
        status, _, body = self.ask("POST", "/draw", {"kind": kind, "form": form})
        return status, json.loads(body)

    def events(self):
        """Every event as (name, content), from now on; an AssertionError after two minutes."""
        wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        wire.request("GET", "/events", headers={"Cookie": self.cookie})
        answer, name, end = wire.getresponse(), None, time.monotonic() + 120
        assert answer.status == 200
        content = None
        try:
            while raw := answer.readline():
                assert time.monotonic() < end, content
                line = raw.decode().rstrip("\n")
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    content = json.loads(line.removeprefix("data: "))
                    yield name, content
        finally:
            wire.close()

    def made(self, kind, form):
        """A draw, waited for: what the page is told of it, and its pictures as bytes."""
        status, told = self.draw(kind, form)
        assert status == 200, told
        for name, content in self.events():
            if name == "state" and (content["ended"] or {}).get("id") == told["id"]:
                assert content["ended"]["sentence"] is None, content["ended"]
            if name == "history":
                (found,) = [d for d in content if d["id"] == told["id"]] or [None]
                if found:
                    return found, [self.ask("GET", f"/pictures/{found['id']}/{n}.png")[2]
                                   for n in range(len(found["pictures"]))]  # fmt: skip

    def ended(self, draw):
        """How a draw ended: {"sentence", "field", ...}."""
        for name, content in self.events():
            if name == "state" and (content["ended"] or {}).get("id") == draw:
                return content["ended"]
