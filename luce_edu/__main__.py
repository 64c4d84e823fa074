"""Run the command `luce-edu`, on `python -m luce_edu`."""

from luce_edu.cli import main

raise SystemExit(main())
