"""The work that takes time: download, verification, self-test. Each ends in an event."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgewise_protocol.errors import DoesNotFitError, ProtocolError
from edgewise_protocol.facts import DeviceFacts, fits
from edgewise_protocol.targets import SignedFile

from edgewise_agent.download.downloader import Downloader, InterruptedDownloadError
from edgewise_agent.errors import (
    AgentError,
    BundleMismatchError,
    DownloadError,
    StoreDamagedError,
    TrustError,
    code_of,
)
from edgewise_agent.install.activator import AgentSlots
from edgewise_agent.install.effects import Download, SelfTest, Verify
from edgewise_agent.install.events import Damaged, Downloaded, Event, Failed, SelfTestPassed, Verified
from edgewise_agent.install.self_test import InterruptedSelfTestError, RefusedError, SelfTester
from edgewise_agent.store.store import Store

log = logging.getLogger(__name__)

Job = Download | Verify | SelfTest
USE = "install"


@dataclass(frozen=True)
class Worker:
    """Args:
    facts: what bundles must fit.
    on_security: told of bundles that are not what was signed.
    """

    store: Store
    downloader: Downloader
    tester: SelfTester
    agent: AgentSlots
    facts: DeviceFacts
    on_security: Callable[[SignedFile, Exception], None]

    def run(self, job: Job, interrupted: Callable[[], bool], stopping: Callable[[], bool]) -> Event | None:
        """Do a job; None when it was interrupted and must be run again.

        Args:
            interrupted: something else must be looked at first.
            stopping: the agent stops. A self-test is cut short by nothing else.
        """
        file = job.target
        try:
            match job:
                case Download():
                    self.downloader.download(file, USE, interrupted)
                    return Downloaded(at=time.time(), sha256=file.sha256)
                case Verify():
                    self._verify(file)
                    return Verified(at=time.time(), sha256=file.sha256)
                case SelfTest():
                    bundle = self.store.open(file.sha256)
                    if bundle.manifest.kind == "agent":
                        measured = self.agent.test(bundle, file.sha256, stopping)
                    else:
                        measured = self.tester.run(bundle.folder, bundle.manifest, stopping)
                    return SelfTestPassed(at=time.time(), sha256=file.sha256, measured=measured)
        except (InterruptedDownloadError, InterruptedSelfTestError):
            return None
        except RefusedError as error:
            return self._failed(file, error, error.measured)
        except StoreDamagedError as error:
            log.warning("a stored bundle is damaged", extra={"path": file.path, "reason": str(error)})
            return Damaged(at=time.time(), sha256=file.sha256, text=str(error)[:1500])
        except (AgentError, ProtocolError) as error:
            if isinstance(error, TrustError | ProtocolError | BundleMismatchError):
                self.on_security(file, error)
            return self._failed(file, error, {})
        except Exception as error:
            # A defect in one job must not end the installer.
            log.exception("a job failed for a reason of its own")
            return self._failed(file, error, {})

    def _verify(self, file: SignedFile) -> None:
        part = self.store.partial(USE, file.sha256)
        if part.exists():
            self.store.unpack(part, file)
        elif not self.store.has(file):
            raise DownloadError("the downloaded file is gone")
        manifest = self.store.open(file.sha256).manifest
        if manifest.kind not in ("inference", "agent"):
            raise DoesNotFitError(f"a bundle of kind {manifest.kind!r} cannot serve")
        reasons = fits(self.facts, manifest)
        if manifest.kind == "agent":
            reasons += self.agent.misfits(manifest)
        if reasons:
            raise DoesNotFitError("; ".join(reasons))

    @staticmethod
    def _failed(file: SignedFile, error: Exception, measured: dict[str, float]) -> Failed:
        log.warning(
            "an installation failed", extra={"path": file.path, "code": code_of(error), "reason": str(error)[:500]}
        )
        return Failed(
            at=time.time(), sha256=file.sha256, code=code_of(error), text=str(error)[:1500], measured=measured
        )
