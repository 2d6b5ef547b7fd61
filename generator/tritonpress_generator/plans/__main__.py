"""The command of the copied builder: `python3 -m build_plan SETTINGS.json`."""

import sys

from .builder import main

sys.exit(main(sys.argv[1:]))
