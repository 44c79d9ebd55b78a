"""REST transports: each module exposes `router`. They decide nothing."""
