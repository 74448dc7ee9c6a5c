"""`python -m remails` is `remails`."""

from remails.cli import main

main()
