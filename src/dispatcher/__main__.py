"""`python -m dispatcher` is the command `dispatcher`."""

from __future__ import annotations

from dispatcher.cli.main import main

if __name__ == "__main__":
    main()
