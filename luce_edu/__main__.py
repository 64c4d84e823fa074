"""`python -m luce_edu` is `luce-edu`."""

from luce_edu.cli import main

raise SystemExit(main())
