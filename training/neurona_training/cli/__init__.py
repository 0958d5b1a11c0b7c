"""The command line neurona-train."""
