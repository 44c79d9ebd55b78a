"""What each code means, and what to do about it, in plain words. Shared by `status`, `doctor` and error messages."""

from __future__ import annotations

from typing import Final, NamedTuple


class Words(NamedTuple):
    meaning: str
    mend: str
    """Empty where the agent mends it by itself and nobody needs to do anything."""


_NEW_ENROLMENT: Final = (
    "make an enrolment file for it (`edgewise device replace DEVICE`), move the state folder away and enrol again"
)
_PUBLISH: Final = "convert and publish the model again for this device's profile, then assign the new version"
_ATTACK: Final = "somebody may be interfering: look at the security events of this device on the server"
_SERVER: Final = "see that the server runs and that its signer renews the metadata (`edgewise status`)"
_UPDATE: Final = "update the agent, or ask for a bundle that this version can read"

WORDS: Final[dict[str, Words]] = {
    # the device itself
    "agent": Words("The agent met an error of its own.", "look at the agent's log"),
    "internal": Words("The agent met a defect of its own.", "report it with the agent's log"),
    "config": Words("A setting is wrong.", "correct agent.toml or the EDGEWISE_AGENT_ variable that the message names"),
    "state": Words(
        "The state folder cannot be used.",
        "see that it exists and belongs to the agent's user, and that no other agent runs on it",
    ),
    "state-damaged": Words(
        "A state file was damaged and set aside.",
        "check the disk or SD card; the device takes up its newest assignment by itself",
    ),
    "storage": Words("The disk refused to be read or written.", "check the disk and the state folder's permissions"),
    "disk-space": Words(
        "There is too little free disk space for the download.", "free disk space, or lower min_free_mib"
    ),
    "disk-full": Words("The disk is full.", "free disk space; the agent goes on by itself"),
    "store-damaged": Words(
        "The disk damaged a stored model. It does not serve; it is downloaded again.",
        "if it comes again, replace the disk or SD card",
    ),
    "outbox": Words("The outbox cannot be opened.", "check the disk and the state folder's permissions"),
    "outbox-damaged": Words("The outbox was damaged and set aside; what it held is lost.", "check the disk or SD card"),
    "outbox-oversize": Words("A message was too long to be sent.", "report it with the agent's log"),
    "endpoint": Words("The serving port cannot be opened.", "stop what uses the port, or set another http_port"),
    "clock-behind": Words(
        "The clock is in the past. Models serve; nothing is installed.", "set the clock, e.g. by NTP"
    ),
    "boot-loop": Words(
        "The agent died again and again while this model served, so the model was withdrawn.",
        "look at the agent's log for what ended the process; publish a corrected model",
    ),
    # identity
    "identity": Words("The device's identity is damaged or not of this fleet.", _NEW_ENROLMENT),
    "not-enrolled": Words(
        "The device is not enrolled.", "run `edgewise-agent enrol FILE --state DIR` with an enrolment file"
    ),
    "enrol": Words("The enrolment was refused.", "follow the message, then enrol again"),
    "enrolment-used": Words(
        "The enrolment file was used before or withdrawn.",
        "make a new enrolment file; `edgewise device replace DEVICE` for a device that is known already",
    ),
    "enrolment-expired": Words("The enrolment file has expired.", "make a new enrolment file"),
    "unknown-board": Words("The server does not know this board.", "add a profile for it, or set `board`"),
    "renewal": Words("The certificate could not be renewed yet.", ""),
    "renewal-too-late": Words("The certificate expired too long ago to be renewed.", _NEW_ENROLMENT),
    "server-unreachable": Words("The server could not be reached.", "check the network and the server's address"),
    "server-refused": Words("The server refused the request.", "look at the device's page on the server"),
    "device-revoked": Words("The fleet has revoked this device.", f"if that was a mistake: {_NEW_ENROLMENT}"),
    "device-decommissioned": Words(
        "This device was decommissioned.",
        "erase it (`edgewise-agent erase`); to use it again, enrol it by another name (`edgewise device enrol-file`)",
    ),
    "device-key-unknown": Words(
        "The server knows this device by another key, or does not know it any more.", _NEW_ENROLMENT
    ),
    "cloned-identity": Words(
        "Two devices use this identity, e.g. because an SD card was copied.",
        "find the copy, and enrol it with a file of its own (`edgewise device enrol-file`); then "
        "`edgewise device replace` for the one that keeps the name",
    ),
    # connection
    "offline": Words("The broker is not connected.", "run `edgewise-agent doctor` for the cause"),
    "proxy": Words("The proxy does not let the agent through.", "correct proxy_url, or the proxy's rules"),
    "packet-too-large": Words(
        "The broker does not take messages of this length.", "raise max_packet_size at the broker"
    ),
    "fetch-timeout": Words("The broker fell silent.", ""),
    # trust
    "metadata-invalid": Words("The fleet's metadata are not valid.", _ATTACK),
    "metadata-unavailable": Words("The fleet's metadata could not be fetched.", _SERVER),
    "metadata-expired": Words("The fleet's metadata have expired.", _SERVER),
    "timestamp-expired": Words("The fleet's timestamp has expired: the server is away, or held back.", _SERVER),
    "snapshot-expired": Words("The fleet's snapshot has expired.", _SERVER),
    "targets-expired": Words("The fleet's offline signature has expired.", "sign anew (`edgewise keys`)"),
    "root-expired": Words("The fleet's root metadata have expired.", "sign a new root (`edgewise keys`)"),
    "metadata-unsigned": Words("Metadata do not carry the signatures that they need.", _ATTACK),
    "metadata-rollback": Words("Metadata are older than ones accepted before.", _ATTACK),
    "metadata-tampered": Words("Metadata are not those that were signed for.", _ATTACK),
    "protocol": Words("A received document breaks the contract.", _UPDATE),
    "malformed": Words("A received document could not be read.", _ATTACK),
    "unsupported-version": Words("A document is of a newer kind than this agent knows.", _UPDATE),
    "signature": Words("A document is not signed by the role that must sign it.", _ATTACK),
    "topic": Words("A name is not well formed.", "correct the name that the message shows"),
    "assignment": Words("The assignment was refused.", "look at the message; assign anew"),
    "assignment-unsigned": Words("The assignment is not signed by the director.", _ATTACK),
    "assignment-wrong-device": Words("The assignment is for another device.", _ATTACK),
    "assignment-wrong-channel": Words("The assignment names a bundle outside of the device's channel.", _ATTACK),
    "assignment-stale": Words("The assignment is older than one accepted before.", _ATTACK),
    "assignment-version-jump": Words("The assignment's version is too far ahead.", _ATTACK),
    "assignment-expired": Words("The assignment has expired.", _SERVER),
    "assignment-unknown-target": Words(
        "Nobody with the right to has signed the assigned bundle.", "publish the bundle"
    ),
    "assignment-below-floor": Words("The assigned version is below the signed floor.", "assign a newer version"),
    "agent-not-signed-offline": Words("An agent bundle is not signed by the offline keys.", "sign it with them"),
    # bundles
    "download": Words("The bundle could not be fetched.", "see that the server runs; assign again"),
    "download-interrupted": Words("The download was left, and goes on.", ""),
    "chunk-unavailable": Words("A part of the bundle is not at the broker.", "see that the server runs; assign again"),
    "chunk-tampered": Words("A part of the bundle is not what was signed.", _ATTACK),
    "bundle-damaged": Words("The bundle is damaged.", _PUBLISH),
    "bundle-tampered": Words("The bundle is not what was signed.", _ATTACK),
    "bundle-mismatch": Words("The bundle is not the model or version that was signed for.", _PUBLISH),
    "does-not-fit": Words("The bundle does not fit this device.", "publish it for this device's profile"),
    "install": Words("The bundle could not be installed.", _PUBLISH),
    "confirm-expired": Words("The new version was not confirmed in time and was withdrawn.", "assign it again"),
    "self-test": Words("The model does not do on this device what it must.", _PUBLISH),
    "self-test-crashed": Words("The model ended the self-test's process.", _PUBLISH),
    "self-test-timeout": Words("The self-test took too long.", "raise self_test.timeout_s, or publish a smaller model"),
    "self-test-interrupted": Words("The agent stopped during the self-test, and repeats it.", ""),
    "self-test-golden": Words("The model answers otherwise here than where it was converted.", _PUBLISH),
    "self-test-latency": Words("The model is too slow on this device.", "publish a smaller model, or raise its budget"),
    "self-test-memory": Words("The model needs too much memory here.", "publish a smaller model, or raise its budget"),
    "engine": Words("The inference engine failed.", "look at the message; see that the engine's package is whole"),
    "engine-missing": Words(
        "The engine that the model needs is not installed.",
        "install it: `pip install 'edgewise-agent[onnxruntime]'` or `'edgewise-agent[litert]'`",
    ),
    "engine-fault": Words("The model failed in service and was withdrawn.", _PUBLISH),
    "model-file": Words("The engine cannot read the model.", _PUBLISH),
    "inference": Words("An inference failed.", "look at the message; check the request's tensors"),
    "bad-input": Words("A request does not fit the model's inputs.", "correct the request"),
    # a board behind a gateway
    "board-link": Words(
        "The board behind this gateway does not answer.",
        "check the board's cable and power, and the settings gateway.device or gateway.command",
    ),
    "board-refused": Words("The board behind this gateway refuses a request.", "look at the message"),
    "board-firmware": Words(
        "The board does not run the bundle's firmware, and could not be given it.",
        "set gateway.flash to the command that writes {image}, or convert the model where the cross compiler is",
    ),
    "board-busy": Words(
        "The board has another firmware in use: it holds one at a time.", "assign one model to this device"
    ),
    # serving
    "serving": Words("A request could not be served.", "look at the message"),
    "unknown-model": Words("No such model serves here.", "assign it to this device, or correct the request"),
    "busy": Words("Too many requests wait.", "send fewer at once"),
    "retired": Words("The model was replaced while the request waited.", "send the request again"),
    "bad-request": Words("A request is not of the Open Inference Protocol.", "correct the request"),
    "too-large": Words("A request is too long.", "send less at once"),
    "content-coding": Words("A request is compressed in a way that is not spoken here.", "use gzip or none"),
    # the agent's own update
    "agent-update": Words("The update of the agent failed.", "look at the message; assign the agent bundle again"),
    "agent-no-launcher": Words("The agent was not started by its launcher.", "start it as the service unit does"),
    "agent-wheel": Words("A package of the agent bundle is damaged.", "make and publish the agent bundle again"),
    "agent-given-up": Words("The new agent did not hold; the old one runs again.", "look at the code that it gives"),
    "agent-self-check": Words("The new agent's check of itself failed.", "make and publish a corrected agent bundle"),
    "agent-too-old": Words("This agent is older than the server admits.", "update the agent"),
    # learning
    "round": Words("The federated round failed here.", "look at the message; the next round begins afresh"),
    "round-data": Words("The local training data cannot be used.", "correct the file that train_data names"),
    "round-bundle": Words("The round's training bundle cannot be used.", "publish a corrected training bundle"),
    "round-diverged": Words("The training diverged on this device's data.", "lower the learning rate; check the data"),
    "round-training": Words("The training's process failed.", "look at the message"),
    "round-offer": Words("The round's offer was refused.", _ATTACK),
    "round-offer-unsigned": Words("The round's offer is not signed by the right role.", _ATTACK),
    "round-offer-stale": Words("The round's offer is of an earlier round.", ""),
    "sketch": Words("Two sketches do not merge.", "report it with the agent's log"),
}


def words_for(code: str) -> Words:
    """The words of a code; for a code of a newer server, that it is not known here."""
    return WORDS.get(code) or Words(f"The code {code!r} is not known to this agent.", "look it up in the documentation")
