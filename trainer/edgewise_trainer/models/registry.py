"""Models by name, built from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgewise_trainer.errors import ConfigError, FactoryError
from edgewise_trainer.factories import call, is_reference, resolve
from edgewise_trainer.models.digits_cnn import DigitsCnn, DigitsCnnOptions
from edgewise_trainer.strict import read_section


def build(factory: str, options: Mapping[str, Any], *, seed: int, folder: Path = Path()) -> nn.Module:
    """Build a model with weights drawn from `seed`; the global random state is left as it was.

    Batch-norm step counters are dropped: they influence nothing unless `momentum` is None, and
    without them all state of a usual model is float, as averaging among devices wants it.

    Raises:
        ConfigError: there is no such built-in model, or it has no such option.
        FactoryError: `module:function` cannot be called, or returns no module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_reference(factory):
            model = call(factory, resolve(factory, folder), dict(options))
        elif factory == "digits_cnn":
            chosen = read_section(dict(options), DigitsCnnOptions, "[model.options] of digits_cnn")
            model = DigitsCnn(chosen.width, chosen.classes)
        else:
            raise ConfigError(
                f"[model] factory: there is no model {factory[:80]!r}; known: digits_cnn, module:function"
            )
    if not isinstance(model, nn.Module):
        raise FactoryError(f"{factory!r} returned {type(model).__name__}, not a torch.nn.Module")
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.num_batches_tracked = None
    return model
