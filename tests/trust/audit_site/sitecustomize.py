"""Makes worker processes of an audited command audited, too: `site` imports it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
import audit

audit.arm_from_environment()
sys.path.pop()
