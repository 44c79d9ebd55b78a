"""The update of each model as a transition table, and the thread that carries it out."""
