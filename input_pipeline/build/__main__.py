"""python -m input_pipeline.build: other people's data -> records."""

import sys

from input_pipeline.build import cli

if __name__ == "__main__":
  sys.exit(cli.main())
