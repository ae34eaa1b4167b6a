"""The command line: one file per command group. Parses, calls, prints; no logic lives here.

`main.py` knows every command by name; a command's file is imported only when it is run or asked for its help.
"""
