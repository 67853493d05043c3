# SPDX-License-Identifier: Apache-2.0
"""The studio without a browser: what it tells, what it refuses, and that its directory is all that it keeps."""

import json
import os
import pathlib
import re
import shlex
import socket
import threading

import httpx2
import numpy as np
import pytest

from jaxvid.data.decode import read_video
from jaxvid.io.video_file import read_metadata, save_video
from jaxvid.studio.app import PAGE
from tests.studio.conftest import Events, serving, until

FIRST = "a large yellow circle stays still on a white background"
THEN = "a large yellow circle slides up and down on a white background"
STORY = {"story": [[0, FIRST], [3, THEN]], "seconds": 6, "seed": 5}
ONE = {"story": [[0, FIRST]], "seconds": 1}


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def studio(painter, folder):
    painter.hold.set()
    with serving(painter, folder) as (address, studio):
        studio.address = address
        yield studio
        painter.hold.set()


@pytest.fixture
def client(studio):
    with httpx2.Client(base_url=studio.address, timeout=60) as client:
        yield client


@pytest.fixture
def events(client):
    events = Events(client)
    until(lambda: events.jobs)
    yield events
    events.close()


def ask(client, body):
    response = client.post("/api/jobs", json=body)
    assert response.status_code == 202, response.text
    return response.json()["number"]


def make(client, body):
    """Asks, waits, and returns the gallery's newest entry."""
    events = Events(client)
    number = ask(client, body)
    until(lambda: events.status(number) in ("done", "failed"))
    events.close()
    assert events.status(number) == "done", events.jobs[-1]
    return client.get("/api/videos").json()[0]


