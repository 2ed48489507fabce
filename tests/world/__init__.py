"""The simulated world: the platform, its faults, networks, disks, and machines that boot.

Nothing here imports the tests (../suite) or the commands (..), which both use it.
"""
