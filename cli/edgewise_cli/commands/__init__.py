"""The commands of `edgewise`, one module a group."""
