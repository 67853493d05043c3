# SPDX-License-Identifier: Apache-2.0
"""The studio as an ASGI application: one page, its events, and the videos of a directory."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Collection

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from jaxvid.sampling.methods.table import METHODS
from jaxvid.studio.feed import Feed
from jaxvid.studio.gallery import Gallery, Missing
from jaxvid.studio.guard import Guard, read_json
from jaxvid.studio.jobs import Jobs
from jaxvid.types import InputError

PAGE = pathlib.Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FRESH = {"cache-control": "no-store"}  # what changes under its name


class Studio:
    """A pipeline, the gallery of a directory, the queue between them, and the application that shows all three.

    Attributes:
      app: the ASGI application; its lifespan starts the feed, and ends the run that is going on.
    """

    def __init__(self, pipe, folder, names: Collection[str] = (), anywhere: bool = False):
        self.pipe, self.gallery, self.feed = pipe, Gallery(folder), Feed()
        self.jobs = Jobs(pipe, self.gallery, self.feed.say)
        self._files = {path.name: path for path in PAGE.iterdir() if path.suffix in KINDS}
        get = {
            "/": self.page,
            "/page/{name}": self.page,
            "/api/model": self.model,
            "/api/events": self.events,
            "/api/videos": self.videos,
            "/api/videos/{name}/verdict": self.verdict,
            "/api/videos/{name}/poster.jpg": self.poster,
            "/videos/{name}": self.video,
        }
        post = {"/api/jobs": self.ask, "/api/jobs/{number:int}/cancel": self.cancel}
        routes = [Route(path, answer) for path, answer in get.items()]
        routes += [Route(path, answer, methods=["POST"]) for path, answer in post.items()]
        errors = {InputError: _complain, HTTPException: _http, Missing: _missing}
        inner = Starlette(routes=routes, exception_handlers=errors, lifespan=self._life)
        self.app = Guard(inner, names, anywhere)

    @contextlib.asynccontextmanager
    async def _life(self, _app):
        self.feed.start()
        yield
        self.feed.close()
        await run_in_threadpool(self.jobs.close)

    async def page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self._files:
            raise Missing(name)
        path = self._files[name]
        kind = f"{KINDS[path.suffix]}; charset=utf-8"
        return Response(path.read_bytes(), headers={"content-type": kind, "cache-control": "no-cache"})

    async def model(self, _request: Request) -> Response:
        """What may be asked for: the checkpoint's sizes, rates and defaults, and the methods with their options."""
        pipe = self.pipe
        methods = [
            {
                "name": name,
                "summary": entry.summary,
                "fits": set(entry.needs) <= pipe.traits,
                "needs": " and ".join(entry.needs),
                "options": entry.options,
            }
            for name, entry in METHODS.items()
        ]
        (height, width), fps = pipe.serves["sizes"][0], pipe.serves["fps"][0]
        defaults = {"method": "oneshot", "seconds": 4.0, "steps": 20, "guidance": 1.0} | dict(pipe.defaults)
        told = {name: defaults[name] for name in ("method", "seconds", "steps", "guidance")}
        about = {"name": pipe.source or "a model in memory", "height": height, "width": width, "fps": fps}
        most = pipe.serves.get("seconds")
        return JSONResponse({**about, "most": most, "defaults": told, "methods": methods})

    async def events(self, _request: Request) -> Response:
        if self.feed.full():
            raise HTTPException(503, "too many pages are open; close one")
        stream = self.feed.listen(self.jobs.snapshot)
        return StreamingResponse(stream, headers={**FRESH, "content-type": "text/event-stream"})

    async def ask(self, request: Request) -> Response:
        job = await run_in_threadpool(self.jobs.ask, await read_json(request))
        return JSONResponse(job.told(), 202)

    async def cancel(self, request: Request) -> Response:
        await read_json(request)
        return JSONResponse(self.jobs.cancel(request.path_params["number"]).told())

    async def videos(self, _request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.gallery.entries), headers=FRESH)

    async def verdict(self, request: Request) -> Response:
        found = await run_in_threadpool(self.gallery.verdict, request.path_params["name"])
        return JSONResponse(found, headers=FRESH)

    async def poster(self, request: Request) -> Response:
        picture = await run_in_threadpool(self.gallery.poster, request.path_params["name"])
        return Response(picture, media_type="image/jpeg", headers=FRESH)

    async def video(self, request: Request) -> Response:
        """The file itself; parts of it where a player asks for a range."""
        return FileResponse(self.gallery.path(request.path_params["name"]), media_type="video/mp4")


async def _complain(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


async def _http(_request: Request, error: Exception) -> Response:
    code = getattr(error, "status_code", 500)
    return JSONResponse({"error": str(getattr(error, "detail", error))}, code)


async def _missing(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "there is nothing under that name; reload the page"}, 404)
