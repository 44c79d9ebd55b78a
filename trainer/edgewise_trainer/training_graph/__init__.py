"""A model's whole training step (forward, loss, backward, optimizer) as one plain ONNX graph.

A device runs it with onnxruntime alone. `export` is the way in; `step` defines what one step
is; `tracing` writes it down as operators, using the decompositions beside it; `onnx_form`
strips and inspects the file; `gates` prove it against torch and refuse what is not proven.
"""

from edgewise_trainer.training_graph.export import TrainingStep as TrainingStep
from edgewise_trainer.training_graph.export import export_training_step as export_training_step
