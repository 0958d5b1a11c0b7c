"""How a command fails: one line on the standard error, and an exit status."""

FAILED = 1
WRONG_USAGE = 2


class CommandError(Exception):
    """Its text is the line."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status
