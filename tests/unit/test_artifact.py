import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import weakref
import zipfile

import numpy as np
import pytest
from plan_tools import WEIGHTS, compile_c, scale_add_artifact, scale_add_plan

import edgec
from edgec import EdgecError, _core
from edgec.artifact.reader import ArtifactFile
from edgec.artifact.writer import replace_manifest, write_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return scale_add_artifact(tmp_path_factory.mktemp("artifact"))


def test_members_are_aligned_and_readable_by_any_zip_reader(artifact):
    with zipfile.ZipFile(artifact) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        weights = archive.read("weights.bin")
        manifest = json.loads(archive.read("manifest.json"))
    assert names == ["mimetype", "plan.bin", "code.so", "weights.bin", "manifest.json"]
    assert weights == b"abc" + bytes(61) + WEIGHTS.tobytes()
    assert manifest["members"].keys() == {*names} - {"manifest.json"}
    opened = ArtifactFile(artifact)
    for name, member in opened.members.items():
        address = np.frombuffer(member, np.uint8).ctypes.data
        assert name in ("mimetype", "manifest.json") or address % 64 == 0
        assert member.readonly


def offset(path, name: str) -> int:
    """Where the member's bytes begin in the file."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        at = archive.getinfo(name).header_offset
        file.seek(at + 26)
        return at + 30 + sum(struct.unpack("<HH", file.read(4)))


@pytest.mark.parametrize("size", [1, 4095, (4 << 20) - 1, 4 << 20, 9 << 20])
def test_pages_are_for_large_members(tmp_path, size):
    path = scale_add_artifact(tmp_path, code=b"code", weights=[(64, np.zeros(size, np.uint8))])
    assert offset(path, "plan.bin") % 64 == 0 and offset(path, "weights.bin") % (65536 if size >= 4 << 20 else 64) == 0
    assert path.stat().st_size - size < 4000 + (65536 if size >= 4 << 20 else 0)
    opened = ArtifactFile(path)
    opened.check()
    assert len(opened.members["weights.bin"]) == size


def test_same_inputs_give_the_same_bytes(artifact, tmp_path):
    code = bytes(ArtifactFile(artifact).members["code.so"])
    again = [scale_add_artifact(tmp_path, name, code=code).read_bytes() for name in ("a.edgec", "b.edgec")]
    assert again[0] == again[1] == artifact.read_bytes()


TEXTS = {"tokenizer.json": b'{"a": 1}' * 10_000, "empty.txt": b"", "noise.json": np.random.default_rng(0).bytes(5000)}


@pytest.fixture(scope="module")
def with_texts(tmp_path_factory):
    return scale_add_artifact(tmp_path_factory.mktemp("texts"), files=TEXTS)


def test_texts_are_deflated(with_texts):
    with zipfile.ZipFile(with_texts) as archive:
        assert archive.testzip() is None
        assert archive.getinfo("tokenizer.json").compress_size < 1000
        assert {name: archive.read(name) for name in TEXTS} == TEXTS
    opened = ArtifactFile(with_texts)
    opened.check()
    assert {*TEXTS, "plan.bin"} < {*opened.members} and len(opened.members) == len(opened.manifest["members"]) + 1
    for name, text in TEXTS.items():
        assert opened.members[name] == text and opened.members[name].readonly
        assert opened.manifest["members"][name]["inflated"] == len(text)
    assert opened.members["noise.json"] is opened.members["noise.json"]
    assert opened.members.get("none.json") is None and "none.json" not in opened.members


def test_a_manifest_is_replaced_behind_texts(with_texts, tmp_path):
    shutil.copy(with_texts, tmp_path / "a")
    replace_manifest(tmp_path / "a", lambda m: m | {"edgec": "x" * 100_000})
    opened = ArtifactFile(tmp_path / "a")
    opened.check()
    assert opened.manifest["edgec"] == "x" * 100_000 and opened.members["tokenizer.json"] == TEXTS["tokenizer.json"]


@pytest.mark.parametrize("size", [0, 79_999, 80_001, 1 << 28])
def test_what_inflates_to_another_size_is_refused(with_texts, tmp_path, size):
    """A forged manifest, or a bomb: never more memory than the manifest says."""
    shutil.copy(with_texts, tmp_path / "a")

    def forge(manifest):
        manifest["members"]["tokenizer.json"]["inflated"] = size
        return manifest

    replace_manifest(tmp_path / "a", forge)
    opened = ArtifactFile(tmp_path / "a")
    with pytest.raises(EdgecError, match=r"EC1504 .*tokenizer.json: it does not inflate"):
        opened.members["tokenizer.json"]
    replace_manifest(tmp_path / "a", lambda m: (forge(m)["members"]["tokenizer.json"].update(inflated=1 << 40), m)[1])
    with pytest.raises(EdgecError, match=r"EC1503 .*'tokenizer.json' is malformed"):
        ArtifactFile(tmp_path / "a")


def test_what_is_mapped_must_not_be_deflated(tmp_path, artifact):
    with zipfile.ZipFile(artifact) as old, zipfile.ZipFile(tmp_path / "a", "w") as new:
        for info in old.infolist():
            method = zipfile.ZIP_DEFLATED if info.filename == "plan.bin" else zipfile.ZIP_STORED
            new.writestr(info.filename, old.read(info), method)
    with pytest.raises(EdgecError, match=r"EC1504 .*plan.bin: it is compressed"):
        ArtifactFile(tmp_path / "a")


def test_load_and_run(artifact):
    session = edgec.load(artifact, threads=2)
    assert session.threads == 2
    assert session.inputs == [("x", ("n", 4), "float32")]
    assert [port.name for port in session.outputs] == ["y", "z"]
    x = np.ones((3, 4), np.float32)
    by_name = session(x=x)
    (z,) = session.run(["z"], {"x": x})
    np.testing.assert_array_equal(z, x)
    np.testing.assert_array_equal(by_name["y"], 3 * x + WEIGHTS[:12].reshape(3, 4))
    assert len(session.run(None, {"x": x})) == 2
    outputs, steps = session.profile({"x": x})
    np.testing.assert_array_equal(outputs["y"], by_name["y"])
    assert [(s.origin, s.kind, s.kernel) for s in steps] == [
        ("Mul_0", "call", "scale"),
        ("Add_1", "call", "add"),
        ("Reshape_2", "kernel", "copy"),
    ]
    assert all(s.microseconds > 0 for s in steps)
    assert session.arena_bytes({"n": 10}) == 192
    assert session.symbols == {"n": (0, 1000)}
    with pytest.raises(EdgecError, match="EC1607 output 'q'"):
        session.run(["q"], {"x": x})
    with pytest.raises(EdgecError, match="no value for n"):
        session.arena_bytes()
    with pytest.raises(EdgecError, match="EC1001"):
        edgec.load(artifact, threads=0)


def test_members_outlive_the_session(artifact):
    view = edgec.load(artifact).artifact.members["weights.bin"]
    assert bytes(view[:3]) == b"abc"


def test_two_sessions_of_the_same_name_have_their_own_code(tmp_path):
    doubled = compile_c(tmp_path)
    source = (tmp_path / "code.c").read_text().replace("(float)factor", "(float)(factor * 2)")
    (tmp_path / "code.c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "other.so", tmp_path / "code.c"], check=True)
    one = edgec.load(scale_add_artifact(tmp_path, "one.edgec", code=doubled))
    two = edgec.load(scale_add_artifact(tmp_path, "two.edgec", code=(tmp_path / "other.so").read_bytes()))
    x = np.ones((1, 4), np.float32)
    assert one(x=x)["y"][0, 0] == 3 and two(x=x)["y"][0, 0] == 6


def test_weights_are_taken_one_at_a_time(tmp_path):
    alive = []

    def pieces():
        for i in range(5):
            piece = np.full(1000, i, np.int32)
            alive.append(weakref.ref(piece))
            yield 64, piece
            del piece
            assert sum(ref() is not None for ref in alive) <= 1

    manifest = {"target": {}, "inputs": [], "outputs": []}
    full = write_artifact(tmp_path / "w.edgec", plan=b"", weights=pieces(), manifest=manifest)
    assert full["members"]["weights.bin"]["size"] == 4 * 4032 + 4000


@pytest.mark.parametrize("size", [100, 1000, 1001, 4096])
def test_large_members_are_checked_in_chunks(tmp_path, monkeypatch, size):
    monkeypatch.setattr("edgec.artifact.manifest.CHUNK", 1000)
    data = np.random.default_rng(0).bytes(size)
    pieces = [(1, data[:700]), (1, data[700:])]
    manifest = {"target": {}, "inputs": [], "outputs": []}
    full = write_artifact(tmp_path / "a", plan=b"", weights=pieces, manifest=manifest)
    entry = full["members"]["weights.bin"]
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    sums = [f"{sum:016x}" for sum in _core.checksums(data, 1000)]
    assert entry.get("sums") == (sums if size > 1000 else None)
    assert bytes(ArtifactFile(tmp_path / "a").members["weights.bin"]) == data
    whole = (tmp_path / "a").read_bytes()
    for at in (0, size - 1):
        place = whole.index(data) + at
        (tmp_path / "b").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(EdgecError, match="EC1504"):
            ArtifactFile(tmp_path / "b")
        with pytest.raises(EdgecError, match="SHA-256"):
            ArtifactFile(tmp_path / "b", check_content=False).check()


def test_a_failed_write_leaves_nothing(tmp_path):
    def pieces():
        yield 64, bytes(100)
        raise RuntimeError("no more")

    target = tmp_path / "x.edgec"
    target.write_bytes(b"the old one")
    with pytest.raises(RuntimeError):
        write_artifact(target, plan=b"", weights=pieces(), manifest={})
    assert os.listdir(tmp_path) == ["x.edgec"]
    assert target.read_bytes() == b"the old one"
    with pytest.raises(EdgecError, match="EC1509"):
        write_artifact(tmp_path / "nowhere" / "x.edgec", plan=b"", manifest={})


def test_what_is_no_artifact_is_named(tmp_path):
    cases = {"empty": b"", "text": b"hello", "zeros": bytes(1000)}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EdgecError, match="EC1502") as caught:
            edgec.load(tmp_path / name)
        assert name in str(caught.value)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(EdgecError, match="no manifest"):
        edgec.load(tmp_path / "other.zip")
    for method, words in ((zipfile.ZIP_DEFLATED, "no manifest"), (zipfile.ZIP_BZIP2, "compressed in another way")):
        with zipfile.ZipFile(tmp_path / "packed.zip", "w", method) as archive:
            archive.writestr("manifest.json", "{}" * 100)
        with pytest.raises(EdgecError, match=words):
            edgec.load(tmp_path / "packed.zip")
    with pytest.raises(EdgecError, match="EC1501"):
        edgec.load(tmp_path / "missing")
    with pytest.raises(EdgecError, match="EC1501"):
        edgec.load(tmp_path)


@pytest.mark.parametrize("member", ["plan.bin", "code.so", "weights.bin", "manifest.json"])
def test_a_flipped_bit_in_a_member_is_found(artifact, tmp_path, member):
    data = bytearray(artifact.read_bytes())
    with zipfile.ZipFile(artifact) as archive:
        info = archive.getinfo(member)
    begin = offset(artifact, member)
    for at in (begin, begin + info.file_size // 2, begin + info.file_size - 1):
        data[at] ^= 4
        (tmp_path / "bad.edgec").write_bytes(data)
        with pytest.raises(EdgecError, match="EC1504") as caught:
            edgec.load(tmp_path / "bad.edgec")
        assert member in str(caught.value)
        data[at] ^= 4


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"triple": "riscv64-unknown-linux-gnu"}, "riscv64"),
        ({"triple": "", "features": ["+avx2", "quantum"]}, "lacks.*quantum"),
    ],
)
def test_another_cpu_is_refused(artifact, tmp_path, target, words):
    code = bytes(ArtifactFile(artifact).members["code.so"])
    path = scale_add_artifact(tmp_path, code=code, manifest={"target": {"name": "else", **target}})
    with pytest.raises(EdgecError, match=words) as caught:
        edgec.load(path)
    assert caught.value.code == "EC1506"
    assert ArtifactFile(path, check_target=False).manifest["target"]["name"] == "else"


def test_this_cpus_features_are_accepted(tmp_path):
    target = {"name": "host", "features": _core.cpu_features()}
    edgec.load(scale_add_artifact(tmp_path, manifest={"target": target}))


def test_code_that_does_not_load_is_an_error(tmp_path):
    with pytest.raises(EdgecError, match="EC1508"):
        edgec.load(scale_add_artifact(tmp_path, code=b"\x7fELF not really"))


def test_plan_and_code_that_differ_are_an_error(tmp_path):
    plan = scale_add_plan()
    plan.steps[0].name = "gone"
    with pytest.raises(EdgecError, match="no function 'gone'"):
        edgec.load(scale_add_artifact(tmp_path, plan=plan.encode()))


def test_loading_needs_only_numpy(artifact):
    program = (
        "import sys, edgec, numpy as np; before = set(sys.modules);"
        f"s = edgec.load({str(artifact)!r}); s(x=np.ones((1, 4), np.float32));"
        "import threading;"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('tvm', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'rich',"
        " 'cyclopts', 'msgspec')]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_forked_child_runs_on(artifact):
    program = (
        "import os, warnings, edgec, numpy as np; warnings.simplefilter('ignore');"
        f"s = edgec.load({str(artifact)!r}, threads=2); x = np.ones((1000, 4), np.float32); want = s(x=x)['y'];\n"
        "pid = os.fork()\n"
        "ok = (s(x=x)['y'] == want).all()\n"
        f"ok = ok and (edgec.load({str(artifact)!r}, threads=2)(x=x)['y'] == want).all()\n"
        "if pid == 0: os._exit(0 if ok else 1)\n"
        "assert ok and os.waitpid(pid, 0)[1] == 0"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_sessions_in_threads(artifact):
    sessions = [edgec.load(artifact, threads=2) for _ in range(3)]
    x = np.ones((1000, 4), np.float32)
    want = sessions[0](x=x)["y"]
    faults = []

    def work(session):
        for _ in range(100):
            if not np.array_equal(session(x=x)["y"], want):
                faults.append(session)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_opening_needs_no_numpy_until_the_weights_are_being_checked(artifact):
    program = (
        "import sys, edgec; from edgec.runtime import opening;"
        f"a = opening.ArtifactFile({str(artifact)!r}, wait=False); assert 'numpy' not in sys.modules; a.wait()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("threads", [1, 4])
def test_weights_are_checked_before_load_returns(tmp_path, monkeypatch, threads):
    monkeypatch.setattr("edgec.artifact.manifest.CHUNK", 64)
    path = scale_add_artifact(tmp_path)
    edgec.load(path, threads=threads)
    data = bytearray(path.read_bytes())
    at = data.index(WEIGHTS.tobytes())
    data[at + 70] ^= 1
    (tmp_path / "bad.edgec").write_bytes(data)
    for load in (edgec.load, edgec.Session):
        with pytest.raises(EdgecError, match=r"EC1504.*weights.bin.*checksums"):
            load(tmp_path / "bad.edgec", threads=threads)
        assert load(tmp_path / "bad.edgec", threads=threads, check=False).threads == threads
