"""Keys, roles, limits; Host, Origin and CORS: who may come in."""

import re
import signal
import socket

import httpx
import openai
import pytest

import gptd
from gptd import check_error, complete, run, wait_until

TOKEN = {"prompt": [5], "max_tokens": 1}
UNKNOWN = "gptd-" + "x" * 43


def new_key(*name):
    made = run("key", "new", *name)
    assert made.returncode == 0, made.stderr
    return made.stdout.split()[0]


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def write_keys(path, *keys):
    path.write_text("# who may\n\n" + "".join(f"{key}\n" for key in keys))
    path.chmod(0o600)


def raw_status(server, *headers):
    """GET /v1/models with header lines that no client would send."""
    with socket.create_connection(("127.0.0.1", server.port), 20 * gptd.PATIENCE) as raw:
        raw.sendall("\r\n".join(("GET /v1/models HTTP/1.1", *headers, "Connection: close", "", "")
                                ).encode())
        return int(raw.makefile("rb").readline().split()[1])


class Keyed:
    """A server with keys: two users', an admin's."""

    def __init__(self, folder, *options):
        self.users = {"alice": new_key(), "bob": new_key()}
        self.admin = new_key()
        self.user_file, self.admin_file = folder / "users", folder / "admins"
        self.write_users()
        write_keys(self.admin_file, f"{self.admin} root")
        self.server = gptd.Server("--api-key-file", self.user_file, "--admin-key-file",
                                  self.admin_file, "--log-requests", *options)

    def write_users(self):
        write_keys(self.user_file, *(f"{key} {name}" for name, key in self.users.items()))

    def client(self, key=None, **kwargs):
        return self.server.client(headers=bearer(key) if key else {}, **kwargs)

    def check_no_key_leaked(self):
        output = self.server.output()
        for key in [*self.users.values(), self.admin, UNKNOWN]:
            assert key not in output


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    keyed = Keyed(folder, "--cors-origin", "https://good.example", "--data-dir", folder / "data")
    yield keyed
    keyed.check_no_key_leaked()
    keyed.server.stop()


@pytest.fixture(scope="module")
def alice(keyed):
    with keyed.client(keyed.users["alice"]) as client:
        yield client


# ---- gptd key new ----

def test_new_keys_differ_and_make_lines_of_a_file():
    lines = [run("key", "new", "--name", "carol").stdout, run("key", "new").stdout]
    assert re.fullmatch(r"gptd-[A-Za-z0-9_-]{43} carol\n", lines[0])
    assert re.fullmatch(r"gptd-[A-Za-z0-9_-]{43}\n", lines[1])
    assert lines[0].split()[0] != lines[1].split()[0]


@pytest.mark.parametrize("arguments", [["key"], ["key", "old"], ["key", "new", "--name", "a b"],
                                       ["key", "new", "--name", ""]])
def test_key_usage(arguments):
    assert run(*arguments).returncode == 2


# ---- The table ----

def expected_role(method, path):
    if path in ("/", "/page/{id}", "/health", "/ready", "/openapi.json"):
        return "open"
    if path.startswith(("/v1/files", "/v1/fine_tuning")):
        return "admin"
    if path == "/v1/models/load" or method == "DELETE":
        return "admin"
    return "user"


