"""Makes `python -m llava_serving` the command `llava-serving`."""

import sys

from .tools.cli import main

sys.exit(main())
