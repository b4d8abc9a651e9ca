import subprocess
import sys

from edgec.errors import CODES, EdgecError


def test_one_message_with_code_place_reason_and_next_step():
    error = EdgecError("EC1203", "3 rows, 4 expected", where="node MatMul_3", hint="Pass --dim n=4")
    assert str(error) == "EC1203 node MatMul_3: 3 rows, 4 expected. Pass --dim n=4."
    assert str(EdgecError("EC1901", "no.")) == "EC1901 no."


def test_codes_are_well_formed():
    for code, meaning in CODES.items():
        assert code.startswith("EC1") and len(code) == 6 and code[2:].isdigit()
        assert meaning


def test_import_is_light():
    program = (
        "import sys, threading, time; import numpy; start = time.process_time(); import edgec, edgec._core;"
        "took = time.process_time() - start;"
        "bad = [m for m in ('tvm', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'rich') if m in sys.modules];"
        "assert not bad, bad; assert threading.active_count() == 1; assert took < 0.1, took"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
