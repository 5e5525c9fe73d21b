"""Requests that are malformed, ambiguous, endless or slow, over raw sockets: each gets a correct
4xx or a closed connection, soon, and nobody else notices."""

import json
import re
import socket
import time

import pytest

from gptd import PATIENCE, text_of, wait_until

TIMEOUT = 1  # of headers, bodies and readers
SERVER_OPTIONS = ["--header-timeout", TIMEOUT, "--body-timeout", TIMEOUT, "--send-timeout", TIMEOUT,
                  "--max-connections", 300, "--max-connections-per-address", 0]
SOON = 10 * PATIENCE  # far below the idle timeout

BODY = json.dumps({"prompt": "A", "max_tokens": 3, "temperature": 0}).encode()
LINE = b"POST /v1/completions HTTP/1.1\r\n"
POST = LINE + b"Host: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(autouse=True)
def nobody_else_notices(http):
    before = text_of(http, prompt="A", max_tokens=3, temperature=0)
    yield
    assert text_of(http, prompt="A", max_tokens=3, temperature=0) == before


def connect(server, source="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", server.port), timeout=SOON,
                                    source_address=(source, 0))


def read_to_end(s):
    """What comes until the server closes, which it must."""
    reply = b""
    try:
        while (data := s.recv(65536)):
            reply += data
    except ConnectionResetError:
        pass
    return reply


def ended_by(server, message):
    """The status of what is answered before the connection is closed; None: just closed. A second
    request behind the first must not be answered: nobody knows where it begins."""
    with connect(server) as s:
        try:
            s.sendall(message)
            s.sendall(GET + b"\r\n")
        except (ConnectionResetError, BrokenPipeError):
            pass
        reply = read_to_end(s)
    assert b"200 OK" not in reply, reply
    return int(reply.split()[1]) if reply else None


def answered(server, message):
    """The status, of a connection that may live on."""
    with connect(server) as s, s.makefile("rb") as file:
        s.sendall(message)
        return int(file.readline().split()[1])


# ---- where a body ends ----

@pytest.mark.parametrize("other", [len(BODY), 5, 0])
def test_duplicate_content_length(server, other):
    assert ended_by(server, POST + LENGTH + b"Content-Length: %d\r\n\r\n" % other + BODY) == 400


@pytest.mark.parametrize("value", [b"+5", b"-5", b"0x5", b"5abc", b"", b"5, 5", b"5 5", b"five",
                                   b"\xd9\xa5"])
def test_content_length_that_is_no_number(server, value):
    assert ended_by(server, POST + b"Content-Length: " + value + b"\r\n\r\n" + BODY) == 400


@pytest.mark.parametrize("value", [2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 2**32 + len(BODY)])
def test_absurd_content_length(server, value):
    assert ended_by(server, POST + b"Content-Length: %d\r\n\r\n" % value + BODY) == 413


def test_content_length_with_transfer_encoding(server):
    for headers in (LENGTH + CHUNKED, CHUNKED + LENGTH, CHUNKED + b"Content-Length: 0\r\n"):
        assert ended_by(server, POST + headers + b"\r\n" + CHUNKS) == 400


@pytest.mark.parametrize("value", [b"gzip", b"identity", b"gzip, chunked", b"chunked, gzip",
                                   b"xchunked", b"chunked;q=1", b"\x0bchunked", b""])
def test_unknown_transfer_encoding(server, value):
    assert ended_by(server, POST + b"Transfer-Encoding: " + value + b"\r\n\r\n" + CHUNKS) == 400


def test_duplicate_transfer_encoding(server):
    assert ended_by(server, POST + CHUNKED + CHUNKED + b"\r\n" + CHUNKS) == 400


def test_transfer_encoding_in_http_1_0(server):
    head = b"POST /v1/completions HTTP/1.0\r\nHost: x\r\n"
    assert ended_by(server, head + CHUNKED + b"\r\n" + CHUNKS) == 400


@pytest.mark.parametrize("name", [b"Content-Length ", b"Transfer-Encoding ", b"X y", b"X\x01",
                                  b"(X)"])
