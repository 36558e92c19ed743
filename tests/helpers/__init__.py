"""What the tests share; no test file imports from another."""

from __future__ import annotations

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parents[1]
ROOT: Final = TESTS.parent
V4: Final = TESTS / "data" / "v4.db"  # a database of the released app, by helpers/make_v4.py
FROZEN: Final = TESTS / "vaults"  # a vault of each released format, by helpers/make_vault.py
SAMPLES: Final = ROOT.parent / "shared" / "samples"  # databases of the app; where they are
