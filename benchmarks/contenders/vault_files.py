"""
A vault for the commands that are timed as whole processes: `python vault_files.py FOLDER COUNT`.
"""

import sys
from pathlib import Path

from vault_calls import build, places

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    build(folder / "samsara.db", folder / "keys", list(places(int(sys.argv[2]), 1)))
