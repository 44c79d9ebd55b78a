"""Data sets with a content fingerprint, their split among clients, and corruption for tests of drift."""

from edgewise_trainer.datasets.clients import ClientData as ClientData
from edgewise_trainer.datasets.clients import split_by_label as split_by_label
from edgewise_trainer.datasets.clients import write_samples as write_samples
from edgewise_trainer.datasets.corruption import corrupt as corrupt
from edgewise_trainer.datasets.dataset import Dataset as Dataset
from edgewise_trainer.datasets.registry import load as load