def test_names_that_are_none(server, name):
    """A space before the colon hides a header from who does not strip it."""
    assert ended_by(server, POST + name + b": 5\r\n\r\n" + BODY) == 400


@pytest.mark.parametrize("chunks", [
    b"zz\r\n", b"-1\r\n", b"0x1d\r\n", b"\r\n", b"%x\r\n%sXX0\r\n\r\n" % (len(BODY), BODY),
    b"1000000000000001d\r\n", b"g\r\n", b" 1d\r\n"])
def test_bad_chunking(server, chunks):
    message = POST + CHUNKED + b"\r\n" + chunks + BODY + b"\r\n0\r\n\r\n"
    assert ended_by(server, message) in (400, 413)


def test_chunk_sizes_and_extensions_without_end(server):
    for chunk in (b"0" * 200000, b"%x;" % len(BODY) + b"a" * 200000):
        assert ended_by(server, POST + CHUNKED + b"\r\n" + chunk) in (400, 413, 500, None)


def test_absurd_chunk(server):
    """A size that fits a number: the body is counted as it comes, and has its time."""
    message = POST + CHUNKED + b"\r\nffffffffffffffff\r\n" + BODY
    assert ended_by(server, message) in (400, 413, None)


def test_trailers_change_nothing(server):
    chunks = CHUNKS[:-2] + b"Content-Length: 5\r\nHost: y\r\n\r\n"
    assert answered(server, POST + CHUNKED + b"\r\n" + chunks) == 200
    chunks = CHUNKS[:-2] + b"X: y\r\n" * 40000
    assert ended_by(server, POST + CHUNKED + b"\r\n" + chunks) in (400, 431)


# ---- headers ----

def test_host_is_there_once(server):
    assert ended_by(server, LINE + LENGTH + b"\r\n" + BODY) == 400
    assert ended_by(server, LINE + b"Host: x\r\nHost: x\r\n" + LENGTH + b"\r\n" + BODY) == 400
    assert answered(server, b"GET /health HTTP/1.0\r\n\r\n") == 200


def test_control_characters_in_a_value(server):
    assert ended_by(server, GET + b"X: a\x01b\r\n\r\n") == 400


@pytest.mark.parametrize("headers", [b"X: " + b"a" * 20000 + b"\r\n",
                                     b"X: " + b"a" * 2**20 + b"\r\n",
                                     b"X: y\r\n" * 200, b"X: y\r\n" * 100000,
                                     b"Cookie: " + b"a=b;" * 2000 + b"\r\n"])
def test_oversized_and_countless_headers(server, headers):
    with connect(server) as s:
        try:
            s.sendall(GET + headers + b"\r\n")
            reply = s.recv(4096)
        except (ConnectionResetError, BrokenPipeError):
            return  # closed while we were sending
        assert reply.split()[1] == b"431"


