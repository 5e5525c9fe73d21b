"""How a server ends: SIGTERM drains, a second one does not wait, SIGKILL leaves nothing odd."""

import signal
import socket
import threading
import time

import httpx
import pytest

from gptd import MODEL, PATIENCE, Server, events, joined, run, text_of, wait_until

LONG = {"prompt": "A", "max_tokens": 240, "ignore_eos": True, "temperature": 0}


def test_sigterm_when_idle():
    server = Server()
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < 5 * PATIENCE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_running_finishes(number):
    server = Server()
    with server.client() as http, server.client() as late:
        expected = text_of(http, **LONG)
        late.get("/health")
        with http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as reply:
            lines = reply.iter_lines()
            first = next(lines)
            server.process.send_signal(number)
            # New work is refused meanwhile, by a status or because nobody listens any more.
            time.sleep(0.01)
            try:
                refusal = late.post("/v1/completions", json=LONG)
                assert refusal.status_code == 503 or refusal.json()["choices"]
            except httpx.TransportError:
                pass
            assert joined(events([first, *lines])) == expected
    server.check_end()


def test_ready_says_no_while_draining():
    server = Server("--max-seqs", 1)
    with server.client() as http, server.client() as other:
        other.get("/health")
        with http.stream("POST", "/v1/completions",
                         json={**LONG, "prompt": ["A"] * 8, "stream": True}) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            statuses = set()
            for _ in range(20):
                try:
                    statuses.add(other.get("/ready").status_code)
                except httpx.TransportError:
                    statuses.add(503)
                time.sleep(0.005)
            assert 503 in statuses
            assert [line for line in lines if line][-1] == "data: [DONE]"
    server.check_end()


def post(connection, body):
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                       b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def test_new_requests_are_told_to_go_elsewhere_while_draining():
    server = Server("--max-seqs", 1, "--drain-timeout", 60 * PATIENCE)
    late = socket.create_connection(("127.0.0.1", server.port), timeout=30 * PATIENCE)
    with server.client() as http, late, late.makefile("rb") as file:
        with http.stream("POST", "/v1/completions",
                         json={**LONG, "prompt": ["A"] * 20, "stream": True}) as reply:
            lines = reply.iter_lines()
            first = next(lines)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "shutting down" in server.output())
            post(late, b'{"prompt": "A"}')
            head = []
            while (line := file.readline().strip()):
                head.append(line.lower())
            assert b" 503 " in head[0]
            assert b"connection: close" in head and b"retry-after: 1" in head
            assert file.read().startswith(b'{"error":') and file.read() == b""
            assert len(list(events([first, *lines]))) >= 20 * 240
    server.check_end()


def test_what_does_not_finish_in_time_is_ended():
    server = Server("--max-seqs", 1, "--drain-timeout", 0)
    with server.client() as http:
        with http.stream("POST", "/v1/completions",
                         json={**LONG, "prompt": ["A"] * 60, "stream": True}) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            begin = time.monotonic()
            rest = "".join(lines)
            assert '"canceled"' in rest and rest.endswith("data: [DONE]")
    server.check_end()
    assert time.monotonic() - begin < 5 * PATIENCE


def test_a_body_that_is_on_its_way_may_arrive():
    server = Server()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30 * PATIENCE) as s:
        s.sendall(b"POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n"
                  b"Expect: 100-continue\r\n\r\n")
        assert b"100" in s.recv(1000)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "shutting down" in server.output())
        time.sleep(0.2)
        s.sendall(b'{"prompt": "A"}')
        assert b"200 OK" in s.recv(1000)
    server.check_end()


def test_a_second_signal_does_not_wait():
    server = Server("--max-seqs", 1)
    statuses = []

    def ask():
        try:
            with server.client() as http:
                statuses.append(http.post("/v1/completions",
                                          json={**LONG, "prompt": ["A"] * 60}).status_code)
        except httpx.TransportError:
            statuses.append(None)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.2)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    server.process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    server.process.wait(30 * PATIENCE)
    assert time.monotonic() - begin < 5 * PATIENCE
    asking.join()
    assert statuses and statuses[0] != 200 or server.process.returncode == 0


def test_sigkill_leaves_the_port_and_the_model_usable():
    before = {path.name: path.stat().st_mtime_ns for path in MODEL.iterdir()}
    server = Server()
    with server.client() as http:
        expected = text_of(http, prompt="A", max_tokens=5, temperature=0)
    s = socket.create_connection(("127.0.0.1", server.port))
    port = server.port
    server.kill()
    s.close()
    assert {path.name: path.stat().st_mtime_ns for path in MODEL.iterdir()} == before
    # The same port at once, though the old connections linger.
    again = Server("--port", port)
    with again.client() as http:
        assert again.port == port
        assert text_of(http, prompt="A", max_tokens=5, temperature=0) == expected
    again.stop()


def test_a_port_in_use_is_an_error_that_says_so():
    server = Server()
    try:
        other = run("serve", "--model", MODEL, "--port", server.port)
        assert other.returncode == 1
        assert str(server.port) in other.stderr
    finally:
        server.stop()
