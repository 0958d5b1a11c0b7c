"""python -m neurona_server: see cli."""

import sys

from neurona_server.cli import main

sys.exit(main())
