"""`python -m weights_convert SRC DST --to FORMAT`: the same command as `distilbert convert`."""

import sys

from distilbert.__main__ import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]], program="python -m weights_convert")
