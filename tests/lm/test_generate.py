"""Generation against onnxruntime's greedy tokens, and against itself: alone, in batches, after reuse, with drafts."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from lm_tools import CONTEXT, write_decoder

from edgec.errors import EdgecError

PROMPTS = [
    "The quick brown",
    "A language model",
    "日本語",
    "x",
    "The quick brown fox jumps over the lazy dog. The quick",
]
pytestmark = pytest.mark.filterwarnings("ignore:this model has no key-value cache")


@pytest.fixture(scope="module")
def oracle(folder):
    """Greedy tokens by onnxruntime, each from the whole text: no cache that could be wrong."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    empty = {i.name: np.zeros((1, 2, 0, 16), np.float32) for i in session.get_inputs() if len(i.shape) == 4}

    def run(ids: list[int], count: int) -> list[int]:
        tokens = list(ids)
        for _ in range(count):
            n = len(tokens)
            feeds = {"input_ids": [tokens], "attention_mask": [[1] * n], "position_ids": [list(range(n))]}
            logits = session.run(["logits"], {k: np.array(v, np.int64) for k, v in feeds.items()} | empty)[0]
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] == 0:
                return tokens[len(ids) : -1]
        return tokens[len(ids) :]

    return run


@pytest.mark.parametrize("kind", ["state", "exposed", "none"])
def test_greedy_tokens_are_onnxruntimes(load, oracle, kind):
    lm = load(kind)
    for prompt in PROMPTS:
        ids = lm.tokenize(prompt)
        wanted = oracle(ids, 24)
        generation = lm.generate(prompt, 24)
        text = "".join(generation)
        assert generation.tokens == wanted
        assert text == lm.detokenize([*ids, *wanted])[len(prompt) :]
        assert list(lm.generate(ids=ids, max_tokens=24)) == wanted
        assert generation.finish_reason == ("length" if len(wanted) == 24 else "stop")


@pytest.mark.parametrize("kind", ["state", "exposed"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 5}, {"temperature": 2.0, "seed": 1}]
)
def test_a_batch_gives_what_each_gives_alone(load, kind, options):
    alone = [["".join(load(kind).generate(p, 20, **options))] for p in PROMPTS]
    assert [[t] for t in load(kind, slots=3).generate_batch(PROMPTS, 20, **options)] == alone


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 3}, {"repetition_penalty": 1.3}])
def test_speculation_changes_nothing(load, options):
    lm = load()
    # a pace at which drafts always pay off
    lm.engine._pace.cost = lambda positions: 1.0
    drafted = 0
    for prompt in [*PROMPTS, "dog dog dog dog dog dog"]:
        plain = list(lm.generate(ids=lm.tokenize(prompt), max_tokens=60, speculate=False, **options))
        fast = lm.generate(ids=lm.tokenize(prompt), max_tokens=60, **options)
        assert list(fast) == plain
        drafted += fast.timings["drafted"]
        assert fast.timings["accepted"] <= fast.timings["drafted"]
    assert drafted > 0


def test_speculation_stops_where_it_does_not_pay(load):
    lm = load()
    lm.engine._pace.cost = lambda positions: float(positions)
    generation = lm.generate("dog dog dog dog dog dog", 60)
    list(generation)
    assert generation.timings["drafted"] == 0


def test_a_prompt_in_pieces_is_the_prompt(load, oracle):
    lm = load()
    ids = (lm.tokenize("The quick brown fox, déjà vu. ") * 20)[:150]
    lm.engine._piece = lambda seconds: 16
    first = lm.generate(ids=lm.tokenize("A language"), max_tokens=40)
    next(first)
    second = lm.generate(ids=ids, max_tokens=6)
    steps = 0
    while not second._sequence.tokens[len(ids) :]:
        before = first._sequence.count
        lm.engine.step()
        steps += 1
        assert first._sequence.count > before  # nobody waits for the long prompt
    assert steps >= 9
    assert list(second) == oracle(ids, 6)
    assert first.tokens + list(first) and list(first) == []


