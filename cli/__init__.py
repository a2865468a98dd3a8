"""The command line: wires the parts together and talks to people.

A folder for each group of commands, with the group's own noun in `commands.py` and further ones in modules of their
name; what several of them need stands here.
"""
