"""The server behind `optax-meta watch`; `test_browser.py` looks at its page in a browser."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from optax_meta import cli
from optax_meta.reports import watching
from optax_meta.writers import Follower, read_rows


def line(step):
    row = {"step": step, "decided": False, "value": 1.0 / step, "learning_rate": 0.1}
    return json.dumps(row) + "\n"


@pytest.fixture
def served(tmp_path):
    """Return the folder that is watched, and what asks for its page."""
    server = watching.server(tmp_path, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    port = server.server_address[1]

    def ask(path="/", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()

    yield tmp_path, ask
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_page_is_served_with_a_tag_and_only_where_it_is_new(served):
    folder, ask = served
    (folder / "steps.jsonl").write_text(line(1) + line(2) + line(3)[:9])
    status, headers, page = ask()
    assert status == 200
    assert "2 steps, 1 run." in page
    assert "connect-src 'self'" in page
    assert ask(**{"If-None-Match": headers["ETag"]})[::2] == (304, "")
    assert [path.name for path in folder.iterdir()] == ["steps.jsonl"]


def test_no_other_page_and_no_other_name_is_answered(served):
    _, ask = served
    assert ask("/steps.jsonl")[0] == 404
    assert ask("/../steps.jsonl")[0] == 404
    assert ask(Host="evil.example:8765")[0] == 403
    for name in ("localhost:9000", "localhost", "[::1]:8765"):  # the first as through `ssh -L`
        assert ask(Host=name)[0] == 200


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("steps.jsonl", "", "holds no complete row yet"),
        ("steps.jsonl", '{"step": 1, "dec', "holds no complete row yet"),
        ("steps.jsonl", "{\n{}\n", "is not JSON"),
        ("notes.txt", "", "must hold results.json"),
        ("results.json", '{"ru', "must be a complete folder"),
    ],
)
def test_what_cannot_be_shown_is_waited_for(name, text, message, tmp_path):
    watched = watching.Watched(tmp_path / "run")
    assert b"Waiting: run" in watched.latest()[0]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(text)
    watched = watching.Watched(tmp_path / "run")
    page, _ = watched.latest()
    assert b"Waiting: run" in page
    assert message in page.decode()


def test_a_page_is_not_made_again_while_it_rests(tmp_path, monkeypatch):
    made, now = [], [0.0]

    def page_of(*_, **__):
        made.append(now[0])
        now[0] += 2.0  # what it takes
        return "page"

    monkeypatch.setattr(watching, "page_of", page_of)
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    watched, file = watching.Watched(tmp_path), tmp_path / "steps.jsonl"
    for second in range(60):
        now[0] = max(now[0], float(second))
        if second < 30:
            file.write_text(line(1) * (second + 1))
        watched.latest()
    assert made == [0.0, 22.0, 44.0]  # the last one after the last change, then none


def test_a_follower_reads_each_line_once(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text(line(1) + line(2)[:7])
    follower = Follower(path)
    first = follower.read()
    with path.open("a") as file:
        file.write(line(2)[7:] + "\n" + line(3))
    second = follower.read()
    assert [len(first), *(row["step"] for row in second)] == [1, 1, 2, 3]
    assert second[0] is first[0]
    assert second == read_rows(path)


@pytest.mark.parametrize("steps", [[1], [1, 2], [1, 2, 3, 4, 5], []])
def test_a_follower_sees_that_a_run_went_on_from_before(steps, tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(map(line, (1, 2, 3))))
    follower = Follower(path)
    follower.read()
    path.write_text("".join(line(step).replace("0.1", "0.2") for step in steps))
    assert [row["step"] for row in follower.read()] == steps
    assert all(row["learning_rate"] == 0.2 for row in follower.read())


def test_following_costs_what_is_new(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(map(line, range(1, 100_001))))
    follower = Follower(path)
    follower.read()
    with path.open("a") as file:
        file.write(line(100_001))
    read = []
    parse = follower._row
    follower._row = lambda text: read.append(text) or parse(text)
    assert len(follower.read()) == 100_001
    assert len(read) == 2  # the new line, and the empty rest


def test_a_taken_port_and_a_file_are_one_line(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["watch", str(tmp_path), "--port", port]) == 2
    assert "pass another one as `--port`, 0 for any" in capsys.readouterr().err
    for port in ("-1", "65536"):
        assert cli.main(["watch", str(tmp_path), "--port", port]) == 2
    (tmp_path / "steps.jsonl").touch()
    assert cli.main(["watch", str(tmp_path / "steps.jsonl"), "--port", "0"]) == 2
    assert f"must be a folder: pass `{tmp_path}`" in capsys.readouterr().err


def test_ctrl_c_ends_it(tmp_path):
    # A shell that runs the tests in the background has its children ignore SIGINT.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from optax_meta.cli import main; main()"
    command = [sys.executable, "-c", code, "watch", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline()
        port = int(address.rpartition("127.0.0.1:")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port)):  # an idle one must not hold it up
            time.sleep(0.1)
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(60) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
