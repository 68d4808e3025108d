"""The page over HTTP, without a browser: who is answered, and with what."""

import re
import socket
import threading
from http.client import HTTPConnection
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import gradio as gr
import pytest
from gradio_client import Client

from chiaroscuro.app import serve
from chiaroscuro.app.serving import _names


def ask(address, method="GET", path="/", body=None, **headers):
    """The status of an answer, and its text."""
    place = urlparse(address)
    connection = HTTPConnection(place.hostname, place.port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["127.0.0.1", "LOCALHOST:80", "[::1]:9", "192.168.7.7"])
def test_who_asks_for_this_machine_is_answered(address, name):
    assert ask(address, Host=name)[0] == 200


@pytest.mark.parametrize(
    "name", ["attacker.example", "localhost.attacker.example:7860", "127.0.0.1.nip.example", "[", ""]
)
def test_a_name_that_is_pointed_to_this_machine_is_refused(address, name):
    for method, path in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/run/look")):
        status, told = ask(address, method, path, Host=name)
        assert status == 403
        assert "not known by that name" in told


def test_names_are_those_that_were_chosen():
    own = socket.gethostname().lower()
    assert _names("127.0.0.1") == {"localhost", "127.0.0.1"}
    assert _names("Box.example") == {"localhost", "box.example"}
    assert _names("0.0.0.0") == {"localhost", "0.0.0.0", own}


@pytest.mark.parametrize("path", ["upload", "upload/", "upload?upload_id=1", "%75pload", "process_recording"])
def test_files_are_not_taken(address, path):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n\r\n--x--\r\n'
    for kind in ("multipart/form-data; boundary=x", " Multipart/Form-Data;boundary=x"):
        status, told = ask(address, "POST", f"/gradio_api/{path}", body, **{"Content-Type": kind})
        assert (status, told) == (403, "This page takes no files.")
    assert ask(address, "POST", f"/gradio_api/{path}", body)[0] != 200  # nor does gradio, when they are sent as none


def test_no_other_file_is_read(address, runs):
    for path in ("/etc/passwd", str(runs[0] / "results.json"), "../../etc/passwd"):
        for place in (f"gradio_api/file={path}", f"file={path}", f"static/{path}"):
            with pytest.raises(HTTPError) as refused:
                urlopen(address + place)
            assert refused.value.code in (403, 404)


def test_ten_visitors_get_their_own_texts(address, runs):
    answers = {}

    def visit(number):
        client = Client(address, verbose=False)
        settings = (str(runs[0]), "nobody", f"visitor {number} " * 5, "operator", True, 50, 1, 0, "as routed")
        answers[number] = client.predict(*settings, api_name="/look")[0]

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(10)]
    for each in visitors:
        each.start()
    for each in visitors:
        each.join(60)
    for number in range(10):
        shown = re.sub(r"<[^>]+>", "", answers[number])
        assert f"visitor {number} visitor {number}" in shown
        assert not any(f"visitor {other} " in shown for other in range(10) if other != number)


def test_a_port_that_is_taken_and_a_host_that_is_not_here_are_told(address):
    taken = urlparse(address).port
    for host, port, told in (
        ("127.0.0.1", taken, rf"cannot listen on 127.0.0.1, port {taken} \(.*\): choose another --port"),
        ("192.0.2.1", taken, "cannot listen on 192.0.2.1, .*: choose another --host"),
    ):
        with gr.Blocks() as page, pytest.raises(ValueError, match=told):
            serve(page, host, port)
