"""HTTPS: certificates that fit, that do not, and that change while connections live."""

import shutil
import signal
import socket
import ssl
import subprocess

import httpx
import openai
import pytest

from gptd import MODEL, PATIENCE, Server, events, run, stream, wait_until


def make_pair(folder, name, algorithm="ec"):
    """A certificate for 127.0.0.1, signed by itself; returns its two files."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    kind = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if algorithm == "ec" else ["rsa:2048"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-keyout", key, "-out",
                    cert, "-days", "2", "-subj", f"/CN={name}", "-addext",
                    "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    key.chmod(0o600)
    return cert, key


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    return {"a": make_pair(folder, "a"), "b": make_pair(folder, "b", "rsa")}


@pytest.fixture
def files(pairs, tmp_path):
    """Where the server reads its pair: a's, at first."""
    cert, key = tmp_path / "server.crt", tmp_path / "server.key"
    shutil.copy(pairs["a"][0], cert)
    shutil.copy(pairs["a"][1], key)
    return cert, key


def trusting(*certs):
    context = ssl.create_default_context()
    for cert in certs:
        context.load_verify_locations(cert)
    return context


@pytest.fixture
def server(pairs, files):
    started = Server("--tls-cert", files[0], "--tls-key", files[1],
                     verify=trusting(pairs["a"][0], pairs["b"][0]))
    yield started
    started.stop()


def shown(server):
    """The common name of the certificate that a new connection gets to see."""
    with socket.create_connection(("127.0.0.1", server.port)) as s, \
            server.verify.wrap_socket(s, server_hostname="127.0.0.1") as tls:
        return dict(pair[0] for pair in tls.getpeercert()["subject"])["commonName"]


def test_completions_and_streams(server):
    with server.client() as http:
        body = {"prompt": "A", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        whole = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        pieces = stream(http, **body)
        assert len(pieces) >= 40
        assert "".join(c["choices"][0]["text"] for c in pieces) == whole
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0,
                           http_client=server.client())
    assert client.completions.create(model="shakespeare", prompt="A", max_tokens=40,
                                     temperature=0,
                                     extra_body={"ignore_eos": True}).choices[0].text == whole


def test_a_client_that_leaves_a_stream(server):
    with server.client() as http:
        with http.stream("POST", "/v1/completions", json={"prompt": "A", "max_tokens": 240,
                                                          "stream": True}) as reply:
            next(reply.iter_lines())
    with server.client() as http:
        wait_until(lambda: "gptd_sequences_running 0\n" in http.get("/metrics").text)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("version, good", [("TLSv1_3", True), ("TLSv1_2", True),
                                           ("TLSv1_1", False), ("TLSv1", False)])
def test_versions(server, version, good):
    context = ssl._create_unverified_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10 * PATIENCE) as s:
        if not good:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(s)
            return
        with context.wrap_socket(s) as tls:
            assert tls.version() == version.replace("_", ".")


def test_plain_http_is_no_tls(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10 * PATIENCE) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in s.recv(1000)
    with server.client() as http:
        assert http.get("/health").status_code == 200


def test_a_reload_changes_new_connections_only(server, pairs, files):
    assert shown(server) == "a"
    with server.client() as http:
        body = {"prompt": "A", "max_tokens": 240, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as reply:
            lines = reply.iter_lines()
            first = next(lines)
            for file, new in zip(files, pairs["b"]):
                shutil.copy(new, file)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: shown(server) == "b", what="the new certificate")
            assert len(list(events([first, *lines]))) >= 240
        assert http.get("/health").status_code == 200  # on the connection with the old one


def test_a_bad_new_pair_keeps_the_old_one(server, pairs, files):
    shutil.copy(pairs["b"][1], files[1])  # the key alone
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "the certificate stays as it was" in server.output())
    assert "is not the key of" in server.output()
    assert shown(server) == "a"
    files[0].write_text("nonsense")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.output().count("the certificate stays as it was") == 2)
    assert shown(server) == "a"


def serve(*arguments):
    return run("serve", "--model", MODEL, "--port", 0, *arguments)


def test_files_that_do_not_do(pairs, tmp_path):
    (cert, key), other = pairs["a"], pairs["b"]
    nothing = tmp_path / "nothing"
    nothing.write_text("")
    for arguments, words in (
            (["--tls-cert", tmp_path / "none", "--tls-key", key], ["none", "No such file"]),
            (["--tls-cert", cert, "--tls-key", tmp_path / "none"], ["none", "No such file"]),
            (["--tls-cert", cert, "--tls-key", other[1]], ["is not the key of", str(cert)]),
            (["--tls-cert", key, "--tls-key", key], ["--tls-cert", "PEM"]),
            (["--tls-cert", cert, "--tls-key", cert], ["--tls-key", "private key"]),
            (["--tls-cert", nothing, "--tls-key", key], ["--tls-cert", "PEM"])):
        done = serve(*arguments)
        assert done.returncode == 1, done.stderr
        assert all(word in done.stderr for word in words), done.stderr
    done = serve("--tls-cert", cert)
    assert done.returncode == 2 and "give both" in done.stderr


def test_a_key_that_all_can_read_is_warned_of(files):
    files[1].chmod(0o644)
    server = Server("--tls-cert", files[0], "--tls-key", files[1], verify=trusting(files[0]))
    assert "other users can read it" in server.output()
    server.stop()


def test_a_strangers_certificate_is_not_trusted(server):
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/health")
