"""Load tests with a pass or fail verdict: `python -m loadtests --help`."""
