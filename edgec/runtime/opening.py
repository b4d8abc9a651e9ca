"""edgec.load: the artifact is opened first, so that its weights are being checked while numpy is imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgec.artifact.reader import ArtifactFile

if TYPE_CHECKING:
    from edgec.runtime.session import Session


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    max_context: int | None = None,
    check: bool = True,
    slots: int | None = None,
) -> Session:
    """Opens an artifact to run it; see Session, and LanguageModel for one whose manifest has "lm".

    `slots`: sequences that a language model holds at once (default 4). Raises EdgecError EC15xx if it is damaged or
    for another CPU.
    """
    artifact = ArtifactFile(path, check_content=check, wait=False, threads=threads or 0)
    from edgec.runtime.session import Session

    session = Session(artifact, threads, max_context)
    if isinstance(session.manifest.get("lm"), dict):
        from edgec.runtime.generate.model import LanguageModel

        session = LanguageModel.of(session, max_context, slots)
    artifact.wait()
    return session
