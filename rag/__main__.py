"""`python -m rag`: the `vision-rag` command."""

from rag.cli.parser import main

raise SystemExit(main())
