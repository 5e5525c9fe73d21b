"""Clients that go away at every stage, on plain sockets. After each, no page is in use and the
server answers the next one."""

import json
import random
import socket
import struct
import time
from http.client import HTTPResponse

import pytest

from gptd import PATIENCE, SANITIZED, complete, memory, text_of, wait_until

LONG = {"prompt": "A", "max_tokens": 240, "ignore_eos": True, "temperature": 0}
TIMES = 5 if SANITIZED else 20


def message(body, path="/v1/completions"):
    data = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n").encode() + data


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30 * PATIENCE)


def reset(s):
    """Closes with RST instead of FIN."""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def hang_up(s):
    s.close()


@pytest.fixture(autouse=True)
def nothing_left_behind(http):
    yield
    wait_until(lambda: memory(http)["kv_pages"]["used"] == 0, what="0 pages in use")
    assert complete(http, prompt="A", max_tokens=2)["choices"]


LEAVE = pytest.mark.parametrize("leave", [hang_up, reset])


@LEAVE
def test_before_a_word(server, leave):
    for _ in range(TIMES):
        leave(connect(server))


@LEAVE
def test_before_the_headers_are_complete(server, leave):
    whole = message(LONG)
    for cut in (1, 5, 20, whole.index(b"\r\n\r\n") + 2):
        s = connect(server)
        s.sendall(whole[:cut])
        leave(s)


@LEAVE
def test_in_the_middle_of_the_body(server, leave):
    whole = message(LONG)
    begin = whole.index(b"\r\n\r\n") + 4
    for cut in (begin, begin + 1, len(whole) - 1):
        s = connect(server)
        s.sendall(whole[:cut])
        time.sleep(0.01)
        leave(s)


@LEAVE
@pytest.mark.parametrize("streaming", [False, True])
def test_before_the_first_token(server, leave, streaming):
    for _ in range(TIMES):
        s = connect(server)
        s.sendall(message({**LONG, "prompt": "word " * 60, "max_tokens": 20, "stream": streaming}))
        leave(s)


@LEAVE
def test_in_the_middle_of_a_stream(server, leave):
    dice = random.Random(1)
    for _ in range(TIMES):
        s = connect(server)
        s.sendall(message({**LONG, "stream": True}))
        for _ in range(dice.randrange(1, 10)):
            s.recv(200)
        leave(s)


@LEAVE
def test_while_a_plain_reply_is_computed(server, leave, http):
    """Nothing is being written, so only watching the socket shows that the client left."""
    s = connect(server)
    s.sendall(message({**LONG, "n": 4, "temperature": 1}))
    time.sleep(0.05)
    leave(s)


def test_in_the_middle_of_everything_at_random(server):
    dice = random.Random(2)
    whole = message({**LONG, "stream": True})
    for _ in range(4 * TIMES):
        s = connect(server)
        s.sendall(whole[:dice.choice([len(whole), dice.randrange(len(whole))])])
        time.sleep(dice.choice([0, 0.001, 0.02]))
        dice.choice([hang_up, reset])(s)


def read_all(s):
    data = b""
    while (more := s.recv(65536)):
        data += more
    return data


def test_half_closed_clients_get_their_reply(server, http):
    """Who has said everything may shut down his sending side and still wants the answer."""
    body = {"prompt": "A", "max_tokens": 60, "temperature": 0}
    expected = text_of(http, **body)
    for _ in range(TIMES):
        with connect(server) as s:
            s.sendall(message(body))
            s.shutdown(socket.SHUT_WR)
            reply = HTTPResponse(s)
            reply.begin()
            assert reply.status == 200
            assert json.loads(reply.read())["choices"][0]["text"] == expected


def test_half_closed_clients_get_their_stream(server):
    with connect(server) as s:
        s.sendall(message({**LONG, "max_tokens": 60, "stream": True}))
        s.shutdown(socket.SHUT_WR)
        assert b"data: [DONE]" in read_all(s)


def test_a_client_that_leaves_is_counted(server, http):
    def gone():
        for line in http.get("/metrics").text.splitlines():
            if line.startswith("gptd_clients_gone_total "):
                return float(line.split()[1])
        raise AssertionError("no gptd_clients_gone_total")

    before = gone()
    s = connect(server)
    s.sendall(message({**LONG, "stream": True}))
    s.recv(100)
    reset(s)
    wait_until(lambda: gone() > before, what="a client counted as gone")


def test_others_do_not_notice(server, http):
    """A stream that runs while clients beside it come and go has the same text as alone."""
    body = {"prompt": "PROSPERO:", "max_tokens": 150, "seed": 9, "temperature": 1}
    expected = text_of(http, **body)
    dice = random.Random(3)
    with connect(server) as mine:
        mine.sendall(message(body).replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"))
        for _ in range(TIMES):
            s = connect(server)
            s.sendall(message({**LONG, "stream": True}))
            if dice.random() < 0.5:
                s.recv(50)
            reset(s)
        reply = read_all(mine).partition(b"\r\n\r\n")[2]
    assert json.loads(reply)["choices"][0]["text"] == expected
