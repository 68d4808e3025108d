"""`python -m chiaroscuro`."""

from chiaroscuro.cli import main

main()
