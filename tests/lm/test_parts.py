"""The parts of generation against slow oracles: text as it comes, stop strings, sampling, look-up, folders, templates."""

from __future__ import annotations

import collections
import functools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_tools import TEMPLATE, tokenizer_json

from edgec.errors import EdgecError
from edgec.frontend import folder as folders
from edgec.runtime.generate.lookup import DRAFTS, Acceptance, Pace, PromptLookup
from edgec.runtime.generate.sampler import Sampler, Sampling, candidates, log_probabilities
from edgec.runtime.generate.template import ChatTemplate, find_template
from edgec.runtime.generate.text import Detokenizer, StopStrings, Tokenizer


@functools.cache
def byte_level() -> Tokenizer:
    return Tokenizer(tokenizer_json().encode())


@functools.cache
def sentencepiece() -> Tokenizer:
    """As Llama 2's: words begin with U+2581, unknown characters are bytes, the first space is taken off."""
    from tokenizers import Tokenizer as Raw
    from tokenizers import decoders, models, normalizers

    words = [f"▁{w}" for w in ("the", "a", "model")] + ["▁", "the", "model", "é", "s", "x"]
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    raw = Raw(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(raw.to_str().encode())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([byte_level, sentencepiece]), st.text(max_size=30), st.text(max_size=60))
def test_pieces_joined_are_the_text(make, prompt, text):
    tokenizer = make()
    before, ids = tokenizer.encode(prompt), tokenizer.encode(text)
    stream = Detokenizer(tokenizer, before)
    pieces = [stream.add(i) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :]
    assert "�" in text or not any("�" in p for p in pieces)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([byte_level, sentencepiece]), st.lists(st.integers(0, 264), max_size=40))
def test_any_tokens_become_text_in_time(make, ids):
    tokenizer = make()
    stream, waiting = Detokenizer(tokenizer), 0
    for i in ids:
        piece = stream.add(i)
        waiting = 0 if piece or not tokenizer.decode([i]) else waiting + 1
        assert waiting <= 16
    stream.finish()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_at_the_first(pieces, stops):
    whole, cut = "".join(pieces), StopStrings(stops)
    got = "".join(cut.add(p) for p in pieces)
    got += cut.finish()
    # the first that is complete decides, as a reader of the stream would see it
    for end in range(len(whole) + 1):
        hits = [whole[:end].find(s) for s in stops if s in whole[:end]]
        if hits:
            assert whole[: min(hits)].startswith(got) and cut.found is not None
            assert all(s not in got for s in stops)
            return
    assert got == whole and cut.found is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12),
    st.floats(0.05, 5),
    st.integers(0, 14),
    st.floats(0.05, 1),
    st.floats(0, 0.9),
)
def test_candidates_are_those_of_the_definition(logits, temperature, top_k, top_p, min_p):
    x = np.array(logits, np.float32)
    s = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=0)
    index, weights = candidates(x, s)
    p = {i: math.exp((float(v) - float(x.max())) / temperature) for i, v in enumerate(x)}
    order = sorted(p, key=lambda i: -p[i])
    kept = order[:top_k] if top_k else order
    total, nucleus, seen = sum(p[i] for i in kept), [], 0.0
    for i in kept:
        if seen < top_p * total * (1 - 1e-9) or not nucleus:
            nucleus.append(i)
        seen += p[i]
    wanted = {i for i in nucleus if p[i] >= min_p}
    # equal or nearly equal ones at a border may go either way
    clear = {i for i in p if all(abs(p[i] - p[j]) > 1e-6 for j in p if j != i) and abs(p[i] - min_p) > 1e-6}
    got = set(index.tolist())
    if min_p == 0 or top_p == 1:
        assert got & clear - set(nucleus[-1:]) == wanted & clear - set(nucleus[-1:])
    assert order[0] in got or p[order[0]] == p[index[0]]
    np.testing.assert_allclose(weights, [p[i] for i in index], rtol=1e-5)


