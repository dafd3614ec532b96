"""``python -m oskit.cli``."""

import sys

from oskit.cli.main import main

sys.exit(main())
