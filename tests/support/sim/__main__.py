"""`python -m tests.support.sim`: see `many`, which has a name of its own so that worker processes can import it."""

import sys

from tests.support.sim.many import main

if __name__ == "__main__":
    sys.exit(main())
