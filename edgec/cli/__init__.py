"""The `edgec` command. Exit status: 0 done, 1 the work failed or a check did not hold, 2 the call was wrong."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence

# codes that say that the call was wrong, not that the work failed
CALL = {"EC1001", "EC1003", "EC1402", "EC1601", "EC1602", "EC1603", "EC1607"}


def _app():
    from cyclopts import App, Parameter

    import edgec
    from edgec.cli import (
        bench,
        build,
        chat,
        demo,
        distill,
        doctor,
        generate,
        inspect,
        kernels,
        report,
        run,
        serve,
        targets,
        verify,
    )

    app = App(
        name="edgec",
        help="Compiles ONNX models to small, fast artifacts for CPUs at the edge, and runs them.",
        version=edgec.__version__,
        default_parameter=Parameter(negative=(), show_default=lambda value: value or None),
        help_format="plaintext",
    )
    for module in (
        build,
        demo,
        distill,
        run,
        generate,
        chat,
        serve,
        verify,
        bench,
        inspect,
        report,
        targets,
        kernels,
        doctor,
    ):
        name = module.__name__.rpartition(".")[2]
        app.command(getattr(module, name), name=name)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    with contextlib.suppress(ValueError):  # not the main thread: the caller's business
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(argv)
    except BaseException as error:
        if debug and not isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return _explain(error, "--json" in argv)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def _run(argv: list[str]) -> int:
    from cyclopts import CycloptsError

    app = _app()
    try:
        command, bound, *_ = app.parse_args(argv, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        from edgec.errors import EdgecError

        command = next((f"{a} " for a in argv if a in app), "")
        raise EdgecError("EC1001", " ".join(str(error).split()), hint=f"See: edgec {command}--help") from None
    return int(command(*bound.args, **bound.kwargs) or 0)


def _explain(error: BaseException, as_json: bool) -> int:
    """Says on stderr (with --json on stdout too) what went wrong; gives the exit status."""
    from edgec.errors import EdgecError

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError):
        error = EdgecError("EC1003", error.strerror or str(error), error.filename and str(error.filename))
    elif isinstance(error, MemoryError):
        error = EdgecError("EC1606", "memory is exhausted", hint="Use smaller --dim sizes or a machine with more")
    elif not isinstance(error, EdgecError):
        reason = f"{type(error).__name__}: {error}"
        error = EdgecError("EC1901", reason, hint="Run it again with --debug and report the traceback")
    print(f"error: {error}", file=sys.stderr)
    if as_json:
        import json

        fields = {"code": error.code, "message": error.message, "where": error.where, "hint": error.hint}
        print(json.dumps({"error": fields}))
    return 2 if error.code in CALL else 1
