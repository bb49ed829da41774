"""Runs a script with its arguments as one of several processes, and leaves when all of them are done.

    accelerate launch ... tests/scripts/run_and_leave.py examples/detection.py --output_dir ...

Python's own way out takes gloo down, which was seen to hang, and to abort, after all was written.
"""

import os
import runpy
import sys
from pathlib import Path

import torch


del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
torch.distributed.barrier()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
