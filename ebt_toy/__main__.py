"`python -m ebt_toy` does what the command `ebt_toy` does."
import sys
from ebt_toy.runner import main

if __name__ == '__main__': sys.exit(main())
