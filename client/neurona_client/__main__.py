"""python -m neurona_client: the command line, see `cli.main`."""

import sys

from neurona_client.cli.main import main

sys.exit(main())
