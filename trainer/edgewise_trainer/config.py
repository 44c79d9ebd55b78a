"""The typed configuration of a run, read from TOML.

Everything that changes the resulting weights stands here, so that equal configurations
give equal weights; `TrainConfig.sha256` is their identity. Where the run is tracked is
left out of it. Unknown keys are refused.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from edgewise_protocol.manifest import Name
from msgspec import Meta

from edgewise_trainer.errors import ConfigError
from edgewise_trainer.strict import check_keys, read_section

MAX_CONFIG_BYTES: Final = 1 << 20

Ratio = Annotated[float, Meta(ge=0, le=1)]
Seed = Annotated[int, Meta(ge=0, le=2**53)]


class ModelSection(msgspec.Struct, frozen=True, kw_only=True):
    """`[model]`: what is trained."""

    name: Name
    """The model's name in the registry, in topics and in paths."""
    factory: str = "digits_cnn"
    """A built-in model, or `module:function` that returns a `torch.nn.Module`."""
    options: dict[str, Any] = {}
    """Keyword arguments of the factory."""


class DataSection(msgspec.Struct, frozen=True, kw_only=True):
    """`[data]` or `[federation.data]`: what is learned from."""

    name: str = "digits"
    """`digits`, `file`, or `module:function` that returns a `Dataset`."""
    options: dict[str, Any] = {}


class TrainSection(msgspec.Struct, frozen=True, kw_only=True):
    """`[train]`: stochastic gradient descent with momentum on the cross-entropy."""

    epochs: Annotated[int, Meta(ge=1, le=100_000)] = 10
    batch_size: Annotated[int, Meta(ge=2, le=65_536)] = 32
    lr: Annotated[float, Meta(gt=0, le=10)] = 0.05
    """Learning rate at the start."""
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    label_smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    seed: Seed = 0
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Part of the configuration, since the order of float additions follows from it."""


class GateSection(msgspec.Struct, frozen=True, kw_only=True):
    """`[gate]`: what a run must reach on held-out data."""

    min_accuracy: Ratio = 0.0
    min_class_accuracy: Ratio = 0.0
    """The worst class must reach this."""
    max_loss: Annotated[float, Meta(gt=0)] | None = None
    """Mean cross-entropy, nats."""


class FederationSection(msgspec.Struct, frozen=True, kw_only=True):
    """`[federation]`: the training step for devices, and what an aggregate must reach."""

    enabled: bool = False
    """Export the training-step graph."""
    data: DataSection | None = None
    """The devices' domain; aggregates are judged on its held-out part."""
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """Momentum of the devices' optimizer; fixed in the exported step."""
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    min_gain: Annotated[float, Meta(ge=-1, le=1)] = 0.0
    """Accuracy that an aggregate must win over its parent on the devices' domain."""
    max_base_drop: Ratio = 1.0
    """Accuracy that an aggregate may lose on the base domain."""
    max_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Largest p of the exact McNemar test on the devices' domain."""


class TrackingSection(msgspec.Struct, frozen=True, kw_only=True):
    """`[tracking]`: MLflow."""

    enabled: bool = True
    uri: str = ""
    """Tracking server or `sqlite:///...`; empty is `mlflow.db` beside the run directory."""
    experiment: Annotated[str, Meta(min_length=1, max_length=200)] = "edgewise"


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The sections of a configuration file."""

    model: ModelSection
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    gate: GateSection = GateSection()
    federation: FederationSection = FederationSection()
    tracking: TrackingSection = TrackingSection()


class TrainConfig(Document, frozen=True, kw_only=True):
    """A configuration and the folder that its relative paths and modules start from."""

    folder: str = "."

    @property
    def sha256(self) -> str:
        """Digest of the canonical form of all that changes the result."""
        content = {name: msgspec.to_builtins(getattr(self, name)) for name in Document.__struct_fields__}
        content.pop("tracking")
        return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


_SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    "model": ModelSection,
    "data": DataSection,
    "train": TrainSection,
    "gate": GateSection,
    "federation": FederationSection,
    "tracking": TrackingSection,
}


def load_config(path: Path) -> TrainConfig:
    """Read a configuration file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or breaks the schema.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path.name} has more than {MAX_CONFIG_BYTES} bytes")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error}") from error
    return parse_config(text, folder=path.resolve().parent)


def parse_config(text: str, *, folder: Path = Path()) -> TrainConfig:
    """Parse the text of a configuration; see `load_config`."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the configuration is not TOML: {error}") from error
    check_keys(document, Document, "the configuration")
    if "model" not in document:
        raise ConfigError("the configuration needs a [model] section with a name")
    federation = document.get("federation")
    if isinstance(federation, dict) and "data" in federation:
        read_section(federation["data"], DataSection, "[federation.data]")
    sections: dict[str, Any] = {
        name: read_section(document[name], kind, f"[{name}]") for name, kind in _SECTIONS.items() if name in document
    }
    config = TrainConfig(**sections, folder=str(folder))
    if config.federation.enabled and config.federation.data is None:
        raise ConfigError("[federation] is enabled and needs [federation.data], the devices' domain")
    return config
