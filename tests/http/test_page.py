"""GET / and what it loads: headers, caching, keys; the sources against the API and the presets."""

import re

import httpx
import pytest

import gptd
from gptd import ROOT, check_error

SOURCES = ROOT / "server" / "page"
NAMES = sorted(path.name for path in SOURCES.iterdir())
TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8",
         "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


def text(pattern):
    return "".join(path.read_text() for path in sorted(SOURCES.glob(pattern)))


def test_the_page_is_its_source(http):
    assert http.get("/").content == (SOURCES / "page.html").read_bytes()
    for name in NAMES:
        reply = http.get(f"/page/{name}")
        assert reply.content == (SOURCES / name).read_bytes(), name
        assert reply.headers["content-type"] == TYPES[name.rpartition(".")[2]], name


@pytest.mark.parametrize("path", ["/", "/page/page.js"])
def test_headers(http, path):
    reply = http.get(path)
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-cache"
    policy = dict(part.strip().split(" ", 1)
                  for part in reply.headers["content-security-policy"].split(";"))
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert {policy.pop(name) for name in ("default-src", "form-action", "base-uri",
                                          "frame-ancestors", "trusted-types")} == {"'none'"}
    assert policy and set(policy.values()) == {"'self'"}
    head = http.head(path)
    assert head.status_code == 200 and head.content == b""
    for name in ("content-length", "content-type", "etag", "content-security-policy"):
        assert head.headers[name] == reply.headers[name]


def test_a_browser_asks_whether_it_has_changed(http):
    tags = {name: http.get(f"/page/{name}").headers["etag"] for name in NAMES}
    assert len(set(tags.values())) == len(NAMES)
    mine = tags["page.js"]
    for known in (mine, f"W/{mine}", f'"other", {mine}', "*"):
        reply = http.get("/page/page.js", headers={"If-None-Match": known})
        assert reply.status_code == 304 and reply.content == b"", known
        assert reply.headers["etag"] == mine and "content-security-policy" in reply.headers
    for other in (tags["page.css"], mine.strip('"'), '""', ""):
        assert http.get("/page/page.js", headers={"If-None-Match": other}).status_code == 200, other


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_is_read_only(http, method):
    for path in ("/", "/page/page.js"):
        reply = http.request(method, path)
        assert reply.status_code == 405 and reply.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("name", ["nothing", "page", "page.js/", "x/page.js", "%2e%2e/page.js",
                                  "PAGE.JS"])
def test_no_other_files(http, name):
    reply = http.get(f"/page/{name}")
    assert reply.status_code == 404
    check_error(reply)


def test_open_where_the_data_are_not(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(gptd.run("key", "new").stdout)
    keys.chmod(0o600)
    server = gptd.Server("--api-key-file", keys)
    assert httpx.get(server.url + "/").status_code == 200
    for name in NAMES:
        assert httpx.get(f"{server.url}/page/{name}").status_code == 200, name
    for path in ("/v1/models", "/v1/memory", "/v1/fine_tuning/jobs", "/pages", "/page"):
        assert httpx.get(server.url + path).status_code == 401, path
    server.stop()


# ---- The sources ----

def test_they_ask_no_other_host():
    """Nor this one by an absolute path: the page may lie behind a prefix. An SVG's namespace is a
    name, not an address."""
    everything = text("*").replace("http://www.w3.org/2000/svg", "")
    assert "//" not in everything and "@import" not in everything
    assert not re.search(r"""(?:href|src)=["']?/|(?:fetch|json|request)\(["'`]/""", everything)
    assert "url(" not in text("*.css") + text("page.html")


def test_nothing_becomes_markup():
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|DOMParser",
                         text("*.js"))
    html = text("page.html")
    assert not re.search(r"""\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)|javascript:""", html)


def test_every_route_that_they_name_is_described(http):
    """What stands in ${...} is some part of the path."""
    described = list(http.get("/openapi.json").json()["paths"])
    named = set(re.findall(r"""["'`](v1/[^"'`?]*)""", text("*.js")))
    assert len(named) >= 9
    for route in named:
        pattern = "[^/]+".join(map(re.escape, re.split(r"\$\{.*?\}", "/" + route)))
        assert any(re.fullmatch(pattern, path) for path in described), route


def test_everything_that_is_imported_is_there():
    named = set(re.findall(r'from "\./(.*?)"', text("*.js")))
    named |= set(re.findall(r'(?:href|src)="page/(.*?)"', text("page.html")))
    assert named == set(NAMES) - {"page.html"}


def test_every_element_that_they_look_for_is_there():
    ids = re.findall(r'\bid="([\w-]+)"', text("page.html"))
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', text("*.js")))
    assert wanted and wanted <= set(ids)


def test_the_presets_are_those_that_exist():
    listed = re.search(r"export const presets = \[(.*?)\]", text("api.js"), re.S).group(1)
    assert sorted(re.findall(r'"(\w+)"', listed)) == sorted(
        path.stem for path in (ROOT / "configs").glob("*.json"))


def test_the_page_is_small():
    assert sum((SOURCES / name).stat().st_size for name in NAMES) < 60 << 10
