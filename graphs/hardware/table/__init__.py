"""The table of devices, in three pages: a device is one row, with its node and its links."""
