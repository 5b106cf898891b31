"""Compiles all modules of the environment that runs it: engines import thousands of them in each process that they start.

usage: PYTHON scripts/compile-modules.py    (the Python of the environment)
"""

import compileall
import sysconfig

compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)
