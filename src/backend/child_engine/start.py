"""Makes modules of the sources that flashjob hands over, and runs the last one: NAME SOURCE … NAME SOURCE MAIN."""

import sys
import types

*given, main = sys.argv[1:]
# What the engine starts is told these words, too.
del sys.argv[1:]
# A folder in the working directory that has the engine's name is not the engine.
sys.path[:] = [path for path in sys.path if path]
for name, source in zip(given[::2], given[1::2]):
    module = types.ModuleType(name)
    module.source = source
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
exec(compile(main, "<driver>", "exec"))
