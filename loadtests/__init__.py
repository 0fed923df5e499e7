"""Load tests that end in pass or fail: `python -m loadtests --help`."""
