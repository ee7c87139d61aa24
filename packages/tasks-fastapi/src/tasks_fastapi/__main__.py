"""`python -m tasks_fastapi worker app.main:app`: see `_worker.py`."""

import sys

from ._worker import main

if __name__ == "__main__":
    sys.exit(main())
