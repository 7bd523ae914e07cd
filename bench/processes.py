"""A process that answers questions, one line of JSON each: for peers that must not share a process.

A request is the name of a method and its arguments; the answer is {"value": ...} or {"error": "..."}. The process does
nothing between requests, and ends when nobody can ask any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

PATIENCE = 900.0  # seconds for an answer: flax takes minutes for a step of the largest shape on a CPU


class Refused(Exception):
    """What a process could not or must not do, in its own words."""


class Gone(Refused):
    """The process has ended."""


class Silent(Refused):
    """It has not answered in time, and should be closed: what it says next is the answer to an old question."""


class Process:
    """One that runs `serve`; `with` ends it. environment: what is added to the caller's."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 # close() does
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that does not let go of it holds up nobody
            self._process.communicate(timeout=20)
        self._log.close()

    def ask(self, method: str, *arguments: Any, patience: float = PATIENCE) -> Any:
        """The answer. Raises Refused with its reason, Gone where it died, Silent if it takes longer than patience."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests
        assert answers
        try:
            requests.write(json.dumps([method, *arguments]) + "\n")
            requests.flush()
        except BrokenPipeError:
            raise Gone(f"{self.name}: {self._last_words()}") from None
        if not select.select([answers], [], [], patience)[0]:
            raise Silent(f"{self.name}: no answer to {method} in {patience:.0f} s")
        line = answers.readline()
        if not line:
            raise Gone(f"{self.name}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["value"]

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["nothing on stderr"]
        return f"its process ended with {self._process.returncode}: {lines[-1]}"


def serve(served: Any) -> None:
    """Answer on the standard output, until the input ends, with the methods of `served`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what frameworks print is no answer
    _answer(served, sys.stdin, answers)


def _answer(served: Any, requests: TextIO, answers: TextIO) -> None:
    for line in requests:
        method, *arguments = json.loads(line)
        try:
            answer = {"value": getattr(served, method)(*arguments)}
        except Exception as error:
            answer = {"error": str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
