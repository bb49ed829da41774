"""`python -m vision_rl.cli`, which `accelerate launch` starts on every rank."""

import sys

from vision_rl.cli.main import main


sys.exit(main())
