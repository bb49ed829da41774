"""A reward over HTTP: what is sent, and every way in which an answer can fail."""

import http.server
import importlib.util
import json
import pickle
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import share_of_a, text_dataset, text_processor, tiny_model

from vision_rl import RemoteReward, VisionRewardConfig, VisionRewardTrainer
from vision_rl.remote_reward import RemoteRewardError


EXAMPLE = Path(__file__).parents[1] / "examples" / "reward_server.py"
TEXTS = ["cab", "ab", "b"]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Pauses between two attempts are not slept, but recorded."""
    slept = []
    monkeypatch.setattr("vision_rl.remote_reward.time.sleep", slept.append)
    return slept


@pytest.fixture
def server():
    """A function that starts a server. Its arguments give the answers in turn; the last one gives all further answers."""
    started = []

    def start(*answers):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                asked.append(question := json.loads(body))
                answers[min(len(asked), len(answers)) - 1](self, question)

            def log_message(self, *args):
                pass

        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(made)
        return f"http://127.0.0.1:{made.server_port}/score?key=secret", asked

    yield start
    for made in started:
        made.shutdown()
        made.server_close()


def send(handler, body, status=200):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def saying(body: bytes, status: int = 200):
    return lambda handler, question: send(handler, body, status)


def of(rewards, **more):
    return lambda handler, question: send(
        handler, json.dumps({"id": question["id"], "rewards": rewards, **more}).encode()
    )


def right(handler, question):
    of(share_of_a(question["completions"]))(handler, question)


def drops(handler, question):
    handler.connection.shutdown(socket.SHUT_RDWR)


def cuts(handler, question):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"rewards": [')


def drips(handler, question):
    """Sends a byte now and then, each before the timeout."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(400):
            handler.wfile.write(b" ")
            threading.Event().wait(0.05)
    except OSError:
        pass


def waits(handler, question):
    threading.Event().wait(3)
    drops(handler, question)


def ask(url, completions=TEXTS, **options):
    options = {"columns": (), "retries": 0, **options}
    return RemoteReward(url, **options)(completions=completions)


# --- asking -----------------------------------------------------------------------------------------------------------


def test_completions_and_columns_are_asked_about_in_batches(server):
    url, asked = server(right)
    reward = RemoteReward(url, columns=("references", "boxes"), batch=2)
    boxes = [np.eye(2), torch.ones(1), [np.float32(0.5)]]
    assert reward(completions=TEXTS, references=["x", "y", "z"], boxes=boxes, other=[1]) == [1 / 3, 1 / 2, 0]
    assert [question["completions"] for question in asked] == [["cab", "ab"], ["b"]]
    assert asked[0]["boxes"] == [[[1, 0], [0, 1]], [1]] and asked[1]["references"] == ["z"]
    assert asked[0]["id"] != asked[1]["id"] and set(asked[0]) == {"id", "completions", "references", "boxes"}


def test_null_is_none_and_a_pickled_reward_asks_the_same(server):
    url, _ = server(of([None, 1, 2.5]))
    reward = pickle.loads(pickle.dumps(RemoteReward(url, columns=())))
    assert reward(completions=TEXTS) == [None, 1, 2.5]


def test_headers_are_sent_and_never_shown(server):
    seen = []
    url, _ = server(
        lambda handler, question: (seen.append(handler.headers["Authorization"]), drops(handler, question))
    )
    with pytest.raises(RemoteRewardError) as info:
        ask(url, headers={"Authorization": "Bearer hidden"})
    assert seen == ["Bearer hidden"]
    assert "hidden" not in str(info.value) and "secret" not in str(info.value)


def test_what_is_no_json_or_too_large_is_told_before_it_is_sent(server):
    url, asked = server(right)
    with pytest.raises(
        TypeError,
        match="RemoteReward sends JSON, which cannot hold a object: choose the columns that are sent by `columns`",
    ):
        ask(url, [object()])
    with pytest.raises(ValueError, match="cannot send this as JSON: Out of range float"):
        ask(url, [float("nan")])
    with pytest.raises(
        ValueError, match="A question with 3 completions has .* bytes, more than most_bytes=50: lower `batch`"
    ):
        ask(url, most_bytes=50)
    assert not asked