def test_every_route_and_method_with_every_kind_of_key(keyed):
    paths = httpx.get(keyed.server.url + "/openapi.json").json()["paths"]
    assert "/v1/completions" in paths and "/v1/files/{id}" in paths
    callers = {"none": {}, "wrong": bearer(UNKNOWN), "user": bearer(keyed.users["alice"]),
               "admin": bearer(keyed.admin)}
    may = {"open": callers, "user": ("user", "admin"), "admin": ("admin",)}
    with keyed.server.client() as http:
        for path, operations in paths.items():
            if path == "/v1/models/load":  # what it does not take, /v1/models/{id} may
                operations = {**operations, **paths["/v1/models/{id}"]}
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "NONSENSE"):
                known = "get" if method == "HEAD" else method.lower()
                if known in operations:
                    role = "user" if path == "/v1/models/load" and known == "get" \
                        else expected_role(method, path)
                else:  # 405, for those who may know
                    first = next(iter(operations))
                    role = expected_role(first.upper(), path)
                for caller, headers in callers.items():
                    reply = http.request(method, path.replace("{id}", "nothing"), headers=headers)
                    what = (method, path, caller, reply.status_code)
                    if caller in may[role]:
                        assert reply.status_code not in (401, 403), what
                        if known not in operations:  # a longer {id} of another row may take it
                            assert reply.status_code in (404, 405), what
                        else:
                            assert reply.status_code != 405, what
                        continue
                    assert reply.status_code == (403 if caller == "user" else 401), what
                    if reply.status_code == 401:
                        assert reply.headers["www-authenticate"] == "Bearer"
                    if method != "HEAD":
                        code = "invalid_api_key" if reply.status_code == 401 else \
                            "insufficient_permissions"
                        assert check_error(reply)["code"] == code


def test_what_does_not_exist_is_closed_too(keyed, alice):
    assert httpx.get(keyed.server.url + "/v1/secrets").status_code == 401
    assert alice.get("/v1/secrets").status_code == 404


def test_the_description_says_who_may(keyed):
    spec = httpx.get(keyed.server.url + "/openapi.json").json()
    schemes = spec["components"]["securitySchemes"]
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            role = expected_role(method.upper(), path)
            assert operation["security"] == (
                [] if role == "open" else [{name: [role]} for name in ("bearer", "apiKey")])
            assert all(name in schemes for entry in operation["security"] for name in entry)
            assert ("401" in operation["responses"]) == (role != "open")
            assert ("403" in operation["responses"]) == (role == "admin")


# ---- How a key is given ----

def test_ways_to_give_a_key(keyed):
    key = keyed.users["bob"]
    url = keyed.server.url + "/v1/models"
    for headers in (bearer(key), {"X-Api-Key": key}, {"x-api-key": key},
                    {"authorization": f"bearer   {key}"}, {"Authorization": f"BEARER {key}"}):
        assert httpx.get(url, headers=headers).status_code == 200, headers
    for headers in ({"Authorization": key}, {"Authorization": f"Basic {key}"},
                    {"Authorization": "Bearer"},
                    {"Authorization": f"Bearer {key}x"}, {"Authorization": f"Bearer {key[:-1]}"},
                    {"Authorization": f"Bearer {key} {key}"}, {"X-Api-Key": ""},
                    {"X-Api-Key": f"Bearer {key}"}, {"Authorization": "Bearer " + "a" * 5000},
                    {"Authorization": f"Bearer {key}", "X-Api-Key": key},
                    [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {UNKNOWN}")],
                    [("Authorization", f"Bearer {UNKNOWN}"), ("Authorization", f"Bearer {key}")]):
        reply = httpx.get(url, headers=headers)
        assert reply.status_code == 401, headers
        assert key not in reply.text
    for line, status in ((f"Authorization:Bearer {key}  \t", 200), (f"X-API-KEY:  {key}", 200),
                         ("Authorization: Bearer ", 401), ("Authorization:", 401),
                         ("X-Api-Key:", 401), (f"Authorization: Bearer\t{key}", 401)):
        assert raw_status(keyed.server, "Host: x", line) == status, line
    assert httpx.get(url, params={"api_key": key}).status_code == 401


def test_official_client(keyed):
    good = openai.OpenAI(base_url=keyed.server.url + "/v1", api_key=keyed.users["alice"],
                         max_retries=0)
    assert good.models.list().data
    with pytest.raises(openai.PermissionDeniedError):
        good.files.list()
    bad = openai.OpenAI(base_url=keyed.server.url + "/v1", api_key=UNKNOWN, max_retries=0)
    with pytest.raises(openai.AuthenticationError) as failure:
        bad.completions.create(model="shakespeare", prompt="A")
    assert failure.value.code == "invalid_api_key"


def test_refusals_are_counted_by_reason_and_the_log_names_keys(keyed, alice):
    def refused(reason):
        text = alice.get("/metrics").text
        return int(re.search(rf'gptd_requests_refused_total{{reason="{reason}"}} (\d+)', text)[1])

    url = keyed.server.url + "/v1/models"
    for reason, headers in (("no_key", {}), ("wrong_key", bearer(UNKNOWN))):
        before = refused(reason)
        httpx.get(url, headers=headers)
        assert refused(reason) == before + 1
    before = refused("not_admin")
    assert alice.get("/v1/files").status_code == 403
    assert refused("not_admin") == before + 1
    alice.get("/v1/memory")
    wait_until(lambda: re.search(r"/v1/memory 200 [0-9.]+ ms, key alice\n", keyed.server.output()))
    keyed.check_no_key_leaked()


# ---- The prefix cache ----

def cached(keyed, key, prompt):
    with keyed.client(key) as client:
        usage = complete(client, prompt=prompt, max_tokens=1)["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"]


def test_prefixes_are_not_shared_among_keys(keyed):
    alice, bob = keyed.users.values()
    prompt = [7] * 60
    assert cached(keyed, alice, prompt) == 0
    own = cached(keyed, alice, prompt)
    assert own >= 16
    assert cached(keyed, bob, prompt) == 0
    assert cached(keyed, keyed.admin, prompt) == 0
    assert cached(keyed, bob, prompt) == own


# ---- Reloading ----

def test_reload_takes_new_keys_and_leaves_requests_alone(keyed):
    old, new = keyed.users["bob"], new_key()
    with keyed.client(old) as bob, keyed.client(new) as next_bob:
        body = {"prompt": [5], "max_tokens": 200, "ignore_eos": True, "stream": True}
        with bob.stream("POST", "/v1/completions", json=body) as reply:
            assert reply.status_code == 200
            assert next_bob.get("/v1/models").status_code == 401
            keyed.users["bob"] = new
            keyed.write_users()
            keyed.server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: next_bob.get("/v1/models").status_code == 200, what="the new key")
            assert bob.get("/v1/models").status_code == 401
            assert len(list(gptd.events(reply.iter_lines()))) >= 200


