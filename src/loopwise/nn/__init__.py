"""Layers that know neither tasks nor recursion."""