# --- answers that do not come, or are wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble", [drops, cuts, drips, waits, saying(b"<html>"), saying(b"{}", 503), saying(b"{}", 429)]
)
def test_a_question_is_asked_again_with_the_same_id(server, trouble, no_pauses):
    url, asked = server(trouble, trouble, right)
    assert ask(url, retries=2, timeout=0.5) == [1 / 3, 1 / 2, 0]
    assert len(asked) == 3 and len({question["id"] for question in asked}) == 1
    assert no_pauses == [0.5, 1.0]


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (drops, "RemoteDisconnected"),
        (cuts, "the answer is not JSON: '{\"rewards\": \\['"),
        (drips, "no answer within 0.5 s"),
        (waits, "no answer within 0.5 s"),
        (saying(b"<html>" + b"x" * 999), "the answer is not JSON: '<html>x+'\\.\\.\\."),
        (saying(b"\xff\x00"), "the answer is not JSON"),
        (saying(b"[" * 9_000), "the answer is not JSON"),
        (saying(b"[1, 2, 3]"), 'the answer is not an object with a list "rewards": '),
        (
            saying(b'{"id": "another", "rewards": [1, 2, 3]}'),
            "the answer is to another question: its \"id\" is 'another'",
        ),
        (saying(b'{"rewards": [1, 2, NaN]}'), "the answer is not JSON"),
        (of([1, 2]), "the answer has 2 rewards for 3 completions"),
        (of([1, "2", 3]), "reward 1 of the answer is 2, not a finite number or null"),
        (of([1, True, 3]), "reward 1 of the answer is True"),
        (of([1, 10**400, 3]), "reward 1 of the answer is 1000"),
        (of([1, 2, 3], padding="x" * 20_000), "the answer has more than most_bytes=10,000 bytes"),
        (saying(b"no such model", 500), "status 500 Internal Server Error: 'no such model'"),
    ],
)
def test_an_error_says_what_was_asked_and_what_came_back(server, trouble, message):
    url, asked = server(trouble)
    told = rf"POST http://127.0.0.1:\d+/score with 3 completions \(\d+ bytes\) \(asked 2 times\): {message}"
    with pytest.raises(RemoteRewardError, match=told):
        ask(url, retries=1, timeout=0.5, most_bytes=10_000)
    assert len(asked) == 2


@pytest.mark.parametrize("status", [302, 400, 401, 404])
def test_a_question_that_is_refused_is_not_asked_again(server, status):
    url, asked = server(saying(b"no", status))
    with pytest.raises(RemoteRewardError, match=rf"bytes\): status {status} .*: 'no'"):
        ask(url, retries=3)
    assert len(asked) == 1


def test_an_answer_that_is_repeated_is_not_taken_for_the_next_one(server):
    """A proxy's cache might repeat an answer."""
    first = []

    def repeats(handler, question):
        first.append(json.dumps({"id": question["id"], "rewards": [7.0] * len(question["completions"])}).encode())
        send(handler, first[0])

    url, _ = server(repeats, repeats, right)
    assert ask(url, ["a", "b"], batch=1, retries=1) == [7.0, 0.0]


def test_a_server_that_is_not_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(RemoteRewardError, match=r"ConnectionRefusedError: .*refused"):
        ask(f"http://127.0.0.1:{port}")


def test_an_answer_in_pieces_is_one(server):
    def in_pieces(handler, question):
        handler.send_response(200)
        handler.end_headers()
        body = json.dumps({"id": question["id"], "rewards": [1, 2, 3]}).encode()
        for start in range(0, len(body), 7):
            handler.wfile.write(body[start : start + 7])
            handler.wfile.flush()

    url, _ = server(in_pieces)
    assert ask(url) == [1, 2, 3]


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("ftp://host", {}, "url must begin with http:// or https://"),
        ("127.0.0.1:8000", {}, "url must begin with"),
        ("http://", {}, "name a host"),
        ("http://host:port", {}, "[Pp]ort"),
        ("http://host", {"timeout": 0}, "timeout, batch and most_bytes must be positive"),
        ("http://host", {"retries": -1}, "retries must not be negative"),
        ("http://host", {"batch": 0}, "must be positive"),
    ],
)
def test_options_out_of_range(url, options, message):
    with pytest.raises(ValueError, match=message):
        RemoteReward(url, **options)


# --- in the trainer -------------------------------------------------------------------------------------------------------


def trainer(tmp_path, reward, **options) -> VisionRewardTrainer:
    args = VisionRewardConfig(
        str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=2,
        max_completion_length=6,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        **options,
    )
    return VisionRewardTrainer(
        tiny_model(), reward, args, train_dataset=text_dataset(16), processing_class=text_processor()
    )


def test_a_column_that_is_not_there_is_told_before_training(tmp_path):
    with pytest.raises(ValueError, match="The reward `RemoteReward` asks for a column that is not there"):
        trainer(tmp_path, RemoteReward("http://host", columns=("colour",)))


def test_tuning_by_a_server_is_tuning_by_its_function(tmp_path, server):
    url, _ = server(drops, right, right, saying(b"<html>"), right)
    logs = []
    for reward in (RemoteReward(url, retries=2, batch=3, name="share_of_a"), share_of_a):
        tuned = trainer(tmp_path, reward, reward_num_workers=1)
        tuned.train()
        logs.append([(log["reward"], log["loss"]) for log in tuned.state.log_history if "loss" in log])
    assert logs[0] == logs[1]


def test_the_example_server_scores_transcripts():
    if not EXAMPLE.exists():
        pytest.skip("the examples are not part of the installed package")
    spec = importlib.util.spec_from_file_location("reward_server", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), module.RewardHandler)
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{made.server_port}"
        assert RemoteReward(url)(completions=["4071", "12"], references=["4079", "12"]) == [0.75, 1.0]
        with pytest.raises(RemoteRewardError, match="status 400"):
            RemoteReward(url)(completions=[7], references=["4079"])
    finally:
        made.shutdown()
        made.server_close()


def test_no_thread_is_left_behind(server):
    url, _ = server(right)
    before = set(threading.enumerate())
    for _ in range(5):
        ask(url)
    left = {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)} - before
    for thread in left:
        thread.join(5)
    assert not any(thread.is_alive() for thread in left)
