"""``python -m oskit``, also for launchers that want a module: ``torchrun -m oskit train``."""

import sys

from oskit.cli.main import main

sys.exit(main())
