"""A rank that comes up and says nothing."""

from __future__ import annotations

import faulthandler
import time

if __name__ == "__main__":
    faulthandler.enable()
    time.sleep(60)
