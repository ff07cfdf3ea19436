"""`python -m objcrop` is the command line."""

from objcrop.cli import main

main()
