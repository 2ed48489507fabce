#!/usr/bin/env python3
"""Run the real script on a machine that is a directory: sandbox.py DIR [OPTION]..."""

import sys

from world.sandbox import main

if __name__ == "__main__":
    sys.exit(main())