def test_draws_follow_the_probabilities():
    x = np.log(np.array([0.5, 0.2, 0.2, 0.1], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=11), [], 4)
    counts = collections.Counter(sampler.choose(x) for _ in range(20000))
    for token, share in enumerate((0.5, 0.2, 0.2, 0.1)):
        assert abs(counts[token] / 20000 - share) < 0.015


def test_seeds_repeat_and_differ():
    x = np.zeros(1000, np.float32)

    def draws(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), [], 1000)
        return [sampler.choose(x) for _ in range(8)]

    assert draws(5) == draws(5) != draws(6)
    assert draws(-1) == draws(-1) and draws(None) != draws(None)


def test_penalties_and_bias():
    x = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    assert Sampler(Sampling(repetition_penalty=1.5), [0], 4).choose(x) == 1
    assert Sampler(Sampling(logit_bias={0: -5.0}), [], 4).choose(x) == 1
    sampler = Sampler(Sampling(frequency_penalty=0.06), [0, 0, 0], 4)  # the prompt does not count
    assert [sampler.choose(x) for _ in range(4)] == [0, 0, 1, 0]
    np.testing.assert_array_equal(x, np.array([2.0, 1.9, -1.0, -1.1], np.float32))


def test_log_probabilities_are_the_models():
    x = np.array([1.0, 3.0, 2.0], np.float32)
    wanted = x - np.log(np.exp(x).sum())
    own, top = log_probabilities(x, 0, 2)
    assert own == pytest.approx(wanted[0]) and [t for t, _ in top] == [1, 2]
    assert log_probabilities(x, 1, 9)[1][0] == (1, pytest.approx(wanted[1]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40))
def test_look_up_finds_the_last_place_of_the_longest_gram(tokens):
    lookup = PromptLookup()
    lookup.extend(tokens)
    wanted = None
    for size in PromptLookup.SIZES:
        places = [at for at in range(len(tokens) - size) if tokens[at : at + size] == tokens[len(tokens) - size :]]
        if places and wanted is None and len(tokens) >= size:
            wanted = places[-1] + size
    assert lookup.draft(3) == ([] if wanted is None else tokens[wanted : wanted + 3])


def test_pace_drafts_only_where_it_pays():
    pace = Pace()
    assert pace.draft_length(0.99, 7) == 0  # nothing measured yet
    pace.add(1, 0.010)
    for n in DRAFTS:
        pace.add(n + 1, 0.011)
    assert pace.draft_length(0.9, 7) == 7 and pace.draft_length(0.9, 2) == 2
    assert pace.draft_length(0.05, 7) == 0
    for _ in range(50):
        for n in DRAFTS:
            pace.add(n + 1, 0.010 * (n + 1))
    assert pace.draft_length(0.9, 7) == 0
    share = Acceptance()
    for _ in range(100):
        share.add(False)
    assert share.share < 0.01


BAD = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ 'a'|center(10**9) }}",
    "{{ '%1000000000d' % 5 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(50) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{% if %}",
    "{{ x.y.z }}",
    "{{ 9**9**9 }}",
    "{{ [1, 2]|batch(10**10, 1)|list }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "{% include '/etc/hostname' %}",
    "{{ '(' * 10**7 }}",
    "(" * 300000,
    "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "{{ raise_exception('no') }}",
]


