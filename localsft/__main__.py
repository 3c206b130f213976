"""``python -m localsft``."""

from localsft.cli.main import main

main()
