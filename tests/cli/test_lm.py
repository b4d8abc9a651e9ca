"""generate, chat and bench on a small decoder: arguments, pipes, a terminal."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time

import pytest
from lm_tools import write_folder

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    import edgec

    folder = write_folder(tmp_path_factory.mktemp("lm") / "tiny")
    edgec.build(folder, weights="fp32", out=folder / "lm.edgec")
    return folder / "lm.edgec"


def run(*argv, text: str = "", **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "edgec.cli", *map(str, argv)]
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environment, timeout=60, **options)


def test_generate(edgec, lm):
    import edgec as package

    wanted = "".join(package.load(lm).generate("The quick", 12))
    assert edgec("generate", lm, "The quick", "-n", 12).out == wanted + "\n"
    found = edgec("generate", lm, "The quick", "-n", 12, "--json").json
    assert found["text"] == wanted and found["tokens"] == len(found["ids"]) == 12
    assert found["finish_reason"] == "length" and found["ttft_ms"] > 0 and found["decode_tok_s"] > 0
    assert run("generate", lm, "-n", 12, text="The quick").stdout == wanted + "\n"
    ids = edgec("generate", lm, "--ids", "5,6,7", "-n", 3, "--json").json
    assert len(ids["ids"]) == 3 and "text" not in ids
    sampled = [edgec("generate", lm, "a", "--temperature", 1.5, "--seed", s, "-n", 12).out for s in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_generate_chat_and_schema(edgec, lm):
    done = edgec("generate", lm, "Hello", "--chat", "--system", "Be brief.", "-n", 5, "--json")
    assert done.status == 0 and done.json["prompt_tokens"] > 10
    schema = (
        '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false}'
    )
    assert json.loads(edgec("generate", lm, "x", "--schema", schema).out)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("argv", "status", "code"),
    [
        (["x", "-n", 0], 2, "EC1001"),
        (["x", "--temperature", -1], 2, "EC1001"),
        ([""], 2, "EC1001"),
        (["x", "--ids", "1"], 2, "EC1001"),
        (["--ids", "1,x"], 2, "EC1001"),
        (["x", "--system", "y"], 2, "EC1001"),
        (["word " * 3000], 1, "EC1608"),
        (["x", "--schema", "{"], 1, "EC1704"),
        (["x", "--schema", "none.json"], 2, "EC1003"),
        (["x", "--top-p", 0.5], 2, "EC1001"),
    ],
)
def test_generate_refuses_with_one_message(edgec, lm, argv, status, code):
    done = edgec("generate", lm, *argv)
    assert (done.status, done.err.split()[1]) == (status, code)
    assert done.err.count("\n") == 1


def test_no_language_model(edgec, mlp_artifact):
    for command in (["generate", mlp_artifact, "x"], ["chat", mlp_artifact]):
        done = edgec(*command)
        assert (done.status, done.err.split()[1]) == (2, "EC1001")


def test_chat_line_by_line_from_a_pipe(lm):
    done = run("chat", lm, "-n", 6, text="Hello\n\n/reset\nHello\n/nonsense\n")
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split("\n")
    assert len(answers) >= 2 and "forgotten" in done.stderr and "/nonsense" in done.stderr
    rows = [json.loads(line) for line in run("chat", lm, "-n", 6, "--json", text="Hello\nAgain\n").stdout.splitlines()]
    assert [set(r) >= {"text", "finish_reason", "tokens"} for r in rows] == [True, True]
    assert rows[1]["reused_tokens"] > 0
    bad = run("chat", lm, "-n", 3, text="word " * 3000 + "\nHello\n")
    assert bad.returncode == 1 and "EC1608" in bad.stderr and bad.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo terminals")
def test_chat_in_a_terminal(lm):
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
        os.execv(sys.executable, [sys.executable, "-m", "edgec.cli", "chat", str(lm), "-n", "200", "--threads", "1"])
    seen = ""

    def until(text: str, after: int = 0) -> int:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen[after:]:
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")
        return seen.index(text, after) + len(text)

    try:
        at = until("> ")
        os.write(terminal, b"Hello\n")
        at = until("tokens, ", at)
        at = until("> ", at)
        time.sleep(0.5)  # it has written the prompt, and now it reads
        os.kill(pid, signal.SIGINT)  # at the prompt: says how to end, and goes on
        at = until("Ctrl-D", at)
        os.write(terminal, b"/reset\n")
        at = until("forgotten", at)
        os.write(terminal, b"/help\n")
        until("/system", at)
        os.write(terminal, b"/exit\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
    assert "Traceback" not in seen


def test_an_interrupt_ends_the_answer_only(lm):
    import edgec
    from edgec.cli import chat

    class Out:
        def __init__(self):
            self.text = ""

        def print(self, text, **_):
            self.text += text
            if len(self.text) > 20 and not self.pressed:
                self.pressed = True
                os.kill(os.getpid(), signal.SIGINT)

        def status(self, *_, **__):
            import contextlib

            return contextlib.nullcontext()

        pressed = False

    talk, out = edgec.load(lm, threads=1).conversation(max_tokens=150, ignore_eos=True), Out()
    chat._answer(talk, "Hello", out)
    assert "stopped" in out.text and talk.last.finish_reason == "cancelled"
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]
    assert "".join(talk.say("Again", max_tokens=5))


def test_bench(edgec, lm):
    sizes = ("--prompt-tokens", 32, "--decode-tokens", 8, "--runs", 2, "--threads", 1)
    found = edgec("bench", lm, *sizes, "--json", "--profile").json
    for key in ("decode_tok_s", "prefill_tok_s", "ttft_ms", "weight_bytes_per_token", "peak_rss_mb"):
        assert found[key] > 0
    assert (found["prefill_tokens"], found["threads"], found["decode_context"]) == (32, 1, 32)
    assert {s["kind"] for s in found["steps"]} >= {"kernel"}
    # an fp32 table is looked up, everything else is read
    table = 4 * 400 * 64
    weights = (lm.parent / "model.onnx").stat().st_size
    assert 0.7 * (weights - table) < found["weight_bytes_per_token"] < 1.3 * (weights - table)
    shown = edgec("bench", lm, *sizes, "--context", 100).out
    for text in ("pp32", "pp128", "tg8 @ d100", "±", "MiB", "params"):
        assert text in shown
    assert edgec("bench", lm, "--context", 1000).status == 2
    assert edgec("bench", lm, "--dim", "batch=1", "--seconds", 0.1).status in (0, 2)
