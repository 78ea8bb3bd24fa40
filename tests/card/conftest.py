"""What the tests of the card share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # small_family.py is a module of the tests beside it
