"""The command `chiaroscuro`. Each subcommand imports what it needs when it runs, so that `--help` waits for the package
alone."""

# Each of these adds its commands; --help lists them in this order.
# isort: off
from chiaroscuro.cli import making  # noqa: F401
from chiaroscuro.cli import judging  # noqa: F401
from chiaroscuro.cli import looking  # noqa: F401
from chiaroscuro.cli import measuring  # noqa: F401
from chiaroscuro.cli.root import app, main

__all__ = ["app", "main"]
