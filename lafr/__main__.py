"""`python -m lafr COMMAND`: the installed command `lafr`, where its script is not on the path."""

import sys

from lafr.commands.cli import main

sys.exit(main())
