"""The same functions over many inputs, devices and hosts."""
