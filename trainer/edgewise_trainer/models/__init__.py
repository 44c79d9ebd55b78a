"""Built-in models, and those of `module:function`."""

from edgewise_trainer.models.registry import build as build
