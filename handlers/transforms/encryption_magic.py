"""What encrypted parts are known by. Apart from the format, so that those can look who have nothing installed to decrypt with."""

from typing import Final

MAGIC: Final = b"\x93TLENC\r\n"
"""Not ASCII, and with a line end, so that what treats it as text is noticed."""
SUFFIX: Final = ".enc"
