"""The simulated world of the tests; it uses nothing of the commands and of the suite."""
