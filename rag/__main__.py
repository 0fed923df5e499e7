"""`python -m rag`: the `vision-rag` command."""

from rag.cli import main

raise SystemExit(main())
