#!/usr/bin/env python3
"""A simulated Azure host: WireServer and IMDS, to be used by hand; see --help."""

from world.host import main

if __name__ == "__main__":
    main()