def test_oversized_request_lines(server):
    assert answered(server, b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: x\r\n\r\n") == 404
    rest = b" HTTP/1.1\r\nHost: x\r\n\r\n"
    assert ended_by(server, b"GET /" + b"a" * 100000 + rest) in (414, None)
    assert ended_by(server, b"G" * 100000 + b" /" + rest) in (400, 414, None)
    assert ended_by(server, b"GET /health?" + b"a&" * 4000 + rest) is None


@pytest.mark.parametrize("line", [b"GET /health", b"GET /health HTTP/3.7",
                                  b"GET /health XTTP/1.1", b"PRI * HTTP/2.0",
                                  bytes(range(256)), b"\x16\x03\x01\x02\x00\x01"])
def test_lines_that_are_no_request(server, line):
    assert ended_by(server, line + b"\r\n\r\n") in (400, 405, 505, None)


def test_an_expectation_that_nobody_meets(server):
    assert ended_by(server, POST + LENGTH + b"Expect: wonders\r\n\r\n" + BODY) == 417


# ---- time ----

def count(http, name):
    """A figure of /metrics."""
    return float(re.search(rf"^{name} (\S+)$", http.get("/metrics").text, re.M)[1])


def gets_closed(s, keep_going=None):
    """Waits until the server hangs up, while we do what the slow do."""
    begin = time.monotonic()
    s.settimeout(0.1)
    while time.monotonic() - begin < SOON:
        try:
            if keep_going:
                s.sendall(keep_going)
            if not s.recv(4096):
                return time.monotonic() - begin
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return time.monotonic() - begin
    raise AssertionError("the connection stayed open")


def test_slow_headers(server):
    """A byte now and then: no idle timeout ever meets it."""
    with connect(server) as s:
        s.sendall(GET)
        assert gets_closed(s, b"X") >= TIMEOUT / 2


def test_slow_request_line(server):
    with connect(server) as s:
        assert gets_closed(s, b"G") >= TIMEOUT / 2


def test_nothing_at_all(server):
    with connect(server) as s:
        assert gets_closed(s) >= TIMEOUT / 2


def test_slow_body(server):
    with connect(server) as s:
        s.sendall(POST + b"Content-Length: 4000\r\n\r\n")
        assert gets_closed(s, b" ") >= TIMEOUT / 2


def test_slow_chunks(server):
    with connect(server) as s:
        s.sendall(POST + CHUNKED + b"\r\n")
        assert gets_closed(s, b"1\r\n \r\n") >= TIMEOUT / 2


def test_a_body_in_time_is_none_of_the_slow(server):
    with connect(server) as s, s.makefile("rb") as file:
        s.sendall(POST + LENGTH + b"\r\n")
        for i in range(len(BODY)):
            s.sendall(BODY[i:i + 1])
            time.sleep(TIMEOUT / 2 / len(BODY))
        assert file.readline().split()[1] == b"200"


def test_waiting_for_the_model_is_not_slow(server):
    """Longer than any timeout here, and nothing is asked of the client meanwhile."""
    body = json.dumps({"prompt": ["A"] * 64, "n": 3, "max_tokens": 240,
                       "ignore_eos": True}).encode()
    with connect(server) as s, s.makefile("rb") as file:
        s.settimeout(60 * PATIENCE)
        begin = time.monotonic()
        s.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert file.readline().split()[1] == b"200"
        assert time.monotonic() - begin > TIMEOUT


@pytest.mark.parametrize("bytes_at_a_time", [0, 10])
def test_slow_reader(server, http, bytes_at_a_time):
    """A stream that is not read, or hardly, is ended; its pages are free again."""
    body = json.dumps({"prompt": ["A"] * 16, "max_tokens": 200, "ignore_eos": True, "logprobs": 5,
                       "stream": True}).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(SOON)
        s.connect(("127.0.0.1", server.port))
        s.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert b"200 OK" in s.recv(15)
        before = count(http, "gptd_clients_gone_total")

        def ended():
            s.recv(bytes_at_a_time)
            return count(http, "gptd_clients_gone_total") > before
        wait_until(ended, 20, "the end of the stream")
        assert b"[DONE]" not in read_to_end(s)
    wait_until(lambda: count(http, "gptd_sequences_running") == 0)


# ---- ends, and many ----

@pytest.mark.parametrize("cut", [1, 20, len(POST), len(POST) + 10, len(POST + LENGTH) + 10])
def test_early_close(server, cut):
    for how in (socket.SHUT_WR, socket.SHUT_RDWR):
        with connect(server) as s:
            s.sendall((POST + LENGTH + b"\r\n" + BODY)[:cut])
            s.shutdown(how)
            assert b"200 OK" not in read_to_end(s)


def test_thousands_of_idle_connections(server, http):
    """More than there may be: those that say nothing make room for who does."""
    idle = [connect(server, f"127.0.0.{2 + i % 50}") for i in range(2000)]
    try:
        begin = time.monotonic()
        assert answered(server, POST + LENGTH + b"\r\n" + BODY) == 200
        assert time.monotonic() - begin < 5 * PATIENCE
    finally:
        for s in idle:
            s.close()
