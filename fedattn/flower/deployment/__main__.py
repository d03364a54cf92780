"""`python -m fedattn.flower.deployment FOLDER [PROCESS]`: as `fedattn federation start`."""

import sys
from pathlib import Path

from fedattn.flower.deployment.processes import start

if __name__ == "__main__":
    sys.exit(start(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
