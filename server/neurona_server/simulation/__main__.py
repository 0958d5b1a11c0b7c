"""python -m neurona_server.simulation: the command neurona-simulate."""

import sys

from neurona_server.simulation.command import main

sys.exit(main())
