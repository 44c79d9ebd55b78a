"""Starting, watching and ending the training process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Final

import msgspec

from edgewise_agent.durable import write_atomic
from edgewise_agent.learning.errors import LearningError, TrainingFailedError
from edgewise_agent.learning.job import JOB_FILE, RESULT_FILE, TrainJob, read_result
from edgewise_agent.learning.round import Update

LOG_FILE: Final = "train.log"
_COMPLAINT_BYTES: Final = 600
_TERMINATE_S: Final = 3.0
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR")


class TrainProcess:
    """One child process. `run` blocks; `end` may be called from any thread, at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = False

    def run(self, job: TrainJob, timeout_s: float) -> Update:
        """Train.

        Raises:
            LearningError: as the child says, or it was ended, crashed, or took too long.
            StorageError: the job cannot be written.
        """
        write_atomic(self._folder / JOB_FILE, msgspec.json.encode(job), mode=0o600)
        (self._folder / RESULT_FILE).unlink(missing_ok=True)
        with (self._folder / LOG_FILE).open("wb") as complaints:
            child = self._start(complaints)
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            self.end()
            raise TrainingFailedError(f"training took more than {timeout_s:.0f} s and was ended") from error
        finally:
            # The open pipe is what tells the child that the agent lives.
            if child.stdin is not None:
                child.stdin.close()
        if self._ended:
            raise TrainingFailedError("training was ended")
        if status != 0:
            raise TrainingFailedError(f"the training process ended with status {status}: {self._complaint()}")
        result = read_result(self._folder)
        if result.update is None:
            failure = LearningError(result.error or "training gave nothing")
            failure.code = result.error_code or LearningError.code
            raise failure
        return result.update

    def _start(self, complaints: IO[bytes]) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | {"OMP_NUM_THREADS": "1"}
        with self._lock:
            if self._ended:
                raise TrainingFailedError("training was ended before it began")
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "edgewise_agent.learning.train_child", str(self._folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    cwd=self._folder,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise TrainingFailedError(f"the training process cannot be started: {error}") from error
            return self._child

    def _complaint(self) -> str:
        with (self._folder / LOG_FILE).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _COMPLAINT_BYTES))
            return file.read().decode(errors="replace").strip()

    def end(self) -> None:
        """End the child, gently first; nothing if there is none."""
        with self._lock:
            self._ended = True
            child = self._child
        if child is None or child.poll() is not None:
            return
        child.terminate()
        try:
            child.wait(_TERMINATE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