def raw(address, request):
    """What comes back for bytes that no client would send."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 30) as line:
        line.sendall(request)
        answer = b""
        while piece := line.recv(65536):
            answer += piece
    return answer


def test_the_page_and_all_that_it_names_are_there(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "access-control-allow-origin" not in page.headers
    named = set(re.findall(r'(?:src|href)="(/page/[^"]+)"', page.text))
    for script in PAGE.glob("*.js"):
        named |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert len(named) >= 8
    for path in named:
        found = client.get(path)
        assert found.status_code == 200 and found.headers["x-content-type-options"] == "nosniff"
    assert {path.removeprefix("/page/") for path in named} == {p.name for p in PAGE.iterdir()} - {
        "index.html"
    }
    assert not re.search(r"https?://(?!www\.w3\.org/)", "".join(p.read_text() for p in PAGE.iterdir()))


def test_a_model_is_told(client, painter):
    told = client.get("/api/model").json()
    assert (told["width"], told["height"], told["fps"]) == (64, 64, 16)
    assert told["defaults"]["steps"] == 3
    fits = {method["name"]: method["fits"] for method in told["methods"]}
    assert fits["oneshot"] and not fits["causal-kv"]


def test_a_run_is_told_step_by_step_and_judged(client, events, studio, folder):
    number = ask(client, STORY)
    until(lambda: events.status(number) in ("done", "failed"))
    seen = [job for jobs in events.jobs for job in jobs if job["number"] == number]
    assert list(dict.fromkeys(job["status"] for job in seen))[-3:] == ["running", "reading", "done"]
    last = seen[-1]
    assert last["stages"]["sample"]["done"] == last["stages"]["sample"]["total"]
    assert last["stages"]["decode"]["done"] == 96
    assert [p["number"] for p in events.previews] == list(range(6))
    assert all(p["jpeg"].startswith("/9j/") for p in events.previews)

    (entry,) = client.get("/api/videos").json()
    assert re.fullmatch(r"\d{8}-\d{6}-a-large-yellow-circle-stays-still-on-a-w-seed5\.mp4", entry["name"])
    assert entry["recipe"]["story"] == STORY["story"]
    assert entry["name"] == last["file"]
    words = shlex.split(entry["command"])
    assert words[:3] == ["jaxvid", "generate", "--story"] and "--seed" in words
    frames, fps = read_video(folder / entry["name"])
    assert (frames.shape, fps) == ((96, 64, 64, 3), 16)
    assert read_metadata(folder / entry["name"])["checkpoint"]["fingerprint"]
    verdict = client.get(f"/api/videos/{entry['name']}/verdict").json()
    assert [one["second"] for one in verdict["seconds"]] == list(range(6))
    assert verdict["accuracy"]["all"]["accuracy"] > 0.9
    assert "large yellow circle" in verdict["seconds"][0]["seen"]
    poster = client.get(f"/api/videos/{entry['name']}/poster.jpg")
    assert poster.content[:2] == b"\xff\xd8"
    stem = pathlib.Path(entry["name"]).stem
    assert sorted(os.listdir(folder)) == [f"{stem}.mp4", f"{stem}.verdict.json"]


def test_cancel_ends_the_sampling_between_two_steps(client, events, painter, folder):
    painter.hold.clear()
    first, second = ask(client, STORY), ask(client, STORY)
    until(lambda: events.status(first) == "running")
    assert events.status(second) == "waiting"
    steps, closed = painter.steps, painter.closed
    assert client.post(f"/api/jobs/{second}/cancel", json={}).json()["status"] == "cancelled"
    assert client.post(f"/api/jobs/{first}/cancel", json={}).json()["stopping"]
    painter.hold.set()
    until(lambda: events.status(first) == "cancelled")
    assert painter.steps <= steps + 1
    assert painter.closed == closed + 1  # the second was never begun
    assert os.listdir(folder) == []
    assert make(client, ONE)["recipe"]["seconds"] == 1  # and the next one gets its turn
    assert client.post("/api/jobs/99/cancel", json={}).status_code == 404


def test_a_page_that_comes_again_finds_the_run(client, events, painter, monkeypatch):
    painter.hold.clear()
    number = ask(client, STORY)
    until(lambda: events.status(number) == "running")
    late = Events(client)
    until(lambda: late.jobs)
    assert late.status(number) == "running"
    assert late.jobs[0][-1]["asked"]["story"] == STORY["story"]
    painter.hold.set()
    until(lambda: late.status(number) == "done")
    assert len(late.previews) >= 6
    late.close()


def test_pictures_that_were_missed_are_told_again(painter, folder):
    from jaxvid.studio.gallery import Gallery
    from jaxvid.studio.jobs import Jobs

    snapshots = []
    jobs = Jobs(
        painter,
        Gallery(folder),
        lambda kind, _: snapshots.append(jobs.snapshot() if kind == "preview" else []),
    )
    job = jobs.ask(STORY)
    until(lambda: job.status == "done")
    jobs.close()
    last = max(snapshots, key=len)
    assert [kind for kind, _ in last] == ["jobs"] + ["preview"] * 6
    assert not job.previews  # they are not kept


def test_a_run_that_fails_says_why_and_the_next_one_goes_on(client, events, painter, folder, monkeypatch):
    def events_of(run):
        raise FloatingPointError("sampling: the latents are not finite")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(painter, "events", events_of)
        number = ask(client, ONE)
        until(lambda: events.status(number) == "failed")
    assert events.jobs[-1][-1]["error"] == "sampling: the latents are not finite"
    assert os.listdir(folder) == []
    assert make(client, ONE)


@pytest.mark.parametrize(
    "body, said",
    [
        ({}, "story=None is not a list"),
        ([], "list and not an object"),
        ({"story": []}, "story=[] is not a list of 1 to 200"),
        ({"story": [[0, "a"]] * 201}, "is not a list of 1 to 200"),
        ({"story": [[0, ""]]}, "the text of story entry 1 is empty"),
        ({"story": [[0, 3]]}, "story entry 1 is [0, 3]"),
        ({"story": [[1, "a"]]}, "the first one must be at 0"),
        ({"story": [[0, "a"], [9, "b"]], "seconds": 4}, "but the video ends at 4 s"),
        ({"story": [[0, "a\u0007b"]]}, "control character U+0007"),
        ({"story": [[0, "x" * 200]]}, "reads at most 80"),
        ({**ONE, "seconds": -1}, "seconds=-1 cannot be used"),
        ({**ONE, "seconds": 1e9}, "this checkpoint serves"),
        ({**ONE, "seconds": "4"}, "give a number"),
        ({**ONE, "seed": 1.5}, "give a whole number"),
        ({**ONE, "seed": [1, 2]}, "give a whole number"),
        ({**ONE, "steps": 0}, "steps=0 is not in 1..1000"),
        ({**ONE, "method": "magic"}, "method='magic' is unknown"),
        ({**ONE, "method": ["x"]}, "is unknown; choose one of"),
        ({**ONE, "method": "causal-kv"}, "the nearest that works"),
        ({**ONE, "method": "fifo", "options": {"seed": 3}}, "are not those of method 'fifo'"),
        ({**ONE, "method": "fifo", "options": {"window": "x"}}, "give a whole number"),
        ({**ONE, "video": "/etc/passwd"}, "'video' cannot be asked for"),
        ({**ONE, "num": 4}, "'num' cannot be asked for"),
        ({**ONE, "secnods": 4}, "did you mean 'seconds'?"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(client, studio, body, said):
    response = client.post("/api/jobs", json=body)
    assert response.status_code == 422
    assert said in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert studio.jobs.snapshot() == [("jobs", [])]


def test_what_is_no_small_json_is_refused(client):
    headers = {"content-type": "application/json"}
    for content, said in (
        (b"{", "is not JSON"),
        (b"[" * 60_000, "is not JSON"),
        (b'{"story": NaN}', "is not JSON"),
        (b'"' + b"x" * 70_000 + b'"', "more than 65536 bytes"),
    ):
        response = client.post("/api/jobs", content=content, headers=headers)
        assert response.status_code == 422 and said in response.json()["error"]
    form = client.post("/api/jobs", content=json.dumps(ONE), headers={"content-type": "text/plain"})
    assert form.status_code == 422 and "send application/json" in form.json()["error"]


def test_the_queue_is_not_endless(client, painter, studio):
    painter.hold.clear()
    numbers = [ask(client, ONE) for _ in range(20)]
    assert "are waiting already" in client.post("/api/jobs", json=ONE).json()["error"]
    for number in numbers:
        client.post(f"/api/jobs/{number}/cancel", json={})
    painter.hold.set()
    until(lambda: all(job["status"] == "cancelled" for job in studio.jobs.snapshot()[0][1]))


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8765"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost@evil.example"},
        {"host": "192.168.0.7"},
        {"host": ""},
        {"host": "localhost:x"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/videos", "/api/events"])
def test_pages_from_elsewhere_are_not_heard(client, headers, path):
    assert client.get(path, headers=headers).status_code == 403
    assert client.post("/api/jobs", json=ONE, headers=headers).status_code == 403


def test_who_is_at_home_is_heard(client, studio):
    port = studio.address.rpartition(":")[2]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost", "LOCALHOST"):
        same = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert client.get("/api/model", headers=same).status_code == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    assert client.post("/api/jobs", json=ONE, headers=link).status_code == 403


def test_a_name_that_was_allowed_and_addresses_of_an_open_server(painter, folder):
    with serving(painter, folder, names=["Studio.Example"], anywhere=True) as (address, _):
        for host, code in (("studio.example:80", 200), ("192.168.0.7:8765", 200), ("evil.example", 403)):
            assert httpx2.get(f"{address}/api/model", headers={"host": host}).status_code == code


def test_no_name_leads_out_of_the_folder(client, studio, folder):
    inside = folder / "in"
    inside.mkdir()
    save_video(folder / "secret.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    studio.gallery.folder = inside
    (inside / "link.mp4").symlink_to(folder / "secret.mp4")
    (inside / ".hidden.mp4").write_bytes(b"x")
    (inside / "notes.txt").write_bytes(b"x")
    (inside / "dir.mp4").mkdir()
    assert client.get("/api/videos").json() == []
    names = [
        "../secret.mp4",
        "..%2fsecret.mp4",
        "%2e%2e/secret.mp4",
        "..%5csecret.mp4",
        "link.mp4",
        ".hidden.mp4",
    ]
    names += ["notes.txt", "dir.mp4", str(folder / "secret.mp4"), "%00", "in/../../secret.mp4", "%ff.mp4"]
    paths = [f"/videos/{name}" for name in names] + [f"/api/videos/{name}/verdict" for name in names]
    paths += [f"/api/videos/{name}/poster.jpg" for name in names]
    paths += ["/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e%2fapp.py", "/page/index.html%00"]
    for path in paths:
        answer = raw(
            studio.address, f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
        )
        assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), (path, answer[:80])


def test_a_player_can_seek(client, folder):
    name = make(client, ONE)["name"]
    whole = client.get(f"/videos/{name}")
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    assert whole.headers["accept-ranges"] == "bytes"
    data = (folder / name).read_bytes()
    assert whole.content == data
    for asked, part in (("0-99", data[:100]), ("100-", data[100:]), ("-7", data[-7:])):
        found = client.get(f"/videos/{name}", headers={"range": f"bytes={asked}"})
        assert (found.status_code, found.content) == (206, part)
        assert found.headers["content-range"].endswith(f"/{len(data)}")
    assert client.get(f"/videos/{name}", headers={"range": f"bytes={len(data)}-"}).status_code == 416


def test_the_gallery_outlives_the_server(painter, folder):
    with serving(painter, folder) as (address, _), httpx2.Client(base_url=address, timeout=60) as client:
        entry = make(client, STORY)
        verdict = client.get(f"/api/videos/{entry['name']}/verdict").json()
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(kept) == 2
    with serving(painter, folder) as (address, _), httpx2.Client(base_url=address, timeout=60) as client:
        assert client.get("/api/videos").json() == [entry]
        assert client.get(f"/api/videos/{entry['name']}/verdict").json() == verdict
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == kept


def test_files_from_elsewhere_are_shown_for_what_they_are(client, folder):
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    save_video(folder / "plain.mp4", frames, 8)
    recipe = read_metadata_of_a_run(client, folder)
    save_video(folder / "hostile.mp4", frames, 8, {**recipe, "prompt": "<script>\x1b[2J"})
    save_video(folder / "other.mp4", frames, 8, {**recipe, "prompt": "a castle in the rain"})
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and no more")
    found = {entry["name"]: entry for entry in client.get("/api/videos").json()}
    assert "has no recipe" in found["plain.mp4"]["why"]
    assert "control character" in found["hostile.mp4"]["why"] and "command" not in found["hostile.mp4"]
    assert "cannot read" in found["broken.mp4"]["why"]
    assert found["other.mp4"]["recipe"]["story"] == [[0, "a castle in the rain"]]
    assert "the shapes world only" in client.get("/api/videos/other.mp4/verdict").json()["why"]
    assert "why" in client.get("/api/videos/plain.mp4/verdict").json()
    assert client.get("/api/videos/broken.mp4/poster.jpg").status_code == 422
    assert client.get("/api/videos/plain.mp4/poster.jpg").status_code == 200


def read_metadata_of_a_run(client, folder):
    return read_metadata(folder / make(client, ONE)["name"])


def test_a_server_that_leaves_ends_its_run(painter, folder):
    painter.hold.clear()
    with serving(painter, folder) as (address, studio), httpx2.Client(base_url=address) as client:
        ask(client, STORY)
        until(lambda: studio.jobs.snapshot()[0][1][0]["status"] == "running")
        closed = painter.closed
        threading.Timer(1.0, painter.hold.set).start()  # its step lasts that much longer than the server
    assert studio.jobs.snapshot()[0][1][0]["status"] == "cancelled"
    assert painter.closed == closed + 1
    assert os.listdir(folder) == []
