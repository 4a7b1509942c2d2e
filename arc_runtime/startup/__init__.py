"""Starting fast and staying small: the rule for imports, and what carries it out.

Modules of ours are imported at the top of a file. A heavy third-party module that most processes
never use stands there as a late module (late_module.py), and so does arc_protocol.sealing, whose
import is PyNaCl's. Only the packages named `cli` import inside functions: each of their subcommands
is a program of its own. Entry points load what every run needs by light_imports.py.
"""
