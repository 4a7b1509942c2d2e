"""The command line of the server, `arc-server`: a module for each group of commands.

Exit codes: 0 done; 1 the command failed, or the named thing does not exist; 2 usage or
configuration.
"""
