"""`edgec serve` as its clients see it: the openai package and plain HTTP against a server process on this machine."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("tvm")

from lm_tools import write_folder  # noqa: E402

import edgec  # noqa: E402

SLOTS = 3


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("lm"))
    out = folder / "tiny.edgec"
    from edgec.cli import main

    assert main(["build", str(folder), "-o", str(out), "--no-check", "--json"]) == 0
    return out


class Server:
    def __init__(self, *arguments: str, **environment: str) -> None:
        self.clients: list = []
        command = [sys.executable, "-m", "edgec.cli", "serve", *map(str, arguments), "--port", "0", "--json"]
        env = {k: v for k, v in os.environ.items() if k != "EDGEC_API_KEY"} | environment
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.url = json.loads(line)["url"]

    def client(self, key: str = "none"):
        client = openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0, timeout=60)
        self.clients.append(client)
        return client

    def http(self, method: str, path: str, body: bytes | None = None, **headers: str):
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response, data

    def post(self, path: str, value, **headers: str):
        return self.http("POST", path, json.dumps(value).encode(), **({"Content-Type": "application/json"} | headers))

    def metric(self, name: str) -> float:
        lines = self.http("GET", "/metrics")[1].decode().splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[-1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        out = self.process.communicate(timeout=30)
        for client in self.clients:
            client.close()
        self.errors = out[1]
        return self.process.returncode


@pytest.fixture(scope="module")
def server(artifact):
    running = Server(artifact, "--model-name", "tiny", "--max-concurrency", str(SLOTS), "--max-queue", "6",
                     "--max-body", "20000")  # fmt: skip
    yield running
    assert running.stop() == 0 and "Traceback" not in running.errors, running.errors


MESSAGES = [{"role": "user", "content": "Say something."}]


def test_models(server):
    client = server.client()
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "edgec"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert json.loads(server.http("GET", "/health")[1]) == {"status": "ok"}


def test_chat_is_what_python_gives(server, artifact):
    want = edgec.load(artifact).chat(MESSAGES, max_tokens=12)
    text = "".join(want)
    got = server.client().chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=12)
    assert got.choices[0].message.content == text and got.choices[0].finish_reason == want.finish_reason
    assert got.usage.completion_tokens == len(want.tokens) and got.usage.prompt_tokens == want.prompt_tokens


def test_stream_joins_to_the_whole(server):
    client = server.client()
    asked = {"model": "tiny", "messages": MESSAGES, "temperature": 0.9, "seed": 5, "max_tokens": 20}
    whole = client.chat.completions.create(**asked)
    events = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [e.choices[0].delta.content or "" for e in events if e.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens and not events[-1].choices
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == whole.choices[0].finish_reason


def test_completions(server):
    client = server.client()
    got = client.completions.create(model="tiny", prompt=["The fox", [5, 6, 7]], n=2, max_tokens=8, temperature=0.8,
                                    seed=3, logprobs=2)  # fmt: skip
    assert [c.index for c in got.choices] == [0, 1, 2, 3]
    assert got.choices[0].text != got.choices[1].text, "each choice has a seed of its own"
    found = got.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) and all(p <= 0 for p in found.token_logprobs)
    assert all(len(t) <= 2 for t in found.top_logprobs) and found.text_offset[0] == 0
    again = client.completions.create(model="tiny", prompt="The fox", max_tokens=8, temperature=0.8, seed=3)
    assert again.choices[0].text == got.choices[0].text


def test_stop_and_schema(server):
    client = server.client()
    whole = client.completions.create(model="tiny", prompt="The", max_tokens=16, temperature=0).choices[0].text
    stop = whole[4:6]
    got = client.completions.create(model="tiny", prompt="The", max_tokens=16, temperature=0, stop=stop).choices[0]
    assert got.text == whole[: whole.index(stop)] and got.finish_reason == "stop"
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    got = client.chat.completions.create(model="tiny", messages=MESSAGES, response_format=form, max_tokens=200, n=2)
    for choice in got.choices:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content)["ok"], bool)


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"n": 100}, 400, "n"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ({"colour": "red"}, 400, "colour"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"stop": [""]}, 400, "stop"),
        ({"response_format": {"type": "xml"}}, 400, "response_format"),
        ({"messages": [{"role": "user", "content": "long " * 2000}]}, 400, "prompt"),
    ],
)
def test_what_is_wrong_is_named(server, change, status, param):
    response, data = server.post("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES} | change)
    error = json.loads(data)["error"]
    assert response.status == status and error["param"] == param and error["message"] and error["code"], data


def test_bodies(server):
    assert server.http("POST", "/v1/completions", b"{", **{"Content-Type": "application/json"})[0].status == 400
    assert server.http("POST", "/v1/completions", b"{}", **{"Content-Type": "text/plain"})[0].status == 415
    nested = b"[" * 15000
    assert server.http("POST", "/v1/completions", nested, **{"Content-Type": "application/json"})[0].status == 400
    response, data = server.post("/v1/completions", {"model": "tiny", "prompt": "x" * 30000})
    assert response.status == 413 and json.loads(data)["error"]["code"] == "body_too_large"
    assert server.http("GET", "/v1/chat/completions")[0].status == 405
    assert json.loads(server.http("GET", "/nowhere")[1])["error"]["message"]


@pytest.mark.parametrize(
    "change", ['"prompt":"\\ud800"', '"model":"\\ud800"', '"\\ud800":1', '"temperature":1' + "0" * 400, '"top_p":NaN']
)
def test_values_no_client_sends(server, change):
    body = '{"model":"tiny","prompt":"a",' + change + "}"
    response, data = server.http("POST", "/v1/completions", body.encode(), **{"Content-Type": "application/json"})
    assert response.status == 400 and json.loads(data)["error"]["message"], data


def test_address_is_told_once_it_answers(artifact):
    running = Server(artifact, "--model-name", "tiny")
    try:
        assert running.http("GET", "/health")[0].status == 200
    finally:
        assert running.stop() == 0


def test_another_sites_name_is_refused(server):
    assert server.http("GET", "/v1/models", Host="evil.example")[0].status == 421
    assert server.http("GET", "/v1/models", Host="localhost:1")[0].status == 200


def test_clients_are_not_mixed_up(server):
    """More clients than slots: each gets what a lone one gets."""
    client = server.client()
    prompts = [f"Client {i} says {i * 37}" for i in range(8)]

    def ask(prompt):
        return client.completions.create(model="tiny", prompt=prompt, max_tokens=24, temperature=0).choices[0].text

    alone = [ask(p) for p in prompts]
    assert len(set(alone)) > 4
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(ask, prompts)) == alone


def test_full_queue(server):
    """A flood is answered: some are served, the others told to come again."""

    def ask(i):
        asked = {
            "model": "tiny",
            "prompt": f"number {i}",
            "max_tokens": 200,
            "temperature": 1,
            "logit_bias": {"0": -100},
        }
        response, _ = server.post("/v1/completions", asked)
        return response.status, response.getheader("Retry-After")

    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(ask, range(30)))
    assert {s for s, _ in found} <= {200, 429} and sum(s == 200 for s, _ in found) >= SLOTS
    assert all(after for status, after in found if status == 429)
    assert server.post("/v1/completions", {"model": "tiny", "prompt": "after"})[0].status == 200


def test_client_that_leaves(server):
    """Its slot is free soon, whether it streamed or waited."""
    for stream in (True, False):
        body = json.dumps({"model": "tiny", "prompt": "The", "max_tokens": 230, "temperature": 1, "stream": stream,
                           "logit_bias": {"0": -100}}).encode()  # fmt: skip
        for _ in range(SLOTS + 2):
            with socket.create_connection(urlsplit(server.url).netloc.split(":"), timeout=10) as raw:
                raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                            b"Content-Length: %d\r\n\r\n" % len(body) + body)  # fmt: skip
                if stream:
                    assert raw.recv(64).startswith(b"HTTP/1.1 200")
        end, free = time.monotonic() + 20, 0
        while free < 10 and time.monotonic() < end:  # the last ones may not have been taken in yet
            time.sleep(0.05)
            free = 0 if server.metric("edgec_sequences") else free + 1
        assert free == 10


def test_key(artifact):
    running = Server(artifact, "--model-name", "tiny", EDGEC_API_KEY="secret")
    try:
        with pytest.raises(openai.AuthenticationError):
            running.client("wrong").models.list()
        assert running.http("GET", "/metrics")[0].status == 401
        assert [m.id for m in running.client("secret").models.list()] == ["tiny"]
        assert running.http("GET", "/")[0].status == 200, "the page asks for the key itself"
    finally:
        assert running.stop() == 0


def test_shutdown_ends_streams(artifact):
    running = Server(artifact, "--model-name", "tiny")
    stream = running.client().completions.create(model="tiny", prompt="The", max_tokens=200, stream=True, temperature=1)
    next(iter(stream))
    try:
        code = running.stop()
    finally:
        stream.close()
    assert code == 0 and "Traceback" not in running.errors, running.errors


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "at least one artifact"),
        (["FILE", "--host", "0.0.0.0"], "there is no key"),
        (["FILE", "--port", "70000"], "no port"),
        (["FILE", "--max-concurrency", "0"], "--max-concurrency"),
        (["FILE", "FILE"], "two models are called"),
        (["missing.edgec"], "missing.edgec"),
    ],
)
def test_calls_that_are_wrong(artifact, arguments, part, capsys, monkeypatch):
    from edgec.cli import main

    monkeypatch.delenv("EDGEC_API_KEY", raising=False)
    assert main(["serve", *(str(artifact) if a == "FILE" else a for a in arguments)]) in (1, 2)
    assert part in capsys.readouterr().err


def test_embeddings(tmp_path):
    """An encoder of its own: vectors of length 1, the same text the same vector whatever stands beside it."""
    import numpy as np
    from lm_tools import tokenizer_json
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(2)
    table = numpy_helper.from_array(rng.standard_normal((400, 24)).astype(np.float32), "table")
    ids, mask = (
        helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in ("input_ids", "attention_mask")
    )
    out = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["b", "s", 24])
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["g"]),
             helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
             helper.make_node("Unsqueeze", ["m", "two"], ["u"]), helper.make_node("Mul", ["g", "u"], ["hidden"])]  # fmt: skip
    two = numpy_helper.from_array(np.array([2], np.int64), "two")
    save(helper.make_model(helper.make_graph(nodes, "g", [ids, mask], [out], [table, two]),
                           opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "model.onnx")  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    from edgec.cli import main

    path = tmp_path / "encoder.edgec"
    assert main(["build", str(tmp_path), "-o", str(path), "--weights", "fp32", "--no-check", "--json"]) == 0
    running = Server(path)
    try:
        client = running.client()
        got = client.embeddings.create(model="encoder", input=["a lazy dog", "cafés", "a lazy dog"])
        vectors = np.array([d.embedding for d in got.data])
        assert vectors.shape == (3, 24) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert np.array_equal(vectors[0], vectors[2]) and got.usage.prompt_tokens > 3
        response, data = running.post("/v1/embeddings", {"model": "encoder", "input": ""})
        assert response.status == 400, data
        for ids in ([1 << 70], [-1], [399, 400]):
            response, data = running.post("/v1/embeddings", {"model": "encoder", "input": ids})
            assert response.status == 400, data
        response, _ = running.post("/v1/chat/completions", {"model": "encoder", "messages": MESSAGES})
        assert response.status == 404
    finally:
        assert running.stop() == 0