@pytest.mark.parametrize("kind", ["state", "exposed", "none"])
def test_common_prefixes_are_reused(load, oracle, kind):
    lm = load(kind, slots=2)
    base = lm.tokenize("The quick brown fox jumps over the lazy dog. A language model continues") * 2
    list(lm.generate(ids=base, max_tokens=8))
    again = lm.generate(ids=[*base, 30, 31, 32], max_tokens=8)
    assert list(again) == oracle([*base, 30, 31, 32], 8)
    assert again.reused == len(base)
    other = lm.generate(ids=[40, 41, 42], max_tokens=8)
    assert list(other) == oracle([40, 41, 42], 8)
    assert other.reused == 0
    third = lm.generate(ids=[*base[:20], 50], max_tokens=8)
    assert list(third) == oracle([*base[:20], 50], 8)
    assert third.reused == 20
    # a busy sequence's prefix is copied
    running = lm.generate(ids=base, max_tokens=30)
    next(running)
    beside = lm.generate(ids=[*base[:18], 60], max_tokens=8)
    assert list(beside) == oracle([*base[:18], 60], 8)
    assert beside.reused == 18


def test_session_calls_do_not_disturb_a_generation(load, oracle):
    lm = load()
    ids = lm.tokenize(PROMPTS[0])
    generation = lm.generate(ids=ids, max_tokens=12)
    got = [next(generation) for _ in range(4)]
    feeds = {"input_ids": [[5, 6, 7]], "attention_mask": [[1, 1, 1]], "position_ids": [[0, 1, 2]]}
    lm.run(["logits"], {k: np.array(v, np.int64) for k, v in feeds.items()})
    assert got + list(generation) == oracle(ids, 12)


def test_closing_frees_the_slot(load):
    lm = load(slots=1)
    generation = lm.generate("The quick", 200)
    next(generation)
    generation.close()
    assert generation.finish_reason == "cancelled" and not lm.engine.active
    list(generation)
    dropped = lm.generate("The quick", 200)
    next(dropped)
    del dropped
    gc.collect()
    waiting = lm.generate("A", 3)
    waiting.close()
    assert waiting.finish_reason == "cancelled"
    assert len(list(lm.generate(ids=[5], max_tokens=3, ignore_eos=True))) == 3
    assert not lm.engine.busy


def test_threads_share_the_engine(load, oracle):
    lm = load(slots=3)
    prompts = [[5 + i, 6, 7] for i in range(6)]
    results: dict[int, list[int]] = {}

    def work(i: int) -> None:
        results[i] = list(lm.generate(ids=prompts[i], max_tokens=15))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {i: oracle(p, 15) for i, p in enumerate(prompts)}


def test_text_ends_before_a_stop_string(load):
    lm = load()
    whole = "".join(lm.generate("The quick", 40))
    for begin, end in ((3, 7), (10, 11), (0, 4), (17, 29)):
        stop = whole[begin:end]
        generation = lm.generate("The quick", 40, stop=["no such text", stop])
        assert "".join(generation) == whole[: whole.index(stop)]
        assert generation.finish_reason == "stop"
    assert "".join(lm.generate("The quick", 40, stop=whole[-1] + "?")) == whole


def test_context_and_lengths(load):
    lm = load(max_context=32)
    generation = lm.generate(ids=[7] * 20, max_tokens=100, ignore_eos=True)
    assert len(list(generation)) == 12 and generation.finish_reason == "length"
    assert load().context == CONTEXT
    assert len(list(lm.generate(ids=[7] * 31, max_tokens=100, ignore_eos=True))) == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"prompt": ""}, "EC1001"),
        ({"ids": []}, "EC1001"),
        ({"ids": [10**6]}, "EC1001"),
        ({"ids": [-1]}, "EC1001"),
        ({}, "EC1001"),
        ({"prompt": "a", "ids": [1]}, "EC1001"),
        ({"prompt": 5}, "EC1001"),
        ({"ids": [1] * CONTEXT}, "EC1608"),
        ({"prompt": "word " * 3000}, "EC1608"),
        ({"prompt": "x" * 10**6}, "EC1608"),
        ({"prompt": "a", "max_tokens": 0}, "EC1001"),
        ({"prompt": "a", "max_tokens": -5}, "EC1001"),
        ({"prompt": "a", "max_tokens": 2.5}, "EC1001"),
        ({"prompt": "a", "temperature": -1}, "EC1001"),
        ({"prompt": "a", "temperature": float("nan")}, "EC1001"),
        ({"prompt": "a", "temperature": "hot"}, "EC1001"),
        ({"prompt": "a", "top_p": 0}, "EC1001"),
        ({"prompt": "a", "top_p": 1.5}, "EC1001"),
        ({"prompt": "a", "top_k": -1}, "EC1001"),
        ({"prompt": "a", "min_p": 2}, "EC1001"),
        ({"prompt": "a", "repetition_penalty": 0}, "EC1001"),
        ({"prompt": "a", "seed": 1.5}, "EC1001"),
        ({"prompt": "a", "stop": [""]}, "EC1001"),
        ({"prompt": "a", "logit_bias": {9999: 1}}, "EC1001"),
        ({"prompt": "a", "temprature": 1}, "EC1001"),
        ({"prompt": "a", "schema": "{"}, "EC1704"),
        ({"prompt": "a", "schema": {"type": "nonsense"}}, "EC1704"),
    ],
)
def test_bad_calls_are_one_error_and_the_model_goes_on(load, options, code):
    lm = load()
    with pytest.raises(EdgecError) as caught:
        lm.generate(**options)
    assert caught.value.code == code
    assert not lm.engine.busy
    assert len(list(lm.generate(ids=[5, 6], max_tokens=3, ignore_eos=True))) == 3