@pytest.mark.parametrize("bad", [b"", b"# nobody\n", b"\xff\xfe\n", b"key with words\n", None,
                                 b"same-key-0123456789\nsame-key-0123456789\n"])
def test_a_bad_file_keeps_the_old_keys(keyed, alice, bad):
    logged = keyed.server.output().count("the keys stay as they were")
    good = keyed.user_file.read_bytes()
    keyed.user_file.unlink()
    if bad is not None:
        keyed.user_file.write_bytes(bad)
    keyed.server.process.send_signal(signal.SIGHUP)
    try:
        wait_until(lambda: keyed.server.output().count("the keys stay as they were") > logged)
        assert alice.get("/v1/models").status_code == 200
    finally:
        keyed.user_file.write_bytes(good)


# ---- Starting ----

def refused_start(*arguments, code=2):
    result = run("serve", "--model", gptd.MODEL, "--port", 0, *arguments)
    assert result.returncode == code, result.stderr
    return result.stderr


def test_start_says_what_is_wrong(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    write_keys(good, new_key())
    bad.write_text("secret words here\n")
    assert "--api-key-file" in refused_start("--host", "0.0.0.0")
    assert "--no-auth" in refused_start("--no-auth", "--api-key-file", good)
    assert "--api-key-file" in refused_start("--requests-per-minute", 5)
    for slip in ("a.example", "https://a.example/", "null"):
        assert "SCHEME://HOST" in refused_start("--cors-origin", slip)
    for slip in ("gpt.example:8080", "https://gpt.example", ""):
        assert "with no port" in refused_start("--allowed-host", slip)
    assert "nowhere" in refused_start("--api-key-file", tmp_path / "nowhere", code=1)
    message = refused_start("--api-key-file", bad, code=1)
    assert "line 1" in message and "secret" not in message
    assert "not a file" in refused_start("--admin-key-file", tmp_path, code=1)


def test_keys_open_every_address_and_one_file_alone_says_what_follows(tmp_path):
    users = tmp_path / "users"
    users.write_text("short\n")
    users.chmod(0o644)
    server = gptd.Server("--api-key-file", users, "--host", "0.0.0.0", wait=False)
    try:
        server.wait_listening()
        url = f"http://127.0.0.1:{server.port}"
        assert "no --admin-key-file" in server.output()
        assert "chmod o=" in server.output() and "can be guessed" in server.output()
        assert httpx.get(url + "/v1/models", headers=bearer("short")).status_code == 200
        assert httpx.get(url + "/v1/models", headers={**bearer("short"), "Host": "any.example"}
                         ).status_code == 200
        assert httpx.get(url + "/v1/files", headers=bearer("short")).status_code == 403
    finally:
        server.stop()


# ---- CORS ----

def preflight(url, origin, **more):
    return httpx.options(url, headers={"Origin": origin, "Access-Control-Request-Method": "POST",
                                       "Access-Control-Request-Headers": "authorization,x-a",
                                       **more})


def test_named_origins_may_read_replies_and_others_may_not(keyed, alice):
    url = keyed.server.url + "/v1/completions"
    for origin, may in (("https://good.example", True), ("https://bad.example", False),
                        ("https://good.example.bad.example", False), ("null", False)):
        asked = preflight(url, origin)
        reply = alice.post("/v1/completions", json=TOKEN, headers={"Origin": origin})
        denied = httpx.post(url, json=TOKEN, headers={"Origin": origin})
        assert reply.status_code == 200 and denied.status_code == 401
        assert (asked.status_code == 204) == may
        for each in (asked, reply, denied):
            assert each.headers["vary"] == "Origin"
            assert each.headers.get("access-control-allow-origin") == (origin if may else None)
        if may:
            assert asked.headers["access-control-allow-methods"] == "POST"
            assert asked.headers["access-control-allow-headers"] == "authorization,x-a"
    assert "access-control-allow-headers" not in preflight(
        url, "https://good.example", **{"Access-Control-Request-Headers": "a; b"}).headers
    assert preflight(keyed.server.url + "/v1/files", "https://good.example").status_code == 204
    assert preflight(keyed.server.url + "/nowhere", "https://good.example").status_code == 401


# ---- Limits ----

@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    keyed = Keyed.__new__(Keyed)
    folder = tmp_path_factory.mktemp("limits")
    keyed.users = {name: new_key() for name in ("requests", "tokens", "back", "at_once", "other")}
    keyed.admin = new_key()
    keyed.user_file, keyed.admin_file = folder / "users", folder / "admins"
    keyed.write_users()
    other_admin = new_key()
    write_keys(keyed.admin_file, keyed.admin, other_admin)
    keyed.other_admin = other_admin
    keyed.server = gptd.Server("--api-key-file", keyed.user_file, "--admin-key-file",
                               keyed.admin_file, "--requests-per-minute", 5, "--tokens-per-minute",
                               100, "--requests-at-once", 2, "--share-prefix-cache")
    yield keyed
    keyed.check_no_key_leaked()
    keyed.server.stop()


def test_requests_a_minute(limited):
    with limited.client(limited.users["requests"]) as http:
        first = http.get("/v1/models")
        assert first.headers["x-ratelimit-limit-requests"] == "5"
        assert first.headers["x-ratelimit-remaining-requests"] == "4"
        assert re.fullmatch(r"[0-9.]+m?s", first.headers["x-ratelimit-reset-requests"])
        assert first.headers["x-ratelimit-limit-tokens"] == "100"
        for _ in range(10):
            reply = http.get("/v1/models")
            if reply.status_code == 429:
                break
        error = check_error(reply)
        assert reply.status_code == 429 and error["code"] == "rate_limit_exceeded"
        assert 1 <= int(reply.headers["retry-after"]) <= 12
        assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    with limited.client(limited.users["other"]) as http:
        assert http.get("/v1/models").status_code == 200
    with limited.client(limited.admin) as http:
        assert all(http.get("/v1/models").status_code == 200 for _ in range(8))


def test_tokens_a_minute(limited):
    with limited.client(limited.users["tokens"]) as http:
        body = {"prompt": [5], "max_tokens": 100}
        assert check_error(http.post("/v1/completions", json=body))["code"] == "does_not_fit"
        body = {"prompt": [5], "max_tokens": 90, "ignore_eos": True, "seed": 1}
        assert http.post("/v1/completions", json=body).status_code == 200
        reply = http.post("/v1/completions", json=body)
        assert reply.status_code == 429
        assert check_error(reply)["code"] == "rate_limit_exceeded"
        assert int(reply.headers["retry-after"]) > 1


def test_tokens_that_were_not_used_come_back(limited):
    with limited.client(limited.users["back"]) as http:
        usage = complete(http, prompt=[5], max_tokens=90, stop=["e", " ", "\n"], seed=1)["usage"]
        assert usage["total_tokens"] < 50
        left = int(http.get("/v1/models").headers["x-ratelimit-remaining-tokens"])
        assert left >= 100 - usage["total_tokens"]
        # What is refused after it was charged costs nothing, and a failed one neither.
        assert http.post("/v1/completions", json={**TOKEN, "nonsense": 1}).status_code == 400
        assert int(http.get("/v1/models").headers["x-ratelimit-remaining-tokens"]) >= left


def test_requests_at_once(limited):
    key = limited.users["at_once"]
    head = (f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 10\r\n\r\n").encode()
    with limited.client(key) as http:
        def status():
            return http.get("/v1/models").status_code

        held = [socket.create_connection(("127.0.0.1", limited.server.port)) for _ in range(2)]
        for each in held:
            each.sendall(head)
        metrics = limited.client(limited.admin)
        wait_until(lambda: status() == 429)
        assert re.search(r'refused_total{reason="concurrent"} [1-9]', metrics.get("/metrics").text)
        metrics.close()
        for each in held:
            each.close()
        # Three requests of its minute are left, less those that came in before the two.
        wait_until(lambda: "at once" not in http.get("/v1/models").text)


def test_the_prefix_cache_may_be_shared(limited):
    prompt = [9] * 60
    assert cached(limited, limited.admin, prompt) == 0
    assert cached(limited, limited.other_admin, prompt) >= 16


# ---- Without keys: Host and Origin ----

@pytest.fixture(scope="module")
def local():
    server = gptd.Server("--allowed-host", "gpt.example")
    yield server
    server.stop()


def test_only_local_names_in_host(local):
    url = local.url + "/v1/models"
    for host, status in (("localhost", 200), (f"localhost:{local.port}", 200), ("LocalHost", 200),
                         ("127.0.0.1:1", 200), ("[::1]", 200), ("[::1]:80", 200),
                         ("gpt.example", 200), ("GPT.example:8080", 200),
                         ("evil.example", 421), ("localhost.evil.example", 421), ("", 421),
                         ("127.0.0.1.evil.example:8080", 421), ("evil.example:localhost", 421)):
        reply = httpx.get(url, headers={"Host": host})
        assert reply.status_code == status, host
        if status == 421:
            error = check_error(reply)
            assert error["param"] == "Host" and "evil" not in error["message"]
    for twice in (["localhost", "evil.example"], ["evil.example", "localhost"]):
        assert raw_status(local, *(f"Host: {host}" for host in twice)) in (400, 421)


def test_without_keys_pages_of_other_origins_change_nothing(local):
    url = local.url + "/v1/completions"
    own = f"http://127.0.0.1:{local.port}"
    for origin, status in ((own, 200), ("https://evil.example", 403), ("null", 403),
                           ("http://127.0.0.1:1", 403)):
        reply = httpx.post(url, json=TOKEN, headers={"Origin": origin})
        assert reply.status_code == status, origin
        assert "access-control-allow-origin" not in reply.headers
    assert httpx.get(local.url + "/v1/models", headers={"Origin": "https://evil.example"}
                     ).status_code == 200
    assert preflight(url, "https://evil.example").status_code == 403
