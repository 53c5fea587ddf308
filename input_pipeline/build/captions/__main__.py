"""python -m input_pipeline.build.captions"""

import sys

from input_pipeline.build.captions import cli

if __name__ == "__main__":
  sys.exit(cli.main())
