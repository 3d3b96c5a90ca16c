"""What the live page is answered with, and who is answered (`dnp/app/page.py` serves it).

    GET  /                    the page, one file: page.html
    GET  /about               what its fields start with, and may hold
    GET  /events              server-sent events: a visitor's history, and their place in the queue
    POST /draw, /stop         {"kind": ..., "form": {field: text}}
    GET  /pictures/ID/N.png   a picture, as the command line writes it
    GET  /maps/ID             attention to each word
    GET  /audits/ID           what an audit found

Who may ask: on an address of this machine alone, requests whose Host names it (a page of a stranger
whose name was turned to 127.0.0.1 does not), and elsewhere those who came by the link with the
token. Both get a cookie, which every other request needs. A request that another site makes is
refused. No path that a request sends is opened, and everything that is served is in memory.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
from pathlib import Path
from urllib.parse import quote, urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from dnp.app.desk import Refused

MOST_BODY = 32_768  # bytes of a request
LOCAL = {"127.0.0.1", "localhost", "::1"}
TICK = 0.1  # seconds between two looks at what changed


def document() -> tuple[str, str]:
    """page.html, and the content security policy that lets its own style and script run alone."""
    text = Path(__file__).with_name("page.html").read_text("utf-8")
    parts = (re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1] for tag in ("style", "script"))
    style, script = (
        "sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        for part in parts
    )
    policy = (
        f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src '{style}'; "
        f"script-src '{script}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def application(desk, port: int, token: str | None, closing):
    """The ASGI application. `token` is None on an address of this machine alone."""
    text, policy = document()
    about = desk.about()

    async def index(request):
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    async def told(request):
        return as_json(about)

    async def draw(request):
        try:
            asked = json.loads(await body_of(request))
            kind, form = asked["kind"], asked["form"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return as_json({"sentence": "this is not a draw of this page; reload it."}, 400)
        try:
            made = await asyncio.to_thread(desk.ask, request.state.visitor, kind, form)
        except Refused as e:
            return as_json({"sentence": str(e), "field": e.field}, 422)
        return as_json({"id": made.id})

    async def stop(request):
        desk.stop(request.state.visitor)
        return as_json({})

    async def picture(request):
        made = request.state.visitor.draws.get(request.path_params["id"])
        n = request.path_params["n"]
        if made is None or n >= len(made.pictures):
            return as_json({"sentence": "this picture is gone."}, 404)
        one = made.pictures[n]
        name = {"Content-Disposition": f"inline; filename*=UTF-8''{quote(one.name)}"}
        keep = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(one.data, media_type="image/png", headers=name | keep)

    async def maps(request):
        made = request.state.visitor.draws.get(request.path_params["id"])
        return as_json(made.maps if made else None)

    async def audit(request):
        made = request.state.visitor.draws.get(request.path_params["id"])
        return as_json(made.audit if made else None)

    async def events(request):
        visitor = request.state.visitor

        async def stream():
            history, state, quiet = None, None, 0.0
            yield "retry: 1000\n\n"
            while not closing():
                if visitor.version != history:
                    history = visitor.version
                    yield event("history", [one.shown() for one in list(visitor.draws.values())])
                now = {"place": desk.place(visitor), "ended": visitor.ended}
                if now != state or quiet > 15:
                    state, quiet = now, 0.0
                    yield event("state", now)
                await asyncio.sleep(TICK)
                quiet += TICK

        return StreamingResponse(stream(), media_type="text/event-stream")

    routes = [
        Route("/", index), Route("/about", told), Route("/events", events),
        Route("/pictures/{id}/{n:int}.png", picture),
        Route("/maps/{id}", maps), Route("/audits/{id}", audit),
        Route("/draw", draw, methods=["POST"]), Route("/stop", stop, methods=["POST"]),
    ]  # fmt: skip
    return Door(Starlette(routes=routes), desk, port, token)


class Door:
    """Lets in who may ask, each as their visitor, in front of everything that is served."""

    def __init__(self, app, desk, port: int, token: str | None):
        self.app, self.desk, self.token, self.cookie = app, desk, token, f"dnp_{port}"

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        request, fresh = Request(scope), None
        visitor = self.desk.visitors.get(request.cookies.get(self.cookie, ""))
        refusal = self.stranger(request)
        if refusal is None and visitor is None:
            refusal = self.uninvited(request)
            visitor = fresh = None if refusal else self.desk.welcome()
        request.state.visitor = visitor

        async def with_headers(message) -> None:
            if message["type"] == "http.response.start":
                headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
                           "Cross-Origin-Resource-Policy": "same-origin"}  # fmt: skip
                if fresh:
                    headers["Set-Cookie"] = (
                        f"{self.cookie}={fresh.id}; Path=/; HttpOnly; SameSite=Lax"
                    )
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in headers.items()]
                if not any(k == b"cache-control" for k, _ in message["headers"]):
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        answer = self.app
        if refusal:
            answer = as_json({"sentence": refusal}, 403)
        elif self.token and "token" in request.query_params:
            answer = RedirectResponse("/", 303)  # the token does not stay in the address
        await answer(scope, receive, with_headers)

    def stranger(self, request) -> str | None:
        """Why a request is not from this page itself; None if it may be."""
        host = request.headers.get("host", "")
        if self.token is None and urlsplit(f"//{host}").hostname not in LOCAL:
            return "this page answers under 127.0.0.1 and localhost only."
        origin, site = (request.headers.get(k) for k in ("origin", "sec-fetch-site"))
        if request.method == "POST":
            kind = request.headers.get("content-type", "").split(";")[0]
            foreign = origin is not None and urlsplit(origin).netloc != host
            if foreign or site not in (None, "same-origin") or kind != "application/json":
                return "this page takes what it sent itself, as JSON."
        return None

    def uninvited(self, request) -> str | None:
        """Why somebody without a cookie is not let in; None if they are."""
        if request.url.path != "/" or request.method != "GET":
            return "this browser is not known here; open the page again."
        given = request.query_params.get("token", "").encode()
        if self.token is not None and not secrets.compare_digest(given, self.token.encode()):
            return "this page is opened by the link that its terminal shows."
        return None


async def body_of(request) -> bytes:
    """The body of a request; ValueError if it is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise ValueError("too long")
    return body


def event(name: str, content: object) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"


def as_json(content: object, status: int = 200):
    """A response in ASCII: what a browser sent may be no valid Unicode."""
    return Response(json.dumps(content), status, media_type="application/json")
