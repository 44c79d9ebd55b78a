"""The search for the best form of a model on a target: candidates, judgement, and what was found."""
