"""A file whose content is not what its kind expects.

It is alone because all readers of this package raise it.
"""


class FileContentError(ValueError):
    """The content of a file cannot be read as its kind.

    The message is one line without the file's name, which the caller knows: what was found, and
    what was expected.
    """
