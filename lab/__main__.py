"""Lets `python -m lab` be the command line."""

from lab.cli import main

main()
