"""Plug-ins of others in our tables: from a file that a user names, or from installed packages.

A plug-in is a function (or an object) of one of the kinds of ``KINDS``. ``use`` loads a Python file
that the user has named; ``provide`` puts in what an experiment asks for by name and no table
holds, out of those files and out of packages with entry points ``fedrobust.models``, ... Nothing is
ever loaded because a configuration or a message names a file or a module: it names plug-ins.
"""

from fedrobust.plugins.asking import asked, identities, lacking, names_in, provide, value_digest
from fedrobust.plugins.files import digest, functions_in, use, use_all, used
from fedrobust.plugins.kinds import KINDS, Part, PlugInError, made
from fedrobust.plugins.packages import entry_points, offered, package_of, part_of
from fedrobust.plugins.room import ROOM, installed
from fedrobust.plugins.travel import VARIABLE, at_hand, write_parts

__all__ = [
    "KINDS",
    "ROOM",
    "VARIABLE",
    "Part",
    "PlugInError",
    "asked",
    "at_hand",
    "digest",
    "entry_points",
    "functions_in",
    "identities",
    "installed",
    "lacking",
    "made",
    "names_in",
    "offered",
    "package_of",
    "part_of",
    "provide",
    "use",
    "use_all",
    "used",
    "value_digest",
    "write_parts",
]
