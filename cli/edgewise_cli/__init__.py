"""edgewise, the operator's tool: train, convert, sign, publish, roll out, federate."""
