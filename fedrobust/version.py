"""The version, for whoever needs it: nobody below the user imports the package's root."""

__version__ = "0.1.0"
