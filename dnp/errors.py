"""The package's own errors: one sentence each, with the cause and the mend.

The command line prints the sentence without a traceback and exits with code 2.
"""


class DnpError(Exception):
    """Something the user gave cannot be used; the message says what and how to mend it."""


class WeightsError(DnpError):
    """A weights folder or one of its files is missing, damaged, or of an unsupported kind."""


class SettingsError(DnpError):
    """A setting (method, scale, steps, device, ...) is outside what is possible."""


class PictureError(DnpError):
    """A picture or an output folder cannot be read or written."""


class NonFiniteError(DnpError):
    """A network returned NaN or infinity; the message names the step."""
