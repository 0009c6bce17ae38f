"""Python processes that use a hub as people do, each started once and asked many times."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LOOP = """
import contextlib, io, json, os, sys, traceback
questions, answers, sys.stdin = sys.stdin, sys.stdout, open(os.devnull)
for line in questions:
    asked = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(asked["variables"])
    sys.argv = ["", *asked["arguments"]]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(asked["code"], "<client>", "exec"), {"__name__": "client"})
        answer = {"value": json.loads(out.getvalue().splitlines()[-1])}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Client:
    """A process that runs what it is given, without a terminal to ask at.

    Args:
        environment: Its variables, besides those that any Python here needs.
        folder: It runs there.
        has_package: Whether it can import bert4rec_hf.
    """

    def __init__(self, environment: dict[str, str], folder: Path, *, has_package: bool = True):
        variables = {
            name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ
        }
        start = "" if has_package else 'import sys\nsys.modules["bert4rec_hf"] = None'
        folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", start + LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=variables | {"OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"} | environment,
            cwd=folder,
        )

    def __call__(self, code: str, *arguments: Any, token: str | None = "token-of-ann") -> Any:
        """Run code, and return the JSON value that it prints last."""
        variables = {"HF_TOKEN": token} if token else {}
        asked = {"code": code, "arguments": [str(each) for each in arguments]}
        print(json.dumps(asked | {"variables": variables}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        assert "value" in answer, answer["error"]
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
