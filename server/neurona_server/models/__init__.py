"""Models: files on disk, their signatures, sessions on devices, versions in memory."""
