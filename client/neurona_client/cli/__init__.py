"""The command `neurona`: a module for each subcommand, with its name, help, arguments and `run`."""
