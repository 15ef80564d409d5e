# Runs once, before the snapshot, in the process that every kernel is forked from.
import shutil

import jedi

# The first Tab would wait for all that jedi parses then. It stays in memory; the copy on disk nobody needs.
jedi.Interpreter("import os\nos.pa", [{}]).complete()
shutil.rmtree(jedi.settings.cache_directory)