@pytest.mark.parametrize("source", BAD, ids=range(len(BAD)))
def test_templates_that_are_broken_or_run_away_are_refused(source):
    with pytest.raises(EdgecError) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "hi"}])
    assert caught.value.code == "EC1702" and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (TEMPLATE, "<|start|>user\n hi<|end|>\n<|start|>assistant\n"),
        ("{% for m in messages %}\n  {% if loop.first %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}", "user\n"),
        ("{% for m in messages %}{{ loop.index0 }}{% break %}{% endfor %}", "0"),
        ("{% generation %}{{ bos_token }}{% endgeneration %}", "<s>"),
        ("{{ {'a': 'é<'}|tojson }}", '{"a": "é<"}'),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{% set a = 'x' ~ 1 ~ none %}{{ a }}", "x1None"),
        ("{{ messages|map(attribute='content')|join(', ')|trim }}", "hi"),
        ("{{ messages[0]['content'].split('h')[1] }}{{ messages[0].content[1:] }}", "ihi"),
        ("{%- macro p(x) -%}[{{ x }}]{%- endmacro -%}{{ p('a') }}", "[a]"),
        ("{{ tools is none }}{{ add_generation_prompt }}", "TrueTrue"),
        ("{% for k, v in {'x': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "x=1"),
    ],
)
def test_templates_as_models_have_them(source, wanted):
    assert ChatTemplate(source, {"bos_token": "<s>"}).render([{"role": "user", "content": " hi"}]) == wanted


def test_which_template():
    named = {"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}
    assert find_template({}, named) == "d" and find_template({}, named, tools=True) == "t"
    assert find_template({"chat_template.jinja": b"j"}, named) == "j"
    assert find_template({}, {}) is None and find_template({}, {"chat_template": 5}) is None


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"model": {"type": "BPE"}}', b"{" * 100000])
def test_broken_tokenizers_are_one_error(data):
    with pytest.raises(EdgecError) as caught:
        Tokenizer(data)
    assert caught.value.code == "EC1701"


def test_which_model_of_a_folder(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")

    with pytest.raises(EdgecError) as caught:
        folders.model_file(tmp_path)
    assert caught.value.code == "EC1003"
    touch("onnx/model_q4.onnx", "onnx/decoder_model.onnx")
    assert folders.model_file(tmp_path).name == "decoder_model.onnx"
    touch("onnx/model.onnx")
    assert folders.model_file(tmp_path) == tmp_path / "onnx/model.onnx"
    touch("odd.onnx")
    assert folders.model_file(tmp_path).name == "odd.onnx"
    touch("other.onnx")
    (tmp_path / "onnx/model.onnx").unlink()
    (tmp_path / "onnx/decoder_model.onnx").unlink()
    (tmp_path / "onnx/second.onnx").write_bytes(b"")
    with pytest.raises(EdgecError) as caught:
        folders.model_file(tmp_path)
    assert "odd.onnx" in caught.value.message and "other.onnx" in caught.value.message
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "other.onnx"}}}))
    assert folders.model_file(tmp_path).name == "other.onnx"
    touch("decoder_model_merged.onnx", "model.onnx")
    (tmp_path / "genai_config.json").unlink()
    assert folders.model_file(tmp_path).name == "model.onnx"


def test_what_stands_beside_a_model(tmp_path):
    (tmp_path / "onnx").mkdir()
    model = tmp_path / "onnx/model.onnx"
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 7, "content": "<|eot|>"}]}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|eot|>"}}))
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": {"max_position_embeddings": 99}, "eos_token_id": 3})
    )
    generation = {"eos_token_id": [3, 5, "x", -1], "do_sample": True, "temperature": 0.6, "top_p": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    files = folders.text_files(model)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"}
    assert folders.text_facts(files) == {"eos": [3, 5, 7], "bos": None, "context": 99, "sampling": {"temperature": 0.6}}
    assert folders.text_files(model, "none") == {}
    with pytest.raises(EdgecError):
        folders.text_files(model, tmp_path / "onnx")
    assert folders.text_facts({}) == {"eos": [], "bos": None, "context": None}
    for broken in ("{", "[]", "\udcff"):
        (tmp_path / "config.json").write_bytes(broken.encode("utf-8", "surrogateescape"))
        with pytest.raises(EdgecError) as caught:
            folders.text_files(model)
        assert caught.value.code == "EC1701" and "config.json" in caught.value.where
