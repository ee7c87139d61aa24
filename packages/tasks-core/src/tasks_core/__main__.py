"""`python -m tasks_core worker app.main:engine`: see `_durable/command.py`."""

import sys

from ._durable.command import main

if __name__ == "__main__":
    sys.exit(main())
