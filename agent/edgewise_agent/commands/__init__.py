"""The subcommands of `edgewise-agent`, one module each; `add_to` adds a module's parser."""
