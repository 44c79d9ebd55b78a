"""Runs: from a configuration, from weights that a federation made, and read back verified.

Both ways of making give a run directory of one form: `run_directory` names the files, `record`
is `run.json`. A run whose gate failed is written too, with its verdict: it is evidence, and
whoever converts or publishes must look at `gate.passed`.
"""

from edgewise_trainer.federated_run import from_weights as from_weights
from edgewise_trainer.run_directory import load_run as load_run
from edgewise_trainer.training_run import train as train
