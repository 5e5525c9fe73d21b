"""HTTP itself: connections that stay, requests that queue up on one, odd framing."""

import json
import socket

import pytest

from gptd import PATIENCE, Server

BODY = json.dumps({"prompt": "A", "max_tokens": 3, "temperature": 0}).encode()


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30 * PATIENCE)


def request(body=BODY, path="/v1/completions", more=b""):
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n".encode() + more
            + b"\r\n" + body)


def read_reply(file):
    """One HTTP/1.1 reply with a Content-Length: status, headers, body."""
    status = int(file.readline().split()[1])
    headers = {}
    while (line := file.readline().strip()):
        name, value = line.decode().split(":", 1)
        headers[name.lower()] = value.strip()
    return status, headers, file.read(int(headers["content-length"]))


def test_keep_alive(server):
    with connect(server) as s, s.makefile("rb") as file:
        texts = set()
        for _ in range(20):
            s.sendall(request())
            status, _, body = read_reply(file)
            assert status == 200
            texts.add(json.loads(body)["choices"][0]["text"])
        assert len(texts) == 1


def test_keep_alive_after_an_error(server):
    with connect(server) as s, s.makefile("rb") as file:
        for _ in range(3):
            s.sendall(request(b'{"prompt": 5}'))
            assert read_reply(file)[0] == 400
            s.sendall(request())
            assert read_reply(file)[0] == 200


def test_pipelining(server):
    with connect(server) as s, s.makefile("rb") as file:
        get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        s.sendall(request() + get + request(b"{}") + request())
        assert [read_reply(file)[0] for _ in range(4)] == [200, 200, 400, 200]


def test_stream_then_another_request_on_the_same_connection(server):
    with server.client() as http:
        for _ in range(3):
            with http.stream("POST", "/v1/completions",
                             json={"prompt": "A", "max_tokens": 5, "stream": True}) as reply:
                assert [line for line in reply.iter_lines() if line][-1] == "data: [DONE]"
            assert http.get("/health").status_code == 200


def test_body_in_small_pieces(server):
    with connect(server) as s, s.makefile("rb") as file:
        message = request()
        for i in range(0, len(message), 7):
            s.sendall(message[i:i + 7])
        assert read_reply(file)[0] == 200


def test_connection_close_is_kept(server):
    with connect(server) as s, s.makefile("rb") as file:
        s.sendall(request(more=b"Connection: close\r\n"))
        assert read_reply(file)[0] == 200
        assert file.read() == b""


def status_of(server, message):
    """The status of the first reply, or None when the server just hangs up."""
    with connect(server) as s, s.makefile("rb") as file:
        s.sendall(message)
        line = file.readline()
        return int(line.split()[1]) if line else None


def test_conflicting_lengths_are_refused(server):
    """What a proxy and we might read as two different requests."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
    both = head + b"Content-Length: 5\r\nContent-Length: 40\r\n\r\n" + BODY
    assert status_of(server, both) in (400, None)
    chunked = (head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
               + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
    assert status_of(server, chunked) in (400, None)


@pytest.fixture
def impatient():
    """libmicrohttpd may miss the end of a half-closed connection: the idle timeout closes it."""
    started = Server("--idle-timeout", "3")
    yield started
    assert started.running()
    started.stop()


def test_malformed_requests(impatient):
    server = impatient
    for message in (b"\r\n\r\nnonsense\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
                    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                    b"Content-Length: 99999999999999999999\r\n\r\n"):
        with connect(server) as s:
            s.sendall(message)
            s.shutdown(socket.SHUT_WR)
            reply = b""
            while (data := s.recv(4096)):
                reply += data
            assert reply == b"" or b" 4" in reply.split(b"\r\n")[0], (message, reply)


def test_header_that_is_too_long(server):
    message = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (1 << 20) + b"\r\n\r\n"
    try:
        assert status_of(server, message) in (431, 413, 400, None)
    except (ConnectionResetError, BrokenPipeError):
        pass  # refused before all of it was read
    assert status_of(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") == 200


def test_many_connections_that_say_nothing(server):
    idle = [connect(server) for _ in range(200)]
    try:
        assert status_of(server, request()) == 200
    finally:
        for s in idle:
            s.close()
