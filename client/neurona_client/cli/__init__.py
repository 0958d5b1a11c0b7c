"""The commands of `neurona`, a module each: what they are called, their arguments, `run`."""