def test_logits_that_are_no_numbers(folder, tmp_path):
    import edgec

    write_decoder(tmp_path / "nan.onnx", 400, poison=9)
    edgec.build(tmp_path / "nan.onnx", weights="fp32", out=tmp_path / "nan.edgec")
    lm = edgec.load(tmp_path / "nan.edgec", threads=1)
    for options in ({}, {"temperature": 1.0}):
        with pytest.raises(EdgecError) as caught:
            list(lm.generate(ids=[5, 9, 6], max_tokens=3, **options))
        assert caught.value.code == "EC1703"
    assert len(list(lm.generate(ids=[5, 6], max_tokens=3, ignore_eos=True))) == 3
    with pytest.raises(EdgecError) as caught:
        lm.generate("no tokenizer beside it")
    assert caught.value.code == "EC1701"


def test_log_probabilities(load):
    lm = load()
    ids = lm.tokenize("The quick")
    generation = lm.generate(ids=ids, max_tokens=4, logprobs=3, ignore_eos=True)
    tokens = [t for delta in generation.deltas() for t in delta.tokens]
    n = len(ids)
    feeds = {"input_ids": [ids], "attention_mask": [[1] * n], "position_ids": [list(range(n))]}
    logits = lm.run(["logits"], {k: np.array(v, np.int64) for k, v in feeds.items()})[0][0, -1].astype(np.float64)
    wanted = logits - np.log(np.exp(logits).sum())
    order = np.argsort(-wanted)[:3]
    assert [t for t, _ in tokens[0].top] == order.tolist()
    np.testing.assert_allclose([p for _, p in tokens[0].top], wanted[order], rtol=1e-5)
    assert tokens[0].logprob == tokens[0].top[0][1]


def test_a_schema_is_followed(load):
    import json

    lm = load()
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "ok": {"type": "boolean"},
            "n": {"enum": [1, 22, 333]},
        },
        "required": ["name", "ok", "n"],
        "additionalProperties": False,
    }
    for seed in range(4):
        generation = lm.generate("JSON: ", 200, schema=schema, temperature=1.0, seed=seed)
        found = json.loads("".join(generation))
        assert generation.finish_reason == "stop"
        assert set(found) == {"name", "ok", "n"} and len(found["name"]) <= 8 and found["n"] in (1, 22, 333)
        assert isinstance(found["ok"], bool)


def test_conversations_reuse_and_forget(load):
    lm = load(slots=1)
    talk = lm.conversation("Be brief.", max_tokens=8)
    for turn in range(12):
        "".join(talk.say(f"Question {turn}?"))
        assert talk.last.prompt_tokens + 8 <= CONTEXT
        if 0 < turn < 3:
            assert talk.last.reused > 20
    assert talk.forgotten > 0 and talk.messages[0]["role"] == "system"
    talk.reset()
    assert [m["role"] for m in talk.messages] == ["system"]
    with pytest.raises(EdgecError):
        talk.say("word " * 1000)
    assert len(talk.messages) == 1
    with pytest.raises(EdgecError) as caught:
        lm.chat([{"role": "wizard", "content": "hi"}])
    assert caught.value.code == "EC1702" and "no role wizard" in caught.value.message
    for messages in ([], "hi", [{"content": "x"}], [{"role": "user"}], [{"role": "user", "content": 5}]):
        with pytest.raises(EdgecError) as caught:
            lm.chat(messages)
        assert caught.value.code == "EC1001"
