"""The simulated world: the platform, its faults, networks, and machines that boot.

Nothing here imports the tests (../suite) or the commands (..), which both use it.
"""
