"""gptd probe: what a container's health check runs."""

import socket
import subprocess
import threading

import pytest

from gptd import Server, command, run, wait_until, MODEL, ROOT


@pytest.fixture(scope="module")
def server():
    started = Server()
    yield started
    started.stop()


def test_a_server_that_is_well(server):
    for url in (server.url, server.url + "/", server.url + "/health", server.url + "/ready"):
        for arguments in ([url], ["--url", url]):
            done = run("probe", *arguments)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_another_status(server):
    done = run("probe", server.url + "/nowhere")
    assert done.returncode == 1 and "404" in done.stderr


def test_nobody_there():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
    done = run("probe", url)
    assert done.returncode == 1 and "refused" in done.stderr
    assert run("probe", "unix:/no/such/socket").returncode == 1


@pytest.mark.parametrize("answer, words", [(None, "no answer"), (b"", "no answer"),
                                           (b"SSH-2.0-x\r\n", "not HTTP")])
def test_someone_else_there(answer, words):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve():
            s = listener.accept()[0]
            s.recv(4096)
            if answer is None:
                s.settimeout(30)
                s.recv(1)
            else:
                s.sendall(answer)
            s.close()
        thread = threading.Thread(target=serve)
        thread.start()
        done = run("probe", f"http://127.0.0.1:{listener.getsockname()[1]}", "--timeout", 1)
        thread.join()
    assert done.returncode == 1 and words in done.stderr


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://x:port", "http://[::1", "x",
                                 "http://x:1/a b", "https://example.org/health"])
def test_urls_that_are_none(url):
    done = run("probe", "--url", url)
    assert done.returncode == 2 and "--url" in done.stderr


def test_over_tls(tmp_path):
    cert, key = tmp_path / "c", tmp_path / "k"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
                    "-subj", "/CN=x"], check=True, capture_output=True)
    server = Server("--tls-cert", cert, "--tls-key", key, verify=False)
    assert run("probe", server.url).returncode == 0
    assert run("probe", server.url.replace("https", "http")).returncode == 1
    server.stop()


def test_a_unix_socket(tmp_path):
    """And the server behind it: its mode, its requests, its end."""
    path = tmp_path / "s"
    process = subprocess.Popen(command("serve", "--model", MODEL, "--host", f"unix:{path}"),
                               cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(path.exists)
        assert run("probe", f"unix:{path}").returncode == 0
        assert path.stat().st_mode & 0o777 == 0o660
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert not path.exists()
